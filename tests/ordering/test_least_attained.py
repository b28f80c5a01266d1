"""By service received, and by work left."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.ordering.least_attained import LeastAttained, ShortestRemaining
from saga.ordering.order import Ordering
from saga.views import SessionView


def session(**facts: float) -> SessionView:
    """A session of which these facts are known."""
    made = SessionView("s", "task", "tenant", 0.0)
    for name, value in facts.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("ordering", "fact"),
    [(LeastAttained(), "attained_s"), (ShortestRemaining(), "remaining_steps")],
    ids=["LAS", "SRW"],
)
@given(amounts=st.lists(st.floats(0.0, 1e6), min_size=1))
def test_the_least_goes_first(ordering: Ordering, fact: str, amounts: list[float]) -> None:
    """Sorting by rank is sorting by that one fact."""
    sessions = [session(**{fact: amount}) for amount in amounts]
    order = sorted(sessions, key=lambda each: ordering.rank(each, 0.0))
    assert [getattr(each, fact) for each in order] == sorted(amounts)


@given(st.lists(st.floats(0.1, 10.0), min_size=2, max_size=8))
def test_attained_service_stays_level(steps_s: list[float]) -> None:
    """Serving the least attained again and again, nobody gets ahead by more than one of their steps."""
    sessions = {SessionView(f"s{index}", "task", "tenant", 0.0): step_s for index, step_s in enumerate(steps_s)}
    for _ in range(200):
        served = min(sessions, key=lambda each: LeastAttained().rank(each, 0.0))
        served.attained_s += sessions[served]
    attained_s = [each.attained_s for each in sessions]
    assert max(attained_s) - min(attained_s) <= max(steps_s) + 1e-9
