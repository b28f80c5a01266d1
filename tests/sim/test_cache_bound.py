"""The bound on what can be saved: above every way of granting stays, whatever the prices."""

from __future__ import annotations

from itertools import product

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.cache.belady import Stay, kept_blocks
from saga.sim.cache_bound import most_saved

SLOTS = 5


@st.composite
def instances(draw: st.DrawFn) -> tuple[list[Stay], list[float], list[int]]:
    """A few stays with a worth each, and room."""
    rows = draw(st.lists(st.tuples(*[st.integers(0, SLOTS)] * 2, st.integers(1, 3)), min_size=1, max_size=5))
    stays = sorted(Stay(min(a, b), max(a, b), 0, blocks) for a, b, blocks in rows)
    worth = [draw(st.floats(0.1, 20.0)) for _ in stays]
    return stays, worth, draw(st.lists(st.integers(0, 5), min_size=SLOTS, max_size=SLOTS))


def best_by_trying(stays: list[Stay], worth: list[float], room: list[int]) -> float:
    """The most that can be saved, every block of a stay worth the same."""
    best = 0.0
    for kept in product(*(range(stay.blocks + 1) for stay in stays)):
        used = [
            sum(blocks for stay, blocks in zip(stays, kept, strict=True) if stay.begins <= slot < stay.ends)
            for slot in range(SLOTS)
        ]
        if all(one <= free for one, free in zip(used, room, strict=True)):
            shares = zip(stays, worth, kept, strict=True)
            best = max(best, sum(value * blocks / stay.blocks for stay, value, blocks in shares))
    return best


@given(instances())
def test_no_way_of_granting_saves_more(instance: tuple[list[Stay], list[float], list[int]]) -> None:
    """The bound is at least the best of all ways, and at most everything."""
    stays, worth, room = instance
    best = best_by_trying(stays, worth, room)
    bound = most_saved(stays, worth, room, 0.0)
    assert bound >= best * (1 - 1e-12)
    assert bound <= sum(worth) * (1 + 1e-12)


def test_with_equal_costs_it_comes_near_the_optimum() -> None:
    """A steady stream of stays of which two thirds fit: the prices find Belady's optimum within 2 %."""
    stays = [Stay(slot, slot + 3, 0, 4) for slot in range(200)]
    room = [8] * 203
    best = sum(kept_blocks(stays, room))
    assert best <= most_saved(stays, [4.0] * 200, room, best) <= 1.02 * best


def test_where_costs_differ_it_stays_above_the_dearer_choice() -> None:
    """Belady keeps the nearer block, worth 1; keeping the farther saves 10, and the bound allows it."""
    stays = [Stay(0, 2, 0, 1), Stay(0, 3, 9, 1)]
    assert most_saved(stays, [1.0, 10.0], [1, 1, 1], 1.0) == pytest.approx(10.0, rel=0.05)


def test_nothing_to_keep_is_nothing_saved() -> None:
    """A replay without reuse has a bound too."""
    assert most_saved([], [], [3, 3], 0.0) == 0.0
