"""What the host tier relies on in vLLM and vLLM does not promise."""

from __future__ import annotations

import inspect

import pytest

from saga.errors import UsageError

from .engines import tiered, tokens


def test_this_vllm_has_all_that_the_tier_relies_on(engines):
    """Names and parameters, and the attributes of a scheduler with a tier."""
    engine = tiered(engines)
    from saga.vllm_plugin import compatibility

    compatibility.check_tier()
    compatibility.check_scheduler(engine.scheduler, compatibility.TIER_ATTRIBUTES)
    (group,) = engine.scheduler.connector.connector_scheduler.config.kv_group_configs
    assert (group.tokens_per_chunk, group.hashes_per_chunk, group.sliding_window_size_in_chunks) == (32, 1, None)


def test_a_vllm_without_something_is_refused(engines, monkeypatch):
    """The internal is named."""
    tiered(engines)
    from saga.vllm_plugin import compatibility

    monkeypatch.setitem(compatibility.NEEDED_BY_TIER, "vllm.v1.kv_offload.base:gone", ())
    with pytest.raises(UsageError, match="base:gone is not there"):
        compatibility.check_tier()


def test_every_abstract_method_of_a_policy_and_a_worker_is_there(engines):
    """A vLLM that asks more of a cache policy or of a worker would not start; this says it first."""
    tiered(engines)
    from saga.vllm_plugin.offload import CopyWorker, SagaTierPolicy

    assert not inspect.isabstract(SagaTierPolicy)
    assert not inspect.isabstract(CopyWorker)


def test_a_request_hashes_as_it_is_told(engines):
    """An errand brings the hashes of its session along; vLLM computes none of its own for them."""
    engine = tiered(engines)
    from vllm import SamplingParams
    from vllm.v1.request import Request

    engine.ask(tokens(1, 100), session="a")
    hashes = list(engine.scheduler.saga.sessions.named("a")[0].block_hashes)
    request = Request(
        "r",
        tokens(1, 97),
        SamplingParams(max_tokens=1),
        None,
        block_hasher=lambda each: hashes[len(each.block_hashes) :],
    )
    assert request.block_hashes == hashes
    request.append_output_token_ids(5)
    assert request.block_hashes == hashes


def test_the_settings_of_the_spec_arrive(engines):
    """Generated tokens are stored, and the order of leaving is the one that was asked for."""
    engine = tiered(engines, eviction="lru")
    offloading = engine.scheduler.connector.connector_scheduler
    assert not offloading.config.offload_prompt_only
    from saga.cache.prefix_lru import PrefixLru
    from saga.vllm_plugin.offload import tier_policy

    assert tier_policy(offloading.manager).order.policy == PrefixLru()


def test_a_spec_without_a_field_and_a_manager_without_the_policy_are_refused(engines):
    """What only objects have is looked for when they are made: vLLM keeps it where no promise covers it."""
    engine = tiered(engines)
    from saga.vllm_plugin import compatibility
    from saga.vllm_plugin.offload import tier_policy

    manager = engine.scheduler.connector.connector_scheduler.manager
    compatibility.check_manager(manager, tier_policy(manager))
    with pytest.raises(UsageError, match="keeps its cache policy where the plug-in does not find it"):
        compatibility.check_manager(manager, tier_policy(object()))
    with pytest.raises(UsageError, match="TieringOffloadingSpec has no attribute _engine_id"):
        compatibility.check_spec(object())
