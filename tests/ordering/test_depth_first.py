"""Depth first: who has done most goes first."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from saga.ordering.breadth_first import BreadthFirst
from saga.ordering.depth_first import DepthFirst
from saga.views import SessionView


def session(steps_done: int) -> SessionView:
    """A session that has done so many steps."""
    made = SessionView("s", "task", "tenant", 0.0)
    made.steps_done = steps_done
    return made


@given(st.lists(st.integers(0, 1_000), min_size=1))
def test_the_deepest_session_is_finished_first(depths: list[int]) -> None:
    """Ranks fall with every step done: the exact reverse of breadth first."""
    sessions = [session(depth) for depth in depths]
    order = sorted(sessions, key=lambda each: DepthFirst().rank(each, 0.0))
    assert [each.steps_done for each in order] == sorted(depths, reverse=True)
    assert all(DepthFirst().rank(each, 0.0) == -BreadthFirst().rank(each, 0.0) for each in sessions)
