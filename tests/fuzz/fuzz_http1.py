"""Coverage-guided fuzzing of the request reader; needs `atheris`, which is no dependency of the project.

    python tests/fuzz/fuzz_http1.py -max_total_time=60

The laws: any bytes are read or refused; cutting them elsewhere changes nothing; what is read whole, an independent
parser (httptools) reads in the same way. A byte from 0x80 on stands for a piece of a request, so that the fuzzer gets
past the grammar's first line; all others stand for themselves.
"""

from __future__ import annotations

import sys
from typing import Any

import atheris

with atheris.instrument_imports(include=["saga.gateway.http1"]):
    from saga.gateway.http1 import RequestReader
    from saga.gateway.limits import MessageLimits

import httptools

from saga.gateway.contracts import Refused

LIMITS = MessageLimits(max_target_bytes=200, max_head_bytes=2_000, max_headers=20, max_body_bytes=500)
REFUSED = "refused"
PIECES = (
    *(b"POST ", b"GET ", b"HEAD ", b"/v1/x", b"http://a/v1/x?y", b"/%2e%2e/", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n"),
    *(b"Host: a\r\n", b"Content-Length: 2\r\n", b"content-length:03 \r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Connection: keep-alive, x\r\n", b"Upgrade: h2c\r\n"),
    *(b"Name:\tvalue\t\r\n", b"\r\n", b"\r\n\r\n", b"\r", b"\n", b"\0", b"\xff", b"{}", b"{}\n", b"0\r\n\r\n"),
    *(b"POST /v1/x HTTP/1.1\r\nHost: a\r\n", b"GET /v1/x HTTP/1.1\r\nHost: a\r\n\r\n"),
    *(b"2\r\n{}\r\n", b"0002;a=b\r\n{}\r\n", b"0\r\nTrailer: x\r\n\r\n", b"x" * 64, b"a:b\r\n" * 8, b"ffffffff\r\n"),
)
SEEDS = (  # which must be read as requests, so that a reader who refuses everything does not pass
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"GET http://a/v1/x HTTP/1.0\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n",
)


def read_all(pieces: list[bytes]) -> list[Any]:
    """(headers, body) of each request; a refusal ends the list."""
    reader = RequestReader(LIMITS)
    found: list[Any] = []
    try:
        for piece in pieces:
            reader.feed(piece)
            while (message := reader.read()) is not None:
                found.append((message.request.headers, message.request.body))
    except Refused:
        found.append(REFUSED)  # of several faults any may be named
    return found


class Oracle:
    """What httptools reads."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self.complete = False

    def on_message_begin(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.in_body = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_body:
            self.headers.append((name.lower(), value.rstrip(b"\t ")))

    def on_headers_complete(self) -> None:
        self.in_body = True

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.found.append((self.headers, self.body))


def check(data: bytes) -> None:
    """All laws, for these bytes; the first of them says where to cut."""
    if not data:
        return
    cut = data[0]
    data = b"".join(bytes((byte,)) if byte < 0x80 else PIECES[byte % len(PIECES)] for byte in data[1:])
    cut %= len(data) + 1
    whole = read_all([data])
    assert read_all([data[:cut], data[cut:]]) == whole
    step = 1 + len(data) // 100
    assert read_all([data[i : i + step] for i in range(0, len(data), step)]) == whole
    read = [message for message in whole if message != REFUSED]
    oracle = Oracle()
    try:
        httptools.HttpRequestParser(oracle).feed_data(data)
    except httptools.HttpParserError:
        pass
    else:
        assert oracle.found[: len(read)] == read
        return
    common = min(len(read), len(oracle.found))
    assert oracle.found[:common] == read[:common]


if __name__ == "__main__":
    for seed in SEEDS:
        assert REFUSED not in read_all([seed])
        check(b"\x07" + seed)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
