"""Blocks that are held hard: bounded, counted, given back."""

from __future__ import annotations

from saga.vllm_plugin.pins import Pins
from saga.vllm_plugin.sessions import Session, SessionKey


class Pool:
    """Ten blocks, all free at first."""

    def __init__(self) -> None:
        self.holders = [0] * 10
        self.back: list[int] = []

    def touch(self, blocks):
        for block in blocks:
            self.holders[block] += 1

    def free_blocks(self, ordered_blocks):
        for block in ordered_blocks:
            self.holders[block] -= 1
            self.back.append(block)

    def get_num_free_blocks(self):
        return self.holders.count(0)


def session(name):
    """A session of that name."""
    return Session(SessionKey("", "", name))


def test_no_more_than_the_bound_is_held_from_the_front():
    """A context that does not fit keeps its front; the next one gets what is left."""
    pool = Pool()
    pins = Pins(pool, 4)
    assert pins.pin(session("a"), [0, 1, 2])
    assert not pins.pin(session("b"), [3, 4, 5])
    assert pool.holders[:6] == [1, 1, 1, 1, 0, 0]
    assert (pins.num_blocks, len(pins)) == (4, 2)
    assert not pins.pin(session("c"), [6])
    assert len(pins) == 2


def test_pinning_again_replaces():
    """A session never holds its blocks twice."""
    pool, one = Pool(), session("a")
    pins = Pins(pool, 4)
    pins.pin(one, [0, 1])
    assert pins.pin(one, [0, 1, 2])
    assert pool.holders[:3] == [1, 1, 1]
    pins.unpin(one)
    pins.unpin(one)
    assert (pins.num_blocks, pool.back[-3:], pool.get_num_free_blocks()) == (0, [2, 1, 0], 10)


def test_room_is_made_from_the_longest_held_on():
    """As many sessions as it takes, and no more."""
    pool = Pool()
    pins = Pins(pool, 10)
    for at in range(5):
        pins.pin(session(f"s{at}"), [2 * at, 2 * at + 1])
    assert pins.make_room(3) == 2
    assert pool.holders == [0] * 4 + [1] * 6
    assert pins.make_room(3) == 0
    assert pins.make_room(99) == 3
    assert len(pins) == 0


def test_all_is_given_back():
    """Before the engine drops its cache."""
    pool = Pool()
    pins = Pins(pool, 10)
    pins.pin(session("a"), [0, 1])
    pins.pin(session("b"), [1, 2])
    pins.unpin_all()
    assert (pool.get_num_free_blocks(), pins.num_blocks) == (10, 0)
