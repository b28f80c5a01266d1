"""The session's transition table, and the table of sessions."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.errors import ProtocolError
from saga.events import StepArrived
from saga.scheduler.forecasts import NoForecasts
from saga.scheduler.sessions import TRANSITIONS, Did, Session, SessionTable, State

TRACK = NoForecasts().open("")


def arrived(name: str, task: str = "", at_s: float = 0.0) -> StepArrived:
    """The first step of a session."""
    return StepArrived(at_s, f"{name}/0", name, task or name, 1)


@pytest.mark.parametrize("what", Did)
@pytest.mark.parametrize("state", State)
def test_a_session_does_what_the_table_says_and_nothing_else(state: State, what: Did) -> None:
    """Each pair of state and happening leads where the table says, or is refused and changes nothing."""
    session = Session(arrived("s"), TRACK, 0.0)
    session.state = state
    if (state, what) in TRANSITIONS:
        session.did(what)
        assert session.state is TRANSITIONS[state, what]
    else:
        with pytest.raises(ProtocolError, match=f"'s': {what.name} is not possible while {state.name}"):
            session.did(what)
        assert session.state is state


def test_from_every_state_but_the_last_there_is_a_way_to_every_other() -> None:
    """No session is stuck, each can end at any time, and an end is an end."""
    for start in State:
        reached, frontier = {start}, [start]
        while frontier:
            here = frontier.pop()
            for (state, _), after in TRANSITIONS.items():
                if state is here and after not in reached:
                    reached.add(after)
                    frontier.append(after)
        assert reached == ({State.ENDED} if start is State.ENDED else set(State))
        assert start is State.ENDED or TRANSITIONS[start, Did.ENDED] is State.ENDED


@given(st.lists(st.tuples(st.sampled_from(["open", "busy", "idle", "close"]), st.integers(0, 7)), max_size=60))
def test_the_longest_idle_is_the_one_that_fell_idle_first(actions: list[tuple[str, int]]) -> None:
    """Sessions with a live step are not in that order, the others are, as in a plain list."""
    table, order = SessionTable(), list[str]()
    for at_s, (action, index) in enumerate(actions):
        name = f"s{index}"
        session = table.get(name)
        if action == "open" and session is None:
            table.open(arrived(name), TRACK)
        elif action != "open" and session is not None:
            order = [other for other in order if other != name]
            if action == "close":
                table.close(session)
            elif action == "busy":
                table.busy(session, float(at_s))
            else:
                table.idle(session, float(at_s))
                order.append(name)
        longest = table.longest_idle()
        assert (longest and longest.session) == (order[0] if order else None)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60))
def test_a_task_lives_from_its_first_session_to_its_last(actions: list[tuple[int, bool]]) -> None:
    """Ten sessions of three tasks come and go; a task is known exactly while one of its sessions is open."""
    table, came_s = SessionTable(), dict[str, float]()
    for at_s, (index, opening) in enumerate(actions):
        name, task = f"s{index}", f"t{index % 3}"
        session = table.get(name)
        if opening and session is None:
            came_s.setdefault(task, float(at_s))
            opened = table.open(arrived(name, task, float(at_s)), TRACK)
            assert opened.task_arrival_s == came_s[task]
        elif not opening and session is not None:
            table.close(session)
        open_tasks = {each.task for each in table}
        came_s = {task: at_s for task, at_s in came_s.items() if task in open_tasks}
        assert table.num_tasks == len(open_tasks)
        for each in table:
            assert table.task(each).num_sessions == sum(1 for other in table if other.task == each.task)


def test_a_session_that_closes_takes_its_live_step_along() -> None:
    """No step is live without a session."""
    table = SessionTable()
    one = table.open(arrived("a"), TRACK)
    other = table.open(arrived("b"), TRACK)
    one.step, other.step = "a/0", "b/0"
    table.steps.update({"a/0": one, "b/0": other})
    table.close(one)
    assert table.steps == {"b/0": other}
    assert table.get("a") is None
