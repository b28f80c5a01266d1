"""The host tier on a real engine: what the device lost comes back, and the answers stay the same."""

from __future__ import annotations

import pytest

from saga.vllm_plugin.transfer_config import transfer_config

from .engines import BLOCK_TOKENS, tokens

KV_BYTES_PER_TOKEN = 2_048  # 4 layers, 2 KV heads of 64, keys and values, bfloat16
MiB = 1 << 20


def tiered(engines, host_blocks=1_000, **settings):
    """An engine with SAGA's scheduler and a host tier of so many blocks."""
    return engines.get(
        scheduler_cls="saga.vllm_plugin.scheduler.SagaScheduler",
        kv_transfer_config=transfer_config(host_blocks * BLOCK_TOKENS * KV_BYTES_PER_TOKEN, **settings),
    )


def test_an_evicted_prefix_comes_back_from_the_tier_with_the_same_answer(engines):
    """What others pushed off the device is loaded, not computed, and the greedy answer does not change."""
    engine = tiered(engines)
    prompt = tokens(1, 2_000)
    cold = engine.ask(prompt, 16, session="a")
    engine.flood()
    again = engine.ask(prompt, 16, session="a")
    assert again.token_ids == cold.token_ids
    assert (cold.cached, again.cached) == (0, 1_999 // BLOCK_TOKENS * BLOCK_TOKENS)
    engine.check_conserved()
