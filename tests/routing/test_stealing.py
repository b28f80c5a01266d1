"""Who may take from whom."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from saga.routing.stealing import IdleSteals, LevelFreeness, NoStealing
from saga.views import WorkerView

LOADS = st.integers(0, 100)


def loaded(num_running: int) -> WorkerView:
    """A worker with so many calls at work."""
    made = WorkerView("w", 0, 100)
    made.num_running = num_running
    return made


@given(LOADS, LOADS)
def test_without_stealing_nobody_takes(thief: int, victim: int) -> None:
    """The ablation allows nothing and names no time."""
    assert not NoStealing().allows(loaded(thief), loaded(victim))
    assert NoStealing().idle_s is None


@given(LOADS, LOADS, LOADS)
def test_a_fuller_victim_is_no_safer(thief: int, one: int, other: int) -> None:
    """What may be taken from a worker may be taken from a busier one."""
    light, heavy = (IdleSteals().allows(loaded(thief), loaded(victim)) for victim in sorted((one, other)))
    assert heavy or not light


@given(LOADS, st.floats(1.0, 5.0))
def test_two_alike_never_steal_from_each_other(load: int, ratio: float) -> None:
    """With a ratio of one or more a call cannot be taken back and forth."""
    assert not IdleSteals(max_load_ratio=ratio).allows(loaded(load), loaded(load))


def test_the_ratio_is_exceeded_not_reached() -> None:
    """An idle thief counts as one call: from two calls nothing is taken, from three one is."""
    assert not IdleSteals().allows(loaded(0), loaded(2))
    assert IdleSteals().allows(loaded(0), loaded(3))


def holding(num_running: int, running_tokens: int) -> WorkerView:
    """A worker of 100 tokens whose calls want so many."""
    made = loaded(num_running)
    made.running_tokens = running_tokens
    return made


@given(LOADS, st.integers(0, 1_000), LOADS, st.integers(0, 1_000))
def test_only_the_overcommitted_give_and_only_the_free_take(
    thief: int, thief_tokens: int, victim: int, victim_tokens: int
) -> None:
    """By memory, not by calls; so no call is moved back."""
    taker, giver = holding(thief, thief_tokens), holding(victim, victim_tokens)
    assert LevelFreeness().allows(taker, giver) == (thief_tokens < 100 < victim_tokens)
    assert not (LevelFreeness().allows(taker, giver) and LevelFreeness().allows(giver, taker))


@given(st.integers(1, 100), st.integers(0, 1_000), st.integers(0, 1_000))
def test_the_victim_is_the_least_free(num_running: int, one: int, other: int) -> None:
    """Of as many calls those that want more are the larger load."""
    less, more = (LevelFreeness().load(holding(num_running, tokens)) for tokens in sorted((one, other)))
    assert less <= more
