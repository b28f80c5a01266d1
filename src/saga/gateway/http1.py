"""HTTP/1.1 requests out of bytes: strict, bounded, and without a socket or a clock.

Feed bytes as they come, read whole requests as they complete; what is malformed, oversized or could be understood
in two ways (request smuggling) is refused, never repaired. The grammar is RFC 9112 without its leniencies:

    request line    token SP target SP HTTP/1.0 or HTTP/1.1, ended by CR LF (a bare LF is refused)
    fields          token ":" OWS value OWS CR LF; no space before the colon, no folding, no NUL or other controls
    body            one Content-Length of digits, or Transfer-Encoding: chunked alone; never both, nothing else
    target          /path, or http://host/path (then the path counts); no dot segments, no fragment

One message ends where the next begins, so the reader must know every byte's place: a parser that reports neither
offsets nor raw lines cannot tell (which is why answers are read with httptools, requests are not). This module
refuses to know routes, workers and time; the front turns `phase` into deadlines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from saga.gateway.contracts import HeadMemo, Refused, Request
from saga.gateway.limits import MessageLimits

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE: Final = re.compile(rb"(" + _TOKEN + rb"{1,32}) ([\x21-\x7e]+) HTTP/(\d)\.(\d)")
_FIELDS: Final = re.compile(rb"(?:" + _TOKEN + rb"++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+")
_FIELD: Final = re.compile(rb"([^:]+):[\t ]*([^\r]*)\r\n")
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[\t ]*(?:;[\t\x20-\x7e]*)?")
_LENGTH_LINE: Final = re.compile(rb"\r\ncontent-length:[\t ]*(\d+)(?=\r\n)", re.IGNORECASE)
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_ABSOLUTE: Final = re.compile(r"(?i:https?)://([A-Za-z0-9.\-_~%:\[\]]+)(/.*|\?.*|)")
_DOT_SEGMENT: Final = re.compile(r"(?:/|%2f|%5c)(?:\.|%2e){1,2}(?:/|%2f|%5c|$)", re.IGNORECASE)

_ONCE: Final = frozenset({b"content-length", b"transfer-encoding", b"host", b"expect"})
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
_LONGEST_CHUNK_LINE: Final = 256
_LONGEST_TRAILER: Final = 8_192


class Phase(Enum):
    """Where the reader stands; `idle` means that no byte of the next request has been seen."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"


@dataclass(slots=True, init=False)
class Message:
    """A request and what its connection must know.

    http10: no chunked answer, close afterwards.
    """

    request: Request
    keep_alive: bool
    http10: bool

    def __init__(
        self,
        request: Request,
        *,
        keep_alive: bool,
        http10: bool = False,
    ) -> None:
        self.request = request
        self.keep_alive = keep_alive
        self.http10 = http10


@dataclass(slots=True)
class _Template:
    """A head that was read, without the digits of its content-length: clients repeat their heads but for those.

    It holds nothing of the body that came with it: an idle connection keeps none.
    """

    before: bytes
    after: bytes
    fields_before: list[tuple[bytes, bytes]]
    fields_after: list[tuple[bytes, bytes]]
    method: str
    target: str
    path: str
    memo: HeadMemo
    keep_alive: bool
    http10: bool
    expects_continue: bool


class RequestReader:
    """Requests of one connection, in order.

    `feed` costs O(bytes); `read` costs O(bytes of the request) over all its calls, except that a head which trickles
    in is scanned once per call (it is bounded). After `read` has raised Refused the connection is at an unknown
    place: answer and close.
    """

    __slots__ = (
        "_chunked",
        "_chunks",
        "_expects_continue",
        "_limits",
        "_message",
        "_need",
        "_num_bytes",
        "_peer",
        "_skipped_line",
        "_template",
        "head_only",
    )

    def __init__(self, limits: MessageLimits, peer: str = "") -> None:
        self._limits = limits
        self._peer = peer
        self._chunks: list[bytes] = []
        self._num_bytes = 0
        self._message: Message | None = None
        self._chunked: _ChunkedBody | None = None
        self._need = 0
        self._expects_continue = False
        self._skipped_line = False
        self._template: _Template | None = None
        self.head_only = False
        """The request being read, or the one read last, is a HEAD: answers to it carry no body."""

    @property
    def phase(self) -> Phase:
        """Where the reader stands between two calls of `read`."""
        if self._message is not None:
            return Phase.BODY
        return Phase.HEAD if self._num_bytes else Phase.IDLE

    @property
    def num_buffered(self) -> int:
        """Bytes fed and not yet part of a request that was read."""
        return self._num_bytes

    def take_expectation(self) -> bool:
        """Whether the client waits for `100 Continue` before it sends its body; True only once for a request."""
        expects = self._expects_continue and self._message is not None and self._num_bytes == 0
        self._expects_continue = False
        return expects

    def feed(self, data: bytes) -> None:
        """More bytes of the connection."""
        self._chunks.append(data)
        self._num_bytes += len(data)

    def read(self) -> Message | None:
        """The next whole request, None if bytes are missing. Raises Refused (400, 413, 414, 417, 431, 501, 505)."""
        message = self._message
        if message is None:
            message = self._message = self._read_head()
            if message is None:
                return None
        if self._chunked is not None:
            if not self._read_chunks(self._chunked):
                return None
            message.request.body = self._chunked.body()
            self._chunked = None
        elif self._need:
            if self._num_bytes < self._need:
                return None
            message.request.body = self._take(self._need)
            self._need = 0
        self.head_only = message.request.method == "HEAD"
        self._message = None
        return message

    def _take(self, num_bytes: int) -> bytes:
        buffer = self._joined()
        if len(buffer) == num_bytes:
            self._set(b"")
            return buffer
        self._set(buffer[num_bytes:])
        return buffer[:num_bytes]

    def _joined(self) -> bytes:
        if len(self._chunks) == 1:
            return self._chunks[0]
        buffer = b"".join(self._chunks)
        self._chunks = [buffer]
        return buffer

    def _set(self, buffer: bytes) -> None:
        self._chunks = [buffer] if buffer else []
        self._num_bytes = len(buffer)

    def _read_head(self) -> Message | None:
        if not self._num_bytes:
            return None
        self.head_only = False
        buffer = self._joined()
        if buffer.startswith(b"\r\n"):  # RFC 9112 2.2: an empty line before a request is ignored; one, not many
            if self._skipped_line or buffer.startswith(b"\r\n", 2):
                raise Refused(400, "there is more than one empty line before the request")
            self._skipped_line = True
            buffer = buffer[2:]
            self._set(buffer)
        end = buffer.find(b"\r\n\r\n")
        if end < 0 or end > self._limits.max_head_bytes:
            self._refuse_unfinished(buffer)
            return None
        message = self._repeat_head(buffer, end) if self._template is not None else None
        if message is None:
            message = self._parse_head(buffer[: end + 2])
            self._remember(buffer[: end + 4], message)
        self._skipped_line = False
        self._set(buffer[end + 4 :])
        return message

    def _repeat_head(self, buffer: bytes, end: int) -> Message | None:
        """The message whose head is the last one's but for the digits of its length; None if it is another head."""
        template = self._template
        assert template is not None
        if not buffer.startswith(template.before):
            return None
        start = len(template.before)
        stop = buffer.find(b"\r\n", start)
        digits = buffer[start:stop]
        if buffer[stop : end + 4] != template.after or not digits.isdigit():
            return None
        self.head_only = template.method == "HEAD"
        self._expect_length(digits)
        self._expects_continue = template.expects_continue and self._need > 0
        fields = [*template.fields_before, (b"content-length", digits), *template.fields_after]
        request = Request(template.method, template.target, template.path, fields, b"", self._peer, template.memo)
        return Message(request, keep_alive=template.keep_alive, http10=template.http10)

    def _remember(self, head: bytes, message: Message) -> None:
        self._template = None
        matched = _LENGTH_LINE.search(head)
        if matched is None or self._chunked is not None:
            return
        request = message.request
        fields = request.headers
        at = next(i for i, (name, _) in enumerate(fields) if name == b"content-length")
        self._template = _Template(
            head[: matched.start(1)],
            head[matched.end(1) :],
            fields[:at],
            fields[at + 1 :],
            request.method,
            request.target,
            request.path,
            request.memo,
            message.keep_alive,
            message.http10,
            self._expects_continue,
        )

    def _expect_length(self, digits: bytes) -> None:
        if not digits.isdigit() or len(digits) > 18:
            raise Refused(400, "content-length is not a number")
        self._need = int(digits)
        if self._need > self._limits.max_body_bytes:
            raise Refused(413, f"the request's body is larger than {self._limits.max_body_bytes} bytes")

    def _refuse_unfinished(self, buffer: bytes) -> None:
        """A head without an end is refused as soon as it can only become worse."""
        limits = self._limits
        line_end = buffer.find(b"\r\n")
        num_line_bytes = line_end if line_end >= 0 else len(buffer) - buffer.endswith(b"\r")
        if num_line_bytes > limits.max_target_bytes + 64:
            raise Refused(414, f"the request line is longer than {limits.max_target_bytes} bytes")
        if len(buffer) > limits.max_head_bytes:
            raise Refused(431, f"the request's header is larger than {limits.max_head_bytes} bytes")
        if _BARE_LF.search(buffer):
            raise Refused(400, "a line of the request's header does not end in CR LF")

    def _parse_head(self, head: bytes) -> Message:
        """Head without its last empty line."""
        line_end = head.find(b"\r\n")
        method, target, minor = self._parse_request_line(head[:line_end])
        self.head_only = method == "HEAD"
        start = line_end + 2
        if (matched := _FIELDS.match(head, start)) is None or matched.end() != len(head):
            raise Refused(400, _what_is_wrong(head[start:]))
        headers = [(name.lower(), value.rstrip(b"\t ")) for name, value in _FIELD.findall(head, start)]
        if len(headers) > self._limits.max_headers:
            raise Refused(431, f"the request has more than {self._limits.max_headers} header fields")
        seen = dict(headers)
        if len(seen) != len(headers):
            seen = _merged(headers)
        http10 = minor == b"0"
        if not http10 and b"host" not in seen:
            raise Refused(400, "an HTTP/1.1 request needs a host field")
        target, path = _origin_form(target)
        self._frame(seen, http10=http10)
        self._note_wishes(seen, http10=http10)
        connection = seen.get(b"connection")
        keep_alive = not http10 and (connection is None or b"close" not in _tokens(connection))
        return Message(Request(method, target, path, headers, b"", self._peer), keep_alive=keep_alive, http10=http10)

    def _parse_request_line(self, line: bytes) -> tuple[str, str, bytes]:
        if len(line) > self._limits.max_target_bytes + 64:
            raise Refused(414, f"the request line is longer than {self._limits.max_target_bytes} bytes")
        matched = _REQUEST_LINE.fullmatch(line)
        if matched is None:
            raise Refused(400, "the request line is malformed")
        method, target, major, minor = matched.groups()
        if major != b"1" or minor not in b"01":
            raise Refused(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        if len(target) > self._limits.max_target_bytes:
            raise Refused(414, f"the request's target is longer than {self._limits.max_target_bytes} bytes")
        name = method.decode()
        if name not in _METHODS:
            raise Refused(501, f"the method {name} is not served")
        return name, target.decode(), minor

    def _frame(self, seen: dict[bytes, bytes], *, http10: bool) -> None:
        """Where the body ends; refuses whatever two parsers could see differently."""
        length = seen.get(b"content-length")
        coding = seen.get(b"transfer-encoding")
        if coding is not None:
            if length is not None:
                raise Refused(400, "a request may not have both content-length and transfer-encoding")
            if http10:
                raise Refused(400, "an HTTP/1.0 request may not have a transfer-encoding")
            if coding.lower() != b"chunked":
                raise Refused(501, "the only transfer-coding served is chunked")
            self._chunked = _ChunkedBody(self._limits.max_body_bytes)
        elif length is not None:
            self._expect_length(length)

    def _note_wishes(self, seen: dict[bytes, bytes], *, http10: bool) -> None:
        if (expect := seen.get(b"expect")) is not None and not http10:
            if expect.lower() != b"100-continue":
                raise Refused(417, "the only expectation served is 100-continue")
            self._expects_continue = self._need > 0 or self._chunked is not None
        if b"upgrade" in seen and not _only_h2c(seen[b"upgrade"]):
            raise Refused(501, "connections are not upgraded here")

    def _read_chunks(self, chunked: _ChunkedBody) -> bool:
        buffer = self._joined()
        used = chunked.feed(buffer)
        self._set(buffer[used:])
        return chunked.complete


class _ChunkedBody:
    """A body in chunks; extensions and trailers are checked, bounded and dropped."""

    __slots__ = ("_data", "_limit", "_need", "_num_bytes", "_num_trailer_bytes", "_state", "complete")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()  # not a list: there may be very many very small chunks
        self._num_bytes = 0
        self._num_trailer_bytes = 0
        self._need = 0
        self._state = "size"
        self.complete = False

    def body(self) -> bytes:
        return bytes(self._data)

    def feed(self, buffer: bytes) -> int:
        """Take what can be taken; returns how many bytes that was. Raises Refused (400, 413)."""
        at = 0
        while not self.complete:
            if self._state == "data":
                piece = buffer[at : at + self._need]
                if not piece:
                    return at
                self._data += piece
                at += len(piece)
                self._need -= len(piece)
                if not self._need:
                    self._state = "end of data"
            elif self._state == "end of data":
                if len(buffer) - at < 2:
                    return at
                if buffer[at : at + 2] != b"\r\n":
                    raise Refused(400, "a chunk is longer than its size says")
                at += 2
                self._state = "size"
            else:
                line_end = buffer.find(b"\r\n", at)
                if line_end < 0:
                    self._refuse_unfinished(buffer[at : at + _LONGEST_TRAILER + 1])
                    return at
                line = buffer[at:line_end]
                at = line_end + 2
                (self._read_size if self._state == "size" else self._read_trailer)(line)
        return at

    def _refuse_unfinished(self, rest: bytes) -> None:
        if len(rest) > (_LONGEST_CHUNK_LINE if self._state == "size" else _LONGEST_TRAILER) or b"\n" in rest:
            raise Refused(400, "a line between chunks is malformed")

    def _read_size(self, line: bytes) -> None:
        matched = _CHUNK_LINE.fullmatch(line) if len(line) <= _LONGEST_CHUNK_LINE else None
        if matched is None:
            raise Refused(400, "a chunk's size is malformed")
        self._need = int(matched[1], 16)
        self._num_bytes += self._need
        if self._num_bytes > self._limit:
            raise Refused(413, f"the request's body is larger than {self._limit} bytes")
        self._state = "data" if self._need else "trailer"

    def _read_trailer(self, line: bytes) -> None:
        if not line:
            self.complete = True
            return
        self._num_trailer_bytes += len(line)
        if self._num_trailer_bytes > _LONGEST_TRAILER or _FIELDS.fullmatch(line + b"\r\n") is None:
            raise Refused(400, "a trailer is malformed or too long")


def _merged(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Fields by name; what frames the message or names its host may be there once only."""
    seen: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in seen:
            if name in _ONCE:
                raise Refused(400, f"the request has more than one {name.decode()} field")
            seen[name] += b"," + value
        else:
            seen[name] = value
    return seen


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip(b"\t ") for token in value.lower().split(b",")]


def _only_h2c(value: bytes) -> bool:
    """An offer of HTTP/2 in clear text is made unasked by some clients and declined by answering in HTTP/1.1."""
    return _tokens(value) == [b"h2c"]


def _origin_form(target: str) -> tuple[str, str]:
    """(target as /path?query, path). Absolute form is accepted as RFC 9112 3.2.2 asks; the path alone counts."""
    if not target.startswith("/"):
        matched = _ABSOLUTE.fullmatch(target)
        if matched is None:
            raise Refused(400, "the request's target is neither a path nor an http URL")
        target = matched[2] if matched[2].startswith("/") else "/" + matched[2]
    path = target.partition("?")[0]
    if "#" in target or "\\" in path or (("." in path or "%" in path) and _DOT_SEGMENT.search(path)):
        raise Refused(400, "the request's target has a fragment, a backslash or dot segments")
    return target, path


def _what_is_wrong(fields: bytes) -> str:
    """Why header fields do not match the grammar, for the error message."""
    if b"\0" in fields:
        return "a header field contains a NUL byte"
    if _BARE_LF.search(fields):
        return "a line of the request's header does not end in CR LF"
    if re.search(rb"(?:^|\r\n)[\t ]", fields):
        return "a header field is folded over two lines"
    if re.search(rb"(?:^|\r\n)[^:\r\n]*[\t ]+:", fields):
        return "a header field has a space before its colon"
    return "a header field is malformed"
