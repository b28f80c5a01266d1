"""Breadth first: who has done least goes first."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from saga.ordering.breadth_first import BreadthFirst
from saga.views import SessionView


@given(st.integers(1, 8), st.integers(0, 100))
def test_all_sessions_progress_at_one_pace(num_sessions: int, num_turns: int) -> None:
    """Serving the lowest rank again and again never leaves one session two steps behind another."""
    sessions = [SessionView(f"s{index}", "task", "tenant", 0.0) for index in range(num_sessions)]
    for _ in range(num_turns):
        min(sessions, key=lambda each: BreadthFirst().rank(each, 0.0)).steps_done += 1
    done = [each.steps_done for each in sessions]
    assert max(done) - min(done) <= 1
