"""Server-sent events as they pass: only whole ones go on, one that nobody asked for is taken out, a broken stream ends.

Passing whole events costs nothing (a client can use no part of one) and leaves a place where an error event can be
put if the worker dies. The bytes that pass are the worker's own. This module refuses to know sockets and HTTP framing.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from saga.gateway.answer_fields import UsageChunk
from saga.gateway.contracts import Kind
from saga.gateway.rewriting import error_body

_EVENT_END: Final = re.compile(rb"\r?\n\r?\n|\r\r")
_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
_LONGEST_EVENT: Final = 1024 * 1024


_DECODER: Final = msgspec.json.Decoder(UsageChunk)


class EventStream:
    """The events of one answer. hide_usage: take out the chunk that carries usage and no choices.

    O(bytes) in total. An event longer than 1 MiB is passed on in parts.
    """

    __slots__ = ("_held", "_hide_usage", "num_hidden")

    def __init__(self, *, hide_usage: bool = False) -> None:
        self._held = b""
        self._hide_usage = hide_usage
        self.num_hidden = 0

    def feed(self, data: bytes) -> bytes:
        """Bytes that may go on now; the start of an unfinished event stays here."""
        held = self._held
        if held:
            data = held + data
            self._held = b""
        if not data.endswith(_EVENT_ENDS):
            data, self._held = _split(data)
        if self._hide_usage and b'"usage"' in data:
            return self._without_usage(data)
        return data

    def close(self) -> bytes:
        """What was held back, when the answer has ended as it should."""
        held, self._held = self._held, b""
        if self._hide_usage and b'"usage"' in held:
            return self._without_usage(held)
        return held

    def _without_usage(self, data: bytes) -> bytes:
        kept: list[bytes] = []
        at = 0
        for matched in _EVENT_END.finditer(data):
            self._keep(data[at : matched.end()], kept)
            at = matched.end()
        if at < len(data):
            self._keep(data[at:], kept)
        return b"".join(kept)

    def _keep(self, event: bytes, kept: list[bytes]) -> None:
        if b'"usage"' in event and _is_usage_only(event):
            self.num_hidden += 1
        else:
            kept.append(event)


def _split(data: bytes) -> tuple[bytes, bytes]:
    """(whole events, start of an unfinished one)."""
    end = max(data.rfind(mark) + len(mark) if mark in data else 0 for mark in _EVENT_ENDS)
    if not end and len(data) > _LONGEST_EVENT:
        return data, b""
    return data[:end], data[end:]


def _is_usage_only(event: bytes) -> bool:
    stripped = event.strip()
    if not stripped.startswith(b"data:"):
        return False
    try:
        chunk = _DECODER.decode(stripped[5:])
    except msgspec.DecodeError:
        return False
    return not chunk.choices


def broken_event(kind: Kind, message: str) -> bytes:
    """The event that ends a stream whose worker was lost, in the shape of the API that the client speaks."""
    if kind is Kind.MESSAGES:
        body = msgspec.json.encode({"type": "error", "error": {"type": "api_error", "message": message}})
        return b"event: error\ndata: " + body + b"\n\n"
    if kind is Kind.RESPONSES:
        body = msgspec.json.encode({"type": "error", "code": "worker_lost", "message": message, "param": None})
        return b"event: error\ndata: " + body + b"\n\n"
    return b"data: " + error_body(message, "server_error", None, "worker_lost") + b"\n\n"
