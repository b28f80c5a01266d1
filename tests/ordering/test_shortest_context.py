"""Shortest context first, and an end to being overtaken."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from saga.ordering.shortest_context import ShortestContext
from saga.views import SessionView

TOKENS = st.integers(1, 10**6)


def session(prompt_tokens: int, step_arrival_s: float = 0.0) -> SessionView:
    """A session whose step came then."""
    made = SessionView("s", "task", "tenant", 0.0)
    made.prompt_tokens, made.step_arrival_s = prompt_tokens, step_arrival_s
    return made


@given(TOKENS, TOKENS, st.floats(0.0, 1_799.0))
def test_the_shorter_prompt_goes_first(one: int, other: int, at_s: float) -> None:
    """By tokens, while nobody has waited for too long."""
    ranks = [ShortestContext().rank(session(tokens), at_s) for tokens in (one, other)]
    assert (ranks[0] < ranks[1]) == (one < other)


@given(TOKENS, TOKENS, st.floats(0.0, 1_799.0))
def test_who_has_waited_for_too_long_goes_before_all(long: int, short: int, since_s: float) -> None:
    """At the timeout the longest context overtakes every newcomer, and among the late the first to come leads."""
    at_s = 1_800.0 + since_s
    late, newcomer = session(long), session(short, step_arrival_s=at_s)
    assert ShortestContext().rank(late, at_s) < ShortestContext().rank(newcomer, at_s)
    later = session(short, step_arrival_s=since_s / 2)
    assert ShortestContext().rank(late, at_s) <= ShortestContext().rank(later, at_s)
