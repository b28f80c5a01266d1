"""Pins and drops come before whatever order they wrap, and change nothing else in it."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.cache.eviction import EvictionPolicy
from saga.cache.lru import Lru
from saga.cache.pinned import EndedFirst, Pinned
from saga.cache.workflow_lru import WorkflowLru
from saga.views import CacheOwner

STANDINGS = ("active", "paused", "ended", "unknown")
WITHIN = (Lru(), WorkflowLru())


def owner(standing: str, last_use_s: float) -> CacheOwner:
    """An owner of this standing, used then."""
    made = CacheOwner("s")
    made.standing, made.last_use_s = standing, last_use_s
    return made


OWNERS = st.builds(owner, st.sampled_from(STANDINGS), st.floats(0.0, 1e6))


@pytest.mark.parametrize("within", WITHIN, ids=repr)
@given(st.floats(0.0, 1e6), st.floats(0.0, 1e6), st.sampled_from(STANDINGS[1:]))
def test_a_pinned_prefix_outlasts_all_that_are_not(
    within: EvictionPolicy, pinned_s: float, other_s: float, standing: str
) -> None:
    """However stale it is, and whatever the policy within says."""
    assert Pinned(within).key(owner("active", pinned_s)) > Pinned(within).key(owner(standing, other_s))


@pytest.mark.parametrize("within", WITHIN, ids=repr)
@given(st.floats(0.0, 1e6), st.floats(0.0, 1e6), st.sampled_from(["active", "paused", "unknown"]))
def test_what_has_ended_leaves_before_all_that_has_not(
    within: EvictionPolicy, ended_s: float, other_s: float, standing: str
) -> None:
    """However fresh it is."""
    assert EndedFirst(within).key(owner("ended", ended_s)) < EndedFirst(within).key(owner(standing, other_s))


@pytest.mark.parametrize("within", WITHIN, ids=repr)
@given(OWNERS, OWNERS)
def test_among_equals_the_policy_within_decides(within: EvictionPolicy, one: CacheOwner, other: CacheOwner) -> None:
    """Owners of one standing rank as they would without the wrapper."""
    other.standing = one.standing
    inner = within.key(one) < within.key(other)
    assert (Pinned(within).key(one) < Pinned(within).key(other)) == inner
    assert (EndedFirst(within).key(one) < EndedFirst(within).key(other)) == inner
