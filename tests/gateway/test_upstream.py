"""Connections to workers: reuse, bounds, and answers of every framing."""

from __future__ import annotations

import asyncio
import gc
import ssl
from unittest.mock import Mock

import pytest
import trustme

from saga.gateway.addresses import WorkerAddress
from saga.gateway.limits import UpstreamLimits
from saga.gateway.upstream import ConnectionPool, Framing, Unreachable, WorkerConnection

from .fakes import FakeWorker, run

GET = b"GET /v1/x HTTP/1.1\r\nhost: w\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Sink:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.framing = Framing.NONE
        self.body = b""
        self.why = ""
        self.timed_out = False
        self.over = asyncio.Event()

    def on_head(self, head) -> None:
        self.status, self.headers, self.framing, self.memo = head.status, head.headers, head.framing, head.memo

    def on_body(self, data) -> None:
        self.body += data

    def on_end(self) -> None:
        assert not self.over.is_set()
        self.over.set()

    def on_lost(self, why, *, timed_out=False) -> None:
        assert not self.over.is_set()
        self.why, self.timed_out = why or "lost", timed_out
        self.over.set()


async def ask(connection: WorkerConnection, *, head_only: bool = False) -> Sink:
    """One exchange."""
    sink = Sink()
    connection.send(sink, GET, b"", head_only=head_only)
    await sink.over.wait()
    return sink


def one(answer: bytes, *, close: bool = False, head_only: bool = False) -> tuple[Sink, int]:
    """What comes of these bytes, and how many connections are idle afterwards."""

    async def respond(heard, writer) -> None:
        writer.write(answer)
        if close:
            await writer.drain()
            writer.close()

    async def work() -> tuple[Sink, int]:
        worker = await FakeWorker(respond).start()
        pool = ConnectionPool()
        sink = await ask(await pool.dial(worker.address), head_only=head_only)
        num_idle = pool.num_idle
        pool.close()
        await worker.close()
        return sink, num_idle

    return run(work())


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nTrailer: x\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "framing", "num_idle"),
    [
        (OK, Framing.LENGTH, 1),
        (CHUNKED, Framing.CHUNKED, 1),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK, Framing.LENGTH, 1),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", Framing.LENGTH, 0),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", Framing.LENGTH, 0),
    ],
)
def test_answers_of_every_framing(answer, framing, num_idle) -> None:
    """Body and framing are found, 1xx and trailers are swallowed, a connection is kept exactly if it may be."""
    sink, idle = one(answer)
    assert (sink.status, sink.body, sink.framing, sink.why, idle) == (200, b"ok", framing, "", num_idle)
    assert b"trailer" not in dict(sink.headers)
    assert b"link" not in dict(sink.headers)


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    """Close-delimited bodies are whole when the worker closes."""
    sink, idle = one(b"HTTP/1.1 200 OK\r\n\r\nok", close=True)
    assert (sink.body, sink.framing, sink.why, idle) == (b"ok", Framing.CLOSE, "", 0)


def test_answers_without_a_body() -> None:
    """To HEAD, and 204 and 304, there is no body whatever the length says."""
    sink, idle = one(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", head_only=True)
    assert (sink.status, sink.body, sink.framing, sink.why, idle) == (200, b"", Framing.NONE, "", 0)
    for status in (b"204 No Content", b"304 Not Modified"):
        sink, idle = one(b"HTTP/1.1 " + status + b"\r\n\r\n")
        assert (sink.body, sink.framing, sink.why, idle) == (b"", Framing.NONE, "", 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\nContent-",
    ],
)
def test_an_answer_that_breaks_is_lost(answer) -> None:
    """A worker that closes early is reported, once."""
    sink, idle = one(answer, close=True)
    assert sink.why
    assert idle == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
    ],
)
def test_an_answer_that_is_not_http_is_lost(answer) -> None:
    """Malformed, ambiguous and endless heads lose the exchange and the connection."""
    sink, idle = one(answer)
    assert sink.why
    assert idle == 0


def test_a_second_answer_nobody_asked_for_poisons_the_connection() -> None:
    """The first answer counts, what follows reaches nobody, the connection is closed."""
    sink, idle = one(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    assert (sink.body, sink.why, idle) == (b"ok", "", 0)
    sink, idle = one(OK + b"garbage")
    assert (sink.body, sink.why, idle) == (b"ok", "", 0)


def heard(first: bytes | None, pieces: tuple[bytes, ...]) -> tuple[object, ...]:
    """What a connection makes of an answer that comes in these pieces, after another answer or as its first."""

    async def work() -> tuple[object, ...]:
        pool = ConnectionPool()
        connection = WorkerConnection(pool, ("h", 1, False, True))
        connection.connection_made(Mock())
        if first is not None:
            connection.send(before := Sink(), GET, b"")
            connection.data_received(first)
            assert before.body == b"ok"
        num_idle = pool.num_idle
        connection.send(sink := Sink(), GET, b"")
        for piece in pieces:
            connection.data_received(piece)
        return (
            sink.status,
            sink.headers,
            sink.body,
            sink.framing,
            sink.why,
            sink.over.is_set(),
            pool.num_idle - num_idle,
        )

    return asyncio.run(work())


USUAL = b"HTTP/1.1 200 OK\r\nServer: w\r\nContent-Length: %b\r\nContent-Type: text/plain\r\n\r\n%b"


@pytest.mark.parametrize(
    "pieces",
    [
        (USUAL % (b"4", b"more"),),
        (USUAL % (b"004", b"more"),),
        (USUAL % (b"0", b""),),
        (USUAL % (b"4", b"mo"), b"re"),
        (USUAL % (b"4", b""), b"more"),
        ((USUAL % (b"4", b"more"))[:40], (USUAL % (b"4", b"more"))[40:]),
        (USUAL % (b"2", b"more"),),
        (USUAL % (b"4x", b"more"),),
        (USUAL % (b"9" * 5_000, b"more"),),
        ((USUAL % (b"4", b"more")).replace(b"text/plain", b"text/html"),),
        ((USUAL % (b"4", b"more")).replace(b"200 OK", b"503 Busy"),),
        ((USUAL % (b"4", b"more")).replace(b"Server: w", b"Connection: close"),),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + USUAL % (b"4", b"more"),),
        (CHUNKED,),
    ],
)
def test_an_answer_is_the_same_after_one_with_the_same_head(pieces) -> None:
    """A head that repeats the last one is not parsed again, and nobody can tell it from a connection's first answer."""
    assert heard(USUAL % (b"2", b"ok"), pieces) == heard(None, pieces)


def test_heads_that_differ_in_their_length_share_a_memo() -> None:
    """Whoever derives something from a head does so once; another head has a memo of its own."""

    async def work() -> list[object]:
        pool = ConnectionPool()
        connection = WorkerConnection(pool, ("h", 1, False, True))
        connection.connection_made(Mock())
        memos = []
        for answer in (USUAL % (b"2", b"ok"), USUAL % (b"4", b"more"), OK):
            connection.send(sink := Sink(), GET, b"")
            connection.data_received(answer)
            memos.append(sink.memo)
        return memos

    first, second, other = asyncio.run(work())
    assert first is second
    assert other is not first


def test_connections_are_reused_and_told_apart() -> None:
    """The same worker's idle connection is taken again; another worker's never is."""

    async def work() -> None:
        workers = [await FakeWorker().start(f"w{i}") for i in range(2)]
        pool = ConnectionPool()
        first = await pool.dial(workers[0].address)
        await ask(first)
        assert pool.take(workers[1].address) is None
        again = pool.take(workers[0].address)
        assert again is first
        await ask(again)
        assert again.reused
        assert [heard.num_on_connection for heard in workers[0].heard] == [0, 1]
        pool.close()
        for worker in workers:
            await worker.close()

    run(work())


def test_idle_and_old_connections_are_closed() -> None:
    """Upkeep closes what is idle too long; what is too old is not taken back; what a worker closed is not taken."""

    async def work() -> None:
        worker = await FakeWorker().start()
        pool = ConnectionPool(UpstreamLimits(idle_s=10.0, max_age_s=100.0))
        now = 1_000.0
        pool.clock = lambda: now
        connection = await pool.dial(worker.address)
        await ask(connection)
        now += 10.5
        assert pool.take(worker.address) is None
        connection = await pool.dial(worker.address)
        await ask(connection)
        now += 10.5
        pool.upkeep()
        await asyncio.sleep(0.01)
        assert pool.num_connections == 0
        connection = await pool.dial(worker.address)
        now += 101.0
        await ask(connection)
        assert pool.num_idle == 0
        pool.close()
        await worker.close()

    run(work())


def test_a_silent_worker_is_lost_in_time() -> None:
    """No head within answer_timeout_s, no byte within silence_timeout_s: lost, and said to be a matter of time."""

    async def respond(heard, writer) -> None:
        if heard.num_on_connection == 0 and b"talk" in heard.line:
            writer.write(OK[:-1])

    async def work() -> None:
        worker = await FakeWorker(respond).start()
        pool = ConnectionPool(UpstreamLimits(answer_timeout_s=50.0, silence_timeout_s=5.0))
        now = 0.0
        pool.clock = lambda: now
        for request, wait_s in ((GET, 51.0), (GET.replace(b"/x", b"/talk"), 6.0)):
            sink = Sink()
            connection = await pool.dial(worker.address)
            connection.send(sink, request, b"")
            await asyncio.sleep(0.05)
            now += wait_s - 2.0
            pool.upkeep()
            assert not sink.over.is_set()
            now += 2.0
            pool.upkeep()
            assert sink.timed_out
        pool.close()
        await worker.close()

    run(work())


def test_the_pool_is_bounded() -> None:
    """At the bound an idle connection of another worker gives way; where all are busy, a worker is out of reach."""

    async def silent(heard, writer) -> None:
        """Never answer."""

    async def work() -> None:
        workers = [await FakeWorker().start("w0"), await FakeWorker(silent).start("w1")]
        pool = ConnectionPool(UpstreamLimits(max_connections=1))
        await ask(await pool.dial(workers[0].address))
        busy = await pool.dial(workers[1].address)
        busy.send(Sink(), GET, b"")
        assert pool.num_connections == 1
        with pytest.raises(Unreachable, match="busy"):
            await pool.dial(workers[0].address)
        pool.close()
        for worker in workers:
            await worker.close()

    run(work())


def test_nobody_listening_is_out_of_reach() -> None:
    """A refused connection is an Unreachable that names the worker."""

    async def work() -> None:
        worker = await FakeWorker().start()
        await worker.close()
        with pytest.raises(Unreachable, match="no connection to w0"):
            await ConnectionPool().dial(worker.address)

    run(work())


def test_tls_to_workers() -> None:
    """A worker's certificate is verified against the authorities given, for its name, unless it says not to."""
    authority = trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    misnamed = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("elsewhere.example").configure_cert(misnamed)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def get(context, pool: ConnectionPool, **address) -> bytes:
        worker = await FakeWorker().start(ssl=context, **address)
        try:
            return (await ask(await pool.dial(worker.address))).body
        finally:
            pool.close()
            await worker.close()

    async def work() -> None:
        assert await get(serving, ConnectionPool(tls=trusting)) == b"ok"
        assert await get(misnamed, ConnectionPool(), verify_tls=False) == b"ok"
        for context, tls in ((serving, None), (misnamed, trusting)):
            with pytest.raises(Unreachable):
                await get(context, ConnectionPool(tls=tls))

    run(work())


def test_keys_tell_what_is_interchangeable() -> None:
    """A verified connection is never taken from unverified ones."""

    async def work() -> None:
        worker = await FakeWorker().start()
        pool = ConnectionPool()
        await ask(await pool.dial(worker.address))
        other = WorkerAddress("w0", worker.address.host, worker.address.port, verify_tls=False)
        assert pool.take(other) is None
        pool.close()
        await worker.close()

    run(work())


def test_a_closed_connection_is_no_garbage() -> None:
    """Reference counts free it: a gateway that seldom collects does not gather what its connections were."""

    async def respond(heard, writer) -> None:
        writer.write(OK)

    def num_alive() -> int:
        return sum(type(thing) is WorkerConnection for thing in gc.get_objects())

    async def work() -> None:
        worker = await FakeWorker(respond).start()
        pool = ConnectionPool()
        await ask(await pool.dial(worker.address))
        pool.close()
        await worker.close()

    gc.collect()
    before = num_alive()
    gc.disable()
    try:
        run(work())
        assert num_alive() == before
    finally:
        gc.enable()


def test_a_request_on_a_connection_that_is_closed_already_is_lost() -> None:
    """Sending never raises, whatever the event loop's transport does: the sink hears of it."""

    class Closed:
        def write(self, data) -> None:
            raise RuntimeError("the handler is closed")

        def abort(self) -> None:
            """Nothing to do."""

    async def work() -> Sink:
        connection = WorkerConnection(ConnectionPool(), ("127.0.0.1", 1, False, True))
        connection.connection_made(Closed())
        sink = Sink()
        connection.send(sink, GET, b"")
        connection.connection_lost(None)
        return sink

    assert run(work()).why == "the worker closed the connection"
