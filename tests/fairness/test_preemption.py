"""Who gives way to whom."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from saga.fairness.preemption import NoPreemption, UrgentFirst
from saga.views import SessionView


def session(remaining_steps: float, deadline_s: float) -> SessionView:
    """A session one step in, a device second each, with so much to do until then."""
    made = SessionView("s", "task", "tenant", 0.0)
    made.steps_done, made.attained_s, made.remaining_steps, made.deadline_s = 1, 1.0, remaining_steps, deadline_s
    return made


SESSIONS = st.builds(session, st.floats(0.01, 1e3), st.floats(2.0, 1e4))
RULE = UrgentFirst()


def gives_way(running: SessionView, blocked: SessionView, at_s: float = 1.0) -> bool:
    """Whether the one gives way to the other, as the scheduler asks."""
    return RULE.yields(RULE.urgency(running, at_s), RULE.urgency(blocked, at_s))


@given(SESSIONS, SESSIONS)
def test_no_two_calls_give_way_to_each_other(one: SessionView, other: SessionView) -> None:
    """Else they would take turns for ever and neither be done."""
    assert not (gives_way(one, other) and gives_way(other, one))


@given(SESSIONS, st.floats(0.5, 1e3))
def test_the_blocked_one_must_be_more_than_twice_as_urgent(running: SessionView, times: float) -> None:
    """By W - S over the time that is left, both until the same deadline."""
    assert running.deadline_s is not None
    blocked = session(times * running.remaining_steps, running.deadline_s)
    if abs(times - 2.0) > 1e-6:
        assert gives_way(running, blocked) == (times > 2.0)


@given(st.floats(0.0, 1e3), st.floats(0.0, 1e3))
def test_without_preemption_nobody_gives_way(running: float, blocked: float) -> None:
    """The ablation names no time and allows nothing."""
    assert NoPreemption().blocked_s is None
    assert not NoPreemption().yields(running, blocked)
