"""A fleet, a scheduler and identities that do as they are told, for tests of the data plane; all on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from saga.gateway.addresses import WorkerAddress
from saga.gateway.contracts import Answer, Call, Refused, Request, Ticket, kind_of
from saga.gateway.front import Front
from saga.gateway.limits import FrontLimits

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T], *, timeout_s: float = 20.0) -> T:
    """Run a test's coroutine; a hang is a failure."""
    return asyncio.run(asyncio.wait_for(work, timeout_s))


@dataclass
class FakeIdentity:
    """Every request is a step of its own; `refuse` makes all of them refused, `change` alters calls."""

    refuse: Refused | None = None
    change: Callable[[Call], None] | None = None
    seen: list[Request] = field(default_factory=list)
    learned: list[Answer] = field(default_factory=list)

    def identify(self, request: Request, at_s: float) -> Call:
        self.seen.append(request)
        if self.refuse is not None:
            raise self.refuse
        step = str(len(self.seen))
        kind = kind_of(request.method, request.path)
        call = Call(kind, request, "tenant", f"s{step}", f"t{step}", step, body=request.body, retryable=True)
        if self.change is not None:
            self.change(call)
        return call

    def answered(self, call: Call, answer: Answer, at_s: float) -> None:
        self.learned.append(answer)


@dataclass
class FakeScheduling:
    """Sends calls to the first worker, retries to the others in turn; writes down what it is told."""

    addresses: list[WorkerAddress]
    extra: dict[str, Any] = field(default_factory=dict)
    reason: str = "first worker"
    log: list[tuple[str, ...]] = field(default_factory=list)
    gate: asyncio.Event | None = None
    refuse: Refused | None = None

    def admit_at_once(self, call: Call) -> Ticket | None:
        return None

    async def admit(self, call: Call) -> Ticket:
        self.log.append(("admit", call.step))
        if self.refuse is not None:
            raise self.refuse
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.log.append(("cancelled in the queue", call.step))
                raise
        return Ticket(call, self.addresses[0], 0.0125, self.reason, extra=self.extra)

    def first_byte(self, ticket: Ticket) -> None:
        self.log.append(("first byte", ticket.call.step))

    def finished(self, ticket: Ticket, answer: Answer) -> None:
        self.log.append(("finished", ticket.call.step))

    async def failed(self, ticket: Ticket, why: str, *, retry: bool) -> Ticket | None:
        self.log.append(("failed", ticket.call.step, "retry" if retry else "final"))
        if not retry or len(self.addresses) <= ticket.attempt:
            return None
        return Ticket(
            ticket.call, self.addresses[ticket.attempt], 0.5, "elsewhere", attempt=ticket.attempt + 1, extra=self.extra
        )

    def cancelled(self, ticket: Ticket) -> None:
        self.log.append(("cancelled", ticket.call.step))

    def count(self, what: str) -> int:
        """How often something was told."""
        return sum(entry[0] == what for entry in self.log)


@dataclass
class FakeWatcher:
    """Keeps the bytes it sees."""

    data: bytearray = field(default_factory=bytearray)

    def feed(self, chunk: bytes) -> None:
        self.data += chunk

    def close(self) -> Answer:
        return Answer(complete=True, num_bytes=len(self.data), text=self.data.decode("utf-8", "replace"))


Respond = Callable[["Heard", asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Heard:
    """A request as a worker's raw bytes show it."""

    head: bytes
    body: bytes
    num_on_connection: int

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    def values(self, name: bytes) -> list[bytes]:
        lines = [line.partition(b":") for line in self.head.split(b"\r\n")[1:]]
        return [value.strip() for key, _, value in lines if key.lower() == name]


class FakeWorker:
    """A server of raw bytes: reads requests with a length, answers with whatever `respond` writes."""

    def __init__(self, respond: Respond | bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") -> None:
        self.respond = respond
        self.heard: list[Heard] = []
        self.num_connections = 0
        self.num_closed = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.address = WorkerAddress("w", "127.0.0.1", 0)

    async def start(self, name: str = "w0", *, ssl: Any = None, **address: Any) -> FakeWorker:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=ssl, limit=1 << 24)
        port = self._server.sockets[0].getsockname()[1]
        self.address = WorkerAddress(name, "127.0.0.1", port, tls=ssl is not None, **address)
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self._writers.add(writer)
        num = 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                heard = Heard(head[:-4], b"", num)
                lengths = heard.values(b"content-length")
                heard.body = await reader.readexactly(int(lengths[0])) if lengths else b""
                self.heard.append(heard)
                num += 1
                if isinstance(self.respond, bytes):
                    writer.write(self.respond)
                else:
                    await self.respond(heard, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self.num_closed += 1
            self._writers.discard(writer)
            writer.close()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)


@dataclass
class Plane:
    """A front with its workers and fakes."""

    front: Front
    identity: FakeIdentity
    scheduling: FakeScheduling
    watchers: list[FakeWatcher]
    workers: list[FakeWorker]
    port: int

    async def talk(self, *pieces: bytes, pause_s: float = 0.0) -> bytes:
        """Everything the front says to these bytes until it closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        heard = asyncio.create_task(reader.read())  # while it writes: who does not read is not written to for ever
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)
            return await heard
        except ConnectionError:
            return b""
        finally:
            heard.cancel()
            writer.close()

    async def settle(self, condition: Callable[[], bool]) -> None:
        """Wait until something has come true."""
        while not condition():  # noqa: ASYNC110  a law over several objects, no event to wait for
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def plane(
    *responds: Respond | bytes,
    limits: FrontLimits | None = None,
    identity: FakeIdentity | None = None,
    cold: Any = None,
    addresses: list[WorkerAddress] | None = None,
    **front: Any,
) -> AsyncIterator[Plane]:
    """A front before as many fake workers as there are ways to respond."""
    workers = [await FakeWorker(respond).start(f"w{i}") for i, respond in enumerate(responds)]
    scheduling = FakeScheduling(addresses or [worker.address for worker in workers])
    identity = identity or FakeIdentity()
    watchers: list[FakeWatcher] = []

    def watch(call: Call, status: int, headers: Any) -> FakeWatcher:
        watchers.append(FakeWatcher())
        return watchers[-1]

    front_ = Front(identity, scheduling, watch, limits, cold, **front)
    _, port = await front_.start("127.0.0.1", 0)
    try:
        yield Plane(front_, identity, scheduling, watchers, workers, port)
    finally:
        front_.close()
        for worker in workers:
            await worker.close()
        await asyncio.sleep(0.01)


def post(body: bytes = b'{"model":"m"}', *fields: bytes, path: bytes = b"/v1/chat/completions") -> bytes:
    """A POST with a length."""
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: saga", *fields, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


CLOSE = b"Connection: close"
