"""Classes of urgency: a clearly more urgent task goes first, and inside a class the queue strategy decides."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.ordering.breadth_first import BreadthFirst
from saga.ordering.classes import UrgencyClasses
from saga.ordering.depth_first import DepthFirst
from saga.ordering.hybrid import Hybrid
from saga.ordering.order import Ordering
from saga.views import SessionView


@dataclass(frozen=True)
class Told:
    """An urgency that the test writes into the session's deadline."""

    static: bool = False

    def rank(self, session: SessionView, at_s: float) -> float:
        """Minus what was written."""
        return -(session.deadline_s or 0.0)


WITHIN = (Hybrid(), BreadthFirst(), DepthFirst())
URGENCIES = st.floats(1e-6, 1e6)
STEPS = st.integers(0, 10**6)


def session(urgency: float, steps_done: int, home_tokens: int = 0) -> SessionView:
    """A session of this urgency that has come so far."""
    made = SessionView("s", "task", "tenant", 0.0)
    made.deadline_s, made.steps_done, made.home_tokens, made.prompt_tokens = urgency, steps_done, home_tokens, 100
    return made


@pytest.mark.parametrize("within", WITHIN, ids=repr)
@given(URGENCIES, STEPS, STEPS, st.sampled_from([0, 100]))
def test_twice_as_urgent_goes_first_whatever_the_strategy_says(
    within: Ordering, urgency: float, one: int, other: int, home_tokens: int
) -> None:
    """A factor of two or more is never overruled."""
    order = UrgencyClasses(by=Told(), within=within)
    calm, urgent = session(urgency, one, home_tokens), session(2.0 * urgency, other)
    assert order.rank(urgent, 0.0) < order.rank(calm, 0.0)


@pytest.mark.parametrize("within", WITHIN, ids=repr)
@given(st.floats(1.0, 1.99), st.floats(1.0, 1.99), STEPS, STEPS)
def test_equally_urgent_tasks_go_as_the_strategy_says(
    within: Ordering, one: float, other: float, deep: int, shallow: int
) -> None:
    """Within one class the urgency is not asked."""
    order = UrgencyClasses(by=Told(), within=within)
    mine, theirs = session(one, deep), session(other, shallow)
    assert (order.rank(mine, 0.0) < order.rank(theirs, 0.0)) == (within.rank(mine, 0.0) < within.rank(theirs, 0.0))


@given(STEPS)
def test_no_urgency_is_the_last_class(steps: int) -> None:
    """A task of which nothing is expected waits for all that are urgent at all."""
    order = UrgencyClasses(by=Told(), within=BreadthFirst())
    assert order.rank(session(0.0, 0), 0.0) > order.rank(session(1e-6, steps), 0.0)
