"""Connections to workers: pooled, bounded, each carrying one exchange at a time.

A connection hands the answer's parts to whoever sent the request (`AnswerSink`), in the worker's bytes, one call per
part and per read of the socket. An answer that comes whole, under the head of the one before it but for the digits of
its length, is not parsed again. Connections that are idle too long, too old, broken, or that say something nobody
asked for are closed. This module refuses to know clients, retries and the scheduler; it knows where a worker is and
nothing of what it serves.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Protocol, TypeAlias

import httptools

from saga.errors import PeerError
from saga.gateway.addresses import WorkerAddress
from saga.gateway.limits import UpstreamLimits
from saga.gateway.rewriting import Headers

Key: TypeAlias = tuple[str, int, bool, bool]
"""(host, port, tls, verify_tls): connections of equal keys are interchangeable."""

NEVER: Final = float("inf")

_LENGTH_LINE: Final = re.compile(rb"\r\ncontent-length:[\t ]*(\d{1,18})(?=\r\n)", re.IGNORECASE)


class Unreachable(PeerError):
    """No connection to the worker could be made: nothing of the request was sent."""


class Framing(Enum):
    """How a worker marks the end of its answer."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


class AnswerHead:
    """The final head of an answer; names in lower case.

    memo: shared by heads that differ in their length only, for whoever derives something from a head.
    """

    __slots__ = ("framing", "headers", "memo", "reason", "status")

    def __init__(self, status: int, reason: bytes, headers: Headers, framing: Framing, memo: dict[str, Any]) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        self.framing = framing
        self.memo = memo

    def header(self, name: bytes) -> bytes | None:
        """The first field of that (lower-case) name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class _Template:
    """A head that was parsed, without the digits of its length: workers repeat their heads but for those."""

    __slots__ = ("after", "before", "fields_after", "fields_before", "head")

    def __init__(self, before: bytes, after: bytes, head: AnswerHead) -> None:
        self.before = before
        self.after = after
        self.head = head
        at = next(i for i, (name, _) in enumerate(head.headers) if name == b"content-length")
        self.fields_before = head.headers[:at]
        self.fields_after = head.headers[at + 1 :]


class AnswerSink(Protocol):
    """Whoever awaits an answer. Exactly one of `on_end` and `on_lost` comes, last."""

    def on_head(self, head: AnswerHead) -> None:
        """The final head."""
        ...

    def on_body(self, data: bytes) -> None:
        """More of the body, transfer-coding removed."""
        ...

    def on_end(self) -> None:
        """The answer is whole; the connection may already be back in the pool."""
        ...

    def on_lost(self, why: str, *, timed_out: bool = False) -> None:
        """The answer will never be whole."""
        ...


class WorkerConnection(asyncio.Protocol):
    """One connection to a worker. Made by the pool."""

    __deletable__ = ("_parser",)
    __slots__ = (
        "_body",
        "_clock",
        "_complete",
        "_framing",
        "_head",
        "_head_only",
        "_headers",
        "_in_body",
        "_keep_alive",
        "_num_head_bytes",
        "_parser",
        "_poisoned",
        "_pool",
        "_reason",
        "_sink",
        "_status",
        "_template",
        "born_s",
        "deadline_s",
        "key",
        "num_exchanges",
        "transport",
    )

    def __init__(self, pool: ConnectionPool, key: Key) -> None:
        self._pool = pool
        self._clock = pool.clock
        self.key = key
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set before anyone sees the connection
        self.deadline_s = NEVER
        self.born_s = pool.clock()
        self.num_exchanges = 0
        self._sink: AnswerSink | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._poisoned = False
        self._keep_alive = True
        self._head_only = False
        self._head: AnswerHead | None = None
        self._template: _Template | None = None
        self._reset()

    def _reset(self) -> None:
        self._status = 0
        self._reason = b""
        self._headers: Headers = []
        self._framing = Framing.CLOSE
        self._in_body = False
        self._body: list[bytes] = []
        self._complete = False
        self._num_head_bytes = 0

    @property
    def reused(self) -> bool:
        """Whether the exchange in progress is not the connection's first."""
        return self.num_exchanges > 1

    def send(self, sink: AnswerSink, head: bytes, body: bytes, *, head_only: bool = False) -> None:
        """Send a request; its answer goes to `sink`. head_only: the request is a HEAD.

        A connection that is closed already loses it in `connection_lost` (uvloop raises where asyncio only warns).
        """
        self._sink = sink
        self._head_only = head_only
        self.num_exchanges += 1
        self.deadline_s = self._clock() + self._pool.limits.answer_timeout_s
        try:
            if len(body) < 16_384:
                self.transport.write(head + body)
            else:
                self.transport.writelines((head, body))
        except RuntimeError:
            pass

    def abort(self) -> None:
        """The answer is no longer wanted: nothing more reaches the sink, the connection is closed."""
        self._sink = None
        self.transport.abort()

    def pause(self) -> None:
        """Stop reading: the client is slower than the worker. The deadline waits too."""
        self.transport.pause_reading()
        self.deadline_s = NEVER

    def resume(self) -> None:
        """Read on."""
        self.transport.resume_reading()
        self.deadline_s = self._clock() + self._pool.limits.silence_timeout_s

    def expire(self) -> None:
        """The deadline has passed: an idle connection is closed, an exchange is lost."""
        self._lose("the worker was silent for too long", timed_out=True)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open."""
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Parse, then hand on what was found in one call per part."""
        sink = self._sink
        if sink is None:
            self.transport.abort()
            return
        head_was_done = self._in_body
        is_first = not (head_was_done or self._num_head_bytes or self._head_only)
        if is_first and self._template is not None and self._repeat(sink, data, self._template):
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._poisoned = True
            if not self._complete:
                self._hand_on(sink, head_was_done)
                self._lose(f"the worker's answer is not HTTP: {error}")
                return
        if not self._in_body:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > self._pool.limits.max_head_bytes:
                self._lose("the header of the worker's answer is too large")
            return
        self._hand_on(sink, head_was_done)
        if self._complete:
            if is_first:
                self._remember(data)
            self._end(sink)
        elif self.deadline_s is not NEVER:
            self.deadline_s = self._clock() + self._pool.limits.silence_timeout_s

    def _hand_on(self, sink: AnswerSink, head_was_done: bool) -> None:  # noqa: FBT001
        if self._in_body and not head_was_done:
            self._head = AnswerHead(self._status, self._reason, self._headers, self._framing, {})
            sink.on_head(self._head)
        body = self._body
        if body and self._sink is sink:
            self._body = []
            sink.on_body(body[0] if len(body) == 1 else b"".join(body))

    def _repeat(self, sink: AnswerSink, data: bytes, template: _Template) -> bool:
        """Hand on an answer that is whole and has the last one's head; whether it was one."""
        if not data.startswith(template.before):
            return False
        start = len(template.before)
        stop = data.find(b"\r\n", start)
        digits = data[start:stop]
        at = stop + len(template.after)
        if not data.startswith(template.after, stop) or not digits.isdigit() or len(digits) > 18:
            return False
        if len(data) - at != int(digits):
            return False
        head = template.head
        headers = [*template.fields_before, (b"content-length", digits), *template.fields_after]
        sink.on_head(AnswerHead(head.status, head.reason, headers, head.framing, head.memo))
        if at < len(data) and self._sink is sink:
            sink.on_body(data[at:])
        self._end(sink)
        return True

    def _remember(self, data: bytes) -> None:
        """The head of an answer that came whole, for the next one; none where it cannot be told from its bytes."""
        self._template = None
        head, end = self._head, data.find(b"\r\n\r\n")
        if head is None or head.framing is not Framing.LENGTH or not self._keep_alive or self._poisoned:
            return
        matched = _LENGTH_LINE.search(data, 0, end + 2)
        if matched is None or len(data) - end - 4 != int(matched[1]):  # there was an informational answer before it
            return
        self._template = _Template(data[: matched.start(1)], data[matched.end(1) : end + 4], head)

    def _end(self, sink: AnswerSink) -> None:
        """The answer is whole; the connection goes back before the sink knows, so that it can be taken at once."""
        if self._sink is not sink:
            return
        self._sink = None
        if self._keep_alive and not self._poisoned and not self._head_only:
            self._reset()
            self._pool.give(self)
        else:
            self.transport.abort()
        sink.on_end()

    def eof_received(self) -> None:
        """The worker closes: that ends an answer without a length."""
        self._closed_by_worker(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed by whomever. The parser goes: it holds this object's methods, a cycle that only a collector frees."""
        self._closed_by_worker(exc)
        self._pool.forget(self)
        del self._parser

    def _closed_by_worker(self, exc: Exception | None) -> None:
        sink = self._sink
        if sink is None:
            return
        if self._in_body and self._framing is Framing.CLOSE and exc is None:
            self._keep_alive = False
            self._end(sink)
        else:
            self._lose("the worker closed the connection" if exc is None else f"the connection broke: {exc}")

    def _lose(self, why: str, *, timed_out: bool = False) -> None:
        sink, self._sink = self._sink, None
        self.transport.abort()
        if sink is not None:
            sink.on_lost(why, timed_out=timed_out)

    # httptools: called inside feed_data

    def on_message_begin(self) -> None:
        """A second message in one exchange is something nobody asked for, except after a 1xx."""
        if self._complete:
            self._poisoned = True

    def on_status(self, status: bytes) -> None:
        """The reason phrase, or a part of it."""
        if not self._poisoned:
            self._reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head; trailers are dropped."""
        if not self._in_body and not self._poisoned:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """A final head opens the body; an informational one is swallowed."""
        if self._poisoned:
            return
        self._status = status = self._parser.get_status_code()
        if status < 200:
            return
        self._in_body = True
        self._keep_alive = self._parser.should_keep_alive()
        self._framing = self._framing_of_head(status)
        if self._head_only:
            self._complete = True

    def _framing_of_head(self, status: int) -> Framing:
        if self._head_only or status in {204, 304}:
            return Framing.NONE
        for name, value in self._headers:
            if name == b"content-length":
                return Framing.LENGTH
            if name == b"transfer-encoding" and value.lower().endswith(b"chunked"):
                return Framing.CHUNKED
        return Framing.CLOSE

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        if not self._poisoned and not self._head_only:
            self._body.append(data)

    def on_message_complete(self) -> None:
        """The end of an answer, or of an informational one before it."""
        if self._poisoned:
            return
        if self._in_body:
            self._complete = True
        else:
            self._reset()


class ConnectionPool:
    """Connections to all workers. Taking and giving back O(1); an upkeep once a second O(connections).

    tls: the context for workers whose certificate is verified; None for the system's authorities.
    """

    def __init__(self, limits: UpstreamLimits | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self.limits = limits or UpstreamLimits()
        self._tls = tls
        self._tls_unverified: ssl.SSLContext | None = None
        self._idle: dict[Key, deque[WorkerConnection]] = {}
        self._all: set[WorkerConnection] = set()
        self._num_dialing = 0
        self.clock: Callable[[], float] = asyncio.get_running_loop().time
        self.num_dials = 0
        self._closed = False

    @property
    def num_connections(self) -> int:
        """Open connections, idle or busy."""
        return len(self._all)

    @property
    def num_idle(self) -> int:
        """Open connections that wait for work."""
        return sum(len(idle) for idle in self._idle.values())

    def take(self, address: WorkerAddress) -> WorkerConnection | None:
        """The idle connection used last, None where there is none."""
        idle = self._idle.get((address.host, address.port, address.tls, address.verify_tls))
        while idle:
            connection = idle.pop()
            if connection.deadline_s > self.clock() and not connection.transport.is_closing():
                connection.deadline_s = NEVER
                return connection
            connection.transport.abort()
        return None

    async def dial(self, address: WorkerAddress) -> WorkerConnection:
        """A new connection. Raises Unreachable."""
        self._make_room()
        self._num_dialing += 1
        self.num_dials += 1
        key = (address.host, address.port, address.tls, address.verify_tls)
        try:
            async with asyncio.timeout(self.limits.connect_timeout_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: WorkerConnection(self, key),
                    address.host,
                    address.port,
                    ssl=self._context(address),
                    server_hostname=address.host if address.tls else None,
                )
        except TimeoutError as error:
            raise Unreachable(f"no connection to {address.worker} in {self.limits.connect_timeout_s:g} s") from error
        except (OSError, ssl.SSLError, UnicodeError) as error:
            raise Unreachable(f"no connection to {address.worker}: {error}") from error
        finally:
            self._num_dialing -= 1
        self._all.add(connection)
        if self._closed or connection.transport.is_closing():
            connection.transport.abort()
            raise Unreachable(f"no connection to {address.worker}: it was closed at once")
        return connection

    def _make_room(self) -> None:
        """Raise Unreachable if all connections are busy; else close an idle one where the bound is reached."""
        if len(self._all) + self._num_dialing < self.limits.max_connections:
            return
        for idle in self._idle.values():
            if idle:
                connection = idle.popleft()
                self._all.discard(connection)
                connection.transport.abort()
                return
        raise Unreachable(f"all {self.limits.max_connections} connections to workers are busy")

    def _context(self, address: WorkerAddress) -> ssl.SSLContext | None:
        if not address.tls:
            return None
        if address.verify_tls:
            if self._tls is None:
                self._tls = ssl.create_default_context()
            return self._tls
        if self._tls_unverified is None:
            self._tls_unverified = ssl.create_default_context()
            self._tls_unverified.check_hostname = False
            self._tls_unverified.verify_mode = ssl.CERT_NONE
        return self._tls_unverified

    def give(self, connection: WorkerConnection) -> None:
        """Back into the pool, or closed if it is too old or there are enough."""
        now = self.clock()
        idle = self._idle.get(connection.key)
        if idle is None:
            idle = self._idle[connection.key] = deque()
        too_old = now - connection.born_s > self.limits.max_age_s
        if self._closed or too_old or len(idle) >= self.limits.max_idle_per_worker:
            connection.transport.abort()
        else:
            connection.deadline_s = now + self.limits.idle_s
            idle.append(connection)

    def forget(self, connection: WorkerConnection) -> None:
        """The connection is closed."""
        self._all.discard(connection)
        idle = self._idle.get(connection.key)
        if idle is not None:
            try:
                idle.remove(connection)
            except ValueError:
                return
            if not idle:
                del self._idle[connection.key]

    def upkeep(self) -> None:
        """Close what is idle too long, lose what is silent too long. Called once a second or so."""
        now = self.clock()
        for connection in [c for c in self._all if c.deadline_s <= now]:
            connection.expire()

    def close(self) -> None:
        """Close all connections."""
        self._closed = True
        for connection in list(self._all):
            connection.transport.abort()
