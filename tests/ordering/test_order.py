"""What every ordering owes the queue that asks it, whatever its rule."""

from __future__ import annotations

from math import isfinite

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.fairness.agent_fair_share import AgentUrgency
from saga.ordering.breadth_first import BreadthFirst
from saga.ordering.depth_first import DepthFirst
from saga.ordering.fcfs import Fcfs, TaskFcfs
from saga.ordering.hybrid import Hybrid
from saga.ordering.least_attained import LeastAttained, ShortestRemaining
from saga.ordering.order import Ordering
from saga.views import SessionView

STATIC = (Fcfs(), TaskFcfs(), DepthFirst(), BreadthFirst(), Hybrid(), LeastAttained(), ShortestRemaining())
FACTS = st.fixed_dictionaries(
    {
        "step_arrival_s": st.floats(0.0, 1e6),
        "steps_done": st.integers(0, 1_000),
        "prompt_tokens": st.integers(1, 10**6),
        "home_tokens": st.integers(0, 10**6),
        "attained_s": st.floats(0.0, 1e6),
        "remaining_steps": st.floats(0.0, 1e4),
        "deadline_s": st.none() | st.floats(0.0, 1e6),
    }
)


def session(**facts: object) -> SessionView:
    """A session of a task that came at 0 s, of which these facts are known."""
    made = SessionView("s", "task", "tenant", 0.0)
    for name, value in facts.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("ordering", STATIC, ids=repr)
@given(facts=FACTS, at_s=st.floats(0.0, 1e6), later_s=st.floats(0.0, 1e6))
def test_a_static_rank_does_not_move_with_time(ordering: Ordering, facts: dict, at_s: float, later_s: float) -> None:
    """A queue never has to ask again: the rank at arrival is the rank."""
    assert ordering.static
    assert ordering.rank(session(**facts), at_s) == ordering.rank(session(**facts), at_s + later_s)


@pytest.mark.parametrize("ordering", [*STATIC, AgentUrgency()], ids=repr)
@given(facts=FACTS, at_s=st.floats(0.0, 1e6))
def test_every_rank_can_be_ordered(ordering: Ordering, facts: dict, at_s: float) -> None:
    """No rank is nan or infinite, so that every one of them is also a priority."""
    assert isfinite(ordering.rank(session(**facts), at_s))
