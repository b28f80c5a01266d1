"""Heads and bodies as they leave the gateway, in both directions: what is passed on, what is replaced, what is added.

Hop-by-hop fields end here; the client's credentials never reach a worker; the worker's framing is the client's where
it can be. Pure functions of bytes. This module refuses to know sockets, retries and the scheduler.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final

import msgspec

from saga.gateway.addresses import WorkerAddress
from saga.gateway.codings import ACCEPTED
from saga.gateway.contracts import Refused, Request, Ticket

Headers = list[tuple[bytes, bytes]]
"""Header fields in order, names in lower case."""

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
_CREDENTIALS: Final = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"cookie", b"cookie2"})
_NOT_SENT: Final = _HOP_BY_HOP | _CREDENTIALS | {b"host", b"content-length", b"expect", b"accept-encoding"}
_NOTES: Final = frozenset({b"x-saga-session", b"x-saga-worker", b"x-saga-queued-ms", b"x-saga-reason"})
_NOT_RETURNED: Final = _HOP_BY_HOP | _NOTES | {b"content-length"}
_BODILESS_METHODS: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
_LONGEST_NOTE: Final = 256
_EMPTY_OBJECT: Final = re.compile(rb"\s*\{\s*\}\s*")
_PHRASES: Final = {status.value: status.phrase.encode() for status in HTTPStatus}


def named_in_connection(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Fields that a Connection field declares hop-by-hop; lower case."""
    values = [value for name, value in headers if name == b"connection"]
    if not values:
        return frozenset()
    return frozenset(token.strip(b"\t ") for token in b",".join(values).lower().split(b","))


def request_head(request: Request, address: WorkerAddress) -> bytes:
    """The head sent to a worker but for `length_line`: end-to-end fields, the worker's Host and keys. O(fields)."""
    own = {name.lower() for name, _ in address.headers} if address.headers else ()
    hop = named_in_connection(request.headers)
    port = b"" if address.port == (443 if address.tls else 80) else b":%d" % address.port
    host = f"[{address.host}]" if ":" in address.host else address.host
    lines = [
        b"%b %b HTTP/1.1\r\nhost: %b%b\r\n"
        % (request.method.encode(), (address.base_path + request.target).encode(), host.encode(), port)
    ]
    lines += [
        b"%b: %b\r\n" % field
        for field in request.headers
        if (name := field[0]) not in _NOT_SENT and name not in hop and name not in own
    ]
    lines += [b"%b: %b\r\n" % field for field in address.headers]
    return b"".join(lines)


def length_line(request: Request, num_body_bytes: int) -> bytes:
    """The end of a request's head: its length, where the method has one."""
    if num_body_bytes or request.method not in _BODILESS_METHODS:
        return b"content-length: %d\r\n\r\n" % num_body_bytes
    return b"\r\n"


def with_fields(body: bytes, extra: Mapping[str, Any]) -> bytes:
    """The JSON object `body` with top-level fields added at its end, every other byte as it was. O(bytes).

    At its end, because readers of JSON let the last of two equal names win: a client cannot overrule what is added.
    A body that is no object is returned as it is.
    """
    if not extra:
        return body
    end = len(body.rstrip(b" \t\r\n")) - 1
    if end < 1 or body[end] != 0x7D:
        return body
    added = msgspec.json.encode(dict(extra))[1:]
    comma = b"" if _EMPTY_OBJECT.fullmatch(body) else b","
    return b"".join((body[:end], comma, added))


def answer_fields(headers: Headers) -> Headers:
    """Fields of a worker's answer that go on to the client (framing is decided anew)."""
    hop = named_in_connection(headers)
    return [field for field in headers if field[0] not in _NOT_RETURNED and field[0] not in hop]


def notes(ticket: Ticket) -> bytes:
    """The `x-saga-*` header lines that make the scheduler's decision visible to the client."""
    return b"x-saga-session: %b\r\nx-saga-worker: %b\r\nx-saga-queued-ms: %d\r\nx-saga-reason: %b\r\n" % (
        header_value(ticket.call.session),
        header_value(ticket.address.worker),
        int(ticket.queued_s * 1000),
        header_value(ticket.reason),
    )


@lru_cache(maxsize=4_096)
def header_value(text: str) -> bytes:
    """Text as a header value: printable ASCII, at most 256 bytes; everything else becomes a question mark."""
    text = text[:_LONGEST_NOTE]
    if not (text.isascii() and text.isprintable()):
        text = "".join(c if " " <= c <= "~" else "?" for c in text)
    return text.strip(" ").encode()


def status_line(status: int, reason: bytes = b"") -> bytes:
    """The status line; an empty reason is replaced by the usual phrase."""
    return b"HTTP/1.1 %d %b\r\n" % (status, reason or _PHRASES.get(status, b""))


def field_lines(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Header fields as lines."""
    return [b"%b: %b\r\n" % field for field in headers]


def whole_answer(
    status: int,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
    *,
    keep_alive: bool,
    head_only: bool = False,
    added: bytes = b"",
) -> bytes:
    """An answer made here, framed by its length.

    head_only: to a HEAD, the length without the body. added: more header lines.
    """
    lines = [status_line(status), *field_lines(headers), added]
    if not any(name == b"date" for name, _ in headers):
        lines.append(b"date: %b\r\n" % formatdate(usegmt=True).encode())
    if status not in {204, 304}:
        lines.append(b"content-length: %d\r\n" % len(body))
    lines.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
    if not head_only and status not in {204, 304}:
        lines.append(body)
    return b"".join(lines)


def refusal(refused: Refused) -> tuple[int, Headers, bytes]:
    """(status, header fields, body) of a refusal, in the shape of OpenAI's errors."""
    headers = [(b"content-type", b"application/json")]
    if refused.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(refused.retry_after_s))))
    if refused.status == 405:
        headers.append((b"allow", b"POST"))
    if refused.status == 415:
        headers.append((b"accept-encoding", ACCEPTED))
    return refused.status, headers, error_body(refused.message, refused.kind, refused.param, refused.code)


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> bytes:
    """`{"error": {...}}` as OpenAI shapes it."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})
