"""The greedy optimum, against all ways of granting stays."""

from __future__ import annotations

from itertools import product

import hypothesis.strategies as st
from hypothesis import given

from saga.cache.belady import Stay, kept_blocks

SLOTS = 6


@st.composite
def instances(draw: st.DrawFn) -> tuple[list[Stay], list[int]]:
    """A few short stays, and room that comes and goes."""
    rows = draw(st.lists(st.tuples(*[st.integers(0, SLOTS)] * 2, st.integers(0, 5), st.integers(1, 3)), max_size=5))
    stays = sorted(Stay(min(a, b), max(a, b), block, blocks) for a, b, block, blocks in rows if a != b)
    return stays, draw(st.lists(st.integers(0, 5), min_size=SLOTS, max_size=SLOTS))


def fits(stays: list[Stay], kept: tuple[int, ...] | list[int], room: list[int]) -> bool:
    """Whether at every slot what is kept has room."""
    return all(
        sum(blocks for stay, blocks in zip(stays, kept, strict=True) if stay.begins <= slot < stay.ends) <= free
        for slot, free in enumerate(room)
    )


@given(instances())
def test_nothing_keeps_more(instance: tuple[list[Stay], list[int]]) -> None:
    """What is kept fits at every slot, and no other choice that fits keeps more blocks."""
    stays, room = instance
    kept = kept_blocks(stays, room)
    assert fits(stays, kept, room)
    choices = product(*(range(stay.blocks + 1) for stay in stays))
    assert sum(kept) == max(sum(choice) for choice in choices if fits(stays, choice, room))


@given(instances(), st.integers(0, SLOTS - 1))
def test_more_room_never_keeps_less(instance: tuple[list[Stay], list[int]], slot: int) -> None:
    """A block of room more, at any time, loses nothing."""
    stays, room = instance
    more = [free + (place == slot) for place, free in enumerate(room)]
    assert sum(kept_blocks(stays, more)) >= sum(kept_blocks(stays, room))


def test_the_farthest_use_leaves_first() -> None:
    """Of two stays with room for one, the one that ends later goes."""
    assert kept_blocks([Stay(0, 2, 0, 1), Stay(0, 3, 0, 1)], [1, 1, 1]) == [1, 0]


def test_of_equal_uses_the_deepest_leaves_first() -> None:
    """A prefix outlives what lies behind it, and a run loses its tail."""
    assert kept_blocks([Stay(0, 2, 0, 4), Stay(0, 2, 4, 4)], [5, 5]) == [4, 1]


def test_a_stay_between_no_slots_needs_no_room() -> None:
    """What is used again at once was never out of the cache."""
    assert kept_blocks([Stay(1, 1, 0, 7)], [0, 0]) == [7]


def test_fewest_blocks_are_not_the_least_cost() -> None:
    """Where blocks differ in cost the farthest use can be the one to keep: the case that `sim.cache_bound` is for."""
    stays, worth, room = [Stay(0, 2, 0, 1), Stay(0, 3, 9, 1)], [1.0, 10.0], [1, 1, 1]
    saved = sum(value for value, kept in zip(worth, kept_blocks(stays, room), strict=True) if kept)
    assert saved == 1.0
    assert fits(stays, (0, 1), room)
