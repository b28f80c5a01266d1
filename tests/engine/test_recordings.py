"""The modelled engine against recorded decisions of the real vLLM scheduler (benchmarks/record_vllm.py).

Each recording is replayed with one second per iteration and the recorded arrivals. Compared exactly, for
every call: the prefix hit at admission, the iteration of admission, of the first token and of the last one, and
the number of preemptions, and the tokens prefilled (again after preemption too). Nothing is compared with a
tolerance.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from saga.engine import ConstantLatency, EngineRequest, EngineSettings, ModelledEngine

RECORDINGS = {path.stem: path for path in sorted(Path(__file__).parent.glob("recordings/*.json"))}


class Decided(NamedTuple):
    """What became of a call; times are iterations."""

    cached: int
    admitted: int
    first_token: int
    finished: int
    num_preemptions: int
    prefilled: int


def _recorded(recording: dict[str, Any]) -> dict[str, Decided]:
    return {
        entry["step"]: Decided(
            entry["cached"],
            entry["admitted"],
            entry["first_token"],
            entry["finished"],
            len(entry["preempted"]),
            entry["prefilled"],
        )
        for entry in recording["decisions"]
    }


def _replay(recording: dict[str, Any], max_jump_iterations: int) -> dict[str, EngineRequest]:
    """Run the recording's calls at the recorded arrivals; the engine's laws are checked at each of them."""
    told = recording["engine"]
    settings = EngineSettings(
        kv_tokens=told["num_blocks"] * told["block_tokens"],
        block_tokens=told["block_tokens"],
        max_running=told["max_running"],
        chunk_tokens=told["chunk_tokens"],
        queue=told["queue"],
        max_jump_iterations=max_jump_iterations,
    )
    engine = ModelledEngine(settings, ConstantLatency(1.0))
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
        request.cached_tokens,
        round(request.started_s),
        round(request.first_token_s) - 1,
        round(request.finished_s) - 1,
        request.num_preemptions,
        request.prefilled_tokens,
    )


@pytest.mark.parametrize("max_jump_iterations", [1, 1 << 30], ids=["stepping", "jumping"])
@pytest.mark.parametrize("name", RECORDINGS)
def test_decides_as_vllm_did(name: str, max_jump_iterations: int) -> None:
    """Every call is admitted, served, preempted and finished as the real scheduler recorded it."""
    recording = json.loads(RECORDINGS[name].read_text())
    requests = _replay(recording, max_jump_iterations)
    assert {step: _decided(request) for step, request in requests.items()} == _recorded(recording)
