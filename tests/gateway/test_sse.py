"""Events as they pass: whole, unchanged, without the usage nobody asked for."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.contracts import Kind
from saga.gateway.sse import EventStream, broken_event

TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"\\"usage\\""}}]}\n\n'
USAGE = b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"


def through(events: EventStream, data: bytes, cuts: list[int]) -> list[bytes]:
    """What passes of data cut there."""
    bounds = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    return [events.feed(data[a:b]) for a, b in pairwise(bounds)] + [events.close()]


PIECES = st.sampled_from([TOKEN, USAGE, DONE, b": ping\n\n", b"event: a\r\ndata: 1\r\n\r\n", b"data: x\r\r", b"half"])


@given(st.lists(PIECES, max_size=8), st.lists(st.integers(0, 500), max_size=8))
def test_every_byte_passes_once_and_in_order(pieces, cuts) -> None:
    """However the stream is cut, the bytes that pass are the bytes that came."""
    data = b"".join(pieces)
    assert b"".join(through(EventStream(), data, cuts)) == data


@given(st.lists(st.integers(0, 500), max_size=8))
def test_only_whole_events_pass_before_the_end(cuts) -> None:
    """What has passed at any time ends where an event ends, so that an error event can follow."""
    *before, _ = through(EventStream(), TOKEN + USAGE + DONE, cuts)
    assert all(passed == b"" or passed.endswith(b"\n\n") for passed in before)


@given(st.lists(st.integers(0, 500), max_size=8))
def test_the_usage_chunk_is_taken_out_and_nothing_else(cuts) -> None:
    """A client that did not ask for usage sees the stream it would have seen; content that says "usage" stays."""
    assert b"".join(through(EventStream(hide_usage=True), TOKEN + USAGE + DONE, cuts)) == TOKEN + DONE


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[],"usage":null}\n\n',
        b'data: {"choices":[],"prompt_filter_results":[]}\n\n',
        b'data: {"choices":[{"index":0}],"usage":{"prompt_tokens":1}}\n\n',
        b'data: {"usage":{"prompt_tokens":1}}\n\n',
        b'data: "usage" [],\n\n',
    ],
)
def test_what_is_not_only_usage_stays(event) -> None:
    """A chunk is taken out only if it has usage and an empty list of choices."""
    assert b"".join(through(EventStream(hide_usage=True), event, [])) == event


def test_an_endless_event_is_not_kept_for_ever() -> None:
    """An event of more than a mebibyte passes in parts."""
    events = EventStream()
    assert events.feed(b"data: ") == b""
    assert len(events.feed(b"x" * 2_000_000)) == 2_000_006


@pytest.mark.parametrize("kind", Kind)
def test_a_broken_stream_ends_with_one_error_event(kind) -> None:
    """The last event is whole, its data is JSON and names the error, in the client's dialect."""
    event = broken_event(kind, "worker lost:\nline two")
    assert event.endswith(b"\n\n")
    [data] = [line for line in event.split(b"\n") if line.startswith(b"data: ")]
    said = json.loads(data.removeprefix(b"data: "))
    expected = {Kind.MESSAGES: "error", Kind.RESPONSES: "error"}.get(kind)
    assert said.get("type") == expected
    assert "worker lost" in json.dumps(said)
