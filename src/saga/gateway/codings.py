"""Request bodies that come compressed: opened before anybody reads them, within a bound, or refused.

What is opened is forwarded as it is then: without its content-encoding, with its new length. The bound holds for the
opened body, and no more than it is ever made, however well it was packed. A body of several members (RFC 1952 2.2) or
frames (RFC 8878 3) is opened up to 64 of them: each costs a copy of what is left. Cost: measured on two shared cores, 3
to 4 ms for a MiB that comes out of gzip, 1 to 2 ms out of zstd. Nothing else happens meanwhile, as while a body is
parsed: the bound on bodies bounds the pause (64 MiB of zeros in gzip: 0.2 s).

It refuses to know routes, sockets and formats of bodies.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from saga.gateway.contracts import Refused, Request

_ZSTD_WINDOW_LOG: Final = 23
"""8 MiB: RFC 9659 lets nobody ask for more under the coding `zstd`."""

_MAX_MEMBERS: Final = 64

_DESCRIBED: Final = frozenset({b"content-encoding", b"content-length", b"content-digest", b"repr-digest"})


def _gzip() -> Any:  # noqa: ANN401  zlib's class has no public name
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _deflate() -> Any:  # noqa: ANN401
    return zlib.decompressobj()  # RFC 9110 8.4.1.2: the zlib format, whatever the name says


_OPENERS: Final[dict[bytes, Callable[[], Any]]] = {b"gzip": _gzip, b"x-gzip": _gzip, b"deflate": _deflate}
_IN_MEMBERS: Final = frozenset({b"gzip", b"x-gzip", b"zstd"})
_FAULTS: Final[list[type[Exception]]] = [zlib.error]

with suppress(ImportError):  # the extra `zstd`, before Python 3.14
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    def _zstd() -> Any:  # noqa: ANN401
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})

    _OPENERS[b"zstd"] = _zstd
    _FAULTS.append(zstd.ZstdError)

ACCEPTED: Final = b", ".join(coding for coding in _OPENERS if coding != b"x-gzip")
"""The codings that bodies may come in, as `accept-encoding` lists them."""


def open_body(request: Request, max_bytes: int) -> None:
    """Replace a compressed body by what it holds, and the fields that describe it.

    Raises Refused: 400 for a body that is not what it says, 413 above max_bytes, 415 for another coding.
    Cost: O(bytes that come out).
    """
    coding = b",".join(value for name, value in request.headers if name == b"content-encoding").strip().lower()
    if coding in {b"", b"identity"}:
        return
    request.body = opened(request.body, coding, max_bytes)
    kept = [field for field in request.headers if field[0] not in _DESCRIBED]
    request.headers = [*kept, (b"content-length", b"%d" % len(request.body))]


def opened(body: bytes, coding: bytes, max_bytes: int) -> bytes:
    """What a body in that coding (lower case) holds. Raises Refused as `open_body` does."""
    opener = _OPENERS.get(coding)
    if opener is None:
        shown = coding[:64].decode("ascii", "replace")
        hint = ", where the gateway's extra `zstd` is installed" if coding == b"zstd" else ""
        message = f"bodies in content-encoding {shown!r} are not read here{hint}; accepted: {ACCEPTED.decode()}"
        raise Refused(415, message, code="unsupported_content_encoding")
    members: list[bytes] = []
    left_bytes = max_bytes
    for _ in range(_MAX_MEMBERS if coding in _IN_MEMBERS else 1):
        decompressor = opener()
        try:
            members.append(decompressor.decompress(body, left_bytes + 1))
        except tuple(_FAULTS) as error:
            raise Refused(400, f"the body is not {coding.decode()}: {error}", code="bad_encoding") from None
        left_bytes -= len(members[-1])
        if left_bytes < 0:
            raise Refused(413, f"the request's body is larger than {max_bytes} bytes once it is decompressed")
        if not decompressor.eof:
            raise Refused(400, f"the {coding.decode()} body ends too early", code="bad_encoding")
        body = decompressor.unused_data
        if not body:
            return b"".join(members)
    raise Refused(400, f"there is something after the end of the {coding.decode()} body", code="bad_encoding")
