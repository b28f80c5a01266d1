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
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from saga.gateway.contracts import (
    Answer,
    AnswerWatcher,
    Call,
    Identity,
    Kind,
    Refused,
    Request,
    Scheduling,
    Ticket,
)
from saga.gateway.http1 import Message
from saga.gateway.rewriting import (
    Headers,
    answer_fields,
    field_lines,
    notes,
    refusal,
    request_head,
    status_line,
    whole_answer,
    with_fields,
)
from saga.gateway.sse import EventStream, broken_event
from saga.gateway.upstream import ConnectionPool, Framing, Unreachable, WorkerConnection

log = logging.getLogger(__name__)

Watchers: TypeAlias = Callable[[Call, int, Headers], AnswerWatcher]
"""(call, status, header fields in lower case) -> who watches that answer's body."""

Cold: TypeAlias = Callable[[Request], Coroutine[Any, Any, tuple[int, Headers, bytes]]]
"""Answers a request here: (status, header fields without framing, body)."""

_LOST_STATUS = frozenset({502, 503, 504})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LARGEST_HELD_BODY = 65_536
_MAX_ATTEMPTS = 2


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
    """An attempt that gave no answer. sent: whether the worker may have seen the request. head, body: its 50x."""

    why: str
    sent: bool = True
    timed_out: bool = False
    status: int = 0
    reason: bytes = b""
    headers: Headers | None = None
    body: bytes = b""

    @property
    def may_be_stale(self) -> bool:
        """Whether a kept connection that broke at once explains it."""
        return self.status == 0 and not self.timed_out


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

    def begin(self, client: Client, message: Message) -> Exchange:
        """Start an exchange; it reports to `client` and needs nothing more but pause, resume and abort."""
        exchange = Exchange(self, client, message)
        exchange.start(exchange.relay_call())
        return exchange

    def begin_cold(self, client: Client, message: Message, cold: Cold) -> Exchange:
        """Start an exchange that is answered here."""
        exchange = Exchange(self, client, message)
        exchange.start(exchange.answer_here(cold))
        return exchange


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
        self._watcher: AnswerWatcher | None = None
        self._events: EventStream | None = None
        self._held: _Lost | None = None
        self._answer_head = b""
        self._began = False
        self._chunked = False
        self._keep_alive = message.keep_alive
        self._paused = False

    # what the client's connection calls

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the exchange as a task."""
        self._task = self._relay.loop.create_task(work)

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
        if self._task is not None:
            self._task.cancel()

    # the path

    async def relay_call(self) -> None:
        """From request to answer; never raises."""
        relay = self._relay
        relay.counts.num_calls += 1
        try:
            call = self._call = relay.identity.identify(self._message.request, relay.loop.time())
            ticket: Ticket | None = await relay.scheduling.admit(call)
            while ticket is not None:
                self._ticket = ticket
                lost = await self._attempt(ticket)
                if lost is None:
                    break
                self._ticket = None
                if self._began:
                    await relay.scheduling.failed(ticket, lost.why, retry=False)
                    break
                ticket = await self._try_elsewhere(ticket, lost)
        except Refused as refused:
            relay.counts.num_refused += 1
            self._refuse(refused)
        except asyncio.CancelledError:
            self._cancel()
        except Exception:
            log.exception("an exchange failed for a reason of our own")
            self._fail()
        else:
            self._client.answered(keep_alive=self._keep_alive)

    async def answer_here(self, cold: Cold) -> None:
        """Answer from a handler of the gateway; never raises."""
        try:
            status, headers, body = await cold(self._message.request)
        except Refused as refused:
            self._refuse(refused)
        except asyncio.CancelledError:
            return
        except Exception:
            log.exception("a handler failed")
            self._fail()
        else:
            self._answer_whole(status, headers, body)
            self._client.answered(keep_alive=self._keep_alive)

    async def _attempt(self, ticket: Ticket) -> _Lost | None:
        """Send the call to the ticket's worker; None when the client has its answer (or as much as there is)."""
        pool, call = self._relay.pool, ticket.call
        body = with_fields(call.body or call.request.body, ticket.extra)
        head = request_head(call, ticket.address, len(body))
        connection = pool.take(ticket.address)
        try:
            if connection is None:
                connection = await pool.dial(ticket.address)
            lost = await self._exchange_on(connection, head, body)
            if lost is not None and lost.may_be_stale and connection.reused and self._repeatable and not self._began:
                # the worker may have closed an idle connection just as the call was sent on it
                self._relay.counts.num_resent_on_stale += 1
                lost = await self._exchange_on(await pool.dial(ticket.address), head, body)
        except Unreachable as error:
            return _Lost(str(error), sent=False)
        return lost

    async def _exchange_on(self, connection: WorkerConnection, head: bytes, body: bytes) -> _Lost | None:
        self._connection = connection
        self._outcome = self._relay.loop.create_future()
        connection.send(self, head, body, head_only=self._message.request.method == "HEAD")
        if self._paused:
            connection.pause()
        return await self._outcome

    async def _try_elsewhere(self, ticket: Ticket, lost: _Lost) -> Ticket | None:
        """Report the loss; another ticket, or None after the client has been told."""
        retry = ticket.attempt < _MAX_ATTEMPTS and (self._repeatable or not lost.sent)
        another = await self._relay.scheduling.failed(ticket, lost.why, retry=retry)
        if another is not None:
            self._relay.counts.num_retried += 1
            return another
        self._relay.counts.num_lost += 1
        if lost.headers is not None:
            self._answer_whole(lost.status, lost.headers, lost.body, ticket)
        else:
            status = 504 if lost.timed_out else 502
            message = f"worker {ticket.address.worker} gave no answer: {lost.why}"
            refused = Refused(status, message, kind="server_error", code="worker_unavailable")
            self._answer_whole(*refusal(refused), ticket)
        return None

    @property
    def _repeatable(self) -> bool:
        call = self._call
        return call is not None and (call.retryable or call.request.method in _SAFE_METHODS)

    # the other ends of the path

    def _refuse(self, refused: Refused) -> None:
        self._answer_whole(*refusal(refused))
        self._client.answered(keep_alive=self._keep_alive)

    def _fail(self) -> None:
        ticket, self._ticket = self._ticket, None
        self._drop_connection()
        if ticket is not None:
            self._relay.scheduling.cancelled(ticket)
        if not self._began:
            self._answer_whole(*refusal(Refused(500, "the gateway failed; see its log", kind="server_error")))
            self._client.answered(keep_alive=self._keep_alive)
        else:
            self._client.answered(keep_alive=False)

    def _cancel(self) -> None:
        self._relay.counts.num_cancelled += 1
        self._drop_connection()
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._relay.scheduling.cancelled(ticket)

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def _answer_whole(self, status: int, headers: Headers, body: bytes, ticket: Ticket | None = None) -> None:
        keep_alive = self._keep_alive = self._keep_alive and self._client.keeps_alive()
        head_only = self._message.request.method == "HEAD"
        added = notes(ticket) if ticket is not None else b""
        self._began = True
        self._client.write(
            whole_answer(status, answer_fields(headers), body, keep_alive=keep_alive, head_only=head_only, added=added)
        )

    # AnswerSink: what the worker's connection calls

    def on_head(self, status: int, reason: bytes, headers: Headers, framing: Framing) -> None:
        """Keep the client's head ready; a worker that cannot serve is kept from the client."""
        if status in _LOST_STATUS:
            self._held = _Lost(f"the worker answered {status}", status=status, reason=reason, headers=headers)
            return
        ticket = self._ticket
        assert ticket is not None
        call = ticket.call
        content_type = coding = b""
        for name, value in headers:
            if name == b"content-type":
                content_type = value
            elif name == b"content-encoding":
                coding = value.lower()
        plain = coding in {b"", b"identity"}
        if plain:
            self._watcher = self._relay.watch(call, status, headers)
            if content_type.startswith(b"text/event-stream"):
                hide = not call.wants_usage and call.stream and call.kind in {Kind.CHAT, Kind.COMPLETIONS}
                self._events = EventStream(hide_usage=hide)
        self._make_head(status, reason, headers, framing, ticket)

    def _make_head(self, status: int, reason: bytes, headers: Headers, framing: Framing, ticket: Ticket) -> None:
        http10 = self._message.http10
        lines = [status_line(status, reason), *field_lines(answer_fields(headers)), notes(ticket)]
        if framing is Framing.LENGTH and (self._events is None):
            lines.append(b"content-length: %b\r\n" % next(v for n, v in headers if n == b"content-length"))
        elif framing is Framing.NONE:
            lines += [b"content-length: %b\r\n" % v for n, v in headers if n == b"content-length" and status != 204]
        elif http10:
            self._keep_alive = False
        else:
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        self._keep_alive = self._keep_alive and self._client.keeps_alive()
        lines.append(b"\r\n" if self._keep_alive else b"connection: close\r\n\r\n")
        self._answer_head = b"".join(lines)

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
        self._settle(None)
        self._finish()

    def on_lost(self, why: str, *, timed_out: bool = False) -> None:
        """Before the client has seen anything the call can go elsewhere; afterwards the answer ends here."""
        self._connection = None
        self._held = None
        if not self._began:
            self._answer_head = b""
            self._chunked = False
            self._events = self._watcher = None
            self._settle(_Lost(why, timed_out=timed_out))
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
        if self._watcher is not None:
            try:
                answer = self._watcher.close()
            except Exception:
                log.exception("an answer could not be watched")
        relay.scheduling.finished(ticket, answer)
        relay.identity.answered(ticket.call, answer, relay.loop.time())

    def _settle(self, outcome: _Lost | None) -> None:
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(outcome)
