"""The front against its twin: the same requests give the same status, body and end-to-end fields, there and back."""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga.gateway.contracts import Call, Refused
from saga.gateway.twin import Twin

from .fakes import CLOSE, FakeIdentity, FakeScheduling, FakeWatcher, Heard, plane, post, run

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3}}\n\n'
NOT_COMPARED = {b"date", b"server", b"content-length", b"transfer-encoding", b"connection", b"content-type"}


def chunked(head: bytes, *parts: bytes) -> bytes:
    """An answer in chunks."""
    return (
        head
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts)
        + b"0\r\n\r\n"
    )


ANSWERS = {
    "unary": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 2\r\n\r\n{}",
    "empty": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n",
    "error": b"HTTP/1.1 422 Unprocessable\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nbad",
    "hop by hop": b"HTTP/1.1 200 OK\r\nConnection: x-hop\r\nKeep-Alive: 5\r\nX-End: y\r\nContent-Length: 1\r\n\r\na",
    "chunked": chunked(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n", b"ab", b"c" * 5_000),
    "stream": chunked(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n",
        EVENT,
        EVENT[:9],
        EVENT[9:],
        USAGE,
        b"data: [DONE]\n\n",
    ),
    "coded": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\0",
}


class Seen:
    """An answer, parsed."""

    def __init__(self, data: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        parser = httptools.HttpResponseParser(self)
        parser.feed_data(data)
        self.status = parser.get_status_code()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, data: bytes) -> None:
        self.body += data

    def compared(self) -> tuple[Any, ...]:
        fields = sorted(field for field in self.headers if field[0] not in NOT_COMPARED)
        return self.status, self.body, fields


def heard_fields(heard: Heard) -> tuple[Any, ...]:
    """A request as the worker saw it, without what differs by construction."""
    lines = [line.partition(b":") for line in heard.head.split(b"\r\n")[1:]]
    fields = sorted((name.lower(), value.strip()) for name, _, value in lines)
    return heard.line, heard.body, [field for field in fields if field[0] != b"connection"]


def both(request: bytes, answer: bytes, *, hide: bool = False, extra: dict[str, Any] | None = None) -> list[Any]:
    """(what the client saw, what the worker saw) of the front and of the twin."""

    def change(call: Call) -> None:
        call.stream, call.wants_usage = True, not hide

    async def work() -> list[Any]:
        async with plane(answer, identity=FakeIdentity(change=change)) as p:
            p.scheduling.extra = extra or {}
            scheduling = FakeScheduling(p.scheduling.addresses, extra or {})
            twin = Twin(FakeIdentity(change=change), scheduling, lambda *_: FakeWatcher())
            _, twin_port = await twin.start("127.0.0.1", 0)
            seen = []
            for port in (p.port, twin_port):
                p.port = port
                client = Seen(await p.talk(request)).compared()
                seen.append((client, heard_fields(p.workers[0].heard[-1])))
            assert [entry[0] for entry in scheduling.log] == [entry[0] for entry in p.scheduling.log]
            await twin.close()
            return seen

    return run(work())


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("hide", [False, True])
def test_every_answer_is_relayed_as_by_the_twin(name, hide) -> None:
    """Status, body and end-to-end fields of the answer, with and without the usage taken out."""
    front, twin = both(post(b"{}", CLOSE), ANSWERS[name], hide=hide)
    assert front == twin


REQUESTS = {
    "credentials": post(b"{}", CLOSE, b"Authorization: Bearer k", b"X-Api-Key: k", b"Cookie: a=b", b"X-End: y"),
    "hop by hop": post(b"{}", b"Connection: close, X-Hop", b"X-Hop: 1", b"TE: trailers", b"Keep-Alive: 5"),
    "repeated fields": post(b"{}", CLOSE, b"X-A: 1", b"X-B: 2", b"x-a: 3"),
    "query": post(b"{}", CLOSE, path=b"/v1/completions?a=%20b&c"),
    "chunked": b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\n{}\r\n0\r\n\r\n",
    "get": b"GET /v1/files/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("name", REQUESTS)
def test_every_request_is_relayed_as_by_the_twin(name) -> None:
    """Line, fields and body of the request, as its worker sees them."""
    front, twin = both(REQUESTS[name], ANSWERS["unary"])
    assert front == twin


def test_added_fields_read_the_same() -> None:
    """The twin writes the body anew, the front splices: both read as the same object."""
    front, twin = both(post(b'{"a":1}', CLOSE), ANSWERS["unary"], extra={"priority": 2})
    assert front == twin


def test_refusals_are_the_same() -> None:
    """A refusal has the same status and body."""

    async def work() -> None:
        refused = Refused(429, "no", kind="rate_limit_error", code="x")
        async with plane(ANSWERS["unary"], identity=FakeIdentity(refuse=refused)) as p:
            twin = Twin(FakeIdentity(refuse=refused), p.scheduling, lambda *_: FakeWatcher())
            front_port, (_, p.port) = p.port, await twin.start("127.0.0.1", 0)
            by_twin = Seen(await p.talk(post(b"{}", CLOSE)))
            p.port = front_port
            assert Seen(await p.talk(post(b"{}", CLOSE))).compared() == by_twin.compared()
            await twin.close()

    run(work())


def test_the_twin_tries_again_too() -> None:
    """A worker lost before its first byte is replaced by both."""

    async def die(heard, writer) -> None:
        writer.transport.abort()

    async def work() -> None:
        async with plane(die, ANSWERS["unary"]) as p:
            twin = Twin(FakeIdentity(), FakeScheduling(p.scheduling.addresses), lambda *_: FakeWatcher())
            front_port, (_, p.port) = p.port, await twin.start("127.0.0.1", 0)
            by_twin = Seen(await p.talk(post(b"{}", CLOSE)))
            p.port = front_port
            assert Seen(await p.talk(post(b"{}", CLOSE))).compared() == by_twin.compared()
            await twin.close()
            await asyncio.sleep(0)

    run(work())


NAMES = st.from_regex(r"x-[a-z]{1,6}", fullmatch=True)
VALUES = st.from_regex(r"[!-~]([ -~]{0,12}[!-~])?", fullmatch=True)
PARTS = st.lists(st.binary(min_size=1, max_size=300), max_size=4)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=5, unique_by=lambda field: field[0])


@settings(max_examples=30)
@given(
    FIELDS, st.binary(max_size=200), FIELDS, st.lists(st.binary(min_size=1, max_size=300), max_size=4), st.booleans()
)
def test_the_front_does_what_the_twin_does(sent, body, returned, parts, in_chunks) -> None:
    """Arbitrary end-to-end fields and bytes, in both directions and both framings, come out the same."""
    fields = [f"{name}: {value}".encode() for name, value in sent]
    head = b"HTTP/1.1 200 OK\r\n" + b"".join(f"{name}: {value}\r\n".encode() for name, value in returned)
    whole = b"".join(parts)
    answer = chunked(head, *parts) if in_chunks else head + b"Content-Length: %d\r\n\r\n" % len(whole) + whole
    front, twin = both(post(body, CLOSE, *fields), answer)
    assert front == twin
    assert front[0][1] == whole
