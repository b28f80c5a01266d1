"""One call from request to answer: identify, admit, send, stream back; and what happens when any of these fails.

    identity.identify ─▶ scheduling.admit ─▶ worker ─▶ client        the path
            Refused ─────────── Refused ────────────▶ an error in OpenAI's shape
    worker lost or 502-504 before the first byte ─▶ scheduling.failed ─▶ another ticket, once, or an error
    worker lost later ─▶ a stream ends with an error event, any other answer with its connection
    client lost ─▶ the worker's connection is closed, scheduling.cancelled

A worker's head is kept back until the first byte of its body: engines send heads before they begin to compute, and
what the client has not seen can still be had elsewhere. This module refuses to know listening sockets, how requests
are read, who calls and why a worker was chosen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from saga.gateway.addresses import WorkerAddress
from saga.gateway.contracts import Answer, AnswerWatcher, Call, Identity, Kind, Refused, Request, Scheduling, Ticket
from saga.gateway.http1 import Message
from saga.gateway.resuming import resumed
from saga.gateway.rewriting import (
    Headers,
    answer_fields,
    field_lines,
    length_line,
    notes,
    refusal,
    request_head,
    status_line,
    whole_answer,
    with_fields,
)
from saga.gateway.sse import EventStream, broken_event
from saga.gateway.upstream import AnswerHead, ConnectionPool, Framing, Unreachable, WorkerConnection

log = logging.getLogger(__name__)

Watchers: TypeAlias = Callable[[Call, int, Headers], AnswerWatcher]
"""(call, status, header fields in lower case) -> who watches that answer's body."""

Cold: TypeAlias = Callable[[Request], Coroutine[Any, Any, tuple[int, Headers, bytes]]]
"""Answers a request here: (status, header fields without framing, body)."""

_LOST_STATUS: Final = frozenset({502, 503, 504})
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HAVE_USAGE_CHUNKS: Final = frozenset({Kind.CHAT, Kind.COMPLETIONS})
_LARGEST_HELD_BODY: Final = 65_536
_MAX_ATTEMPTS: Final = 2


class Client(Protocol):
    """The connection that an answer goes to."""

    def write(self, data: bytes) -> None:
        """Send bytes of the answer."""
        ...

    def answered(self, *, keep_alive: bool) -> None:
        """The exchange is over; a connection that cannot be kept is closed."""
        ...

    def keeps_alive(self) -> bool:
        """Whether another request may follow this one (asked once, when the answer's head is made)."""
        ...


@dataclass(slots=True)
class _Lost:
    """An attempt that gave no answer.

    sent: whether the worker may have seen the request. stale: a kept connection broke before any answer, perhaps
    because the worker was just closing it. status, reason, headers, body: the worker's own 502, 503 or 504.
    """

    why: str
    sent: bool = True
    timed_out: bool = False
    stale: bool = False
    status: int = 0
    reason: bytes = b""
    headers: Headers | None = None
    body: bytes = b""


class _Passed:
    """What of a worker's head reaches the client, and what it says of the body. Made once for heads that are the same.

    lines: all but the notes and what ends the head. is_readable: without a content-coding. is_stream: of events.
    """

    __slots__ = ("is_readable", "is_stream", "lines")

    def __init__(self, head: AnswerHead) -> None:
        fields = dict(head.headers)
        self.is_readable = fields.get(b"content-encoding", b"identity").lower() == b"identity"
        self.is_stream = fields.get(b"content-type", b"").lower().startswith(b"text/event-stream")
        self.lines = b"".join((status_line(head.status, head.reason), *field_lines(answer_fields(head.headers))))


@dataclass(slots=True)
class RelayCounts:
    """What happened so far; counts only rise."""

    num_calls: int = 0
    num_answered: int = 0
    num_refused: int = 0
    num_retried: int = 0
    num_resent_on_stale: int = 0
    num_lost: int = 0
    num_broken_streams: int = 0
    num_cancelled: int = 0


class Relay:
    """What exchanges share."""

    def __init__(self, identity: Identity, scheduling: Scheduling, watchers: Watchers, pool: ConnectionPool) -> None:
        self.identity = identity
        self.scheduling = scheduling
        self._watchers = watchers
        self.pool = pool
        self.loop = asyncio.get_running_loop()
        self.counts = RelayCounts()

    def watch(self, call: Call, status: int, headers: Headers) -> AnswerWatcher | None:
        """Who watches the answer; None if whoever should cannot."""
        try:
            return self._watchers(call, status, headers)
        except Exception:
            log.exception("an answer cannot be watched")
            return None


class Exchange:
    """A request and its answer. An `AnswerSink` of the worker's connection."""

    __slots__ = (
        "_answer_head",
        "_began",
        "_call",
        "_chunked",
        "_client",
        "_connection",
        "_events",
        "_held",
        "_keep_alive",
        "_message",
        "_outcome",
        "_paused",
        "_relay",
        "_task",
        "_ticket",
        "_waits",
        "_watcher",
    )

    def __init__(self, relay: Relay, client: Client, message: Message) -> None:
        self._relay = relay
        self._client = client
        self._message = message
        self._call: Call | None = None
        self._ticket: Ticket | None = None
        self._connection: WorkerConnection | None = None
        self._outcome: asyncio.Future[_Lost | None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._waits: Coroutine[Any, Any, None] | None = None  # what the task has not begun to do
        self._watcher: AnswerWatcher | None = None
        self._events: EventStream | None = None
        self._held: _Lost | None = None
        self._answer_head = b""
        self._began = False
        self._chunked = False
        self._keep_alive = message.keep_alive
        self._paused = False

    # what the client's connection calls

    def start(self) -> None:
        """Relay the call. As long as nothing has to wait, and nothing fails, this needs neither task nor future."""
        relay = self._relay
        relay.counts.num_calls += 1
        try:
            call = self._call = relay.identity.identify(self._message.request, relay.loop.time())
            ticket = relay.scheduling.admit_at_once(call)
            if ticket is None:
                admission = relay.scheduling.admit(call)
                waits_for = admission.send(None)
                self._work(self._run_admitted(resumed(admission, waits_for)))
                return
        except Refused as refused:
            self._refuse(refused)
        except StopIteration as admitted:
            self._go(admitted.value)
        except Exception:
            log.exception("a call could not be identified or admitted")
            self._fail()
        else:
            self._go(ticket)

    def start_here(self, cold: Cold) -> None:
        """Answer from a handler of the gateway."""
        self._work(self._answer_here(cold))

    def pause(self) -> None:
        """The client reads slowly."""
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """The client reads again."""
        self._paused = False
        if self._connection is not None:
            self._connection.resume()

    def abort(self) -> None:
        """The client is gone."""
        task, waits = self._task, self._waits
        if task is not None:
            task.cancel()
        if waits is not None:  # a task that is cancelled before its first step takes none, and tells nobody
            self._waits = None
            waits.close()
        if task is None or waits is not None:
            self._cancel()

    # the path

    def _go(self, ticket: Ticket) -> None:
        self._ticket = ticket
        connection = self._relay.pool.take(ticket.address)
        if connection is None:
            self._work(self._run(None))
        else:
            self._send(ticket, connection)

    def _send(self, ticket: Ticket, connection: WorkerConnection) -> None:
        self._connection = connection
        call = ticket.call
        body = with_fields(call.body or call.request.body, ticket.extra)
        head = self._head_for(ticket.address) + call.lines + length_line(call.request, len(body))
        connection.send(self, head, body, head_only=call.request.method == "HEAD")
        if self._paused:
            connection.pause()

    def _head_for(self, address: WorkerAddress) -> bytes:
        """The request's head for that worker, made once for requests whose heads are the same."""
        sent = self._message.request.memo.sent
        known = sent.get(address.worker)
        if known is None or known[0] is not address:
            known = sent[address.worker] = (address, request_head(self._message.request, address))
        return known[1]

    def _settle(self, lost: _Lost | None) -> None:
        """An attempt is over; lost is None when the client has its answer."""
        if self._outcome is not None:
            if not self._outcome.done():
                self._outcome.set_result(lost)
        elif lost is None:
            self._client.answered(keep_alive=self._keep_alive)
        else:
            self._work(self._run(lost))

    # what has to wait

    def _work(self, work: Coroutine[Any, Any, None]) -> None:
        self._waits = work
        self._task = self._relay.loop.create_task(self._guarded(work))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """Whatever happens, the client and the scheduler hear of it."""
        self._waits = None
        try:
            await work
        except Refused as refused:
            self._refuse(refused)
        except asyncio.CancelledError:
            self._cancel()
        except Exception:
            log.exception("an exchange failed for a reason of our own")
            self._fail()
        else:
            self._client.answered(keep_alive=self._keep_alive)

    async def _run_admitted(self, admission: Awaitable[Ticket]) -> None:
        self._ticket = await admission
        await self._run(None)

    async def _run(self, lost: _Lost | None) -> None:
        """Attempt (unless one is lost already) until the client has an answer."""
        if lost is None:
            lost = await self._attempt()
        while lost is not None:
            lost = await self._after(lost)

    async def _attempt(self, *, fresh: bool = False) -> _Lost | None:
        """Send the call to the ticket's worker and wait for the end."""
        ticket, pool = self._ticket, self._relay.pool
        assert ticket is not None
        connection = None if fresh else pool.take(ticket.address)
        if connection is None:
            try:
                connection = await pool.dial(ticket.address)
            except Unreachable as error:
                return _Lost(str(error), sent=False)
        self._outcome = self._relay.loop.create_future()
        self._send(ticket, connection)
        return await self._outcome

    async def _after(self, lost: _Lost) -> _Lost | None:
        """Try again where that is right; else the client is told. None when the client has all there is for it."""
        relay = self._relay
        if lost.stale and self._repeatable:
            relay.counts.num_resent_on_stale += 1
            return await self._attempt(fresh=True)
        ticket, self._ticket = self._ticket, None
        assert ticket is not None
        retry = not self._began and ticket.attempt < _MAX_ATTEMPTS and (self._repeatable or not lost.sent)
        self._ticket = await relay.scheduling.failed(ticket, lost.why, retry=retry)
        if self._ticket is not None:
            relay.counts.num_retried += 1
            return await self._attempt()
        relay.counts.num_lost += 1
        self._tell_identity(Answer(error=True))
        if not self._began:
            self._answer_lost(ticket, lost)
        return None

    def _answer_lost(self, ticket: Ticket, lost: _Lost) -> None:
        """No worker answered: the last one's own words if it had any, else ours."""
        if lost.headers is not None:
            self._answer_whole(lost.status, lost.headers, lost.body, ticket)
            return
        status = 504 if lost.timed_out else 502
        message = f"worker {ticket.address.worker} gave no answer: {lost.why}"
        refused = Refused(status, message, kind="server_error", code="worker_unavailable")
        self._answer_whole(*refusal(refused), ticket)

    async def _answer_here(self, cold: Cold) -> None:
        self._answer_whole(*await cold(self._message.request))

    @property
    def _repeatable(self) -> bool:
        call = self._call
        return call is not None and (call.retryable or call.request.method in _SAFE_METHODS)

    # the other ends of the path

    def _refuse(self, refused: Refused) -> None:
        self._relay.counts.num_refused += 1
        self._tell_identity(Answer(error=True))
        self._answer_whole(*refusal(refused))
        self._client.answered(keep_alive=self._keep_alive)

    def _fail(self) -> None:
        self._leave()
        if not self._began:
            self._answer_whole(*refusal(Refused(500, "the gateway failed; see its log", kind="server_error")))
            self._client.answered(keep_alive=self._keep_alive)
        else:
            self._client.answered(keep_alive=False)

    def _cancel(self) -> None:
        self._relay.counts.num_cancelled += 1
        self._leave()

    def _leave(self) -> None:
        """Drop the worker's connection; scheduling and identity hear that nothing comes of the call."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._relay.scheduling.cancelled(ticket)
        self._tell_identity(Answer())

    def _tell_identity(self, answer: Answer) -> None:
        """Identity hears of the end of every call it identified, once."""
        call, self._call = self._call, None
        if call is not None:
            self._relay.identity.answered(call, answer, self._relay.loop.time())

    def _answer_whole(self, status: int, headers: Headers, body: bytes, ticket: Ticket | None = None) -> None:
        keep_alive = self._keep_alive = self._keep_alive and self._client.keeps_alive()
        head_only = self._message.request.method == "HEAD"
        added = notes(ticket) if ticket is not None else b""
        self._began = True
        self._client.write(
            whole_answer(status, answer_fields(headers), body, keep_alive=keep_alive, head_only=head_only, added=added)
        )

    # AnswerSink: what the worker's connection calls

    def on_head(self, head: AnswerHead) -> None:
        """Keep the client's head ready; a worker that cannot serve is kept from the client."""
        status = head.status
        if status in _LOST_STATUS:
            why = f"the worker answered {status}"
            self._held = _Lost(why, status=status, reason=head.reason, headers=head.headers)
            return
        ticket = self._ticket
        assert ticket is not None
        call = ticket.call
        passed: _Passed | None = head.memo.get("passed")
        if passed is None:
            passed = head.memo["passed"] = _Passed(head)
        if passed.is_readable:
            self._watcher = self._relay.watch(call, status, head.headers)
            if passed.is_stream:
                hide = not call.wants_usage and call.stream and call.kind in _HAVE_USAGE_CHUNKS
                self._events = EventStream(hide_usage=hide)
        ends = self._frame(status, head.framing, head.header(b"content-length"))
        self._answer_head = b"".join((passed.lines, notes(ticket), ends))

    def _frame(self, status: int, framing: Framing, length: bytes | None) -> bytes:
        """Decide how the client sees the answer's end; the head's last lines. The worker's length where it holds."""
        lines = b""
        if framing is Framing.NONE or (framing is Framing.LENGTH and self._events is None):
            if length is not None and status != 204:
                lines = b"content-length: %b\r\n" % length
        elif self._message.http10:
            self._keep_alive = False
        else:
            self._chunked = True
            lines = b"transfer-encoding: chunked\r\n"
        self._keep_alive = self._keep_alive and self._client.keeps_alive()
        return lines + (b"\r\n" if self._keep_alive else b"connection: close\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """Pass bytes on, then let the watcher see them."""
        held = self._held
        if held is not None:
            if len(held.body) + len(data) <= _LARGEST_HELD_BODY:
                held.body += data
            return
        if not self._began:
            self._begin()
        passed = data if self._events is None else self._events.feed(data)
        self._write(passed)
        self._watch(data)

    def on_end(self) -> None:
        """Finish the client's answer, then tell scheduling and identity."""
        self._connection = None
        if self._held is not None:
            held, self._held = self._held, None
            self._settle(held)
            return
        if not self._began:
            self._begin()
        self._write(self._events.close() if self._events is not None else b"", last=True)
        self._finish()
        self._settle(None)

    def on_lost(self, why: str, *, timed_out: bool = False) -> None:
        """Before the client has seen anything the call can go elsewhere; afterwards the answer ends here."""
        stale = self._connection is not None and self._connection.reused and not timed_out
        self._connection = None
        self._held = None
        if not self._began:
            self._answer_head = b""
            self._chunked = False
            self._events = self._watcher = None
            self._settle(_Lost(why, timed_out=timed_out, stale=stale))
            return
        self._relay.counts.num_broken_streams += 1
        ticket = self._ticket
        assert ticket is not None
        if self._events is not None:
            message = f"worker {ticket.address.worker} was lost in the middle of its answer: {why}"
            self._write(broken_event(ticket.call.kind, message), last=True)
        else:
            self._keep_alive = False
        self._settle(_Lost(why, timed_out=timed_out))

    def _begin(self) -> None:
        self._began = True
        ticket = self._ticket
        assert ticket is not None
        self._relay.scheduling.first_byte(ticket)

    def _write(self, data: bytes, *, last: bool = False) -> None:
        """Frame and send; the head goes in front of the first bytes."""
        head = self._answer_head
        if self._chunked:
            if data:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            if last:
                data += b"0\r\n\r\n"
        if head:
            self._answer_head = b""
            if len(data) < 65_536:
                data = head + data
            else:
                self._client.write(head)
        if data:
            self._client.write(data)

    def _watch(self, data: bytes) -> None:
        watcher = self._watcher
        if watcher is not None:
            try:
                watcher.feed(data)
            except Exception:
                log.exception("an answer could not be watched")
                self._watcher = None

    def _finish(self) -> None:
        relay, ticket = self._relay, self._ticket
        assert ticket is not None
        self._ticket = None
        relay.counts.num_answered += 1
        answer = Answer(complete=True)
        try:
            if self._watcher is not None:
                answer = self._watcher.close()
        except Exception:
            log.exception("an answer could not be watched")
        try:
            relay.scheduling.finished(ticket, answer)
            self._tell_identity(answer)
        except Exception:
            log.exception("an answer could not be learned from")
