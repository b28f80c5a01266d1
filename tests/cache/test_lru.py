"""Least recently used: time of last use, and nothing else."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from saga.cache.lru import Lru
from saga.views import CacheOwner


def used(at_s: float, session: str = "s") -> CacheOwner:
    """An owner that was last used then."""
    owner = CacheOwner(session)
    owner.last_use_s = at_s
    return owner


@given(st.lists(st.floats(0.0, 1e6), min_size=1))
def test_sessions_leave_in_the_order_of_their_last_use(times_s: list[float]) -> None:
    """Sorting by key is sorting by last use."""
    owners = [used(at_s) for at_s in times_s]
    assert [owner.last_use_s for owner in sorted(owners, key=Lru().key)] == sorted(times_s)


def test_what_is_forecast_changes_nothing() -> None:
    """An ended session that was just used stays longer than one expected back at once."""
    ended, awaited = used(2.0), used(1.0)
    ended.standing, awaited.standing = "ended", "active"
    awaited.expected_use_s = 1.1
    assert Lru().key(awaited) < Lru().key(ended)
