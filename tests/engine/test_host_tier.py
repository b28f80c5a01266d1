"""The DRAM tier as a cache of its own."""

from __future__ import annotations

from saga.commands import Standing
from saga.engine.host_tier import EndedFirst, HostTier
from saga.engine.kv_pool import spans_of


def tier(tokens: int = 64) -> HostTier:
    """A tier of blocks of 4 tokens, 8 tokens per second."""
    return HostTier(tokens, 4, 8.0, EndedFirst())


def test_whole_blocks_are_stored_once() -> None:
    """Storing a longer context of the same session adds what is new, full blocks only."""
    host, spans = tier(), spans_of(((1, 1),), 4)
    host.store("a", spans, 10, at_s=1.0)
    host.store("a", spans, 23, at_s=2.0)
    assert host.lookup(spans, 100) == 5
    assert host.pool.available == 16
    assert host.pool.idle == 5


def test_a_context_larger_than_the_tier_keeps_its_front() -> None:
    """What does not fit is left out at the tail."""
    host, spans = tier(16), spans_of(((1, 1),), 4)
    host.store("a", spans, 100, at_s=1.0)
    assert host.lookup(spans, 100) == 4


def test_the_longest_unused_leaves_first_the_ended_before_all() -> None:
    """Three sessions in room for two: the ended one goes, though it was used last."""
    host = tier(32)
    a, b, c = (spans_of(((name, 1),), 4) for name in (1, 2, 3))
    host.store("a", a, 16, at_s=1.0)
    host.store("b", b, 16, at_s=2.0)
    host.pool.set_standing("b", Standing.ENDED, 0.0, 0.0)
    host.store("c", c, 16, at_s=3.0)
    assert [host.lookup(spans, 100) for spans in (a, b, c)] == [4, 0, 4]


def test_loads_take_their_time_one_after_the_other() -> None:
    """4 blocks of 4 tokens at 8 tokens per second are two seconds."""
    host = tier()
    assert host.load(4, at_s=1.0) == 3.0
    assert host.load(2, at_s=1.0) == 4.0
