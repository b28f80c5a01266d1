"""The gate against a plain list: the same head whatever was added, removed, moved and served in between."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from saga.events import StepArrived
from saga.scheduler.forecasts import NoForecasts
from saga.scheduler.gate import ANYWHERE, Gate, precedes
from saga.scheduler.sessions import Did, Session, State
from saga.views import TenantView

LANES = (ANYWHERE, "w0", "w1")
TENANTS = ("t0", "t1", "t2")
RANKS = st.integers(0, 4)
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "also", "remove", "dispatch", "serve", "rerank", "drop"]),
        st.integers(0, 9),
        st.sampled_from(LANES),
        RANKS,
        st.booleans(),
    ),
    max_size=80,
)


def session(name: str, tenant: str = "t0", *, waiting: bool = True) -> Session:
    """A session with a step at hand."""
    made = Session(StepArrived(0.0, f"{name}/0", name, name, 1, tenant), NoForecasts().open(""), 0.0)
    if waiting:
        made.did(Did.ARRIVED)
    return made


class Naive:
    """What the gate should say: every entry in one list, searched from end to end."""

    def __init__(self) -> None:
        self.tenants = {name: TenantView(name) for name in TENANTS}
        self.gate = Gate(lambda tenant: tenant.attained_s, self.tenants)
        self.sessions = [session(f"s{index}", TENANTS[index % 3], waiting=False) for index in range(10)]
        self.entries: list[tuple[str, Session, bool, float, int]] = []
        self.places = 0

    def do(self, action: str, index: int, lane: str, rank: int, *, preempted: bool) -> None:
        """One action on both."""
        one = self.sessions[index]
        waits = one.state is State.WAITING
        if action == "add" and one.state is State.AWAY:
            one.did(Did.ARRIVED)
            one.preempted = preempted
            self.gate.add(lane, one, rank)
            self.places += 1
            self.entries.append((lane, one, not preempted, rank, self.places))
        elif action == "also" and waits:
            self.gate.also(lane, one, rank)
            place = next(entry[4] for entry in self.entries if entry[1] is one)
            self.entries.append((lane, one, not one.preempted, rank, place))
        elif action in ("remove", "dispatch") and waits:
            self.gate.remove(one)
            one.did(Did.CANCELLED if action == "remove" else Did.DISPATCHED)
            self.entries = [entry for entry in self.entries if entry[1] is not one]
        elif action == "dispatch" and one.state is State.RUNNING:
            one.did(Did.FINISHED_LET_GO)
        elif action == "serve":
            self.tenants[one.tenant].attained_s += rank
        elif action == "rerank":
            self.gate.rerank(lambda each: (int(each.session[1:]) * rank) % 5)
            self.entries = [(*e[:3], (int(e[1].session[1:]) * rank) % 5, e[4]) for e in self.entries]
        elif action == "drop" and lane != ANYWHERE:
            stay = {entry[1].session for entry in self.entries if entry[0] != lane}
            if all(entry[1].session in stay for entry in self.entries):
                self.gate.drop_lane(lane)
                self.entries = [entry for entry in self.entries if entry[0] != lane]

    def head(self, lane: str) -> Session | None:
        """The tenant with the least service, then preempted first, then rank, then place."""
        here = [entry for entry in self.entries if entry[0] == lane]
        first = min(here, key=lambda e: (self.tenants[e[1].tenant].attained_s, *e[2:]), default=None)
        return first and first[1]


@given(ACTIONS)
def test_the_head_is_the_least_of_a_plain_list(actions: list[tuple[str, int, str, int, bool]]) -> None:
    """After every action each lane's head, the number waiting and their names are those of the list."""
    naive = Naive()
    for action, index, lane, rank, preempted in actions:
        naive.do(action, index, lane, rank, preempted=preempted)
        for name in LANES:
            head = naive.gate.head(name)
            assert (head and head[1][3]) is naive.head(name)
        waiting = {entry[1].session for entry in naive.entries}
        assert naive.gate.waiting() == waiting
        assert naive.gate.num_waiting == len(waiting)


@given(ACTIONS, RANKS, st.booleans())
def test_a_turn_is_what_the_head_would_say(
    actions: list[tuple[str, int, str, int, bool]], rank: int, preempted: bool
) -> None:
    """A newcomer precedes the head exactly if, once added, it is the head."""
    naive = Naive()
    for action, index, lane, level, lost in actions:
        naive.do(action, index, lane, level, preempted=lost)
    newcomer = session("new", "t1")
    newcomer.preempted = preempted
    head, turn = naive.gate.head(ANYWHERE), naive.gate.turn(newcomer, rank)
    expected = head is None or precedes(turn, head)
    naive.gate.add(ANYWHERE, newcomer, rank)
    after = naive.gate.head(ANYWHERE)
    assert after is not None
    assert (after[1][3] is newcomer) == expected


def test_equals_are_served_in_the_order_of_their_coming() -> None:
    """With one tenant and one rank the gate is a queue, and one that comes back comes last."""
    gate = Gate(lambda tenant: 0.0, {"t0": TenantView("t0")})
    sessions = [session(f"s{index}") for index in range(5)]
    for each in sessions:
        gate.add(ANYWHERE, each, 1.0)
    gate.remove(sessions[0])
    gate.add(ANYWHERE, sessions[0], 1.0)
    served = []
    while (head := gate.head(ANYWHERE)) is not None:
        served.append(head[1][3].session)
        gate.remove(head[1][3])
    assert served == ["s1", "s2", "s3", "s4", "s0"]


def test_a_flood_fills_its_own_part_of_the_gate():
    """At the cap a tenant with more than its part of those who wait is turned away, another one is not."""
    gate = Gate(lambda tenant: 0.0, {name: TenantView(name) for name in TENANTS})
    for index in range(10):
        gate.add(ANYWHERE, session(f"s{index}"), 0.0)
    assert gate.is_full_for("t0", 10)
    assert not gate.is_full_for("t1", 10)
    one = session("other", "t1")
    gate.add(ANYWHERE, one, 0.0)
    assert [view.tenant for view in gate.in_the_open()] == ["t0", "t1"]
    assert not gate.is_full_for("t1", 10)
    assert gate.is_full_for("t2", 5)  # twice as many wait as may
    gate.remove(one)
    assert [view.tenant for view in gate.in_the_open()] == ["t0"]
