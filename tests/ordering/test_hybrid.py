"""Hybrid: depth first among those whose prefix is at hand, breadth first among the rest."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from saga.ordering.hybrid import Hybrid
from saga.views import SessionView

DEPTHS = st.integers(0, 10_000)


def session(steps_done: int, home_tokens: int) -> SessionView:
    """A session with a prompt of 1,000 tokens of which so many are at home."""
    made = SessionView("s", "task", "tenant", 0.0)
    made.steps_done, made.prompt_tokens, made.home_tokens = steps_done, 1_000, home_tokens
    return made


@given(DEPTHS, DEPTHS, st.integers(500, 1_000), st.integers(0, 499))
def test_a_session_at_hand_comes_before_any_that_is_not(one: int, other: int, near: int, far: int) -> None:
    """Half of its prompt at home puts a session first, however many steps either has done."""
    assert Hybrid().rank(session(one, near), 0.0) < Hybrid().rank(session(other, far), 0.0)


@given(DEPTHS, DEPTHS)
def test_at_hand_the_deeper_goes_first_and_else_the_shallower(one: int, other: int) -> None:
    """What costs little now is finished; the others share what is left."""
    near = [Hybrid().rank(session(depth, 1_000), 0.0) for depth in (one, other)]
    far = [Hybrid().rank(session(depth, 0), 0.0) for depth in (one, other)]
    assert (near[0] < near[1]) == (one > other)
    assert (far[0] < far[1]) == (one < other)


def test_the_share_that_counts_as_at_hand_is_a_field() -> None:
    """With a share of one nothing less than the whole prompt is at hand."""
    partly = session(3, 999)
    assert Hybrid(cached_share=1.0).rank(partly, 0.0) > 0.0 > Hybrid().rank(partly, 0.0)
