"""WA-LRU: each of its three terms pulls its way, and time passing changes no order."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given

from saga.cache.lru import Lru
from saga.cache.workflow_lru import WorkflowLru
from saga.views import CacheOwner

OWNERS = st.builds(
    lambda last_use_s, reuse, tokens: owner(last_use_s=last_use_s, reuse_probability=reuse, context_tokens=tokens),
    st.floats(0.0, 1e4),
    st.floats(0.0, 1.0),
    st.integers(0, 1_000),
)


def owner(**facts: object) -> CacheOwner:
    """An owner in a cache of 1,000 tokens."""
    made = CacheOwner("s", capacity_tokens=1_000)
    for name, value in facts.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("goes", "stays"),
    [
        ({"last_use_s": 1.0}, {"last_use_s": 2.0}),
        ({"reuse_probability": 0.2}, {"reuse_probability": 0.8}),
        ({"context_tokens": 800}, {"context_tokens": 200}),
    ],
    ids=["staler", "less probable", "larger"],
)
def test_each_term_pulls_its_way(goes: dict, stays: dict) -> None:
    """All else equal, the staler, the less probable and the larger session leaves first."""
    assert WorkflowLru().key(owner(**goes)) < WorkflowLru().key(owner(**stays))


@given(OWNERS, OWNERS, st.floats(0.0, 1e4))
def test_the_order_is_that_of_the_formula_at_any_time(one: CacheOwner, other: CacheOwner, later_s: float) -> None:
    """Keys leave time out, and still order as P_evict does whenever it is computed."""
    policy = WorkflowLru()
    at_s = max(one.last_use_s, other.last_use_s) + later_s

    def evict(of: CacheOwner) -> float:
        return (
            policy.alpha * (at_s - of.last_use_s) / policy.horizon_s
            + policy.beta * (1.0 - of.reuse_probability)
            + policy.gamma * of.context_tokens / of.capacity_tokens
        )

    assume(abs(evict(one) - evict(other)) > 1e-9)
    assert (policy.key(one) < policy.key(other)) == (evict(one) > evict(other))


@given(OWNERS, OWNERS)
def test_recency_alone_is_lru(one: CacheOwner, other: CacheOwner) -> None:
    """Without the other two weights the policy is plain LRU."""
    assume(abs(one.last_use_s - other.last_use_s) > 1e-6)
    policy = WorkflowLru(alpha=1.0, beta=0.0, gamma=0.0)
    assert (policy.key(one) < policy.key(other)) == (Lru().key(one) < Lru().key(other))


@given(OWNERS, st.integers(2, 100))
def test_size_is_relative_to_the_cache(one: CacheOwner, times: int) -> None:
    """A context and its cache, both so many times larger, rank the same."""
    before = WorkflowLru().key(one)
    one.context_tokens *= times
    one.capacity_tokens *= times
    assert WorkflowLru().key(one) == pytest.approx(before)


def test_a_session_that_has_ended_is_not_used_again() -> None:
    """Its P_reuse is 0, whatever was forecast while it lived."""
    ended, gone = owner(reuse_probability=0.9, standing="ended"), owner(reuse_probability=0.0)
    assert WorkflowLru().key(ended) == WorkflowLru().key(gone) < WorkflowLru().key(owner(reuse_probability=0.9))
