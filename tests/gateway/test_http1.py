"""Requests out of bytes: what is read, what is refused, and that neither depends on how the bytes were cut."""

from __future__ import annotations

import gc
from itertools import pairwise
from types import FunctionType, ModuleType
from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.contracts import Refused
from saga.gateway.http1 import Message, Phase, RequestReader
from saga.gateway.limits import MessageLimits

SMALL = MessageLimits(max_target_bytes=100, max_head_bytes=400, max_headers=5, max_body_bytes=50)
GET = b"GET /v1/models HTTP/1.1\r\nHost: saga\r\n\r\n"
POST = b"POST /v1/completions?x=1 HTTP/1.1\r\nHost: saga\r\nContent-Length: 5\r\nX-A:\t b \r\n\r\nhello"
CHUNKED = (
    b"POST /v1/completions HTTP/1.1\r\nHost: saga\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;ext=1\r\nhello\r\n6 \r\n world\r\n0\r\nTrailer: x\r\n\r\n"
)


def read_all(data: bytes, cuts: list[int] | None = None, limits: MessageLimits | None = None) -> list[Any]:
    """Messages as tuples, ended by the status of a refusal if there is one."""
    reader = RequestReader(limits or MessageLimits())
    found: list[Any] = []
    bounds = [0, *sorted(cuts or []), len(data)]
    try:
        for start, end in pairwise(bounds):
            reader.feed(data[start:end])
            while (message := reader.read()) is not None:
                found.append(flat(message))
    except Refused as refused:
        found.append(refused.status)
    return found


def flat(message: Message) -> tuple[Any, ...]:
    """A message as values that compare."""
    request = message.request
    head = (request.method, request.target, request.path, tuple(request.headers))
    return (*head, request.body, message.keep_alive, message.http10)


def head(*lines: bytes, first: bytes = b"POST /v1/x HTTP/1.1") -> bytes:
    """A head of these lines."""
    return b"\r\n".join([first, *lines]) + b"\r\n\r\n"


def test_a_request_is_read_whole() -> None:
    """Method, target, path, lower-case names, trimmed values and body are what was sent."""
    headers = ((b"host", b"saga"), (b"content-length", b"5"), (b"x-a", b"b"))
    expected = ("POST", "/v1/completions?x=1", "/v1/completions", headers, b"hello", True, False)
    assert read_all(POST) == [expected]


def test_a_chunked_body_is_joined() -> None:
    """Sizes, extensions and trailers are taken off; what follows is the next request."""
    bodies = [message[4] for message in read_all(CHUNKED + GET)]
    assert bodies == [b"hello world", b""]


@pytest.mark.parametrize("data", [GET, POST, CHUNKED, POST + CHUNKED + GET + POST, b"\r\n" + GET])
def test_every_cut_gives_the_same(data) -> None:
    """Requests do not depend on where the network cut their bytes: all cuts in two, and byte by byte."""
    whole = read_all(data)
    assert all(isinstance(message, tuple) for message in whole)
    for cut in range(len(data) + 1):
        assert read_all(data, [cut]) == whole
    assert read_all(data, list(range(len(data)))) == whole


BAD = {
    "both lengths": (400, head(b"Host: a", b"Content-Length: 3", b"Transfer-Encoding: chunked")),
    "both lengths, other order": (400, head(b"Host: a", b"Transfer-Encoding: chunked", b"Content-Length: 3")),
    "two lengths": (400, head(b"Host: a", b"Content-Length: 3", b"Content-Length: 4")),
    "two equal lengths": (400, head(b"Host: a", b"Content-Length: 3", b"Content-Length: 3")),
    "a list of lengths": (400, head(b"Host: a", b"Content-Length: 3, 3")),
    "a signed length": (400, head(b"Host: a", b"Content-Length: +3")),
    "a negative length": (400, head(b"Host: a", b"Content-Length: -3")),
    "a hexadecimal length": (400, head(b"Host: a", b"Content-Length: 0x3")),
    "an empty length": (400, head(b"Host: a", b"Content-Length:")),
    "an endless length": (400, head(b"Host: a", b"Content-Length: " + b"9" * 30)),
    "an unknown coding": (501, head(b"Host: a", b"Transfer-Encoding: gzip")),
    "two codings": (501, head(b"Host: a", b"Transfer-Encoding: gzip, chunked")),
    "chunked twice": (501, head(b"Host: a", b"Transfer-Encoding: chunked, chunked")),
    "chunked in two fields": (400, head(b"Host: a", b"Transfer-Encoding: chunked", b"Transfer-Encoding: x")),
    "a disguised coding": (501, head(b"Host: a", b"Transfer-Encoding: \x0bchunked".replace(b"\x0b", b"x"))),
    "chunked in HTTP/1.0": (400, head(b"Transfer-Encoding: chunked", first=b"POST /v1/x HTTP/1.0")),
    "a bare LF": (400, b"GET /v1/x HTTP/1.1\nHost: a\n\n"),
    "a bare LF between fields": (400, head(b"Host: a\nX: y")),
    "a bare CR in a value": (400, head(b"Host: a", b"X: y\rz")),
    "a folded field": (400, head(b"Host: a", b"X: y", b" z")),
    "a fold at once": (400, head(b" Host: a", b"Host: a")),
    "a NUL": (400, head(b"Host: a", b"X: y\0z")),
    "a control character": (400, head(b"Host: a", b"X: y\x01z")),
    "a space before the colon": (400, head(b"Host: a", b"X : y")),
    "a tab before the colon": (400, head(b"Host: a", b"Content-Length\t: 3")),
    "a field without a name": (400, head(b"Host: a", b": y")),
    "a field without a colon": (400, head(b"Host: a", b"nonsense")),
    "a name with a bracket": (400, head(b"Host: a", b"X(a): y")),
    "a name beyond ASCII": (400, head(b"Host: a", b"X\xe9: y")),
    "no host": (400, head(b"X: y")),
    "two hosts": (400, head(b"Host: a", b"Host: b")),
    "two spaces in the request line": (400, head(b"Host: a", first=b"GET  /v1/x HTTP/1.1")),
    "a tab in the request line": (400, head(b"Host: a", first=b"GET\t/v1/x HTTP/1.1")),
    "a space in the target": (400, head(b"Host: a", first=b"GET /v1/ x HTTP/1.1")),
    "a target beyond ASCII": (400, head(b"Host: a", first=b"GET /v1/\xe9 HTTP/1.1")),
    "two empty lines": (400, b"\r\n\r\n" + GET),
    "HTTP/0.9": (400, b"GET /v1/x\r\n\r\n"),
    "HTTP/2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/1.2": (505, head(b"Host: a", first=b"GET /v1/x HTTP/1.2")),
    "lower-case http": (400, head(b"Host: a", first=b"GET /v1/x http/1.1")),
    "a proxy's method": (501, head(b"Host: a", first=b"CONNECT a:443 HTTP/1.1")),
    "TRACE": (501, head(b"Host: a", first=b"TRACE /v1/x HTTP/1.1")),
    "an unknown method": (501, head(b"Host: a", first=b"get /v1/x HTTP/1.1")),
    "an authority as target": (400, head(b"Host: a", first=b"GET a:443 HTTP/1.1")),
    "an asterisk": (400, head(b"Host: a", first=b"OPTIONS * HTTP/1.1")),
    "another scheme": (400, head(b"Host: a", first=b"GET ftp://a/v1/x HTTP/1.1")),
    "user information": (400, head(b"Host: a", first=b"GET http://u@a/v1/x HTTP/1.1")),
    "a fragment": (400, head(b"Host: a", first=b"GET /v1/x#y HTTP/1.1")),
    "dot segments": (400, head(b"Host: a", first=b"GET /v1/../admin HTTP/1.1")),
    "dot segments at the end": (400, head(b"Host: a", first=b"GET /v1/.. HTTP/1.1")),
    "escaped dot segments": (400, head(b"Host: a", first=b"GET /v1/%2e%2E/admin HTTP/1.1")),
    "dots and an escaped slash": (400, head(b"Host: a", first=b"GET /v1/..%2fadmin HTTP/1.1")),
    "dots between escaped slashes": (400, head(b"Host: a", first=b"GET /v1/x%2f..%2Fadmin HTTP/1.1")),
    "dots after an escaped backslash": (400, head(b"Host: a", first=b"GET /v1/x%5C%2e%2e HTTP/1.1")),
    "a backslash": (400, head(b"Host: a", first=b"GET /v1/..\\admin HTTP/1.1")),
    "an unknown expectation": (417, head(b"Host: a", b"Expect: 200-ok", b"Content-Length: 3")),
    "a WebSocket": (501, head(b"Host: a", b"Upgrade: websocket", b"Connection: upgrade")),
    "a chunk without a size": (400, head(b"Host: a", b"Transfer-Encoding: chunked") + b"\r\nhello\r\n0\r\n\r\n"),
    "a chunk of a signed size": (400, head(b"Host: a", b"Transfer-Encoding: chunked") + b"+5\r\nhello\r\n0\r\n\r\n"),
    "a chunk of size 0x5": (400, head(b"Host: a", b"Transfer-Encoding: chunked") + b"0x5\r\nhello\r\n0\r\n\r\n"),
    "a chunk of a huge size": (400, head(b"Host: a", b"Transfer-Encoding: chunked") + b"fffffffffff\r\n"),
    "a chunk that is too long": (400, head(b"Host: a", b"Transfer-Encoding: chunked") + b"5\r\nhelloo\r\n0\r\n\r\n"),
    "a chunk ended by LF": (400, head(b"Host: a", b"Transfer-Encoding: chunked") + b"5\nhello\n0\n\n"),
    "an endless extension": (400, head(b"Host: a", b"Transfer-Encoding: chunked") + b"5;" + b"x" * 9_999),
    "a malformed trailer": (400, head(b"Host: a", b"Transfer-Encoding: chunked") + b"0\r\nno colon\r\n\r\n"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_could_be_read_in_two_ways_is_refused(name) -> None:
    """Malformed and ambiguous requests are refused with the right status, whole or cut anywhere; nothing is read."""
    status, data = BAD[name]
    assert read_all(data) == [status]
    for cut in range(1, len(data), 7):
        assert read_all(data, [cut]) == [status]


def test_limits() -> None:
    """What is too large is refused by part, as early as it shows."""
    assert read_all(b"GET /" + b"x" * 200, limits=SMALL) == [414]
    assert read_all(head(b"Host: a", first=b"GET /" + b"x" * 101 + b" HTTP/1.1"), limits=SMALL) == [414]
    assert read_all(b"GET / HTTP/1.1\r\nX: " + b"x" * 400, limits=SMALL) == [431]
    assert read_all(head(b"Host: a", b"X: " + b"x" * 400), limits=SMALL) == [431]
    assert read_all(head(b"Host: a", *[b"X: y"] * 5), limits=SMALL) == [431]
    assert read_all(head(b"Host: a", b"Content-Length: 51"), limits=SMALL) == [413]
    chunked = head(b"Host: a", b"Transfer-Encoding: chunked")
    assert read_all(chunked + b"30\r\n" + b"x" * 48 + b"\r\n3\r\n", limits=SMALL) == [413]
    assert len(read_all(head(b"Host: a", b"Content-Length: 50") + b"x" * 50, limits=SMALL)) == 1


def test_the_longest_line_is_the_same_however_it_is_cut() -> None:
    """A carriage return whose line feed has not come yet does not count as one byte of the line more."""
    line = b"\x07" * (SMALL.max_target_bytes + 64)
    whole, halves = RequestReader(SMALL), RequestReader(SMALL)
    whole.feed(line + b"\r\n")
    assert whole.read() is None
    halves.feed(line + b"\r")
    assert halves.read() is None


def test_the_absolute_form_counts_by_its_path() -> None:
    """http://host/path?query is served as /path?query, as RFC 9112 asks of every server."""
    for target, path in ((b"http://a:80/v1/x?q=1", "/v1/x"), (b"HTTPS://[::1]/v1/x", "/v1/x"), (b"http://a", "/")):
        [message] = read_all(head(b"Host: b", first=b"GET " + target + b" HTTP/1.1"))
        assert message[2] == path


def test_what_keeps_a_connection() -> None:
    """HTTP/1.1 keeps it unless it says close, anywhere in a list; HTTP/1.0 never does."""
    said = ([], [b"Connection: keep-alive"], [b"Connection: Close"], [b"Connection: x", b"Connection: y,close"])
    kept = [read_all(head(b"Host: a", *lines))[0][5] for lines in said]
    assert kept == [True, True, False, False]
    assert read_all(b"GET /v1/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")[0][5:] == (False, True)


def test_the_expectation_is_told_once_and_only_if_the_body_is_missing() -> None:
    """`100 Continue` is due while a body is awaited, once."""
    expecting = head(b"Host: a", b"Expect: 100-Continue", b"Content-Length: 2")
    reader = RequestReader(MessageLimits())
    reader.feed(expecting)
    assert reader.read() is None
    assert (reader.take_expectation(), reader.take_expectation()) == (True, False)
    reader.feed(b"ok" + expecting + b"o")
    assert reader.read() is not None
    assert reader.read() is None
    assert not reader.take_expectation()


def test_the_phase_tells_what_is_awaited() -> None:
    """Idle before the first byte, then head, then body, then idle again."""
    reader = RequestReader(MessageLimits())
    phases = [reader.phase]
    for piece in (POST[:10], POST[10:-2], POST[-2:]):
        reader.feed(piece)
        reader.read()
        phases.append(reader.phase)
    assert phases == [Phase.IDLE, Phase.HEAD, Phase.BODY, Phase.IDLE]


TOKENS = st.from_regex(rb"[A-Za-z][A-Za-z0-9-]{0,10}", fullmatch=True)
VALUES = st.from_regex(rb"[!-~\xa0-\xff]([ -~\t]{0,20}[!-~])?", fullmatch=True)
RESERVED = {b"host", b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"connection"}


@st.composite
def requests(draw) -> bytes:
    """A valid request with some fields and a body in one of the two framings."""
    fields = draw(st.lists(st.tuples(TOKENS, VALUES), max_size=6))
    lines = [name + b": " + value for name, value in fields if name.lower() not in RESERVED]
    body = draw(st.binary(max_size=40))
    if draw(st.booleans()):
        framing, sent = b"Content-Length: %d" % len(body), body
    else:
        cut = draw(st.integers(0, len(body)))
        parts = [part for part in (body[:cut], body[cut:]) if part]
        sent = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        framing = b"Transfer-Encoding: chunked"
    lines.insert(draw(st.integers(0, len(lines))), framing)
    return head(b"Host: a", *lines, first=b"POST /v1/%d HTTP/1.1" % len(lines)) + sent


class Oracle:
    """What httptools makes of the same bytes."""

    def __init__(self) -> None:
        self.found: list[tuple[tuple[tuple[bytes, bytes], ...], bytes]] = []

    def on_message_begin(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.found.append((tuple(self.headers), self.body))


@given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(0, 400), max_size=6))
def test_what_is_read_is_what_another_parser_reads(sent, cuts) -> None:
    """Requests in a row, cut anywhere, are the same to httptools, an independent parser."""
    data = b"".join(sent)
    oracle = Oracle()
    httptools.HttpRequestParser(oracle).feed_data(data)
    found = read_all(data, [cut for cut in cuts if cut < len(data)])
    assert [(message[3], message[4]) for message in found] == oracle.found


@given(st.lists(st.tuples(st.sampled_from([b"", b"X: y"]), st.binary(max_size=30)), min_size=2, max_size=6))
def test_a_head_that_is_repeated_is_read_as_if_it_were_new(calls) -> None:
    """The shortcut for repeated heads changes nothing: a fresh reader finds the same in each request."""
    sent = []
    for line, body in calls:
        lines = [b"Host: a", b"CONTENT-length:  %d" % len(body), *([line] if line else [])]
        sent.append(head(*lines) + body)
    assert read_all(b"".join(sent)) == [read_all(one)[0] for one in sent]


def test_an_idle_connection_keeps_no_body() -> None:
    """Neither the first body nor the last is reachable from the reader once its request has been taken."""
    reader = RequestReader(MessageLimits())
    for body in (b"first" * 1_000, b"later" * 1_000):
        reader.feed(head(b"Host: a", b"Content-Length: %d" % len(body)) + body)
        message = reader.read()
        assert message is not None
        assert message.request.body == body
        del message
        assert not [held for held in reachable(reader) if isinstance(held, bytes) and body in held]


def reachable(root: object) -> list[object]:
    """What an object holds, however deep; not what all objects share."""
    found: dict[int, object] = {}
    todo = [root]
    while todo:
        one = todo.pop()
        if id(one) not in found and not isinstance(one, type | ModuleType | FunctionType | MessageLimits):
            found[id(one)] = one
            todo += gc.get_referents(one)
    return list(found.values())


def test_a_repeated_head_of_a_head_is_still_one() -> None:
    """Whoever refuses what follows knows that no body may be sent."""
    reader = RequestReader(MessageLimits(max_body_bytes=10))
    sent = head(b"Host: a", b"Content-Length: 1", first=b"HEAD /v1/models HTTP/1.1") + b"x"
    reader.feed(sent)
    assert reader.read() is not None
    reader.feed(sent.replace(b"Length: 1", b"Length: 11"))
    with pytest.raises(Refused, match="larger"):
        reader.read()
    assert reader.head_only


@given(st.binary(max_size=20), st.integers(0, 200))
def test_a_repeated_head_with_other_digits_is_still_checked(junk, at) -> None:
    """After a good request, one whose head was tampered with is judged as by a fresh reader."""
    good = head(b"Host: a", b"Content-Length: 3") + b"abc"
    at = min(at, len(good) - 3)
    bad = good[:at] + junk + good[at:]
    assert read_all(good + bad)[1:] == read_all(bad)


@given(st.lists(st.binary(max_size=60) | st.sampled_from([GET, POST[:30], b"\r\n\r\n", CHUNKED[80:], b": ", b"\r\n"])))
def test_any_bytes_are_read_or_refused(pieces) -> None:
    """No bytes, in whatever pieces, make the reader do anything but read, wait, or refuse with a 4xx or 5xx."""
    reader = RequestReader(SMALL)
    status = 400
    try:
        for piece in pieces:
            reader.feed(piece)
            while reader.read() is not None:
                pass
            assert reader.num_buffered <= 400 + 60 + len(POST)
    except Refused as refused:
        status = refused.status
    assert 400 <= status <= 505
