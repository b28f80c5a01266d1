"""The modelled engine against recorded decisions of the real vLLM scheduler (benchmarks/record_vllm.py).

Each recording is replayed with one second per iteration and the recorded arrivals. Compared exactly, for every call:
the prefix hit at admission and what of it the host tier gave, the iteration of admission, of the first token and of the
last one, the number of preemptions, and the tokens prefilled (again after preemption too); for every iteration: the
blocks held. Where the model simplifies, the effect is recorded too and bounded: see DIFFERENT_ON_PURPOSE and CLOSE.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from saga.engine import ConstantLatency, EngineRequest, EngineSettings, ModelledEngine

RECORDINGS = {path.stem: path for path in sorted(Path(__file__).parent.glob("recordings/*.json"))}

DIFFERENT_ON_PURPOSE = {
    # Calls that write the same blocks at the same time share them in the model once they end; vLLM keeps every copy
    # until it is evicted. More is hit: at most the copies, here 2 of 4 blocks.
    "duplicates_under_pressure": 2 * 4 * 16,
}
"""Recording -> tokens that the model may hit more than vLLM, over all calls."""

CLOSE = {
    # vLLM cannot evict a block of the host tier in the one or two iterations in which it is written, makes calls wait
    # for such blocks, and retires calls that end together in the order of a set. In a tier of 27 blocks one other
    # victim changes the order of the calls after it. Here 10 % less is prefilled; over 12 seeds the sums differ by less
    # than 1 %.
    "agents_host_small_priority_9": (0.02, 0.15),
}
"""Recording -> by how much the end of the last call and the tokens prefilled may differ, relatively."""

SAME = sorted(RECORDINGS.keys() - DIFFERENT_ON_PURPOSE.keys() - CLOSE.keys())


class Decided(NamedTuple):
    """What became of a call; times are iterations. host: what of `cached` was loaded from the host tier."""

    cached: int
    host: int
    admitted: int
    first_token: int
    finished: int
    num_preemptions: int
    prefilled: int


def _recorded(recording: dict[str, Any]) -> dict[str, Decided]:
    return {
        entry["step"]: Decided(
            entry["cached"],
            entry.get("host", 0),
            entry["admitted"],
            entry["first_token"],
            entry["finished"],
            len(entry["preempted"]),
            entry["prefilled"],
        )
        for entry in recording["decisions"]
    }


def _engine(recording: dict[str, Any], max_jump_iterations: int) -> ModelledEngine:
    told = recording["engine"]
    settings = EngineSettings(
        kv_tokens=told["num_blocks"] * told["block_tokens"],
        block_tokens=told["block_tokens"],
        max_running=told["max_running"],
        chunk_tokens=told["chunk_tokens"],
        queue=told["queue"],
        host_kv_tokens=told.get("host_blocks", 0) * told["block_tokens"],
        load_tokens_per_s=told.get("load_tokens_per_s", 0.0),
        max_jump_iterations=max_jump_iterations,
    )
    return ModelledEngine(settings, ConstantLatency(1.0))


def _replay(recording: dict[str, Any], max_jump_iterations: int) -> dict[str, EngineRequest]:
    """Run the recording's calls at the recorded arrivals; the engine's laws are checked at each of them."""
    engine = _engine(recording, max_jump_iterations)
    requests: dict[str, EngineRequest] = {}
    calls = {call["step"]: call for call in recording["calls"]}
    for entry in recording["decisions"]:
        request = _request(calls[entry["step"]])
        at_s = float(entry["arrived"])
        engine.advance(at_s)
        engine.submit(request, at_s)
        engine.check()
        requests[request.step] = request
    engine.advance(1e9)
    engine.check()
    return requests


def _request(call: dict[str, Any]) -> EngineRequest:
    path = tuple((stream, tokens) for stream, tokens in call["path"])
    prompt_tokens = sum(tokens for _, tokens in path)
    return EngineRequest(call["step"], call["session"], path, prompt_tokens, call["output_tokens"], call["priority"])


def _decided(request: EngineRequest) -> Decided:
    return Decided(
        request.cached_tokens + request.host_tokens,
        request.host_tokens,
        round(request.started_s),
        round(request.first_token_s) - 1,
        round(request.finished_s) - 1,
        request.num_preemptions,
        request.prefilled_tokens,
    )


@pytest.mark.parametrize("max_jump_iterations", [1, 1 << 30], ids=["stepping", "jumping"])
@pytest.mark.parametrize("name", SAME)
def test_decides_as_vllm_did(name: str, max_jump_iterations: int) -> None:
    """Every call is admitted, served, preempted and finished as the real scheduler recorded it."""
    recording = json.loads(RECORDINGS[name].read_text())
    requests = _replay(recording, max_jump_iterations)
    assert {step: _decided(request) for step, request in requests.items()} == _recorded(recording)


@pytest.mark.parametrize("name", DIFFERENT_ON_PURPOSE)
def test_differs_no_more_than_intended(name: str) -> None:
    """Where the model simplifies, the prefix hits differ within the stated bounds and the times not at all."""
    recording = json.loads(RECORDINGS[name].read_text())
    real = _recorded(recording)
    modelled = {step: _decided(request) for step, request in _replay(recording, 1 << 30).items()}
    more = sum(modelled[step].cached - real[step].cached for step in real)
    assert 0 < more <= DIFFERENT_ON_PURPOSE[name]
    assert {step: decided[1:6] for step, decided in modelled.items()} == {
        step: decided[1:6] for step, decided in real.items()
    }


@pytest.mark.parametrize("name", CLOSE)
def test_adds_up_to_nearly_the_same(name: str) -> None:
    """Where single decisions differ with the host tier's timing, their sums do not by more than is stated."""
    recording = json.loads(RECORDINGS[name].read_text())
    real = _recorded(recording).values()
    modelled = [_decided(request) for request in _replay(recording, 1 << 30).values()]
    end, prefilled = CLOSE[name]
    assert max(call.finished for call in modelled) == pytest.approx(max(call.finished for call in real), rel=end)
    assert sum(call.prefilled for call in modelled) == pytest.approx(
        sum(call.prefilled for call in real), rel=prefilled
    )
    assert sum(call.host for call in modelled) > 0


@pytest.mark.parametrize("name", SAME)
def test_holds_the_blocks_that_vllm_held(name: str) -> None:
    """Stepping, the running calls of every iteration hold as many blocks as the real scheduler's."""
    recording = json.loads(RECORDINGS[name].read_text())
    engine = _engine(recording, max_jump_iterations=1)
    arrivals = [(entry["arrived"], entry["step"]) for entry in recording["decisions"]]
    calls = {call["step"]: call for call in recording["calls"]}
    free: list[tuple[int, int]] = []
    for first, _, _, _ in recording["iterations"]:
        while arrivals and arrivals[0][0] <= first:
            at_s, step = arrivals.pop(0)
            engine.advance(float(at_s))
            engine.submit(_request(calls[step]), float(at_s))
        engine.advance(first + 0.5)
        free.append((first, engine.pool.available))
    assert free == [(first, num_free_blocks) for first, _, _, num_free_blocks in recording["iterations"]]
