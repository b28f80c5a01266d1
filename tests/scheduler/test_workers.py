"""The ledger: what goes in comes out, and what is shared counts once."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.events import StepArrived, WorkerJoined
from saga.scheduler.forecasts import NoForecasts
from saga.scheduler.sessions import Session
from saga.scheduler.workers import Fleet, Shared, Worker

PREFIXES = ("", "p0", "p1")
TOKENS = st.integers(0, 500)


def session(name: str, prefix: str = "", prefix_tokens: int = 0, context_tokens: int = 0) -> Session:
    """A session with such a prefix and context."""
    event = StepArrived(0.0, f"{name}/0", name, name, 1, prefix=prefix, prefix_tokens=prefix_tokens)
    made = Session(event, NoForecasts().open(""), 0.0)
    made.context_tokens = context_tokens
    return made


def worker() -> Worker:
    """A worker with an empty ledger."""
    return Worker(WorkerJoined(0.0, "w", 10_000), 0)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["p0", "p1"]), TOKENS), max_size=60))
def test_a_shared_prefix_counts_once_and_for_its_longest(changes: list[tuple[bool, str, int]]) -> None:
    """However many hold it, it counts for the longest named since it was first held, and leaves with the last."""
    shared, holders, longest = Shared(), Counter[str](), Counter[str]()
    for adding, prefix, tokens in changes:
        before = shared.tokens
        if adding:
            missing = shared.missing(prefix, tokens)
            assert shared.add(prefix, tokens) == missing == shared.tokens - before
            holders[prefix] += 1
            longest[prefix] = max(longest[prefix], tokens)
        elif holders[prefix]:
            assert shared.remove(prefix) == before - shared.tokens
            holders[prefix] -= 1
            longest[prefix] = longest[prefix] if holders[prefix] else 0
        assert shared.tokens == longest.total()
        assert len(shared) == sum(1 for count in holders.values() if count)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "unreserve", "settle", "grow", "overlook", "leave"]), st.integers(0, 8), TOKENS
    ),
    max_size=80,
)


@given(ACTIONS)
def test_the_ledger_is_the_sum_over_its_sessions(actions: list[tuple[str, int, int]]) -> None:
    """Counts and tokens are those of who is there now; when all have gone nothing is left of any."""
    at = worker()
    sessions = [session(f"s{index}", PREFIXES[index % 3], 100 * (index % 3), 50 * index) for index in range(9)]
    for action, index, tokens in actions:
        one = sessions[index]
        if action == "reserve":
            promised = at.need(one, tokens, 7.0)
            before, was = at.reserved_tokens, one.reserved
            at.reserve(one, tokens, 7.0)
            assert was or at.reserved_tokens - before == pytest.approx(promised)
        elif action == "unreserve" and one.reserved:
            at.unreserve(one)
        elif action == "settle" and not one.lives_at:
            at.settle(one)
        elif action == "grow" and one.lives_at:
            at.grow(one, one.context_tokens + tokens)
        elif action in ("overlook", "leave") and one.lives_at and not (one.overdue and action == "overlook"):
            getattr(at, action)(one)
        active = [each for each in sessions if each.reserved]
        live = [each for each in sessions if each.lives_at and not each.overdue]
        own_live = [max(0, s.context_tokens - s.prefix_tokens) if s.prefix else s.context_tokens for s in live]
        assert at.active_tokens == sum(each.own_tokens for each in active) + shared_tokens(active)
        assert at.reserved_tokens == pytest.approx(at.active_tokens + 7.0 * len(active))
        assert at.live_tokens == sum(own_live) + shared_tokens(live)
        assert (at.num_active, at.num_live) == (len(active), len(live))
    for each in sessions:
        if each.reserved:
            at.unreserve(each)
        if each.lives_at:
            at.leave(each)
    assert at.active_tokens == at.reserved_tokens == at.live_tokens == at.num_active == at.num_live == 0


def shared_tokens(sessions: list[Session]) -> int:
    """Tokens of the prefixes that these sessions hold, each once."""
    return sum({each.prefix: each.prefix_tokens for each in sessions if each.prefix}.values())


def test_a_second_holder_needs_only_what_is_its_own() -> None:
    """The shared prefix is asked for once; without a name nothing is shared, however equal it looks."""
    at = worker()
    at.reserve(session("a", "p", 300), 1_000, 0.0)
    assert at.need(session("b", "p", 300), 1_000, 0.0) == 700
    assert at.need(session("c", "q", 300), 1_000, 0.0) == 1_000
    assert at.need(session("d", "", 300), 1_000, 0.0) == 1_000


def test_a_context_shorter_than_its_prefix_owns_nothing() -> None:
    """A ledger never counts below zero."""
    at, one = worker(), session("a", "p", 300, 100)
    at.settle(one)
    at.reserve(one, 100, 0.0)
    assert (one.own_tokens, at.live_tokens, at.active_tokens) == (0, 300, 300)


def test_workers_are_numbered_as_they_join_and_numbers_are_not_used_again() -> None:
    """The order of joining breaks ties, also after losses."""
    fleet = Fleet()
    first, second = (fleet.join(WorkerJoined(0.0, name, 100)) for name in ("w0", "w1"))
    fleet.lose(first)
    third = fleet.join(WorkerJoined(1.0, "w0", 100))
    assert [each.index for each in fleet] == [second.index, third.index] == [1, 2]
    assert (first.lost, third.lost, fleet.get("w0"), len(fleet)) == (True, False, third, 2)
    assert fleet.get("w9") is None
