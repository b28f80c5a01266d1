"""Bodies that come compressed: what opens, what does not, and what a bomb costs."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway import codings
from saga.gateway.codings import open_body, opened, zstd
from saga.gateway.contracts import Refused, Request

PACK = {b"gzip": gzip.compress, b"x-gzip": gzip.compress, b"deflate": zlib.compress, b"zstd": zstd.compress}
MIB = 2**20


def status(body: bytes, coding: bytes, max_bytes: int = MIB) -> int:
    """What a body is refused with; 0 where it is opened."""
    try:
        opened(body, coding, max_bytes)
    except Refused as refused:
        return refused.status
    return 0


@pytest.mark.parametrize("coding", PACK)
@given(body=st.binary(max_size=2_000))
def test_what_was_packed_is_opened(coding: bytes, body: bytes) -> None:
    """Any bytes, in any coding; at the bound they pass, one above it they do not."""
    packed = PACK[coding](body)
    assert opened(packed, coding, len(body)) == body
    if body:
        assert status(packed, coding, len(body) - 1) == 413


@pytest.mark.parametrize("coding", PACK)
def test_a_body_that_is_cut_or_followed_by_more_is_refused(coding: bytes) -> None:
    """At every place, but between two members or frames."""
    packed = PACK[coding](b'{"model":"m"}' * 10)
    assert {status(packed[:end], coding) for end in range(len(packed))} == {400}
    assert status(packed + b"\0", coding) == 400


@pytest.mark.parametrize("coding", [b"gzip", b"zstd"])
def test_members_are_read_one_after_the_other_and_their_number_is_bounded(coding: bytes) -> None:
    """RFC 1952 2.2, RFC 8878 3; the bound on bytes holds for all together."""
    packed = PACK[coding](b"abc")
    assert opened(packed * 64, coding, MIB) == b"abc" * 64
    assert status(packed * 65, coding) == 400
    assert status(packed * 2, coding, 6) == 0
    assert status(packed * 2, coding, 5) == 413
    assert status(packed + packed[:-1], coding) == 400


def test_deflate_has_no_members() -> None:
    """RFC 1950 knows one stream."""
    assert status(zlib.compress(b"abc") * 2, b"deflate") == 400


@pytest.mark.parametrize("coding", PACK)
@given(body=st.binary(max_size=200))
def test_other_bytes_are_refused_or_opened_and_nothing_else(coding: bytes, body: bytes) -> None:
    """No error but `Refused` comes of any bytes."""
    assert status(body, coding) in {0, 400, 413}


@pytest.mark.parametrize("coding", PACK)
def test_a_bomb_takes_no_more_than_the_bound(coding: bytes) -> None:
    """64 MiB in a few KiB, refused with little more than the bound of 1 MiB ever in memory."""
    bomb = PACK[coding](b"\0" * (64 * MIB))
    assert len(bomb) < 70_000
    tracemalloc.start()
    try:
        assert status(bomb, coding) == 413
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MIB


def test_a_frame_that_asks_for_a_large_window_is_refused() -> None:
    """RFC 9659: 8 MiB under the coding zstd; a frame may ask for gigabytes."""
    options = {zstd.CompressionParameter.window_log: 25, zstd.CompressionParameter.content_size_flag: 0}
    packer = zstd.ZstdCompressor(options=options)
    packed = packer.compress(b"x" * 100) + packer.flush()
    assert status(packed, b"zstd") == 400


def test_raw_deflate_is_not_the_coding_deflate() -> None:
    """RFC 9110 8.4.1.2: deflate data in the zlib format."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    assert status(packer.compress(b"{}") + packer.flush(), b"deflate") == 400


@pytest.mark.parametrize("coding", [b"br", b"compress", b"gzip,gzip", b"gzip, identity", b"\xff\xfe", b"g" * 5_000])
def test_other_codings_are_refused_by_name(coding: bytes) -> None:
    """415, which tells what would be read; the name that is repeated is short and printable."""
    with pytest.raises(Refused, match="accepted: gzip, deflate, zstd") as refused:
        opened(b"", coding, MIB)
    assert refused.value.status == 415
    assert len(refused.value.message) < 300


def test_without_the_extra_zstd_is_refused_and_the_extra_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody wonders why."""
    monkeypatch.delitem(codings._OPENERS, b"zstd")
    with pytest.raises(Refused, match="extra `zstd`") as refused:
        opened(zstd.compress(b"{}"), b"zstd", MIB)
    assert refused.value.status == 415


def test_the_fields_that_describe_the_body_change_with_it() -> None:
    """No coding, the new length, no digest of what was; every other field as it was, in order."""
    fields = [(b"host", b"a"), (b"content-encoding", b"GZIP"), (b"content-length", b"7"), (b"content-digest", b"x")]
    request = Request("POST", "/", "/", [*fields, (b"x", b"y")], gzip.compress(b"{}" * 30))
    open_body(request, MIB)
    assert request.body == b"{}" * 30
    assert request.headers == [(b"host", b"a"), (b"x", b"y"), (b"content-length", b"60")]


def test_identity_is_no_coding() -> None:
    """Nothing changes."""
    request = Request("POST", "/", "/", [(b"content-encoding", b"identity")], b"{}")
    open_body(request, 1)
    assert (request.body, request.headers) == (b"{}", [(b"content-encoding", b"identity")])
