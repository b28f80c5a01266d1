"""Pending deadlines: in order of time, those that count and no others."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from saga.events import SessionEnded, StepArrived, StepFinished, WorkerJoined
from saga.presets import preset
from saga.routing.stealing import IdleSteals
from saga.scheduler.deadlines import Deadlines, Due
from saga.scheduler.forecasts import NoForecasts
from saga.scheduler.scheduler import Scheduler
from saga.scheduler.sessions import Did, Session, State
from saga.scheduler.workers import Worker

TIMES = st.integers(0, 20).map(float)


def session(name: str, state: State = State.HELD) -> Session:
    """A session that stands so."""
    made = Session(StepArrived(0.0, f"{name}/0", name, name, 1), NoForecasts().open(""), 0.0)
    made.state = state
    return made


def drain(deadlines: Deadlines, until_s: float = float("inf")) -> list[tuple[Due, str]]:
    """All that come due by then."""
    found = []
    while (due := deadlines.pop_due(until_s)) is not None:
        found.append((due[0], due[1].session if isinstance(due[1], Session) else due[1].worker))
    return found


@given(st.lists(st.tuples(st.integers(0, 5), TIMES), max_size=60))
def test_a_deadline_counts_only_while_its_session_says_the_same_time(changes: list[tuple[int, float]]) -> None:
    """However often holds are renewed, each session is due once, at its last word, and all are in order of time."""
    deadlines = Deadlines()
    sessions = [session(f"s{index}") for index in range(6)]
    for index, at_s in changes:
        sessions[index].hold_until_s = at_s
        deadlines.add(at_s, Due.HOLD, sessions[index])
        pending = [each.hold_until_s for each in sessions if each.hold_until_s < float("inf")]
        assert deadlines.next_s() == min(pending)
    popped = []
    while (at_s := deadlines.next_s()) is not None:
        due = deadlines.pop_due(at_s)
        assert due is not None
        assert isinstance(due[1], Session)
        assert due[1].hold_until_s == at_s
        due[1].hold_until_s = float("inf")
        popped.append(at_s)
    assert popped == sorted(popped)
    assert len(popped) == len({index for index, _ in changes})


def test_each_kind_counts_in_its_own_states_only() -> None:
    """A hold ends only for who is held, patience only for who waits, a prefetch comes only for who is away."""
    counts = {
        Due.HOLD: {State.HELD},
        Due.ROAM: {State.WAITING},
        Due.PREFETCH: {State.HELD, State.AWAY},
    }
    for what, states in counts.items():
        for state in State:
            one = session("s", state)
            one.hold_until_s = one.roam_at_s = one.prefetch_at_s = 3.0
            deadlines = Deadlines()
            deadlines.add(3.0, what, one)
            assert (deadlines.next_s() == 3.0) == (state in states), f"{what.name} while {state.name}"


@given(st.lists(TIMES, max_size=20), TIMES)
def test_nothing_comes_before_its_time(times_s: list[float], now_s: float) -> None:
    """What is popped at a time was due by then, and what was due by then is popped."""
    deadlines = Deadlines()
    for index, at_s in enumerate(times_s):
        one = session(f"s{index}")
        one.hold_until_s = at_s
        deadlines.add(at_s, Due.HOLD, one)
    assert len(drain(deadlines, now_s)) == sum(1 for at_s in times_s if at_s <= now_s)
    assert len(deadlines) == sum(1 for at_s in times_s if at_s > now_s)


def test_equal_times_come_in_the_order_in_which_they_were_set() -> None:
    """Ties are ordered, so that the same events give the same commands."""
    deadlines = Deadlines()
    for name in ("b", "a", "c"):
        one = session(name)
        one.hold_until_s = 1.0
        deadlines.add(1.0, Due.HOLD, one)
    assert [name for _, name in drain(deadlines)] == ["b", "a", "c"]


def test_what_no_longer_counts_is_pruned() -> None:
    """A session whose hold is renewed for ever keeps one live deadline, not one per renewal."""
    deadlines, one = Deadlines(), session("s")
    for at_s in range(20_000):
        one.hold_until_s = float(at_s)
        deadlines.add(float(at_s), Due.HOLD, one)
    assert len(deadlines) <= 2_000
    assert drain(deadlines) == [(Due.HOLD, "s")]


def test_a_worker_steals_only_while_it_is_idle_and_there() -> None:
    """Work that came meanwhile, or the loss of the worker, ends the deadline."""
    for busy, lost in ((False, False), (True, False), (False, True)):
        worker, deadlines = Worker(WorkerJoined(0.0, "w", 100), 0), Deadlines()
        worker.steal_at_s = 0.1
        deadlines.add(0.1, Due.STEAL, worker)
        if busy:
            worker.steal_at_s = float("inf")
        worker.lost = lost
        assert drain(deadlines) == ([] if busy or lost else [(Due.STEAL, "w")])


def test_a_worker_that_worked_in_between_is_idle_anew() -> None:
    """T_idle counts from the last work: the deadline of the idleness before it does not come due."""
    scheduler = Scheduler(preset("saga_paper"))
    for event in (
        WorkerJoined(0.0, "w0", 10_000),
        StepArrived(0.0, "a/0", "a", "a", 10),
        StepFinished(1.0, "a/0", "w0", 10, 1),
        StepArrived(1.04, "a/1", "a", "a", 12),
        StepFinished(1.05, "a/1", "w0", 12, 1),
        SessionEnded(1.05, "a"),
    ):
        scheduler.handle(event)
    assert scheduler.next_deadline_s() == 1.05 + IdleSteals().idle_s


def test_a_session_that_came_back_is_not_paused() -> None:
    """The next arrival cancels the hold that was pending."""
    deadlines, one = Deadlines(), session("s")
    one.hold_until_s = 5.0
    deadlines.add(5.0, Due.HOLD, one)
    one.did(Did.ARRIVED)
    assert deadlines.next_s() is None
