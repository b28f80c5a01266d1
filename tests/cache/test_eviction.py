"""What every eviction policy owes the cache that asks it, whatever its rule."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.cache.eviction import EvictionPolicy
from saga.cache.lru import Lru
from saga.cache.next_use import NextUse
from saga.cache.pinned import EndedFirst, Pinned
from saga.cache.prefix_lru import PrefixLru
from saga.cache.steps_to_use import FarthestStep
from saga.cache.workflow_lru import WorkflowLru
from saga.views import CacheOwner

POLICIES = (Lru(), PrefixLru(), NextUse(), WorkflowLru(), FarthestStep(), Pinned(WorkflowLru()), EndedFirst(Lru()))
FACTS = st.fixed_dictionaries(
    {
        "standing": st.sampled_from(["active", "paused", "ended", "unknown"]),
        "last_use_s": st.floats(0.0, 1e6),
        "expected_use_s": st.floats(0.0, 1e9) | st.just(float("inf")),
        "reuse_probability": st.floats(0.0, 1.0),
        "steps_to_use": st.floats(1.0, 1e4),
        "context_tokens": st.integers(0, 10**6),
        "capacity_tokens": st.integers(1, 10**6),
        "task_arrival_s": st.floats(0.0, 1e6),
    }
)


def owner(**facts: object) -> CacheOwner:
    """An owner of whom these facts are known."""
    made = CacheOwner("s")
    for name, value in facts.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@given(one=FACTS, other=FACTS)
def test_any_two_keys_of_one_policy_can_be_ordered(policy: EvictionPolicy, one: dict, other: dict) -> None:
    """Keys have one length and no nan, so that a heap of them is always in order."""
    mine, theirs = policy.key(owner(**one)), policy.key(owner(**other))
    assert len(mine) == len(theirs)
    assert (mine < theirs) + (theirs < mine) + (mine == theirs) == 1


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@given(facts=FACTS)
def test_a_key_follows_from_the_facts_alone(policy: EvictionPolicy, facts: dict) -> None:
    """Equal facts give equal keys whoever the owner is: policies keep nothing and know no clock."""
    twin = owner(**facts)
    twin.session = "another"
    assert policy.key(owner(**facts)) == policy.key(twin)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_policy_is_its_configuration(policy: EvictionPolicy) -> None:
    """Two policies of equal fields are one and the same, and none can be changed under way."""
    assert policy == replace(policy)  # type: ignore[type-var]
    with pytest.raises((FrozenInstanceError, AttributeError)):
        policy.alpha = 1.0  # type: ignore[attr-defined]
