"""First come, first served, by call and by task."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from saga.ordering.fcfs import Fcfs, TaskFcfs
from saga.views import SessionView


def session(task_arrival_s: float, step_arrival_s: float) -> SessionView:
    """A call of a task, each with its arrival."""
    made = SessionView("s", "task", "tenant", task_arrival_s)
    made.step_arrival_s = step_arrival_s
    return made


ARRIVALS = st.lists(st.tuples(st.floats(0.0, 1e6), st.floats(0.0, 1e6)), min_size=1)


@given(ARRIVALS)
def test_calls_are_served_as_they_come(arrivals: list[tuple[float, float]]) -> None:
    """Whatever the age of its task, the call that came first goes first."""
    calls = [session(task_s, step_s) for task_s, step_s in arrivals]
    order = sorted(calls, key=lambda call: Fcfs().rank(call, 0.0))
    assert [call.step_arrival_s for call in order] == sorted(step_s for _, step_s in arrivals)


@given(ARRIVALS)
def test_tasks_are_served_as_they_came(arrivals: list[tuple[float, float]]) -> None:
    """Whenever it called, the task that came first goes first."""
    calls = [session(task_s, step_s) for task_s, step_s in arrivals]
    order = sorted(calls, key=lambda call: TaskFcfs().rank(call, 0.0))
    assert [call.task_arrival_s for call in order] == sorted(task_s for task_s, _ in arrivals)
