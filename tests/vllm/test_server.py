"""The plug-in inside vLLM's own OpenAI server, as a user starts it: what its clients and its metrics see."""

from __future__ import annotations

import json
import re

import pytest

from saga.vllm_plugin.transfer_config import transfer_config

from .engines import BLOCK_TOKENS, KV_BYTES_PER_TOKEN, cached_tokens, tokens


@pytest.fixture
def plugged(server):
    """A server with SAGA's scheduler and a host tier."""
    tier = transfer_config(600 * BLOCK_TOKENS * KV_BYTES_PER_TOKEN)
    return server.start(
        *("--scheduler-cls", "saga.vllm_plugin.scheduler.SagaScheduler", "--scheduling-policy", "priority"),
        *("--kv-transfer-config", json.dumps(tier)),
    )


def found(server):
    """Prompt tokens that were not computed since the start, by where they were."""
    pattern = r'prompt_tokens_cached_by_source_total\{[^}]*source="(\w+)"[^}]*\} ([\d.e+]+)'
    return {source: float(count) for source, count in re.findall(pattern, server.metrics())}


def flood(server, seed):
    """Others push everything off the device that may leave it."""
    for i in range(5):
        server.ask(tokens(seed + i, 1_000), 1)


def test_a_session_that_is_expected_back_stays_on_the_device(plugged):
    """Of two idle sessions the one whose call said it comes back is found on the device, the other in the tier."""
    kept, other = tokens(1, 1_000), tokens(2, 1_000)
    first = [
        plugged.ask(kept, 16, session_id="kept", vllm_xargs={"saga_expected_gap_s": 30.0}),
        plugged.ask(other, 16, session_id="other"),
    ]
    flood(plugged, 100)
    before = found(plugged)
    again = [plugged.ask(kept, 16, session_id="kept")]
    between = found(plugged)
    again.append(plugged.ask(other, 16, session_id="other"))
    after = found(plugged)
    assert [cached_tokens(answer) for answer in again] == [992, 992]
    assert between["device"] - before.get("device", 0) == 992
    assert after["host"] - between.get("host", 0) == 992
    assert [answer["choices"][0]["text"] for answer in again] == [answer["choices"][0]["text"] for answer in first]


def test_nonsense_in_hints_is_ignored(plugged):
    """Whatever a client says in the plug-in's fields, its call is answered."""
    for xargs in (
        {"saga_expected_gap_s": -1},
        {"saga_expected_gap_s": "soon"},
        {"saga_continue_probability": 7, "saga_unknown": "x"},
        {"saga_tenant": "t" * 5_000, "saga_step": 3},
    ):
        answer = plugged.ask(tokens(3, 50), 4, session_id="s", vllm_xargs=xargs)
        assert answer["usage"]["completion_tokens"] == 4


def test_a_wake_is_a_call_like_any_other(plugged):
    """A call of one token that only wakes the engine comes back with its token."""
    answer = plugged.ask([300], 1, vllm_xargs={"saga_wake": 1})
    assert answer["usage"]["completion_tokens"] == 1
