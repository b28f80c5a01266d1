"""What a call says of itself: read, or left out and counted."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.vllm_plugin.hints import NO_HINTS, Ignored, read_hints


def ignored() -> Ignored:
    """A count at a clock that stands."""
    return Ignored(lambda: 0.0)


def test_what_the_gateway_sends_is_read():
    """All of its fields, numbers as text too: vLLM passes both."""
    said = {
        "saga_session": "s",
        "saga_task": "t",
        "saga_step": "x",
        "saga_tenant": "n",
        "saga_continue_probability": "0.9",
        "saga_expected_gap_s": 12,
        "others": "are vLLM's business",
    }
    count = ignored()
    assert read_hints("s", said, count)[:6] == ("s", "n", "t", "x", 0.9, 12.0)
    assert count.counts == {}


def test_vllms_own_session_goes_before_the_hints():
    """`session_id` of the body or header, then saga_session, then session_id among the xargs."""
    assert read_hints("own", {"saga_session": "hint"}, ignored()).session == "own"
    assert read_hints(None, {"saga_session": "hint", "session_id": "x"}, ignored()).session == "hint"
    assert read_hints(None, {"session_id": "x"}, ignored()).session == "x"
    assert read_hints("own", None, ignored()).session == "own"
    assert read_hints(None, None, ignored()) == NO_HINTS


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"saga_expected_gap_s": -1}, "saga_expected_gap_s is no number"),
        ({"saga_expected_gap_s": "soon"}, "saga_expected_gap_s is no number"),
        ({"saga_expected_gap_s": float("inf")}, "saga_expected_gap_s is no number"),
        ({"saga_expected_gap_s": 10**400}, "saga_expected_gap_s is no number"),
        ({"saga_continue_probability": 1.01}, "saga_continue_probability is no number from 0 to 1"),
        ({"saga_continue_probability": True}, "saga_continue_probability is no number"),
        ({"saga_continue_probability": [0.5]}, "saga_continue_probability is no number"),
        ({"saga_task": 5}, "saga_task is no name"),
        ({"saga_session": "x" * 1_000}, "session is no name"),
        ({"saga_mood": "blue"}, "unknown hint"),
    ],
)
def test_nonsense_is_left_out_and_counted(said, reason):
    """The call has no such hint, and the reason says which."""
    count = ignored()
    assert read_hints(None, said, count) == NO_HINTS
    assert [(name.startswith(reason), number) for name, number in count.counts.items()] == [(True, 1)]


def test_a_reason_is_logged_once_a_minute_and_counted_always(caplog):
    """A client that is wrong at every call does not fill the log."""
    now = [0.0]
    count = Ignored(lambda: now[0], log_every_s=60.0)
    with caplog.at_level(logging.WARNING):
        for at in range(100):
            now[0] = float(at)
            count.add("unknown hint", "x" * 10_000)
    assert count.counts == {"unknown hint": 100}
    assert len(caplog.records) == 2
    assert max(len(record.getMessage()) for record in caplog.records) < 300


_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())
_NAMES = st.sampled_from(["saga_session", "saga_step", "saga_expected_gap_s", "saga_continue_probability"]) | st.text()


@given(session=_VALUES, said=st.none() | _VALUES | st.dictionaries(_NAMES, _VALUES))
def test_whatever_is_said_hints_are_sound(session, said):
    """Names are text of bounded length, numbers finite and in their range; reasons are few."""
    count = ignored()
    hints = read_hints(session, said, count)
    for name in (hints.session, hints.tenant, hints.task, hints.step):
        assert isinstance(name, str)
        assert len(name) <= 256
    assert hints.continue_probability is None or 0.0 <= hints.continue_probability <= 1.0
    assert hints.expected_gap_s is None or 0.0 <= hints.expected_gap_s < 1e7
    assert len(count.counts) <= 8
