"""The modelled engine in (scaled) real time: it sleeps instead of computing.

One timer advances the engine by the event loop's clock times `speed` and wakes the calls that wait for it. A call that
streams is shown its tokens as they come, in steps of `step_s` real seconds at least. It refuses to know HTTP and text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

from saga.engine.batching import ModelledEngine
from saga.engine.calls import GONE, EngineRequest


class LiveCall:
    """A call in the engine. tokens: of its answer, shown so far; done: nothing more comes."""

    __slots__ = ("_waiter", "done", "request", "streaming", "tokens")

    def __init__(self, request: EngineRequest, *, streaming: bool) -> None:
        self.request = request
        self.streaming = streaming
        self.tokens = 0
        self.done = False
        self._waiter: asyncio.Future[None] | None = None

    async def more(self, seen: int) -> int:
        """Wait until more than `seen` tokens are there, or the end; how many there are. One waiter at a time."""
        while self.tokens <= seen and not self.done:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self.tokens

    async def finished(self) -> None:
        """Wait for the end of the answer."""
        while not self.done:
            await self.more(self.tokens)

    def show(self, tokens: int, *, done: bool = False) -> None:
        """Tell the waiter."""
        if tokens > self.tokens or done:
            self.tokens, self.done = tokens, done
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)


class RealTime:
    """Drives one engine; made and used inside a running event loop.

    on_end: told of each call that leaves the engine, `finished_s` nan where it was aborted. speed: seconds of the
    engine per real second. step_s: real seconds between two looks at streaming answers.
    """

    def __init__(
        self, engine: ModelledEngine, *, speed: float, step_s: float, on_end: Callable[[EngineRequest], None]
    ) -> None:
        self.engine = engine
        self.speed = speed
        self._step_s = step_s
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self._calls: dict[str, LiveCall] = {}
        self._streaming: dict[str, LiveCall] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looked_s = self._began_s

    def now_s(self) -> float:
        """The engine's time."""
        return (self._loop.time() - self._began_s) * self.speed

    def submit(self, request: EngineRequest, *, streaming: bool) -> LiveCall:
        """Queue a call. Raises UsageError where it can never fit."""
        self.engine.submit(request, self.now_s())
        call = LiveCall(request, streaming=streaming)
        self._calls[request.step] = call
        self._arm()
        return call

    def cancel(self, call: LiveCall) -> None:
        """The client has gone: the call gives its blocks back at once, unless it has ended by now."""
        request, at_s = call.request, self.now_s()
        self._advance(at_s)
        if self._calls.pop(request.step, None) is None:
            self._arm()
            return
        self._streaming.pop(request.step, None)
        self.engine.cancel(request.step, at_s)
        self._on_end(request)
        call.show(call.tokens, done=True)
        self._arm()

    def close(self) -> None:
        """Stop the clock; calls that are still here end."""
        if self._timer is not None:
            self._timer.cancel()
        for call in list(self._calls.values()):
            self.cancel(call)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _arm(self) -> None:
        """Set the timer to when something becomes visible."""
        due_s = self.engine.next_event_s()
        wait_s = (due_s - self.now_s()) / self.speed if due_s < inf else inf
        if self._streaming:
            wait_s = min(wait_s, self._looked_s + self._step_s - self._loop.time())
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, wait_s), self._fire) if wait_s < inf else None

    def _fire(self) -> None:
        self._advance(self.now_s())
        self._arm()

    def _advance(self, at_s: float) -> None:
        """Let the engine's time come; tell the calls what became visible."""
        self._looked_s = self._loop.time()
        for outcome in self.engine.advance(at_s):
            call = self._calls.get(outcome.step)
            if call is None:
                continue
            if outcome.kind == "finished":
                del self._calls[outcome.step]
                self._streaming.pop(outcome.step, None)
                self._on_end(call.request)
                call.show(call.request.output_tokens, done=True)
            elif call.streaming and call.request.state != GONE:
                self._streaming[outcome.step] = call
                call.show(1)
        for call in self._streaming.values():
            call.show(self.engine.generated(call.request, at_s))
