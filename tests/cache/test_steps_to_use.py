"""Eviction by steps to execution: the farthest step leaves first, whatever else is known."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import assume, given

from saga.cache.steps_to_use import FarthestStep
from saga.views import CacheOwner


def owner(steps_to_use: float, last_use_s: float, standing: str = "paused") -> CacheOwner:
    """An owner whose next call is so many steps away."""
    made = CacheOwner("s")
    made.steps_to_use, made.last_use_s, made.standing = steps_to_use, last_use_s, standing
    return made


OWNERS = st.builds(owner, st.floats(1.0, 1e3), st.floats(0.0, 1e6), st.sampled_from(["active", "paused", "unknown"]))


@given(OWNERS, OWNERS)
def test_the_farthest_step_is_evicted_first(one: CacheOwner, other: CacheOwner) -> None:
    """Standing and age do not matter where the steps differ."""
    assume(one.steps_to_use != other.steps_to_use)
    first = FarthestStep().key(one) < FarthestStep().key(other)
    assert first == (one.steps_to_use > other.steps_to_use)


@given(OWNERS, OWNERS)
def test_equally_far_the_oldest_use_goes_first(one: CacheOwner, other: CacheOwner) -> None:
    """A fleet of single agents, all one step away, is LRU."""
    other.steps_to_use = one.steps_to_use
    assert (FarthestStep().key(one) < FarthestStep().key(other)) == (one.last_use_s < other.last_use_s)


@given(OWNERS, OWNERS)
def test_what_has_ended_is_infinitely_far(ended: CacheOwner, other: CacheOwner) -> None:
    """No step of a session that is over comes any more."""
    ended.standing = "ended"
    assert FarthestStep().key(ended) < FarthestStep().key(other)
