"""Evict what is needed last: who has ended, then who is not expected soon."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.cache.next_use import NextUse
from saga.commands import Standing
from saga.views import CacheOwner

TIMES = st.floats(0.0, 1e9) | st.just(float("inf"))


def owner(standing: str, expected_use_s: float = float("inf"), task_arrival_s: float = 0.0) -> CacheOwner:
    """An owner that stands so and is expected then."""
    made = CacheOwner("s", task_arrival_s=task_arrival_s)
    made.standing, made.expected_use_s = standing, expected_use_s
    return made


@given(st.lists(TIMES, min_size=4, max_size=4))
def test_standing_comes_before_any_forecast(expected: list[float]) -> None:
    """Ended goes first, then unknown, paused and active, whenever each is expected."""
    order = ("ended", "unknown", "paused", "active")
    keys = [NextUse().key(owner(standing, at_s)) for standing, at_s in zip(order, expected, strict=True)]
    assert all(one < other for one, other in pairwise(keys))


@pytest.mark.parametrize("standing", [*Standing, "unknown"])
@given(one_s=TIMES, other_s=TIMES)
def test_who_is_expected_later_leaves_earlier(standing: str, one_s: float, other_s: float) -> None:
    """Within a standing the farthest use goes first; the standings that commands name are all known."""
    one, other = NextUse().key(owner(standing, one_s)), NextUse().key(owner(standing, other_s))
    assert (one < other) == (one_s > other_s)


@given(TIMES, st.floats(0.0, 1e6), st.floats(0.0, 1e6))
def test_of_two_expected_together_the_younger_task_leaves(expected_s: float, one_s: float, other_s: float) -> None:
    """The older task is nearer its end and ran longer: it keeps what it has."""
    one = NextUse().key(owner("active", expected_s, one_s))
    other = NextUse().key(owner("active", expected_s, other_s))
    assert (one < other) == (one_s > other_s)
