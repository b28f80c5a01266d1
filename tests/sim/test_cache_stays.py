"""Stays and room say exactly what a cache could keep: their optimum is the optimum over all ways of evicting."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from saga.cache.belady import kept_blocks
from saga.sim.cache_stays import stays_of
from saga.workloads.plan import Call

from .small_caches import Small, answers_below_a_stay, least_cost, small_timeline, small_workloads, task


def lost(workload: Small, num_blocks: int, *, pinned: bool, block_tokens: int = 1) -> int:
    """Blocks that Belady computes again."""
    stays = stays_of(small_timeline(workload, num_blocks, block_tokens), pinned=pinned)
    assert min(stays.room) >= 0
    return sum(stay.blocks for stay in stays.stays) - sum(kept_blocks(stays.stays, stays.room))


@pytest.mark.parametrize("pinned", [True, False])
@settings(max_examples=40)
@given(workload=small_workloads(), num_blocks=st.integers(9, 12))
def test_belady_is_the_optimum_of_all_ways_of_evicting(workload: Small, num_blocks: int, pinned: bool) -> None:
    """With shared prefixes, rewritten histories, calls in flight: by trying all. Leaf first too, but for answers."""
    timeline = small_timeline(workload, num_blocks)
    best = lost(workload, num_blocks, pinned=pinned)
    assert best == least_cost(timeline, pinned=pinned, leaf_first=False)
    leaf_first = least_cost(timeline, pinned=pinned, leaf_first=True)
    assert best <= leaf_first
    assert best == leaf_first or answers_below_a_stay(timeline)


def test_what_an_answer_writes_again_need_not_be_kept_for_what_lies_behind_it() -> None:
    """The one place where a cache that evicts leaves only must lose more than Belady: two sessions with one content."""
    same = [Call(((100, tokens),), tokens, 1, gap_s) for tokens, gap_s in ((1, 0.0), (3, 0.0), (5, 0.0))]
    large = [Call(((101, 1),), 1, 1), Call(((101, 3),), 3, 1), Call(((101, 5),), 5, 2)]
    workload = Small([task("one", same), task("large", large), task("twin", same)])
    timeline = small_timeline(workload, 9)
    assert answers_below_a_stay(timeline)
    found = [least_cost(timeline, pinned=False, leaf_first=first) for first in (False, True)]
    assert found == [lost(workload, 9, pinned=False), lost(workload, 9, pinned=False) + 1]


@pytest.mark.parametrize("pinned", [True, False])
@settings(max_examples=25)
@given(workload=small_workloads(max_calls=4), num_blocks=st.integers(5, 7))
def test_partial_blocks_need_room_and_are_never_found(workload: Small, num_blocks: int, pinned: bool) -> None:
    """The same in blocks of two tokens, where a context may end within a block."""
    timeline = small_timeline(workload, num_blocks, 2)
    best = lost(workload, num_blocks, pinned=pinned, block_tokens=2)
    assert best == least_cost(timeline, pinned=pinned, leaf_first=False)
    leaf_first = least_cost(timeline, pinned=pinned, leaf_first=True)
    assert best <= leaf_first
    assert best == leaf_first or answers_below_a_stay(timeline)


@given(workload=small_workloads(max_calls=5), num_blocks=st.integers(9, 14))
def test_pins_never_help(workload: Small, num_blocks: int) -> None:
    """What a cache with pins can keep, one without them can keep too."""
    assert lost(workload, num_blocks, pinned=True) >= lost(workload, num_blocks, pinned=False)


@pytest.mark.parametrize("pinned", [True, False])
@given(workload=small_workloads(max_calls=5))
def test_a_cache_that_holds_everything_loses_nothing(workload: Small, pinned: bool) -> None:
    """Without pressure nothing is computed twice."""
    assert lost(workload, 1_000, pinned=pinned) == 0
