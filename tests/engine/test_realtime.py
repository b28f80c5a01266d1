"""The engine on the wall clock: calls end, are shown their tokens in order, and may leave at any moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from saga.engine.batching import ModelledEngine
from saga.engine.calls import EngineRequest, EngineSettings
from saga.engine.latency import ConstantLatency
from saga.engine.realtime import RealTime


def request(step: str, output_tokens: int = 20) -> EngineRequest:
    """A call with a prompt of its own."""
    return EngineRequest(step, step, ((int(step), 100),), 100, output_tokens)


def play(scene: Callable[[RealTime], Awaitable[None]], *, speed: float) -> list[EngineRequest]:
    """Run a scene with an engine whose iterations last 10 ms; the calls that left it, in order."""
    left: list[EngineRequest] = []

    async def run() -> None:
        engine = ModelledEngine(EngineSettings(kv_tokens=4_000), ConstantLatency(0.01))
        real = RealTime(engine, speed=speed, step_s=0.001, on_end=left.append)
        await scene(real)
        real.close()
        engine.check()
        assert engine.report()[:3] == (0, 0, 0)

    asyncio.run(run())
    return left


def test_calls_are_shown_their_tokens_in_order_and_end() -> None:
    """A streaming call sees 1, then ever more, then all; one that does not stream sees its end."""

    async def scene(real: RealTime) -> None:
        stream, whole = real.submit(request("1"), streaming=True), real.submit(request("2"), streaming=False)
        seen = [0]
        while not stream.done:
            seen.append(await stream.more(seen[-1]))
        await whole.finished()
        assert seen == sorted(seen)
        assert (seen[-1], whole.tokens) == (20, 20)

    left = play(scene, speed=10.0)
    assert {one.step for one in left} == {"1", "2"}
    assert all(one.finished_s - one.arrival_s >= 0.2 - 1e-9 for one in left)


def test_a_call_that_leaves_just_when_it_ends_has_ended() -> None:
    """The loop was busy while the engine finished: cancelling then is no abort, and nothing is counted twice."""

    async def scene(real: RealTime) -> None:
        call = real.submit(request("1"), streaming=False)
        time.sleep(0.01)  # noqa: ASYNC251 - the point: the loop does not run meanwhile
        real.cancel(call)
        assert (call.done, call.tokens) == (True, 20)
        real.cancel(call)

    left = play(scene, speed=1e4)
    assert [one.finished_s == one.finished_s for one in left] == [True]


def test_closing_ends_all_calls() -> None:
    """Running and waiting ones alike; their waiters wake up."""

    async def scene(real: RealTime) -> None:
        calls = [real.submit(request(str(number), 1_000), streaming=number % 2 == 0) for number in range(1, 9)]
        await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(call.finished()) for call in calls]
        await asyncio.sleep(0)
        real.close()
        await asyncio.gather(*waiting)
        assert all(call.done for call in calls)

    assert len(play(scene, speed=1.0)) == 8
