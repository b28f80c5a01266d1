"""The listening side: routes, order, limits in time and number, and a decent end."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import zlib
from typing import Any

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from saga.gateway.codings import zstd
from saga.gateway.contracts import KINDS, Kind, Request, kind_of
from saga.gateway.front import ClientConnection
from saga.gateway.limits import FrontLimits, MessageLimits

from .fakes import CLOSE, plane, post, run

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
QUICK = FrontLimits(
    head_timeout_s=0.15, body_timeout_s=0.15, idle_timeout_s=0.15, linger_s=0.2, tick_s=0.02, max_connections=3
)


async def models(request: Request) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """A handler of the gateway."""
    return 200, [(b"content-type", b"application/json")], b'{"path":"%b"}' % request.path.encode()


def get(path: bytes, *fields: bytes, method: bytes = b"GET") -> bytes:
    """A request without a body."""
    return b"\r\n".join([method + b" " + path + b" HTTP/1.1", b"Host: a", *fields]) + b"\r\n\r\n"


async def echo(heard, writer) -> None:
    """Answer with what was sent."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(heard.body), heard.body))


def test_every_route_has_its_kind() -> None:
    """The five scheduled paths and, for all others, `other`."""
    assert {kind_of("POST", path) for path in KINDS} == set(Kind) - {Kind.OTHER}
    assert kind_of("POST", "/v1/files") is Kind.OTHER


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post(b"{}", CLOSE, path=b"/v1/embeddings"), 200),
        (post(b"{}", CLOSE, path=b"/v1/audio/transcriptions"), 200),
        (get(b"/v1/models", CLOSE), 200),
        (get(b"/v1/models/a%2Fb", CLOSE), 200),
        (get(b"/health", CLOSE), 200),
        (get(b"/ready?verbose=1", CLOSE), 200),
        (get(b"/", CLOSE), 404),
        (get(b"/metrics", CLOSE), 404),
        (get(b"/v1", CLOSE), 404),
        (get(b"//v1/chat/completions", CLOSE), 404),
        (post(b"{}", CLOSE, path=b"/chat/completions"), 404),
        (get(b"/v1/chat/completions", CLOSE), 405),
        (post(b"{}", CLOSE, path=b"/health"), 405),
        (post(b"\x1f\x8b", CLOSE, b"Content-Encoding: gzip"), 400),
        (post(b"\x1f\x8b", CLOSE, b"Content-Encoding: br"), 415),
        (post(b"\x1f\x8b", CLOSE, b"Content-Encoding: gzip", b"Content-Encoding: gzip"), 415),
        (post(b"\x1f\x8b", CLOSE, b"Content-Encoding: gzip", path=b"/v1/files"), 200),
    ],
)
def test_routes(request_, status) -> None:
    """Calls go to workers, a few paths to the gateway's handler, the rest is refused in OpenAI's shape."""

    async def work() -> None:
        async with plane(OK, cold=models) as p:
            answer = await p.talk(request_)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert len(p.workers[0].heard) == (body == b"ok")
            if status >= 400:
                assert json.loads(body)["error"]["type"] == "invalid_request_error"

    run(work())


@pytest.mark.parametrize(
    ("coding", "pack"),
    [(b"gzip", gzip.compress), (b"deflate", zlib.compress), (b"zstd", zstd.compress), (b"Zstd", zstd.compress)],
)
def test_a_compressed_body_is_forwarded_opened(coding, pack) -> None:
    """Each on one connection, with a length of its own and no coding; other fields stay; errors do not end it."""

    async def work() -> None:
        async with plane(echo, limits=FrontLimits(message=MessageLimits(max_body_bytes=2_000))) as p:
            field = b"Content-Encoding: " + coding
            bodies = [b'{"n":%d,"text":"%b"}' % (n, b"x" * 300 * n) for n in (1, 2, 3)]
            sent = b"".join(post(pack(body), field, b"X-Mine: kept") for body in bodies)
            bomb, bad = post(pack(b" " * 2_001), field), post(b"no", field)
            answer = await p.talk(sent + bomb + bad + post(b"{}", b"Content-Encoding: br") + post(b"end", CLOSE))
            assert [heard.body for heard in p.workers[0].heard] == [*bodies, b"end"]
            for heard, body in zip(p.workers[0].heard, bodies, strict=False):
                assert heard.values(b"content-encoding") == []
                assert heard.values(b"content-length") == [b"%d" % len(body)]
                assert heard.values(b"x-mine") == [b"kept"]
            statuses = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
            assert statuses == [b"200", b"200", b"200", b"413", b"400", b"415", b"200"]
            assert b"\r\naccept-encoding: gzip, deflate, zstd\r\n" in answer
            assert [request.body for request in p.identity.seen] == [*bodies, b"end"]

    run(work())


def test_a_head_is_answered_without_a_body() -> None:
    """Of the gateway's own answers too, refused or not, and the next request is read rightly."""

    async def work() -> None:
        async with plane(OK, cold=models) as p:
            answer = await p.talk(
                get(b"/health", method=b"HEAD") + get(b"/nothing", method=b"HEAD") + get(b"/v1/models", CLOSE)
            )
            heads = answer.split(b"\r\n\r\n")
            assert [head[:12] for head in heads[:3]] == [b"HTTP/1.1 200", b"HTTP/1.1 404", b"HTTP/1.1 200"]
            assert heads[3:] == [b'{"path":"/v1/models"}']

    run(work())


def test_without_a_handler_its_paths_are_not_found() -> None:
    """No cold handler, no cold routes."""

    async def work() -> None:
        async with plane(OK) as p:
            assert (await p.talk(get(b"/health", CLOSE))).startswith(b"HTTP/1.1 404 ")

    run(work())


def test_requests_sent_ahead_are_answered_in_order() -> None:
    """Pipelined calls, refusals and handlers' answers come one by one, however slow the first is."""

    async def slow_first(heard, writer) -> None:
        if heard.body == b'{"n":0}':
            await asyncio.sleep(0.05)
        await echo(heard, writer)

    async def work() -> None:
        async with plane(slow_first, cold=models) as p:
            sent = post(b'{"n":0}') + get(b"/nothing") + post(b'{"n":1}') + get(b"/health") + post(b'{"n":2}', CLOSE)
            answer = await p.talk(sent)
            marks = [b'{"n":0}', b" 404 ", b'{"n":1}', b'{"path":"/health"}', b'{"n":2}']
            places = [answer.index(mark) for mark in marks]
            assert places == sorted(places)

    run(work())


def test_many_requests_at_once_are_no_recursion() -> None:
    """Thousands of refusals in one piece are answered one after the other."""

    async def work() -> None:
        async with plane(OK) as p:
            answer = await p.talk(get(b"/no") * 3_000 + get(b"/no", CLOSE))
            assert answer.count(b"HTTP/1.1 404 ") == 3_001

    run(work())


def test_bytes_sent_ahead_are_bounded() -> None:
    """While a call is answered the front stops reading, then goes on and answers all."""

    async def work() -> None:
        async with plane(echo) as p:
            p.scheduling.gate = asyncio.Event()
            body = b'"' + b"x" * 50_000 + b'"'
            talk = asyncio.create_task(p.talk(post(body) * 200 + post(b"{}", CLOSE)))
            await p.settle(lambda: p.scheduling.count("admit") == 1)
            await asyncio.sleep(0.1)
            [connection] = p.front._connections
            assert connection._reader.num_buffered < 1_000_000
            p.scheduling.gate.set()
            assert (await talk).count(b"HTTP/1.1 200 ") == 201

    run(work())


def test_the_client_that_expects_is_told_to_continue() -> None:
    """`100 Continue` comes before the body is sent, not where it is refused."""

    async def work() -> None:
        async with plane(echo, limits=FrontLimits(message=MessageLimits(max_body_bytes=10))) as p:
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            head, body = post(b"0123456789", b"Expect: 100-continue", CLOSE).split(b"\r\n\r\n")
            writer.write(head + b"\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
            assert (await reader.read()).endswith(b"0123456789")
            writer.close()
            assert p.workers[0].heard[0].values(b"expect") == []
            too_long = post(b"0123456789a", b"Expect: 100-continue").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
            assert (await p.talk(too_long)).startswith(b"HTTP/1.1 413 ")

    run(work())


@pytest.mark.parametrize("chunked", [False, True])
def test_memory_for_uploads_is_bounded_over_all_clients(chunked) -> None:
    """Forty slow uploads where there is room for ten: the bound holds, who is beyond it gets 503, the rest is served.

    Small calls are served all the time, and in the end nothing is held.
    """
    piece, num_pieces, cap = 1_000, 10, 100_000
    framed = b"%x\r\n%b\r\n" % (piece, b"x" * piece)
    fields = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % (piece * num_pieces)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%b\r\n\r\n" % fields
    body = [framed if chunked else b"x" * piece] * num_pieces + ([b"0\r\n\r\n"] if chunked else [])
    most = 0

    async def work() -> None:
        nonlocal most
        async with plane(echo, limits=FrontLimits(max_held_bytes=cap, tick_s=0.02, linger_s=0.5)) as p:

            async def watch() -> None:
                nonlocal most
                while True:
                    most = max(most, p.front.num_held_bytes)
                    await asyncio.sleep(0)

            watching = asyncio.create_task(watch())
            uploads = [asyncio.create_task(p.talk(head, *body, pause_s=0.02)) for _ in range(40)]
            small = [await p.talk(post(b"{}", CLOSE)) for _ in range(10)]
            answers = await asyncio.gather(*uploads)
            watching.cancel()
            statuses = [answer[9:12] for answer in answers]
            assert set(statuses) == {b"200", b"503"}
            assert 5 <= statuses.count(b"200") <= 20
            assert len(p.workers[0].heard) == statuses.count(b"200") + len(small)
            assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in small)
            refused = next(answer for answer in answers if answer.startswith(b"HTTP/1.1 503 "))
            assert b"\r\nretry-after: 1\r\n" in refused
            assert b"\r\nconnection: close\r\n" in refused
            assert json.loads(refused.partition(b"\r\n\r\n")[2])["error"]["code"] == "overloaded"
            await p.settle(lambda: not p.front.num_connections)
            assert p.front.num_held_bytes == 0

    run(work())
    assert cap / 2 < most <= cap + 2 * (piece + 100)


def test_a_body_that_is_opened_counts_as_what_it_holds() -> None:
    """Packed bodies come in one piece: what they open to is bounded over all clients all the same."""
    packed = post(gzip.compress(b"x" * 9_000), CLOSE, b"Content-Encoding: gzip")

    async def work() -> None:
        async with plane(echo, limits=FrontLimits(max_held_bytes=10_000)) as p:
            p.scheduling.gate = asyncio.Event()
            first = asyncio.create_task(p.talk(packed))
            await p.settle(lambda: p.scheduling.count("admit") == 1)
            refused = await p.talk(packed)
            assert refused.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: 1\r\n" in refused
            assert p.front.num_held_bytes == 9_000
            p.scheduling.gate.set()
            assert (await first).endswith(b"x" * 9_000)
            assert p.scheduling.count("admit") == 1

    run(work())


def test_a_body_is_held_until_it_is_answered_or_its_client_leaves() -> None:
    """What waits at the gate counts; what has gone does not."""

    async def work() -> None:
        async with plane(echo, limits=FrontLimits(max_held_bytes=10_000)) as p:
            p.scheduling.gate = asyncio.Event()
            whole = [asyncio.create_task(p.talk(post(b"x" * 9_000, CLOSE))) for _ in range(2)]
            await p.settle(lambda: p.scheduling.count("admit") == 2)
            assert p.front.num_held_bytes == 18_000  # they came at once: nobody could be refused in time
            refused = await p.talk(post(b"x" * 9_000, CLOSE)[:-1])
            assert refused.startswith(b"HTTP/1.1 503 ")
            whole[0].cancel()
            await p.settle(lambda: p.front.num_held_bytes == 9_000)
            p.scheduling.gate.set()
            assert (await whole[1]).endswith(b"x" * 9_000)
            await p.settle(lambda: p.front.num_held_bytes == 0)

    run(work())


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ((b"POST /v1/comp",), b"408"),
        ((b"GET /v1/models HTTP/1.1\r\n", b"X: 1\r\n", b"X: 2\r\n", b"X: 3\r\n", b"X: 4\r\n"), b"408"),
        ((post(b"{}")[:-1],), b"408"),
        ((b"POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n",), b"408"),
        ((b"",), None),
    ],
)
def test_slow_clients_are_timed_out(pieces, status) -> None:
    """A head or a body that trickles is answered 408 and closed; a connection that says nothing is closed."""

    async def work() -> None:
        async with plane(OK, limits=QUICK) as p:
            answer = await p.talk(*pieces, pause_s=0.05)
            if status is None:
                assert answer == b""
            else:
                assert answer.startswith(b"HTTP/1.1 " + status)
                assert b"connection: close" in answer
            assert p.scheduling.log == []

    run(work(), timeout_s=5)


def test_a_kept_connection_is_closed_when_idle() -> None:
    """After idle_timeout_s, silently."""

    async def work() -> None:
        async with plane(OK, limits=QUICK) as p:
            assert (await p.talk(post(b"{}"))).endswith(b"ok")
            await p.settle(lambda: p.front.num_connections == 0)

    run(work(), timeout_s=5)


def test_a_body_that_keeps_coming_is_waited_for() -> None:
    """Slow but steady uploads live longer than body_timeout_s."""
    limits = FrontLimits(body_timeout_s=0.1, min_body_bytes_per_s=100, tick_s=0.02)

    async def work() -> None:
        async with plane(OK, limits=limits) as p:
            sent = post(b"x" * 200, CLOSE)
            pieces = [sent[:-160], *[sent[-160 + 20 * i : len(sent) - 140 + 20 * i] for i in range(8)]]
            assert (await p.talk(*pieces, pause_s=0.04)).endswith(b"ok")

    run(work(), timeout_s=5)


def test_connections_are_bounded() -> None:
    """One more than max_connections is answered 503 and closed; when one leaves there is room again."""

    async def work() -> None:
        async with plane(OK, limits=FrontLimits(max_connections=2)) as p:
            held = [await asyncio.open_connection("127.0.0.1", p.port) for _ in range(2)]
            await p.settle(lambda: p.front.num_connections == 2)
            answer = await p.talk()
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1\r\n" in answer
            for _, writer in held:
                writer.close()
            await p.settle(lambda: p.front.num_connections == 0)
            assert (await p.talk(post(b"{}", CLOSE))).endswith(b"ok")

    run(work())


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431),
        (b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n", 413),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    ],
)
def test_what_is_refused_closes_and_reaches_nobody(data, status) -> None:
    """The answer has OpenAI's shape, says close, and what was smuggled behind it is not served."""

    async def work() -> None:
        async with plane(OK) as p:
            answer = await p.talk(data + post(b'{"smuggled":1}'))
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert b"\r\nconnection: close" in head
            assert json.loads(body)["error"]["message"]
            assert p.scheduling.log == []

    run(work())


def test_a_refusal_arrives_although_the_body_is_still_sent() -> None:
    """A 413 is not lost in a reset: the front reads on for a while before it closes."""

    async def work() -> None:
        async with plane(OK) as p:
            head = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n"
            answer = await p.talk(head, *[b"x" * 100_000] * 20)
            assert answer.startswith(b"HTTP/1.1 413 ")

    run(work())


def test_draining_ends_what_is_begun() -> None:
    """No new connections, idle ones are closed, the call in flight is answered with `Connection: close`."""

    async def slow(heard, writer) -> None:
        await asyncio.sleep(0.1)
        writer.write(OK)

    async def work() -> None:
        async with plane(slow) as p:
            idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", p.port)
            talk = asyncio.create_task(p.talk(post(b"{}")))
            await p.settle(lambda: len(p.workers[0].heard) == 1)
            drained = asyncio.create_task(p.front.drain(5.0))
            assert await idle_reader.read() == b""
            idle_writer.close()
            with pytest.raises(OSError):  # noqa: PT011  refused or reset, as the system likes
                await asyncio.open_connection("127.0.0.1", p.port)
            answer = await talk
            assert b"\r\nconnection: close\r\n" in answer
            assert answer.endswith(b"ok")
            assert await drained
            assert p.front.num_connections == 0

    run(work(), timeout_s=10)


def test_draining_does_not_wait_for_ever() -> None:
    """After its time is over what is left is cancelled, and scheduling is told."""

    async def silent(heard, writer) -> None:
        """Never answer."""

    async def work() -> None:
        async with plane(silent) as p:
            talk = asyncio.create_task(p.talk(post(b"{}")))
            await p.settle(lambda: len(p.workers[0].heard) == 1)
            assert not await p.front.drain(0.05)
            assert await talk == b""
            await p.settle(lambda: p.scheduling.count("cancelled") == 1)

    run(work())


def test_several_listeners_can_share_a_port() -> None:
    """reuse_port lets another front listen at the same address."""

    async def work() -> None:
        async with plane(OK) as p, plane(OK) as q:
            host, port = await p.front.start("127.0.0.1", 0, reuse_port=True)
            assert await q.front.start(host, port, reuse_port=True) == (host, port)

    run(work())


def test_clients_may_speak_tls() -> None:
    """With a certificate the front serves https, keep-alive and close included."""
    authority = trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def work() -> None:
        async with plane(OK) as p:
            host, port = await p.front.start("127.0.0.1", 0, ssl=serving)
            reader, writer = await asyncio.open_connection(host, port, ssl=trusting)
            writer.write(post(b"{}") + post(b"{}", CLOSE))
            assert (await reader.read()).count(b"HTTP/1.1 200 OK") == 2
            writer.close()

    run(work())


def test_uvloop_where_it_is_installed() -> None:
    """Call, stream's end, disconnect and drain are the same on uvloop."""
    uvloop: Any = pytest.importorskip("uvloop")

    async def work() -> None:
        async with plane(echo) as p:
            assert (await p.talk(post(b'{"a":1}') + post(b'{"b":2}', CLOSE))).endswith(b'{"b":2}')
            p.scheduling.gate = asyncio.Event()
            _, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(post(b"{}"))
            await p.settle(lambda: p.scheduling.count("admit") == 3)
            writer.transport.abort()
            await p.settle(lambda: p.scheduling.count("cancelled in the queue") == 1)
            assert await p.front.drain(5.0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(work(), 20))


PIECES = st.sampled_from(
    [
        post(b'{"a":1}'),
        post(b"{}")[:40],
        post(b"{}")[40:],
        get(b"/health"),
        get(b"/no"),
        b"\r\n",
        b"\n",
        b"\0",
        b"Transfer-Encoding: chunked\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: a\r\n",
    ]
)


@settings(max_examples=40)
@given(st.lists(st.lists(PIECES | st.binary(max_size=30), max_size=6), min_size=1, max_size=5))
def test_any_bytes_leave_the_front_alive(conversations) -> None:
    """Whatever clients send and wherever they cut and leave it, all connections end and the next call is served."""

    async def work() -> None:
        async with plane(OK, cold=models, limits=QUICK) as p:
            for pieces in conversations:
                _, writer = await asyncio.open_connection("127.0.0.1", p.port)
                for piece in pieces:
                    writer.write(piece)
                    await asyncio.sleep(0)
                writer.close()
            await p.settle(lambda: p.front.num_connections == 0)
            assert (await p.talk(post(b"{}", CLOSE))).endswith(b"ok")
            ended = sum(p.scheduling.count(end) for end in ("finished", "cancelled", "failed"))
            assert ended == p.scheduling.count("admit") == len(p.identity.learned)

    run(work())


def test_writing_to_a_client_that_is_gone_already_harms_nobody() -> None:
    """A worker's connection does not break because uvloop refuses to write to the client's."""

    class Closed:
        def write(self, data) -> None:
            raise RuntimeError("the handler is closed")

    async def work() -> None:
        async with plane() as p:
            connection = ClientConnection(p.front)
            connection.transport = Closed()
            connection.write(b"an answer")

    run(work())
