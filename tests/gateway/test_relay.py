"""One call from request to answer, and every way in which that can fail."""

from __future__ import annotations

import asyncio
import json

import pytest

from saga.gateway.addresses import WorkerAddress
from saga.gateway.contracts import Call, Refused
from saga.gateway.http1 import RequestReader
from saga.gateway.limits import FrontLimits, MessageLimits, UpstreamLimits
from saga.gateway.relay import Exchange

from .fakes import CLOSE, FakeIdentity, plane, post, run

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    """One chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


async def die(heard, writer) -> None:
    """Close without a word."""
    writer.transport.abort()


def says(*pieces: bytes, then_die: bool = False):
    """A worker that writes pieces a little apart."""

    async def respond(heard, writer) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        if then_die:
            writer.transport.abort()

    return respond


def body_of(answer: bytes) -> bytes:
    """The body, chunks taken off."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head:
        return body
    data = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        if size == b"0":
            assert body == b"\r\n"
            return data
        data += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    raise AssertionError("the chunked body has no end")


def test_a_call_and_its_answer() -> None:
    """Body and end-to-end fields pass both ways, the decision is in the answer's header, everybody is told in order."""

    async def work() -> None:
        async with plane(b"HTTP/1.1 201 Made\r\nServer: uvicorn\r\nContent-Length: 2\r\n\r\nok") as p:
            answer = await p.talk(post(b'{"a":1}', CLOSE, b"X-Note: n", b"Authorization: Bearer SECRET"))
            head, _, body = answer.partition(b"\r\n\r\n")
            assert body == b"ok"
            assert head.split(b"\r\n") == [
                b"HTTP/1.1 201 Made",
                b"server: uvicorn",
                b"x-saga-session: s1",
                b"x-saga-worker: w0",
                b"x-saga-queued-ms: 12",
                b"x-saga-reason: first worker",
                b"content-length: 2",
                b"connection: close",
            ]
            [heard] = p.workers[0].heard
            assert heard.body == b'{"a":1}'
            assert heard.values(b"x-note") == [b"n"]
            assert b"SECRET" not in heard.head
            assert [entry[0] for entry in p.scheduling.log] == ["admit", "first byte", "finished"]
            assert p.identity.learned[0].text == "ok"

    run(work())


def test_fields_are_added_to_the_body() -> None:
    """What the ticket adds is sent, after the client's own bytes."""

    async def work() -> None:
        async with plane(OK) as p:
            p.scheduling.extra = {"priority": 3}
            await p.talk(post(b'{"a": 1 }', CLOSE))
            assert p.workers[0].heard[0].body == b'{"a": 1 ,"priority":3}'

    run(work())


def test_a_stream_passes_as_it_comes() -> None:
    """Each event reaches the client before the next is made; the bytes are the worker's; the watcher sees them."""
    heard_first = asyncio.Event

    async def work() -> None:
        seen = heard_first()

        async def respond(heard, writer) -> None:
            writer.write(STREAM + chunk(TOKEN))
            await seen.wait()
            writer.write(chunk(TOKEN) + chunk(DONE) + b"0\r\n\r\n")

        async with plane(respond) as p:
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(post(b'{"stream":true}', CLOSE))
            head = await reader.readuntil(b"\r\n\r\n")
            first = await reader.readuntil(b"\n\n\r\n")
            seen.set()
            rest = await reader.read()
            writer.close()
            assert body_of(head + first + rest) == TOKEN + TOKEN + DONE
            assert bytes(p.watchers[0].data) == TOKEN + TOKEN + DONE

    run(work())


@pytest.mark.parametrize(("wants", "expected"), [(False, TOKEN + DONE), (True, TOKEN + USAGE + DONE)])
def test_usage_asked_for_on_the_clients_behalf_is_taken_out(wants, expected) -> None:
    """The client sees the stream it asked for; the watcher sees the usage either way."""

    def change(call: Call) -> None:
        call.stream, call.wants_usage = True, wants

    async def work() -> None:
        stream = STREAM + chunk(TOKEN) + chunk(USAGE) + chunk(DONE) + b"0\r\n\r\n"
        async with plane(stream, identity=FakeIdentity(change=change)) as p:
            assert body_of(await p.talk(post(b"{}", CLOSE))) == expected
            assert USAGE in bytes(p.watchers[0].data)

    run(work())


@pytest.mark.parametrize(
    "first",
    [
        die,
        says(STREAM, then_die=True),
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", then_die=True),
        b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy",
        b"HTTP/1.1 502 Bad\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbad\r\n0\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_a_worker_lost_before_its_first_byte_is_replaced(first) -> None:
    """Connection lost, head without body, 50x, nonsense: the call is served by the other worker, once each."""

    async def work() -> None:
        async with plane(first, OK) as p:
            answer = await p.talk(post(b"{}", CLOSE))
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"x-saga-worker: w1\r\n" in answer
            assert body_of(answer) == b"ok"
            assert p.scheduling.log == [
                ("admit", "1"),
                ("failed", "1", "retry"),
                ("first byte", "1"),
                ("finished", "1"),
            ]
            assert [len(worker.heard) for worker in p.workers] == [1, 1]

    run(work())


def test_a_worker_that_is_not_there_is_replaced_even_for_calls_that_are_not_repeatable() -> None:
    """Where no connection was made nothing was sent, so nothing can happen twice."""

    def change(call: Call) -> None:
        call.retryable = False

    async def work() -> None:
        async with plane(OK, identity=FakeIdentity(change=change)) as p:
            p.scheduling.addresses.insert(0, WorkerAddress("gone", "127.0.0.1", 1))
            assert body_of(await p.talk(post(b"{}", CLOSE))) == b"ok"

    run(work())


def test_a_call_that_is_not_repeatable_is_not_repeated() -> None:
    """The worker may have acted: the client gets 502, the other worker hears nothing."""

    def change(call: Call) -> None:
        call.retryable = False

    async def work() -> None:
        async with plane(die, OK, identity=FakeIdentity(change=change)) as p:
            answer = await p.talk(post(b"{}", CLOSE))
            assert answer.startswith(b"HTTP/1.1 502 ")
            assert json.loads(body_of(answer))["error"]["code"] == "worker_unavailable"
            assert ("failed", "1", "final") in p.scheduling.log
            assert p.workers[1].heard == []

    run(work())


def test_a_call_is_tried_twice_not_thrice() -> None:
    """Two lost workers are a 502; the third is not asked."""

    async def work() -> None:
        async with plane(die, die, OK) as p:
            assert (await p.talk(post(b"{}", CLOSE))).startswith(b"HTTP/1.1 502 ")
            assert p.scheduling.count("failed") == 2
            assert p.workers[2].heard == []

    run(work())


def test_a_workers_own_error_is_passed_on_when_nobody_else_can_serve() -> None:
    """The last worker's 503 reaches the client as it was said."""

    async def work() -> None:
        async with plane(b"HTTP/1.1 503 Busy\r\nX-Why: full\r\nContent-Length: 4\r\n\r\nbusy") as p:
            answer = await p.talk(post(b"{}", CLOSE))
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"x-why: full\r\n" in answer
            assert body_of(answer) == b"busy"
            assert p.scheduling.count("finished") == 0

    run(work())


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500])
def test_other_errors_are_answers(status) -> None:
    """What a worker says of the call itself is the answer, not a failure of the worker."""

    async def work() -> None:
        async with plane(b"HTTP/1.1 %d Oh\r\nContent-Length: 2\r\n\r\nno" % status, OK) as p:
            answer = await p.talk(post(b"{}", CLOSE))
            assert answer.startswith(b"HTTP/1.1 %d Oh\r\n" % status)
            assert p.scheduling.count("finished") == 1

    run(work())


def test_a_stream_that_breaks_ends_with_an_error_event() -> None:
    """Half an event is dropped, an error event and the proper end follow, the client's connection lives on."""

    async def work() -> None:
        broken = STREAM + chunk(TOKEN + b'data: {"half')
        async with plane(says(broken, then_die=True), OK) as p:
            answer = await p.talk(post(b"{}") + post(b"{}", CLOSE))
            first, _, second = answer.partition(b"0\r\n\r\n")
            body = body_of(first + b"0\r\n\r\n")
            assert body.startswith(TOKEN + b'data: {"error":')
            assert json.loads(body.removeprefix(TOKEN + b"data: "))["error"]["code"] == "worker_lost"
            assert second.startswith(b"HTTP/1.1 200 ")
            assert p.scheduling.log[:3] == [("admit", "1"), ("first byte", "1"), ("failed", "1", "final")]
            assert [answer.complete for answer in p.identity.learned] == [False, False]

    run(work(), timeout_s=5)


def test_a_unary_answer_that_breaks_closes_the_connection() -> None:
    """The client can tell: fewer bytes than promised, no request after it."""

    async def work() -> None:
        async with plane(says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", then_die=True)) as p:
            answer = await p.talk(post(b"{}") + post(b"{}"))
            assert answer.endswith(b"half")
            assert p.scheduling.log == [("admit", "1"), ("first byte", "1"), ("failed", "1", "final")]

    run(work())


def test_a_stale_connection_is_not_a_failure() -> None:
    """A kept connection that breaks when used is replaced by a fresh one to the same worker, unseen by all."""

    async def respond(heard, writer) -> None:
        if heard.num_on_connection:
            writer.transport.abort()
        else:
            writer.write(OK)

    async def work() -> None:
        async with plane(respond) as p:
            answer = await p.talk(post(b"{}") + post(b"{}", CLOSE))
            assert answer.count(b"HTTP/1.1 200 OK") == 2
            assert p.scheduling.count("failed") == 0
            assert p.front.relay.counts.num_resent_on_stale == 1

    run(work())


def test_a_stale_connection_is_a_failure_for_calls_that_are_not_repeatable() -> None:
    """The worker may have seen it, so it is not sent again."""

    def change(call: Call) -> None:
        call.retryable = False

    async def respond(heard, writer) -> None:
        if heard.num_on_connection:
            writer.transport.abort()
        else:
            writer.write(OK)

    async def work() -> None:
        async with plane(respond, identity=FakeIdentity(change=change)) as p:
            answer = await p.talk(post(b"{}") + post(b"{}", CLOSE))
            assert answer.count(b"HTTP/1.1 502 ") == 1
            assert len(p.workers[0].heard) == 2

    run(work())


@pytest.mark.parametrize("where", ["queue", "dial", "lost"])
def test_a_client_that_leaves_before_its_task_has_begun_is_noticed(where) -> None:
    """A task cancelled before its first step runs none of its own code; the call ends all the same, once."""

    class Nobody:
        def write(self, data: bytes) -> None: ...

        def answered(self, *, keep_alive: bool) -> None: ...

        def keeps_alive(self) -> bool:
            return True

    async def work() -> None:
        async with plane(OK) as p:
            if where == "queue":
                p.scheduling.gate = asyncio.Event()
            if where == "lost":  # a kept connection, so that the call is sent without a task
                await p.talk(post(b"{}", CLOSE))
                p.identity.learned.clear()
                p.scheduling.log.clear()
            reader = RequestReader(MessageLimits())
            reader.feed(post(b"{}"))
            exchange = Exchange(p.front.relay, Nobody(), reader.read())
            exchange.start()
            if where == "lost":
                exchange.on_lost("the worker closed the connection")
            exchange.abort()
            await asyncio.sleep(0.01)
            assert p.scheduling.count("cancelled") == (where != "queue")
            assert p.scheduling.count("failed") == 0
            assert [answer.complete for answer in p.identity.learned] == [False]

    run(work())


@pytest.mark.parametrize("where", ["queue", "worker", "stream"])
def test_a_client_that_leaves_is_noticed(where) -> None:
    """In the queue its step is cancelled; later its worker's connection is closed and scheduling is told, once."""

    async def silent(heard, writer) -> None:
        if where == "stream":
            writer.write(STREAM + chunk(TOKEN))

    async def work() -> None:
        async with plane(silent) as p:
            if where == "queue":
                p.scheduling.gate = asyncio.Event()
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(post(b"{}"))
            if where == "queue":
                await p.settle(lambda: p.scheduling.count("admit") == 1)
            elif where == "worker":
                await p.settle(lambda: len(p.workers[0].heard) == 1)
            else:
                await reader.readuntil(b"\n\n")
            writer.transport.abort()
            expected = "cancelled in the queue" if where == "queue" else "cancelled"
            await p.settle(lambda: p.scheduling.count(expected) == 1)
            if where != "queue":
                await p.settle(lambda: p.workers[0].num_closed == 1)
            assert p.scheduling.count("finished") + p.scheduling.count("failed") == 0
            assert [answer.complete for answer in p.identity.learned] == [False]
            assert p.front.num_connections == 0

    run(work())


def test_waiting_in_the_queue_is_served_later() -> None:
    """A call that waits at the gate is sent when it opens; pipelined calls wait behind it."""

    async def work() -> None:
        async with plane(OK) as p:
            p.scheduling.gate = asyncio.Event()
            talk = asyncio.create_task(p.talk(post(b"{}") + post(b"{}", CLOSE)))
            await p.settle(lambda: p.scheduling.count("admit") == 1)
            await asyncio.sleep(0.02)
            assert p.workers[0].heard == []
            assert p.scheduling.count("admit") == 1
            p.scheduling.gate.set()
            assert (await talk).count(b"HTTP/1.1 200 OK") == 2

    run(work())


@pytest.mark.parametrize("who", ["identity", "scheduling"])
def test_a_refusal_is_an_answer(who) -> None:
    """Status, OpenAI's shape and Retry-After reach the client, the connection is kept, nothing is forwarded."""
    refused = Refused(429, "too many", kind="rate_limit_error", code="queue_full", retry_after_s=2.5)

    async def work() -> None:
        async with plane(OK) as p:
            (p.identity if who == "identity" else p.scheduling).refuse = refused
            answer = await p.talk(post(b"{}") + post(b"{}", CLOSE))
            assert answer.count(b"HTTP/1.1 429 Too Many Requests\r\n") == 2
            assert answer.count(b"retry-after: 3\r\n") == 2
            assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]["code"] == "queue_full"
            assert p.workers[0].heard == []

    run(work())


def test_our_own_bug_is_a_500_and_not_the_end(caplog) -> None:
    """An identity that raises is logged; client and process go on."""

    def change(call: Call) -> None:
        raise ZeroDivisionError

    async def work() -> None:
        async with plane(OK, identity=FakeIdentity(change=change)) as p:
            answer = await p.talk(post(b"{}") + post(b"{}", CLOSE))
            assert answer.count(b"HTTP/1.1 500 ") == 2
            assert b"ZeroDivision" not in answer

    run(work())
    assert "ZeroDivisionError" in caplog.text


def test_a_watcher_that_fails_does_not_disturb_the_answer(caplog) -> None:
    """The bytes reach the client, scheduling is told that the answer is complete."""

    async def work() -> None:
        async with plane(OK) as p:

            def broken(chunk: bytes) -> None:
                raise ValueError

            p.front.relay._watchers = lambda *_: type("W", (), {"feed": staticmethod(broken), "close": None})()
            assert body_of(await p.talk(post(b"{}", CLOSE))) == b"ok"
            assert p.scheduling.count("finished") == 1

    run(work())
    assert "could not be watched" in caplog.text


def test_compressed_answers_pass_unwatched() -> None:
    """The gateway asks for no coding; a worker that codes anyway is relayed and not looked into."""

    async def work() -> None:
        async with plane(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b") as p:
            answer = await p.talk(post(b"{}", CLOSE, b"Accept-Encoding: gzip"))
            assert body_of(answer) == b"\x1f\x8b"
            assert p.watchers == []
            assert p.workers[0].heard[0].values(b"accept-encoding") == []

    run(work())


def test_a_slow_reader_holds_back_its_worker_and_nobody_else() -> None:
    """The worker cannot write more than the buffers between hold until the client reads; then all bytes come."""
    num_bytes = 40_000_000
    sent = 0

    async def respond(heard, writer) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % num_bytes)
        while sent < num_bytes:
            writer.write(b"x" * 1_000_000)
            await writer.drain()
            sent += 1_000_000

    async def work() -> None:
        async with plane(respond) as p:
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port, limit=1_000)
            writer.write(post(b"{}", CLOSE))
            last = -1
            while sent != last:
                last = sent
                await asyncio.sleep(0.1)
            assert sent < num_bytes
            body = (await reader.read()).partition(b"\r\n\r\n")[2]
            writer.close()
            assert len(body) == num_bytes

    run(work())


def test_a_client_that_never_reads_is_dropped() -> None:
    """After write_timeout_s the connection is closed and its worker freed."""

    async def respond(heard, writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 40000000\r\n\r\n" + b"x" * 40_000_000)

    async def work() -> None:
        async with plane(respond, limits=FrontLimits(write_timeout_s=0.1, tick_s=0.02)) as p:
            _, writer = await asyncio.open_connection("127.0.0.1", p.port, limit=1_000)
            writer.write(post(b"{}", CLOSE))
            await p.settle(lambda: p.scheduling.count("cancelled") == 1)
            await p.settle(lambda: p.front.num_connections == 0)
            writer.transport.abort()

    run(work())


def test_a_worker_that_never_answers_is_a_504() -> None:
    """After answer_timeout_s, and not tried again in vain: the second worker answers where there is one."""

    async def silent(heard, writer) -> None:
        """Say nothing."""

    limits = FrontLimits(upstream=UpstreamLimits(answer_timeout_s=0.1), tick_s=0.02)

    async def work() -> None:
        async with plane(silent, limits=limits) as p:
            assert (await p.talk(post(b"{}", CLOSE))).startswith(b"HTTP/1.1 504 ")

    run(work())


def test_answers_to_old_clients_are_not_chunked() -> None:
    """HTTP/1.0 gets the body until the connection closes."""

    async def work() -> None:
        async with plane(STREAM + chunk(TOKEN) + chunk(DONE) + b"0\r\n\r\n") as p:
            answer = await p.talk(b"POST /v1/completions HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
            head, _, body = answer.partition(b"\r\n\r\n")
            assert b"transfer-encoding" not in head
            assert body == TOKEN + DONE

    run(work())


def test_other_paths_pass_with_their_methods() -> None:
    """GET, HEAD and DELETE reach a worker with path and query, without a body; a HEAD's answer has none."""

    async def respond(heard, writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + (b"" if heard.line[:4] == b"HEAD" else b"hello"))

    async def work() -> None:
        async with plane(respond) as p:
            for method, body in ((b"GET", b"hello"), (b"HEAD", b""), (b"DELETE", b"hello")):
                answer = await p.talk(method + b" /v1/files/1?x=y HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                assert b"content-length: 5\r\n" in answer
                assert body_of(answer) == body
            assert [heard.line for heard in p.workers[0].heard] == [
                method + b" /v1/files/1?x=y HTTP/1.1" for method in (b"GET", b"HEAD", b"DELETE")
            ]
            assert p.identity.seen[0].path == "/v1/files/1"

    run(work())
