"""The scheduler's asyncio driver: calls in, tickets out.

A call becomes a `StepArrived`; the `Dispatch` that answers it, at once or later, becomes the ticket that the call waits
for. What the data plane then says of the ticket becomes `FirstToken`, `StepFinished`, `StepFailed`, `StepCancelled`.
Events are stamped with the event loop's time; a timer follows the schedulers' deadlines.

Bounds: at most `max_queue` calls wait (as many again of tenants that have less than their part of it), none longer than
`max_wait_s`, and where no worker is up none longer than `no_worker_wait_s`. Beyond them the client gets 429 or 503 with
`Retry-After`, the scheduler a `StepCancelled`.

A failed attempt is tried again once, on another worker: where the scheduler sends it back to where it just failed (its
prefix is there, and the circuit is still closed), it makes a *detour* to the least busy other worker, while the
scheduler goes on to count it at home. A pinned call goes to its worker in the same way. A client's retry of a step that
still lives joins that step: it follows it to its worker and is no step of its own.

Calls that are no steps (embeddings, unknown paths) go to the least busy worker at once. Commands to engines (`Retain`,
`Prefetch`, ...) go to `engines`, which carries them where the worker has a link; all are counted. Stealing is left out
of any preset: a call that a worker has is not taken back from it.

It refuses to know bytes, sockets, formats and whose call it is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from saga import commands as do
from saga import events as ev
from saga.errors import InvariantViolated, ProtocolError, SagaError
from saga.gateway.contracts import Answer, Call, Kind, Refused, Ticket
from saga.gateway.journal import Journal, say
from saga.gateway.pools import Pool, Pools, Seat
from saga.gateway.settings import SchedulingSettings
from saga.gateway.workers import Worker, Workers, WorkerState
from saga.scheduler.gate import is_full
from saga.scheduler.invariants import check
from saga.workflow.model import WorkflowModel

_LOOSE: Final = frozenset({Kind.EMBEDDINGS, Kind.OTHER})
_BYTES_PER_TOKEN: Final = 4
_PER_CLASS: Final = 2**33
_UNREACHABLE: Final = "no connection to"  # how `upstream.Unreachable` begins where nobody listens
_MAX_RETRY_AFTER_S: Final = 60.0

Gone: TypeAlias = Callable[[Call, Answer, float, str], None]


class Meter(Protocol):
    """Who counts what happens here."""

    def decided(self, seconds: float) -> None:
        """An event was handled, in wall seconds."""
        ...

    def commanded(self, name: str) -> None:
        """The scheduler ordered something."""
        ...

    def dispatched(self, worker: str, tenant: str, kind: str, queued_s: float) -> None:
        """A call got its ticket."""
        ...

    def began(self, worker: str, ttft_s: float) -> None:
        """The first byte came, seconds after the call did."""
        ...

    def ended(self, worker: str, tenant: str, kind: str, outcome: str, answer: Answer | None) -> None:
        """A ticket ended: finished, error, failed, retried or cancelled."""
        ...

    def refused(self, tenant: str, kind: str, why: str) -> None:
        """A call got no ticket: queue_full, waited_too_long, no_worker, model_not_found, rejected, or left."""
        ...


class Engines(Protocol):
    """Who carries commands to engines."""

    def order(self, worker: str, command: do.Command, at_s: float) -> bool:
        """Whether it is under way to the worker of that name (of the registry). Never waits."""
        ...

    def move(self, worker: str, command: do.Migrate, at_s: float) -> asyncio.Future[None] | None:
        """Done when the source has answered, or will not; None where it cannot be told."""
        ...


class NoEngines:
    """No engine has a link."""

    def order(self, worker: str, command: do.Command, at_s: float) -> bool:
        """Nothing is under way."""
        return False

    def move(self, worker: str, command: do.Migrate, at_s: float) -> asyncio.Future[None] | None:
        """Nobody can be told."""
        return None


class NoMeter:
    """Counts nothing."""

    def decided(self, seconds: float) -> None:
        """Nothing."""

    def commanded(self, name: str) -> None:
        """Nothing."""

    def dispatched(self, worker: str, tenant: str, kind: str, queued_s: float) -> None:
        """Nothing."""

    def began(self, worker: str, ttft_s: float) -> None:
        """Nothing."""

    def ended(self, worker: str, tenant: str, kind: str, outcome: str, answer: Answer | None) -> None:
        """Nothing."""

    def refused(self, tenant: str, kind: str, why: str) -> None:
        """Nothing."""


class _Step:
    """A step that waits or runs. seat: where the scheduler has it, None while it waits. num_calls: that hang on it.

    moving: done when the worker that its session leaves has answered, None where none is asked.
    """

    __slots__ = ("attempt", "call", "moving", "num_calls", "order", "pool", "rejected", "seat", "since_s", "waiters")

    def __init__(self, call: Call, pool: Pool, at_s: float) -> None:
        self.call = call
        self.pool = pool
        self.since_s = at_s
        self.seat: Seat | None = None
        self.order: do.Dispatch | None = None
        self.rejected: do.Reject | None = None
        self.attempt = 1
        self.num_calls = 1
        self.moving: asyncio.Future[None] | None = None
        self.waiters: list[asyncio.Future[None]] = []

    def unseat(self) -> None:
        """Its worker has failed: it has none until it is dispatched again."""
        self.seat = self.order = None


class _Sent:
    """A ticket that was given out and has not ended. step: None for a loose call."""

    __slots__ = ("arrived_s", "began", "call", "step", "worker")

    def __init__(self, call: Call, worker: Worker, step: _Step | None, arrived_s: float) -> None:
        self.call = call
        self.worker = worker
        self.step = step
        self.arrived_s = arrived_s
        self.began = False


class GatewayScheduling:
    """`contracts.Scheduling` over `saga.scheduler`, and the watcher of `Workers`. Use it on one event loop.

    weights: of tenants, in fairness. gone: told once of each call that came, when it needs nothing more: with its
    answer (one that is not complete where it got none), the time, and the worker's name or "".
    """

    def __init__(
        self,
        workers: Workers,
        settings: SchedulingSettings | None = None,
        *,
        meter: Meter | None = None,
        weights: Mapping[str, float] | None = None,
        journal: Journal | None = None,
        gone: Gone | None = None,
    ) -> None:
        self.settings = settings or SchedulingSettings()
        self.workers = workers
        self.composition = self.settings.composition()
        self.pools = Pools(self.composition, self.settings.caps(), dict(weights or {}))
        self.journal = journal or Journal(time.time)
        self.num_waiting = 0
        self._num_waiting_of: dict[str, int] = {}
        self.engines: Engines = NoEngines()
        self._meter: Meter = meter or NoMeter()
        self._gone = gone or _nobody_asks
        self._steps: dict[str, _Step] = {}
        self._sent: dict[str, _Sent] = {}
        self._num_events = 0
        self._queued_s = 1.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = float("inf")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._housekeeping: asyncio.TimerHandle | None = None
        self._draining = False
        workers.watch(self)

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Begin to keep time; call it on the event loop."""
        self._housekeep()

    def stop(self) -> None:
        """Keep time no longer."""
        for timer in (self._timer, self._housekeeping):
            if timer is not None:
                timer.cancel()
        self._timer = self._housekeeping = None

    def drain(self) -> None:
        """Take no new calls; who waits is served."""
        self._draining = True

    @property
    def num_running(self) -> int:
        """Tickets that have not ended."""
        return len(self._sent)

    def waiting(self) -> list[tuple[Call, float]]:
        """(call, since when) of all steps at the gate. O(live steps)."""
        return [
            (step.call, step.since_s) for name, step in self._steps.items() if step.waiters and name == step.call.step
        ]

    def _now_s(self) -> float:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop.time()

    # ------------------------------------------------------------------ contracts.Scheduling

    def admit_at_once(self, call: Call) -> Ticket | None:
        """The ticket where there is a worker now; raises Refused (404, 429, 503)."""
        try:
            return self._arrive(call)
        except BaseException:
            self._say_gone(call, None, "")
            raise

    async def admit(self, call: Call) -> Ticket:
        """Wait for a worker; raises Refused (404, 429, 503)."""
        step = self._steps.get(call.step)
        if step is None:
            ticket = self.admit_at_once(call)
            if ticket is not None:
                return ticket
            step = self._steps[call.step]
        try:
            await self._have_seat(step, call)
            return self._ticket(step, call)
        except BaseException:
            self._say_gone(call, None, "")
            raise

    def _arrive(self, call: Call) -> Ticket | None:
        """Make it a step, unless it is none, or the retry of a live one; None where that has no worker yet."""
        if self._draining:
            raise self._refusal(call, "draining", 503, "the gateway is shutting down", 1.0)
        if call.kind in _LOOSE:
            return self._loose_ticket(call, self._least_busy(call), 1, self._now_s())
        if call.pinned:
            self._check_pinned(call)
        step = self._steps.get(call.retry_of) if call.retry_of else None
        if step is None:
            step = self._begin(call)
        else:
            step.num_calls += 1
            self._steps[call.step] = step
        return self._ticket(step, call) if step.order is not None and step.moving is None else None

    def _begin(self, call: Call) -> _Step:
        at_s = self._now_s()
        pool = self.pools.choose(call.model, call.session)
        if pool is None:
            raise self._nobody_serves(call)
        step = self._steps[call.step] = _Step(call, pool, at_s)
        self._tell(pool, self._arrival(call, pool, at_s))
        return step

    async def _have_seat(self, step: _Step, call: Call) -> None:
        """Until the step has a worker, and its prefix has moved there."""
        if step.order is None:
            await self._wait(step, call)
        if step.moving is not None:
            await self._wait_for_move(step, call)

    def first_byte(self, ticket: Ticket) -> None:
        """The answer began."""
        sent = self._sent.get(ticket.call.step)
        if sent is None or sent.began:
            return
        sent.began = True
        at_s = self._now_s()
        self.workers.succeeded(sent.worker)
        self._meter.began(sent.worker.name, at_s - sent.arrived_s)
        step = sent.step
        if step is not None and step.seat is not None and not self.composition.ordering.static:
            # without stealing, only orderings that move ask what has not begun
            self._tell(step.pool, ev.FirstToken(at_s, step.call.step, step.seat.name))

    def finished(self, ticket: Ticket, answer: Answer) -> None:
        """The answer is complete; one that is an error ends the step without being learned from."""
        sent = self._end(ticket, "error" if answer.error else "finished", answer)
        if sent is None:
            return
        if not sent.began:
            self.workers.succeeded(sent.worker)
        step = sent.step
        if step is None or not self._close(step):
            return
        seat = step.seat
        assert seat is not None
        at_s = self._now_s()
        if answer.error:
            self._tell(step.pool, ev.StepCancelled(at_s, step.call.step))  # what it took so far is charged
        else:
            self._tell(step.pool, _finish(at_s, step.call, seat.name, answer))
            if sent.call.final:
                self._end_session(step.pool, sent.call.session)
        self._leave_seat(seat)

    async def failed(self, ticket: Ticket, why: str, *, retry: bool) -> Ticket | None:
        """The attempt is lost; another ticket if it may be tried again elsewhere."""
        call = ticket.call
        again = retry and not call.pinned and ticket.attempt < self.settings.max_attempts
        sent = self._end(ticket, "retried" if again else "failed", None)
        if sent is None:
            return None
        self.workers.failed(sent.worker, why, self._now_s(), unreachable=why.startswith(_UNREACHABLE))
        try:
            another = await self._after_failure(sent, ticket, why, again=again)
        except Refused:
            another = None
        except BaseException:
            self._say_gone(call, None, "")
            raise
        if again and another is None:
            self._say_gone(call, None, "")
        return another

    def cancelled(self, ticket: Ticket) -> None:
        """The client went away."""
        sent = self._end(ticket, "cancelled", None)
        if sent is not None and sent.step is not None:
            self._detach(sent.step)

    def forget(self, session: str) -> None:
        """The session has ended, whoever says so."""
        for pool in self.pools:
            self._end_session(pool, session)

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Tenants' weights from now on."""
        self.pools.set_weights(weights)

    def snapshot(self) -> dict[str, Any]:
        """What is worth keeping over a restart, as plain data: learned graphs, and where sessions live. O(both)."""
        data: dict[str, Any] = {}
        for part in self.snapshots():
            data = part
        return data

    def snapshots(self, most: int = 50_000) -> Iterator[dict[str, Any]]:
        """What `snapshot` gives, growing by some milliseconds' work at a time; calls may be served in between."""
        data: dict[str, Any] = {"model": None, "homes": []}
        model = self.pools.model
        for learned in model.snapshots() if isinstance(model, WorkflowModel) else ():
            data["model"] = learned
            yield data
        for homes in self.pools.homes(most):
            data["homes"] += homes
            yield data
        yield data

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over what `snapshot` gave, before the first call. Raises UsageError for another format."""
        model = self.pools.model
        if data.get("model") is not None and isinstance(model, WorkflowModel):
            model.restore(data["model"])
        self.pools.remember([(str(session), str(worker), int(tokens)) for session, worker, tokens in data["homes"]])

    def _say_gone(self, call: Call, answer: Answer | None, worker: str) -> None:
        self._gone(call, Answer() if answer is None else answer, self._now_s(), worker)

    def _end_session(self, pool: Pool, session: str) -> None:
        """Unless another step of it is under way."""
        known = pool.scheduler.sessions.get(session)
        if known is not None and not known.step:
            self._tell(pool, ev.SessionEnded(self._now_s(), session))

    # ------------------------------------------------------------------ steps

    def _arrival(self, call: Call, pool: Pool, at_s: float) -> ev.StepArrived:
        """An estimate must not refuse a call: the prompt counts as what the largest worker can just hold, at most."""
        largest_tokens = pool.largest_kv_tokens or call.prompt_tokens + 1
        prompt_tokens = max(1, min(call.prompt_tokens, largest_tokens - 1))
        home, home_tokens = self.pools.home_of(call.session, pool)
        return ev.StepArrived(
            at_s,
            call.step,
            call.session,
            call.task,
            prompt_tokens,
            call.tenant,
            call.workflow,
            call.parent,
            call.common_tokens,
            call.prefix,
            min(call.prefix_tokens, prompt_tokens),
            call.gap_kind,
            call.deadline_s,
            call.hints,
            home,
            home_tokens,
        )

    async def _wait_for_move(self, step: _Step, call: Call) -> None:
        """Until the worker that the session leaves has answered, `max_move_s` at most: then the step goes anyway."""
        assert step.moving is not None
        try:
            await asyncio.wait((step.moving,), timeout=self.settings.max_move_s)
        except BaseException:
            self._drop(step, call)
            raise
        step.moving = None

    async def _wait(self, step: _Step, call: Call) -> None:
        """Until the step has a worker; Refused where that takes too long or too many wait."""
        if step.rejected is not None:
            self._drop(step, call)
            raise self._refusal(call, "rejected", 429, step.rejected.reason, step.rejected.retry_after_s or 1.0)
        own = self._num_waiting_of.get(call.tenant, 0)
        if is_full(self.settings.max_queue, self.num_waiting, own, len(self._num_waiting_of)):
            self._drop(step, call)
            message = f"{self.num_waiting} calls wait already"
            raise self._refusal(call, "queue_full", 429, message, self._retry_after_s())
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        step.waiters.append(future)
        self._num_waiting_of[call.tenant] = own + 1
        self.num_waiting += 1
        step.pool.num_waiting += 1
        timers = [loop.call_later(self.settings.max_wait_s, self._give_up, future, call, "waited_too_long")]
        if not step.pool.num_up:
            patience_s = self.settings.no_worker_wait_s
            timers.append(loop.call_later(patience_s, self._give_up_without, step.pool, future, call))
        try:
            await future
        except BaseException:
            if future in step.waiters:
                step.waiters.remove(future)
            if future.done() and not future.cancelled():
                future.exception()  # seen, so that nobody warns of it
            self._drop(step, call)
            raise
        finally:
            self.num_waiting -= 1
            self._no_longer_waits(call.tenant)
            step.pool.num_waiting -= 1
            for timer in timers:
                timer.cancel()

    def _no_longer_waits(self, tenant: str) -> None:
        self._num_waiting_of[tenant] -= 1
        if not self._num_waiting_of[tenant]:
            del self._num_waiting_of[tenant]

    def _give_up(self, future: asyncio.Future[None], call: Call, why: str) -> None:
        if future.done():
            return
        if why == "no_worker":
            message = f"no worker that serves {call.model!r} is up"
        else:
            message = f"no worker had room within {self.settings.max_wait_s:g} s"
        future.set_exception(self._refusal(call, why, 503, message, self._retry_after_s()))

    def _give_up_without(self, pool: Pool, future: asyncio.Future[None], call: Call) -> None:
        if not pool.num_up:
            self._give_up(future, call, "no_worker")

    def _ticket(self, step: _Step, call: Call, avoid: Worker | None = None) -> Ticket:
        """The ticket for a step that has a seat; elsewhere than on `avoid` if there is another worker."""
        seat, order = step.seat, step.order
        if seat is None or order is None:  # it was lost again before the call woke up
            raise self._refusal(call, "no_worker", 503, "the worker was lost before the call was sent", 1.0)
        at_s = self._now_s()
        worker, reason = self._where(call, seat, order.reason, avoid)
        queued_s = at_s - step.since_s
        if queued_s > 0.0:
            self._queued_s += 0.1 * (queued_s - self._queued_s)
        worker.num_calls += 1
        self._sent[call.step] = _Sent(call, worker, step, step.since_s)
        self._meter.dispatched(worker.name, call.tenant, call.kind, queued_s)
        self.journal.add(call.session, call.step, "dispatch", worker.name, reason)
        extra = self._extra(step, call, order) if worker.extensions else {}
        return Ticket(call, worker.address, queued_s, reason, step.attempt, extra)

    def _where(self, call: Call, seat: Seat, reason: str, avoid: Worker | None) -> tuple[Worker, str]:
        """The seat's worker; another one for a pinned call and for one that just failed there."""
        if call.pinned and call.pinned != seat.worker.name:
            pinned = self.workers.get(call.pinned)
            if pinned is not None and pinned.state in (WorkerState.UP, WorkerState.DRAINING):
                return pinned, "what it continues is stored there"
        if seat.worker is avoid:
            other = self._other(call.model, avoid)
            if other is not None:
                return other, f"it just failed on {avoid.name}"
        return seat.worker, reason

    def _extra(self, step: _Step, call: Call, order: do.Dispatch) -> dict[str, Any]:
        """Fields for an engine that accepts vLLM's; `vllm_xargs` is flat."""
        xargs: dict[str, str | int | float] = {
            "saga_session": call.session,
            "saga_task": call.task,
            "saga_step": step.call.step,
            "saga_tenant": call.tenant,
        }
        session = step.pool.scheduler.sessions.get(call.session)
        if session is not None and self.composition.forecasts:
            forecast = step.pool.scheduler.model.forecast(session.track)
            xargs["saga_continue_probability"] = round(forecast.continue_probability, 4)
            xargs["saga_expected_gap_s"] = round(forecast.expected_gap_s, 3)
        return {"session_id": call.session, "priority": _classed(order.priority, call.priority), "vllm_xargs": xargs}

    def _drop(self, step: _Step, call: Call) -> None:
        """A call that waited for the step does so no longer."""
        if self._steps.get(call.step) is step and call.step != step.call.step:
            del self._steps[call.step]
        self._detach(step)

    def _detach(self, step: _Step) -> None:
        """One call less hangs on the step; without any it is cancelled."""
        step.num_calls -= 1
        if step.num_calls > 0 or self._steps.pop(step.call.step, None) is None:
            return
        if step.rejected is None:
            self._tell(step.pool, ev.StepCancelled(self._now_s(), step.call.step))
        seat, step.seat = step.seat, None
        if seat is not None:
            self._leave_seat(seat)

    def _close(self, step: _Step) -> bool:
        """The step has its one end; False if it had it before, by another call that hung on it."""
        step.num_calls -= 1
        return self._steps.pop(step.call.step, None) is step and step.seat is not None

    def _leave_seat(self, seat: Seat) -> None:
        seat.num_steps -= 1
        if seat.leaving and seat.num_steps == 0:
            self._clear(seat)

    def _end(self, ticket: Ticket, outcome: str, answer: Answer | None) -> _Sent | None:
        """A ticket ends once; None for one that has."""
        sent = self._sent.pop(ticket.call.step, None)
        if sent is None:
            return None
        sent.worker.num_calls -= 1
        call = sent.call
        if sent.step is not None and call.step != sent.step.call.step:
            self._steps.pop(call.step, None)
        self._meter.ended(sent.worker.name, call.tenant, call.kind, outcome, answer)
        if outcome != "retried":
            self._say_gone(call, answer, sent.worker.name)
        return sent

    async def _after_failure(self, sent: _Sent, ticket: Ticket, why: str, *, again: bool) -> Ticket | None:
        call, step = sent.call, sent.step
        if step is None:
            if not again:
                return None
            return self._loose_ticket(call, self._least_busy(call, but=sent.worker), ticket.attempt + 1, sent.arrived_s)
        if step.num_calls > 1:  # another call hangs on the step and carries it on
            step.num_calls -= 1
            return None
        self.journal.add(call.session, call.step, "failed", sent.worker.name, why)
        seat = step.seat
        if seat is None:
            return None
        at_s = self._now_s()
        if not again:
            self._close(step)
            self._tell(step.pool, ev.StepFailed(at_s, step.call.step, seat.name, why, retry=False))
            self._leave_seat(seat)
            return None
        step.unseat()
        self._tell(step.pool, ev.StepFailed(at_s, step.call.step, seat.name, why, retry=True))
        self._leave_seat(seat)
        await self._have_seat(step, call)
        step.attempt = ticket.attempt + 1
        return self._ticket(step, call, avoid=sent.worker)

    # ------------------------------------------------------------------ calls that are no steps, and pinned ones

    def _loose_ticket(self, call: Call, worker: Worker, attempt: int, arrived_s: float) -> Ticket:
        worker.num_calls += 1
        self._sent[call.step] = _Sent(call, worker, None, arrived_s)
        self._meter.dispatched(worker.name, call.tenant, call.kind, 0.0)
        return Ticket(call, worker.address, 0.0, "least busy worker", attempt)

    def _least_busy(self, call: Call, but: Worker | None = None) -> Worker:
        """The pinned worker, or the one with the fewest calls in flight. O(workers)."""
        if call.pinned:
            return self._check_pinned(call)
        found = self._other(call.model, but)
        if found is None and but is not None and but.is_up:
            found = but
        if found is None:
            raise self._nobody_serves(call)
        return found

    def _other(self, model: str, but: Worker | None) -> Worker | None:
        able = [worker for worker in self.workers if worker.is_up and worker is not but and worker.serves(model)]
        return min(able, key=lambda worker: worker.num_calls, default=None)

    def _check_pinned(self, call: Call) -> Worker:
        """The worker that must serve the call; Refused where it is gone or down."""
        worker = self.workers.get(call.pinned)
        if worker is None:
            raise self._refusal(call, "pinned_gone", 404, "the worker that stored what this continues is gone")
        if worker.state in (WorkerState.DOWN, WorkerState.STARTING):
            message = "the worker that stored what this continues is down"
            raise self._refusal(call, "pinned_down", 503, message, self._retry_after_s())
        return worker

    def _nobody_serves(self, call: Call) -> Refused:
        known = [worker for worker in self.workers if worker.serves(call.model)]
        if known or not len(self.workers):
            return self._refusal(call, "no_worker", 503, "no worker is up", self._retry_after_s())
        self._meter.refused(call.tenant, call.kind, "model_not_found")
        message = f"The model `{call.model}` does not exist or is not served here."
        return Refused(404, message, code="model_not_found", param="model")

    def _refusal(self, call: Call, why: str, status: int, message: str, retry_after_s: float | None = None) -> Refused:
        self._meter.refused(call.tenant, call.kind, why)
        self.journal.add(call.session, call.step, "refused", "", message)
        kind = {404: "invalid_request_error", 429: "rate_limit_error"}.get(status, "service_unavailable_error")
        return Refused(status, message, kind=kind, code=why, retry_after_s=retry_after_s)

    def _retry_after_s(self) -> float:
        """About what a call waited of late, at least a second."""
        return max(1.0, min(_MAX_RETRY_AFTER_S, round(self._queued_s)))

    # ------------------------------------------------------------------ workers.Watcher

    def worker_up(self, worker: Worker) -> None:
        """It takes a seat."""
        if self.pools.seat_of(worker) is not None:
            return
        seat = self.pools.sit(worker)
        capacity = worker.capacity
        say(logging.INFO, "worker up", worker=worker.name, kv_tokens=worker.kv_tokens, why=worker.why)
        self._tell(
            seat.pool,
            ev.WorkerJoined(
                self._now_s(),
                seat.name,
                worker.kv_tokens,
                capacity.block_tokens,
                capacity.host_kv_tokens,
                capacity.prefill_tokens_per_s,
                capacity.load_tokens_per_s,
                capacity.move_tokens_per_s,
                capacity.max_running,
            ),
        )

    def worker_leaving(self, worker: Worker) -> None:
        """Its seat empties; what runs there goes on."""
        seat = self.pools.rise(worker)
        if seat is None:
            return
        level = logging.WARNING if worker.state is WorkerState.DOWN else logging.INFO
        say(level, f"worker {worker.state}", worker=worker.name, why=worker.why)
        self._tell(seat.pool, ev.WorkerDraining(self._now_s(), seat.name))
        if seat.num_steps == 0:
            self._clear(seat)
        if not seat.pool.num_up:
            self._now_s()
            assert self._loop is not None
            self._loop.call_later(self.settings.no_worker_wait_s, self._flush, seat.pool)

    def worker_reported(self, worker: Worker) -> None:
        """Its own figures."""
        seat = self.pools.seat_of(worker)
        if seat is None:
            return
        used_tokens = int((worker.kv_usage or 0.0) * worker.kv_tokens)
        self._tell(
            seat.pool,
            ev.WorkerReported(
                self._now_s(),
                seat.name,
                worker.running or 0,
                worker.waiting or 0,
                used_tokens,
                worker.prefill_tokens_per_s,
            ),
        )

    def blocks_changed(self, event: ev.BlocksStored | ev.BlocksRemoved) -> None:
        """A worker said what it holds of a session; `event.worker` is its name in the registry."""
        worker = self.workers.get(event.worker)
        seat = None if worker is None else self.pools.seat_of(worker)
        if seat is not None:
            self._tell(seat.pool, msgspec.structs.replace(event, worker=seat.name))

    def _clear(self, seat: Seat) -> None:
        """Nothing runs on a seat that was left."""
        if seat.pool.seats.get(seat.name) is not seat:
            return
        self._tell(seat.pool, ev.WorkerLost(self._now_s(), seat.name))
        self.pools.clear(seat)

    def _flush(self, pool: Pool) -> None:
        """No worker came back for those who wait."""
        if pool.num_up:
            return
        for step in list(self._steps.values()):
            if step.pool is pool:
                for future in list(step.waiters):
                    self._give_up(future, step.call, "no_worker")

    # ------------------------------------------------------------------ the scheduler

    def _tell(self, pool: Pool, event: ev.Event) -> None:
        """Report a fact and carry out what is ordered."""
        scheduler = pool.scheduler
        if event.at_s < scheduler.now_s:
            event = _at(event, scheduler.now_s)
        began = perf_counter()
        try:
            commands = scheduler.handle(event)
        except ProtocolError as error:
            say(logging.ERROR, "protocol error", of=type(event).__name__, why=str(error))
            if isinstance(event, ev.StepArrived):
                self._steps.pop(event.step, None)
                raise Refused(500, "the call could not be scheduled", kind="server_error") from error
            return
        self._meter.decided(perf_counter() - began)
        for command in commands:
            self._carry_out(pool, command)
        self._num_events += 1
        if self.settings.check_every and self._num_events % self.settings.check_every == 0:
            self._check(pool)
        self._set_timer(scheduler.next_deadline_s())

    def _carry_out(self, pool: Pool, command: do.Command) -> None:
        # not isinstance, which takes a microsecond for a class of msgspec's
        if type(command) is do.Dispatch:
            self._carry_out_dispatch(pool, command)
        elif type(command) is do.Reject:
            self._carry_out_reject(command)
        elif type(command) is do.Hold:
            step = self._steps.get(command.step)
            if step is not None:
                self.journal.add(step.call.session, command.step, "hold", "", command.reason)
        else:
            self._order(pool, command)
        self._meter.commanded(type(command).__name__)

    def _order(self, pool: Pool, command: do.Command) -> None:
        """To the engine that holds what the command is about; a migration to its source."""
        if type(command) is do.Migrate:
            self._migrate(pool, command)
            return
        if type(command) is do.Reprioritize:
            step = self._steps.get(command.step)
            if step is not None:
                own_class = step.call.priority
                command = msgspec.structs.replace(command, priority=_classed(command.priority, own_class))
        seat = pool.seats.get(getattr(command, "worker", ""))
        if seat is not None:
            self.engines.order(seat.worker.name, command, self._now_s())

    def _migrate(self, pool: Pool, command: do.Migrate) -> None:
        """To its source; the dispatch that follows waits for the answer."""
        seat = pool.seats.get(command.source)
        known = pool.scheduler.sessions.get(command.session)
        step = None if known is None else self._steps.get(known.step)
        if seat is not None and step is not None:
            step.moving = self.engines.move(seat.worker.name, command, self._now_s())

    def _carry_out_dispatch(self, pool: Pool, order: do.Dispatch) -> None:
        step = self._steps.get(order.step)
        if step is None:
            raise InvariantViolated(f"step {order.step!r} was dispatched and nobody waits for it")
        seat = pool.seats[order.worker]
        seat.num_steps += 1
        step.seat, step.order = seat, order
        waiters, step.waiters = step.waiters, []
        for future in waiters:
            if not future.done():
                future.set_result(None)

    def _carry_out_reject(self, order: do.Reject) -> None:
        step = self._steps.get(order.step)
        if step is None:
            return
        step.rejected = order
        waiters, step.waiters = step.waiters, []
        for future in waiters:
            if not future.done():
                refusal = self._refusal(step.call, "rejected", 429, order.reason, order.retry_after_s or 1.0)
                future.set_exception(refusal)

    def _check(self, pool: Pool) -> None:
        try:
            check(pool.scheduler)
        except SagaError as error:
            say(logging.CRITICAL, "invariant violated", why=str(error))  # for us to mend; the calls go on

    # ------------------------------------------------------------------ time

    def _set_timer(self, due_s: float | None) -> None:
        """Wake at the earliest deadline of all pools; later ones are found when it comes."""
        if due_s is None or due_s >= self._timer_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._now_s()
        assert self._loop is not None
        self._timer_s = due_s
        self._timer = self._loop.call_at(due_s, self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_s = None, float("inf")
        at_s = self._now_s()
        for pool in list(self.pools):
            due_s = pool.scheduler.next_deadline_s()
            if due_s is not None and due_s <= at_s:
                self._tell(pool, ev.Tick(at_s))
            else:
                self._set_timer(due_s)

    def _housekeep(self) -> None:
        """Idle sessions end, empty pools go."""
        at_s = self._now_s()
        for pool in list(self.pools):
            self._tell(pool, ev.Tick(at_s))
            if not pool.seats and not pool.num_waiting and not len(pool.scheduler.sessions):
                self.pools.drop(pool)
        assert self._loop is not None
        self._housekeeping = self._loop.call_later(self.settings.housekeeping_s, self._housekeep)


def _nobody_asks(_call: Call, _answer: Answer, _at_s: float, _worker: str) -> None:
    """Nobody wants to know when a call is gone."""


def _at(event: ev.Event, at_s: float) -> ev.Event:
    """The event, at another time: clocks of two calls may differ by the loop's resolution."""
    return msgspec.structs.replace(event, at_s=at_s)


def _classed(priority: int, own_class: int) -> int:
    """The scheduler's priority inside the client's own class: of two classes the lower goes first, whatever else."""
    most = _PER_CLASS // 2 - 1
    return max(-most, min(most, priority)) + own_class * _PER_CLASS if own_class else priority


def _finish(at_s: float, call: Call, seat: str, answer: Answer) -> ev.StepFinished:
    """What the engine counted; estimates where it did not."""
    prompt_tokens = call.prompt_tokens if answer.prompt_tokens is None else answer.prompt_tokens
    output_tokens = answer.output_tokens
    if output_tokens is None:
        output_tokens = max(1, (len(answer.text) or answer.num_bytes) // _BYTES_PER_TOKEN)
    return ev.StepFinished(
        at_s,
        call.step,
        seat,
        max(1, prompt_tokens),
        output_tokens,
        min(answer.cached_tokens or 0, max(1, prompt_tokens)),
        0,
        answer.tool_calls,
    )
