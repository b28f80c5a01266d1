"""The listening side: client connections, routes, limits in time and number, and a decent end.

    accept ─▶ ClientConnection ─▶ RequestReader ─▶ route ─▶ Relay or a handler of the gateway ─▶ next request

One exchange at a time on a connection: requests that are sent ahead wait in a bounded buffer and are answered in
order. What the reader refuses is answered in OpenAI's error shape, then the connection is closed the slow way (so that
the answer is not lost in a reset). This module refuses to know workers, the scheduler and the content of requests.
"""

from __future__ import annotations

import asyncio
import ssl as tls
from typing import Any, Final

from saga.gateway.codings import open_body
from saga.gateway.contracts import KINDS, Identity, Refused, Scheduling
from saga.gateway.http1 import Message, Phase, RequestReader
from saga.gateway.limits import FrontLimits
from saga.gateway.relay import Cold, Exchange, Relay, Watchers
from saga.gateway.rewriting import refusal, whole_answer
from saga.gateway.upstream import NEVER, ConnectionPool

_COLD: Final = frozenset({"/v1/models", "/health", "/ready"})
_MOST_AHEAD: Final = 65_536
_PIECE_OVERHEAD_BYTES: Final = 64


class Front:
    """The gateway's data plane. `start` may be called for several addresses; all of it runs on one event loop.

    cold answers GET /v1/models, /v1/models/NAME, /health and /ready; without it they are not found. tls: context for
    workers whose certificate is verified, None for the system's authorities.
    """

    def __init__(
        self,
        identity: Identity,
        scheduling: Scheduling,
        watchers: Watchers,
        limits: FrontLimits | None = None,
        cold: Cold | None = None,
        *,
        worker_tls: tls.SSLContext | None = None,
    ) -> None:
        self.limits = limits or FrontLimits()
        self.pool = ConnectionPool(self.limits.upstream, tls=worker_tls)
        self.relay = Relay(identity, scheduling, watchers, self.pool)
        self._cold = cold
        self._loop = asyncio.get_running_loop()
        self._servers: list[asyncio.Server] = []
        self._connections: set[ClientConnection] = set()
        self._ticker: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event = asyncio.Event()
        self.draining = False
        self.num_held_bytes = 0
        """Of bodies that are arriving or wait for their answer."""

    @property
    def num_connections(self) -> int:
        """Open client connections."""
        return len(self._connections)

    @property
    def num_in_flight(self) -> int:
        """Client connections with an exchange in progress. O(connections)."""
        return sum(connection.busy for connection in self._connections)

    async def start(
        self, host: str, port: int, *, reuse_port: bool = False, ssl: tls.SSLContext | None = None
    ) -> tuple[str, int]:
        """Listen; port 0 lets the system choose. Returns (host, port). Raises OSError."""
        server: Any = await self._loop.create_server(  # uvloop's, whose sockets are a list
            lambda: ClientConnection(self), host, port, reuse_port=reuse_port or None, ssl=ssl, backlog=1_024
        )
        self._servers.append(server)
        if self._ticker is None:
            self._tick()
        address = server.sockets[0].getsockname()
        return address[0], address[1]

    async def drain(self, timeout_s: float) -> bool:
        """Stop accepting, let exchanges in progress end, close the rest. Whether all ended in time."""
        self.draining = True
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.close_if_idle()
        try:
            async with asyncio.timeout(timeout_s):
                while self._connections:
                    self._emptied.clear()
                    await self._emptied.wait()
        except TimeoutError:
            self.close()
            return False
        self.close()
        return True

    def close(self) -> None:
        """Close everything now; exchanges in progress are cancelled."""
        self.draining = True
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.transport.abort()
        self.pool.close()
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    def admit_connection(self, connection: ClientConnection) -> bool:
        """Whether there is room for one more."""
        if self.draining or len(self._connections) >= self.limits.max_connections:
            return False
        self._connections.add(connection)
        return True

    def forget(self, connection: ClientConnection) -> None:
        """The connection is closed."""
        self._connections.discard(connection)
        if not self._connections:
            self._emptied.set()

    def route(self, message: Message) -> Cold | None:
        """Who answers: a handler of the gateway, or (None) a worker, for whom a compressed body is opened.

        Raises Refused (400, 404, 405, 413, 415).
        """
        request = message.request
        path = request.path
        if path in KINDS:
            if request.method != "POST":
                raise Refused(405, f"{path} takes POST")
            if request.header(b"content-encoding") is not None:
                open_body(request, self.limits.message.max_body_bytes)
            return None
        if path in _COLD or path.startswith("/v1/models/"):
            if self._cold is None:
                raise Refused(404, f"nothing is served at {path[:200]}", code="not_found")
            if request.method not in {"GET", "HEAD"}:
                raise Refused(405, f"{path} takes GET")
            return self._cold
        if path.startswith("/v1/"):
            return None
        raise Refused(404, f"nothing is served at {path[:200]}", code="not_found")

    def _tick(self) -> None:
        now = self._loop.time()
        for connection in [c for c in self._connections if c.deadline_s <= now]:
            connection.expire()
        self.pool.upkeep()
        self._ticker = self._loop.call_later(self.limits.tick_s, self._tick)


class ClientConnection(asyncio.Protocol):
    """One connection of a client. The `Client` of its exchanges."""

    __slots__ = (
        "_exchange",
        "_front",
        "_held_bytes",
        "_lingering",
        "_loop",
        "_paused_reading",
        "_paused_writing",
        "_reader",
        "_reading",
        "deadline_s",
        "transport",
    )

    def __init__(self, front: Front) -> None:
        self._front = front
        self._loop = asyncio.get_running_loop()
        self._reader = RequestReader(front.limits.message)
        self._exchange: Exchange | None = None
        self._held_bytes = 0
        self._lingering = False
        self._paused_reading = False
        self._paused_writing = False
        self._reading = False
        self.deadline_s = NEVER
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set before anything else is called

    @property
    def busy(self) -> bool:
        """Whether an exchange is in progress."""
        return self._exchange is not None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accepted, if there is room."""
        self.transport = transport  # type: ignore[assignment]
        if not self._front.admit_connection(self):
            refused = Refused(503, "too many connections", kind="server_error", retry_after_s=1.0)
            self._lingering = True
            self.transport.write(whole_answer(*refusal(refused), keep_alive=False))
            self.transport.close()
            return
        peer = transport.get_extra_info("peername")
        limits = self._front.limits
        self._reader = RequestReader(limits.message, str(peer[0]) if isinstance(peer, tuple) else "")
        self.deadline_s = self._loop.time() + limits.head_timeout_s

    def data_received(self, data: bytes) -> None:
        """Bytes of this request or, while one is answered, of those after it."""
        if self._lingering:
            return
        reader = self._reader
        phase = reader.phase
        reader.feed(data)
        if self._exchange is None and not self._paused_writing:
            self._read(phase, len(data))
        elif reader.num_buffered > _MOST_AHEAD:
            self._paused_reading = True
            self.transport.pause_reading()

    def eof_received(self) -> None:
        """A client that closes its side is gone: there is nobody to answer."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone, by whomever's will."""
        self.deadline_s = NEVER
        self._lingering = True
        self._hold(0)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abort()
        self._front.forget(self)

    def pause_writing(self) -> None:
        """The client reads more slowly than its worker writes."""
        self._paused_writing = True
        if not self._lingering:
            self.deadline_s = self._loop.time() + self._front.limits.write_timeout_s
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._paused_writing = False
        if self._exchange is not None:
            self.deadline_s = NEVER
            self._exchange.resume()
        elif not self._lingering:
            self._exchange_ended()

    # reading

    def _read(self, phase: Phase, num_new_bytes: int) -> None:
        """Serve what is whole; one exchange at a time, none while answers before it wait to be read.

        A loop, not a recursion: an exchange that ends at once leaves the next to it.
        """
        reader = self._reader
        self._reading = True
        while self._exchange is None and not (self._lingering or self._paused_writing):
            try:
                message = reader.read()
            except Refused as refused:
                self._refuse_and_close(refused)
                break
            if message is None:
                try:
                    self._await_more(phase, num_new_bytes)
                except Refused as refused:
                    self._refuse_and_close(refused)
                break
            phase = Phase.IDLE
            self.deadline_s = NEVER
            self._serve(message)
        self._reading = False

    def _serve(self, message: Message) -> None:
        num_sent_bytes = len(message.request.body)
        try:
            cold = self._front.route(message)
            self._hold(len(message.request.body))
            if len(message.request.body) > num_sent_bytes:  # it was opened: until now less was counted
                self._check_memory()
        except Refused as refused:
            keep_alive = message.keep_alive and self.keeps_alive()
            head_only = message.request.method == "HEAD"
            self.write(whole_answer(*refusal(refused), keep_alive=keep_alive, head_only=head_only))
            self._hold(0)
            if not keep_alive:
                self._linger()
            return
        exchange = self._exchange = Exchange(self._front.relay, self, message)
        if cold is None:
            exchange.start()
        else:
            exchange.start_here(cold)

    def _hold(self, num_bytes: int) -> None:
        """What is held of this connection's body from now on."""
        self._front.num_held_bytes += num_bytes - self._held_bytes
        self._held_bytes = num_bytes

    def _check_memory(self) -> None:
        """Raise Refused (503) where bodies take more memory than they may."""
        if self._front.num_held_bytes > self._front.limits.max_held_bytes:
            message = "bodies of other requests take all memory that there is for them"
            raise Refused(503, message, kind="server_error", code="overloaded", retry_after_s=1.0)

    def _await_more(self, before: Phase, num_new_bytes: int) -> None:
        """Set the deadline of the phase just entered, or move that of the body along with its bytes.

        Raises Refused (503) where bodies take more memory than they may.
        """
        if self._paused_reading:
            self._paused_reading = False
            self.transport.resume_reading()
        limits = self._front.limits
        phase = self._reader.phase
        if phase is Phase.BODY:
            new_bytes = num_new_bytes if before is Phase.BODY else max(num_new_bytes, self._reader.num_buffered)
            self._hold(self._held_bytes + new_bytes + _PIECE_OVERHEAD_BYTES)
            self._check_memory()
            if before is not Phase.BODY:
                self.deadline_s = self._loop.time() + limits.body_timeout_s
                if self._reader.take_expectation():
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            else:
                self.deadline_s += num_new_bytes / limits.min_body_bytes_per_s
        elif phase is Phase.HEAD:
            if before is not Phase.HEAD:
                self.deadline_s = self._loop.time() + limits.head_timeout_s
        else:
            self.deadline_s = self._loop.time() + limits.idle_timeout_s
            if self._front.draining:
                self.transport.close()

    # the exchange's Client

    def write(self, data: bytes) -> None:
        """Send bytes of an answer; to nobody, where the client has gone and `connection_lost` is about to be called.

        uvloop raises there, asyncio does not.
        """
        try:  # noqa: SIM105  one per token: `suppress` costs more than the rest
            self.transport.write(data)
        except RuntimeError:
            pass

    def keeps_alive(self) -> bool:
        """Whether more requests are welcome."""
        return not self._front.draining

    def answered(self, *, keep_alive: bool) -> None:
        """The exchange is over: go on with what was sent ahead."""
        if self._exchange is None:
            return
        self._exchange = None
        self._hold(0)
        if not keep_alive:
            self._linger()
            return
        self._exchange_ended()

    def _exchange_ended(self) -> None:
        """Serve what was sent ahead, or wait for the next request; not before the client has read its answer."""
        if self._paused_writing or self._reading:
            return
        self._read(Phase.IDLE, 0)

    # ends

    def close_if_idle(self) -> None:
        """Close a connection that waits for its next request."""
        if self._exchange is None and self._reader.phase is Phase.IDLE and not self._lingering:
            self.transport.close()

    def expire(self) -> None:
        """The deadline has passed: say so to a client in the middle of a request, close otherwise."""
        if self._exchange is not None or self._lingering or self._paused_writing:
            self.transport.abort()
        elif self._reader.phase is Phase.IDLE:
            self.transport.close()
        else:
            self._refuse_and_close(Refused(408, "the request did not arrive in time", code="request_timeout"))

    def _refuse_and_close(self, refused: Refused) -> None:
        self.transport.write(whole_answer(*refusal(refused), keep_alive=False, head_only=self._reader.head_only))
        self._linger()

    def _linger(self) -> None:
        """Close the sending side, drop what still comes for a while: a close at once would reset the answer away."""
        self._lingering = True
        self._reader = RequestReader(self._front.limits.message)  # what has come of the request is let go
        self._hold(0)
        self.deadline_s = self._loop.time() + self._front.limits.linger_s
        if self._paused_reading:
            self._paused_reading = False
            self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()
