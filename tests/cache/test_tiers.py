"""The host tier: whether there is one, and what leaves it when it is full."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.cache.tiers import NoHostTier, PausedLast, WriteBack
from saga.commands import Standing
from saga.views import CacheOwner

TIMES = st.floats(0.0, 1e9) | st.just(float("inf"))


def owner(standing: str, expected_use_s: float = float("inf"), last_use_s: float = 0.0) -> CacheOwner:
    """An owner that stands so, is expected then and was used then."""
    made = CacheOwner("s")
    made.standing, made.expected_use_s, made.last_use_s = standing, expected_use_s, last_use_s
    return made


@given(st.lists(TIMES, min_size=4, max_size=4))
def test_what_only_the_tier_has_leaves_last(expected: list[float]) -> None:
    """Active sessions have their prefix on the device as well, paused ones perhaps nowhere else."""
    order = ("ended", "active", "unknown", "paused")
    keys = [PausedLast().key(owner(standing, at_s)) for standing, at_s in zip(order, expected, strict=True)]
    assert all(one < other for one, other in pairwise(keys))


@pytest.mark.parametrize("standing", [*Standing, "unknown"])
@given(one_s=TIMES, other_s=TIMES, used_s=TIMES)
def test_of_equal_standing_the_farthest_use_leaves_first(
    standing: str, one_s: float, other_s: float, used_s: float
) -> None:
    """Expected use decides, and where that is equal the older last use."""
    one, other = PausedLast().key(owner(standing, one_s)), PausedLast().key(owner(standing, other_s, used_s))
    assert (one < other) == (one_s > other_s or (one_s == other_s and used_s > 0.0))


def test_there_is_a_tier_or_there_is_none() -> None:
    """The ablation differs from the tier in being absent, in nothing else."""
    assert WriteBack().enabled
    assert WriteBack(enabled=False).eviction == NoHostTier().eviction
    assert not NoHostTier().enabled
