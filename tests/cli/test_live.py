"""The measured part of the demo: it measures, and it leaves nothing behind, however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from saga.cli.live import LiveScene, play
from saga.errors import PeerError, UnknownName
from saga.gateway.embedded import EmbeddedEngines

TINY = LiveScene(workload="web_arena", agents=2, tasks=2, max_calls=12, speed=1_000.0, repeats=1, scale=0.1)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Process ids of the engines; after the test none is alive."""
    found: list[int] = []
    start = EmbeddedEngines.start

    async def watched(self: EmbeddedEngines) -> object:
        workers = await start(self)
        found.extend(child.pid for child in self._children)
        return workers

    monkeypatch.setattr(EmbeddedEngines, "start", watched)
    yield found
    for child in found:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


@pytest.mark.slow
def test_both_fronts_do_the_same_tasks_on_the_same_engines(children: list[int]) -> None:
    """Same calls, same lengths, no errors; the report's group says what was real."""
    played = play(TINY)
    plain, saga = played.document["runs"]
    assert (plain["preset"], saga["preset"]) == ("least_loaded", "saga")
    assert plain["calls"] == saga["calls"] > 0
    assert plain["input_tokens"] == pytest.approx(saga["input_tokens"], rel=0.05)
    assert plain["errors"] == saga["errors"] == 0
    assert set(plain["calls_by_worker"]) | set(saga["calls_by_worker"]) <= {"engine-1", "engine-2"}
    group = played.as_group()
    assert group.kind == "measured"
    assert "modelled engines" in group.notes[0]
    assert [len(detail.tct_s) for detail in group.details.values()] == [2, 2]
    assert len(children) == TINY.workers


@pytest.mark.parametrize("failing", ["saga.gateway.serve.Gateway.start", "saga.bench.replay.Replay.run"])
@pytest.mark.slow
def test_engines_end_when_something_goes_wrong(
    children: list[int], monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """A gateway that cannot listen, a replay that fails."""

    async def fail(self: object) -> None:
        raise PeerError("no")

    monkeypatch.setattr(failing, fail)
    with pytest.raises(PeerError, match="no"):
        play(TINY)
    assert len(children) == TINY.workers


@pytest.mark.slow
def test_engines_end_at_an_interrupt(children: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a run."""

    async def interrupted(self: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(30)

    monkeypatch.setattr("saga.bench.replay.Replay.run", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            play(TINY)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(children) == TINY.workers


def test_an_unknown_workload_is_refused_before_anything_starts(children: list[int]) -> None:
    """No engine is started for nothing."""
    with pytest.raises(UnknownName):
        play(LiveScene(workload="swe_bensh"))
    assert children == []
