"""Shares between tenants, and the paper's urgency between tasks."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.fairness.agent_fair_share import AgentUrgency, NoShares, WeightedService
from saga.views import SessionView, TenantView

TIMES = st.floats(0.0, 1e5)


def session(**facts: float) -> SessionView:
    """A session that came at 0 s, has had ten device seconds in five steps and expects five more."""
    made = SessionView("s", "task", "tenant", 0.0)
    made.steps_done, made.attained_s, made.remaining_steps = 5, 10.0, 5.0
    for name, value in facts.items():
        setattr(made, name, value)
    return made


@given(st.lists(st.integers(1, 5), min_size=2, max_size=6), st.floats(0.1, 10.0))
def test_service_follows_the_weights(weights: list[int], step_s: float) -> None:
    """Serving the lowest rank again and again, service per weight stays level to within one step."""
    tenants = [TenantView(f"t{index}", weight) for index, weight in enumerate(weights)]
    for _ in range(300):
        min(tenants, key=WeightedService().rank).attained_s += step_s
    level = [tenant.attained_s / tenant.weight for tenant in tenants]
    assert max(level) - min(level) <= step_s + 1e-6


@given(TIMES, TIMES)
def test_without_shares_tenants_are_alike(one_s: float, other_s: float) -> None:
    """The ablation ranks nobody before anybody."""
    one, other = TenantView("one"), TenantView("other", 7.0)
    one.attained_s, other.attained_s = one_s, other_s
    assert NoShares().rank(one) == NoShares().rank(other)


@given(TIMES, TIMES, TIMES)
def test_a_nearer_deadline_is_more_urgent(at_s: float, one_s: float, other_s: float) -> None:
    """Of two tasks with equal work left the one that is due first goes first, or both are due by now."""
    near, far = (AgentUrgency().rank(session(deadline_s=due_s), at_s) for due_s in sorted((one_s, other_s)))
    assert near <= far


@given(TIMES, TIMES, TIMES)
def test_urgency_grows_until_the_deadline_and_then_stays(due_s: float, one_s: float, other_s: float) -> None:
    """A task that waits moves up; past its deadline it is as urgent as with floor_s left, never more."""
    rule = AgentUrgency()
    early, late = (rule.rank(session(deadline_s=due_s), at_s) for at_s in sorted((one_s, other_s)))
    most = rule.rank(session(deadline_s=due_s), due_s)
    assert early >= late >= most
    assert rule.rank(session(deadline_s=due_s), due_s + one_s) == most
    assert rule.rank(session(deadline_s=due_s + rule.floor_s), due_s) == pytest.approx(most)


@given(st.floats(0.01, 100.0), st.floats(0.01, 100.0))
def test_more_work_left_before_one_deadline_is_more_urgent(one: float, other: float) -> None:
    """(W - S) / (deadline - t): the numerator counts."""
    less, more = (AgentUrgency().rank(session(deadline_s=50.0, remaining_steps=n), 10.0) for n in sorted((one, other)))
    assert more <= less <= 0.0


@given(st.floats(1.0, 1e4), st.floats(1.1, 5.0))
def test_a_named_deadline_comes_before_the_inferred_one(at_s: float, stretch: float) -> None:
    """Without one, the deadline is `stretch` times the task's time at its pace so far."""
    rule = AgentUrgency(stretch=stretch)
    inferred_s = stretch * at_s / 5 * 10.0  # five steps done, five to come
    asks = {"step_arrival_s": at_s}
    assert rule.rank(session(**asks), at_s) == pytest.approx(rule.rank(session(**asks, deadline_s=inferred_s), at_s))
    assert rule.rank(session(**asks, deadline_s=at_s + rule.floor_s), at_s) <= rule.rank(session(**asks), at_s)


@given(st.floats(1.0, 1e4), st.floats(0.0, 1e4), st.floats(0.0, 1e4))
def test_who_is_kept_waiting_becomes_no_less_urgent(pace_s: float, one_s: float, other_s: float) -> None:
    """Waiting counts against the deadline, not for it: neither now nor in steps that are done does it gain time."""
    short_s, long_s = sorted((one_s, other_s))
    now = [AgentUrgency().rank(session(step_arrival_s=pace_s), pace_s + wait_s) for wait_s in (short_s, long_s)]
    then = [
        AgentUrgency().rank(session(step_arrival_s=pace_s + wait_s, waited_s=wait_s), pace_s + wait_s)
        for wait_s in (short_s, long_s)
    ]
    assert now[1] <= now[0]
    assert then[1] <= then[0] * (1.0 - 1e-9) + 1e-9


def test_a_task_of_which_nothing_is_forecast_counts_as_half_done() -> None:
    """It is neither urgent beyond measure nor forgotten."""
    assert AgentUrgency().rank(session(remaining_steps=0.0), 20.0) == AgentUrgency().rank(session(), 20.0)
