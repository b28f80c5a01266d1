"""The DRAM tier as a cache of its own."""

from __future__ import annotations

import random

import pytest

from saga.cache.prefix_lru import PrefixLru
from saga.cache.tiers import PausedLast
from saga.commands import Standing
from saga.engine.host_tier import EndedFirst, HostTier
from saga.engine.kv_pool import Span, spans_of
from saga.errors import InvariantViolated

A, B, C = (spans_of(((name, 1),), 4) for name in (1, 2, 3))


def tier(tokens: int = 64) -> HostTier:
    """A tier of blocks of 4 tokens, 8 tokens per second."""
    return HostTier(tokens, 4, 8.0, EndedFirst())


def test_whole_blocks_are_stored_once() -> None:
    """Storing a longer context of the same session adds what is new."""
    host = tier()
    assert host.store("a", A, 0, 2, at_s=1.0)
    assert host.store("a", A, 0, 5, at_s=2.0)
    assert host.lookup(A, 100) == 5
    assert host.lookup(A, 3, first=1) == 3
    assert host.used == 5


def test_without_room_nothing_is_stored() -> None:
    """A context larger than the tier is refused as a whole, and nothing is evicted for it."""
    host = tier(16)
    host.store("a", A, 0, 2, at_s=1.0)
    assert not host.store("b", B, 0, 5, at_s=2.0)
    assert (host.lookup(A, 100), host.lookup(B, 100)) == (2, 0)


def test_the_longest_unused_leaves_first_the_ended_before_all() -> None:
    """Three sessions in room for two: the ended one goes, though it was used last."""
    host = tier(32)
    host.store("a", A, 0, 4, at_s=1.0)
    host.store("b", B, 0, 4, at_s=2.0)
    host.set_standing("b", Standing.ENDED, 0.0, 0.0)
    host.store("c", C, 0, 4, at_s=3.0)
    assert [host.lookup(spans, 100) for spans in (A, B, C)] == [4, 0, 4]


def test_what_a_session_has_rewritten_leaves_before_what_another_comes_back_to() -> None:
    """Its new history shares one block with the old one; of the old one only that block is still its own."""
    host = HostTier(32, 4, 8.0, PausedLast())
    rewritten = spans_of(((1, 4), (4, 1)), 4)
    host.store("b", B, 0, 3, at_s=1.0, used=True)
    host.use("b", B, 0, 3, at_s=1.0)
    host.store("a", A, 0, 4, at_s=2.0, used=True)
    host.use("a", A, 0, 4, at_s=2.0)
    for session in "ab":
        host.set_standing(session, Standing.PAUSED, 9.0, 1.0)
    host.store("a", rewritten, 1, 2, at_s=3.0, used=True)
    host.use("a", rewritten, 0, 2, at_s=3.0)
    host.check()
    assert host.store("c", C, 0, 3, at_s=4.0)
    host.check()
    assert [host.lookup(spans, 100) for spans in (A, rewritten, B, C)] == [1, 2, 3, 3]


def test_what_was_only_written_leaves_front_first_what_was_used_tail_first() -> None:
    """Recency at writing follows the prompt, recency at use runs against it."""
    written, used = tier(32), tier(32)
    for host in (written, used):
        host.store("a", A, 0, 4, at_s=1.0)
        host.store("b", B, 0, 4, at_s=2.0)
    used.use("a", A, 0, 4, at_s=3.0)
    used.use("b", B, 0, 4, at_s=4.0)
    for host in (written, used):
        host.store("c", C, 0, 1, at_s=5.0)
    assert (written.lookup(A, 4), written.lookup(A, 4, first=1)) == (0, 4)
    assert used.lookup(A, 4) == 3


def test_a_tail_stays_without_its_front_and_is_whole_again_when_that_is_written() -> None:
    """A call that refreshed only the tail of its context lets the front leave; the tail counts behind it again."""
    host = tier(32)
    host.store("a", A, 0, 4, at_s=1.0)
    host.store("b", B, 0, 4, at_s=2.0)
    host.use("a", A, 2, 4, at_s=3.0)
    host.store("c", C, 0, 2, at_s=4.0)
    assert (host.lookup(A, 4), host.lookup(A, 4, first=2)) == (0, 4)
    host.store("a", A, 0, 4, at_s=5.0)
    assert host.lookup(A, 4) == 4
    assert host.lookup(B, 4, first=2) == 4
    host.check()


def test_what_is_being_loaded_stays() -> None:
    """Pinned blocks cannot be evicted; the oldest of the others go, and where there are none the store is refused."""
    host = tier(32)
    host.store("a", A, 0, 4, at_s=1.0)
    host.store("b", B, 0, 4, at_s=2.0)
    host.load(A, 0, 3, at_s=3.0)
    assert host.store("c", C, 0, 4, at_s=3.0)
    assert (host.lookup(A, 4), host.lookup(B, 4, first=3)) == (3, 4)
    assert not host.store("b", B, 0, 6, at_s=3.0)
    host.check()
    host.unpin(A, 0, 3)
    assert host.store("b", B, 0, 6, at_s=3.0)
    host.check()


def test_what_is_offered_again_is_not_evicted_for_the_rest_of_the_offer() -> None:
    """The blocks of the same context that are here survive the write of the missing ones, old as they are."""
    host = tier(32)
    host.store("a", A, 0, 4, at_s=1.0)
    host.store("b", B, 0, 4, at_s=2.0)
    assert host.store("a", A, 0, 6, at_s=3.0)
    assert (host.lookup(A, 6), host.lookup(B, 4, first=2)) == (6, 4)


def test_loads_take_their_time_one_after_the_other() -> None:
    """4 blocks of 4 tokens at 8 tokens per second are two seconds."""
    host = tier()
    host.store("a", A, 0, 6, at_s=0.0)
    assert host.load(A, 0, 4, at_s=1.0) == 3.0
    assert host.load(A, 4, 6, at_s=1.0) == 4.0


def test_check_sees_a_broken_law() -> None:
    """A tier whose count is off is caught."""
    host = tier()
    host.store("a", A, 0, 2, at_s=1.0)
    host.used += 1
    with pytest.raises(InvariantViolated, match="H3"):
        host.check()


class Blocks:
    """The same tier block by block, as `LRUCachePolicy` keeps it: (stream, block) -> recency."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.rank: dict[tuple[int, int], int] = {}
        self.pins: dict[tuple[int, int], int] = {}
        self.clock = 0

    def touch(self, block: tuple[int, int]) -> None:
        """The most recent now."""
        self.clock += 1
        self.rank[block] = self.clock

    def store(self, wanted: list[tuple[int, int]], safe: set[tuple[int, int]]) -> bool:
        """Those missing are written in order; those `safe` are not evicted for it."""
        missing = [block for block in wanted if block not in self.rank]
        need = len(missing) + len(self.rank) - self.num_blocks
        leavers = sorted(
            (block for block in self.rank if not self.pins.get(block) and block not in safe), key=self.rank.__getitem__
        )
        if missing and need > len(leavers):
            return False
        for block in leavers[: max(0, need) if missing else 0]:
            del self.rank[block]
        for block in missing:
            self.touch(block)
        return True


def _expand(spans: tuple[Span, ...], first: int, stop: int) -> list[tuple[int, int]]:
    return [(name, b) for name, begin, end in spans for b in range(max(begin, first), min(end, stop))]


@pytest.mark.parametrize("seed", range(40))
def test_runs_behave_as_single_blocks_do(seed: int) -> None:
    """Under random stores, uses and loads of forking prompts the tier holds what its twin of single blocks holds.

    The tier keeps safe from a store all of a run that the offer meets, so the twin is told which blocks those are.
    """
    rng = random.Random(seed)
    host, twin = HostTier(160, 4, 8.0, PrefixLru()), Blocks(40)
    paths = [((9, 20), (name, 60)) for name in range(4)] + [((9, 20), (0, 20), (name, 40)) for name in (5, 6)]
    loads: list[tuple[tuple[Span, ...], int, int]] = []
    for now in range(120):
        spans = spans_of(rng.choice(paths), 4)
        first = rng.choice([0, 0, rng.randrange(15)])
        stop = first + rng.randint(1, 15)
        wanted = _expand(spans, first, stop)
        action = rng.random()
        if action < 0.5:
            met = {run for runs in host._streams.values() for run in runs}
            met = {run for run in met if any(run.stream == name and run.start <= b < run.end for name, b in wanted)}
            safe = {(run.stream, b) for run in met for b in range(run.start, run.end)}
            assert host.store("s", spans, first, stop, float(now)) == twin.store(wanted, safe)
        elif action < 0.8:
            host.use("s", spans, first, stop, float(now))
            for block in reversed(wanted):
                if block in twin.rank:
                    twin.touch(block)
        elif action < 0.9 and (end := host.lookup(spans, stop, first)) > first:
            host.load(spans, first, end, float(now))
            loads.append((spans, first, end))
            for block in _expand(spans, first, end):
                twin.pins[block] = twin.pins.get(block, 0) + 1
        elif loads:
            done = loads.pop(rng.randrange(len(loads)))
            host.unpin(*done)
            for block in _expand(*done):
                twin.pins[block] -= 1
        host.check()
        here = {(run.stream, b) for runs in host._streams.values() for run in runs for b in range(run.start, run.end)}
        assert here == twin.rank.keys()
