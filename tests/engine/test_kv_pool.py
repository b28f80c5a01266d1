"""The segmented pool against a twin that keeps every block, and its laws under any policy."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from saga.cache.eviction import EvictionKey, EvictionPolicy
from saga.cache.lru import Lru
from saga.cache.next_use import NextUse
from saga.cache.prefix_lru import PrefixLru
from saga.cache.steps_to_use import FarthestStep
from saga.cache.workflow_lru import WorkflowLru
from saga.commands import Standing
from saga.engine.kv_pool import KvPool, Lease, Span, spans_of
from saga.errors import InvariantViolated, UsageError
from saga.views import CacheOwner, PromptPath

BLOCK = 4
NUM_BLOCKS = 24
# stream -> (parent stream, tokens of the parent that it follows)
FOREST: dict[int, tuple[int | None, int]] = {
    0: (None, 0),
    1: (0, 10),
    2: (0, 10),
    3: (0, 17),
    4: (1, 9),
    5: (1, 20),
    6: (5, 3),
    7: (None, 0),
}


def path_to(stream: int, tokens: int) -> PromptPath:
    """The path that ends with `tokens` tokens of `stream`."""
    parent, fork = FOREST[stream]
    above = path_to(parent, fork) if parent is not None else ()
    return (*above, (stream, tokens))


def blocks_of(path: PromptPath, num_blocks: int) -> list[tuple[int, int]]:
    """Block by block: (stream that contains the block's last token, index); the last stream is open-ended."""
    ends, total = [], 0
    for stream, tokens in path:
        total += tokens
        ends.append((total, stream))
    last = path[-1][0]
    return [
        (next((stream for end, stream in ends if end >= (index + 1) * BLOCK), last), index)
        for index in range(num_blocks)
    ]


class NaivePool:
    """vLLM's BlockPool with content names for hashes: reference counts and a free queue of single blocks."""

    def __init__(self, num_blocks: int) -> None:
        self.unhashed = num_blocks
        self.refs: dict[tuple[int, int], int] = {}
        self.queue: OrderedDict[tuple[int, int], None] = OrderedDict()

    def lookup(self, blocks: list[tuple[int, int]]) -> int:
        """Leading resident blocks."""
        return next((index for index, block in enumerate(blocks) if block not in self.refs), len(blocks))

    def hold(self, block: tuple[int, int]) -> None:
        """One more reference; a block with one is not in the free queue."""
        self.refs[block] = self.refs.get(block, 0) + 1
        self.queue.pop(block, None)

    def take(self, count: int) -> bool:
        """Pop free blocks: unhashed ones first, then the oldest cached ones."""
        if count > self.unhashed + len(self.queue):
            return False
        for _ in range(count):
            if self.unhashed:
                self.unhashed -= 1
            else:
                del self.refs[self.queue.popitem(last=False)[0]]
        return True

    def publish(self, block: tuple[int, int]) -> None:
        """A held block gets its name; one that is here already is shared and the copy given back."""
        if block in self.refs:
            self.unhashed += 1
        self.hold(block)

    def release(self, blocks: list[tuple[int, int]], anonymous: int) -> None:
        """Give back tail first."""
        self.unhashed += anonymous
        for block in reversed(blocks):
            self.refs[block] -= 1
            if not self.refs[block]:
                self.queue[block] = None


@dataclass
class Held:
    """A lease and what the twin knows of it."""

    lease: Lease
    path: PromptPath
    tokens: int


class PoolMachine(RuleBasedStateMachine):
    """Random calls over a small forest of streams, the pool and its twin side by side."""

    policy: EvictionPolicy = PrefixLru()
    exact = True

    @initialize()
    def begin(self) -> None:
        """An empty pool and an empty twin."""
        self.pool = KvPool(NUM_BLOCKS, BLOCK, self.policy, report_evicted=True)
        self.naive = NaivePool(NUM_BLOCKS)
        self.held: list[Held] = []
        self.at_s = 0.0

    @rule(stream=st.sampled_from(sorted(FOREST)), tokens=st.integers(1, 40), session=st.sampled_from("abcd"))
    def open(self, stream: int, tokens: int, session: str) -> None:
        """A call is admitted on what is cached of its prompt."""
        path = path_to(stream, tokens)
        total = sum(tokens for _, tokens in path)
        spans = spans_of(path, BLOCK)
        hit = self.pool.lookup(spans, (total - 1) // BLOCK)
        blocks = blocks_of(path, (total - 1) // BLOCK)
        if self.exact:
            assert hit == self.naive.lookup(blocks)
            assert self.pool.idle_within(spans, hit) == sum(block in self.naive.queue for block in blocks[:hit])
            for block in blocks[:hit]:
                self.naive.hold(block)
        self.held.append(Held(self.pool.open(session, spans, hit), path, hit * BLOCK))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99), more=st.integers(1, 30), publish=st.booleans())
    def grow(self, which: int, more: int, publish: bool) -> None:
        """A call computes tokens; what it computed before in secret may be published with them."""
        held = self.held[which % len(self.held)]
        tokens = held.tokens + more
        before, hashed = held.lease.blocks, held.lease.hashed
        grown = self.pool.grow(held.lease, tokens, publish=publish)
        if self.exact:
            assert grown == self.naive.take(-(-tokens // BLOCK) - before)
            if grown and publish:
                for block in blocks_of(held.path, tokens // BLOCK)[hashed:]:
                    self.naive.publish(block)
        if grown:
            held.tokens = tokens

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 99))
    def close(self, which: int) -> None:
        """A call ends."""
        held = self.held.pop(which % len(self.held))
        self.at_s += 1
        if self.exact:
            lease = held.lease
            self.naive.release(blocks_of(held.path, lease.hashed), lease.blocks - lease.hashed)
        self.pool.close(held.lease, tokens=held.tokens, at_s=self.at_s)

    @rule(session=st.sampled_from("abcd"))
    def rewrite(self, session: str) -> None:
        """A call of the session holds what it hit; what it has left is nobody's. `PrefixLru` sees no difference."""
        self.pool.rewritten(session)

    @rule(session=st.sampled_from("abcd"), standing=st.sampled_from(list(Standing)), use_s=st.integers(0, 50))
    def stand(self, session: str, standing: Standing, use_s: int) -> None:
        """The scheduler says what it thinks of a session; `PrefixLru` has no opinion."""
        self.pool.set_standing(session, standing, use_s, 1.0)

    @invariant()
    def agree(self) -> None:
        """The same blocks are free, idle and resident, and the pool's own laws hold."""
        if not hasattr(self, "pool"):
            return
        self.pool.check()
        if self.exact:
            assert self.pool.free == self.naive.unhashed
            assert self.pool.idle == len(self.naive.queue)
            for stream in FOREST:
                path = path_to(stream, 40)
                found = self.pool.lookup(spans_of(path, BLOCK), NUM_BLOCKS)
                assert found == self.naive.lookup(blocks_of(path, NUM_BLOCKS))
        held = {owner for owner in self.pool.owners if self.pool.owners[owner].segments}
        assert held == set(self.pool.owners)


@dataclass(frozen=True)
class FarthestFirst:
    """Ended ones first, then those expected back latest."""

    def key(self, owner: CacheOwner) -> EvictionKey:
        """(0 where ended, minus expected use)."""
        return (float(owner.standing != "ended"), -owner.expected_use_s)


class PolicyMachine(PoolMachine):
    """The same life under a policy that re-ranks sessions all the time: laws only."""

    policy = FarthestFirst()
    exact = False


class NextUseMachine(PolicyMachine):
    """The default preset's order, which tells what was rewritten from what its session still has."""

    policy = NextUse()


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40)
TestPolicies = PolicyMachine.TestCase
TestPolicies.settings = settings(max_examples=40, stateful_step_count=40)
TestNextUse = NextUseMachine.TestCase
TestNextUse.settings = settings(max_examples=40, stateful_step_count=40)


def fill(pool: KvPool, session: str, path: PromptPath, tokens: int, at_s: float = 0.0) -> None:
    """A call that computes `tokens` tokens and ends."""
    spans: tuple[Span, ...] = spans_of(path, pool.block_tokens)
    lease = pool.open(session, spans, pool.lookup(spans, tokens // pool.block_tokens))
    assert pool.grow(lease, tokens)
    pool.close(lease, tokens=tokens, at_s=at_s)


def resident(pool: KvPool, path: PromptPath) -> int:
    """Resident leading blocks of the path."""
    return pool.lookup(spans_of(path, pool.block_tokens), 1000)


def test_spans_give_each_block_to_the_stream_of_its_last_token() -> None:
    """A stream too short to contain the end of a block has no span, the last one is open-ended."""
    spans = spans_of(((1, 6), (2, 1), (3, 9), (4, 1)), 4)
    assert [(name, first) for name, first, _ in spans] == [(1, 0), (3, 1), (4, 4)]
    assert [end for _, _, end in spans][:2] == [1, 4]


def test_the_tail_goes_first_and_the_shared_part_last() -> None:
    """Two sessions behind one prompt: the older one's own blocks are evicted from the tail, the prompt stays."""
    pool = KvPool(10, 4, PrefixLru())
    fill(pool, "a", ((0, 16), (1, 8)), 24)
    fill(pool, "b", ((0, 16), (2, 8)), 24)
    fill(pool, "c", ((3, 12),), 12)
    assert resident(pool, ((0, 16), (1, 8))) == 5
    assert resident(pool, ((0, 16), (2, 8))) == 6
    fill(pool, "c", ((4, 12),), 12)
    assert (resident(pool, ((0, 16), (1, 8))), resident(pool, ((0, 16), (2, 8)))) == (4, 4)


def test_a_shared_block_is_worth_its_most_valuable_owner() -> None:
    """Under Lru a prompt that a recent session shares outlives a session used in between."""
    pool = KvPool(10, 4, Lru())
    fill(pool, "old", ((0, 16),), 16, at_s=1.0)
    fill(pool, "middle", ((1, 16),), 16, at_s=2.0)
    fill(pool, "new", ((0, 16),), 16, at_s=3.0)
    fill(pool, "other", ((2, 16),), 16, at_s=4.0)
    assert (resident(pool, ((0, 16),)), resident(pool, ((1, 16),))) == (4, 2)


def test_an_ended_session_is_re_ranked_at_once() -> None:
    """set_standing moves the session's blocks to the front of the order, whatever their age."""
    pool = KvPool(8, 4, FarthestFirst())
    fill(pool, "a", ((1, 16),), 16)
    fill(pool, "b", ((2, 16),), 16)
    pool.set_standing("b", Standing.ENDED, 1.0, 0.0)
    fill(pool, "c", ((3, 8),), 8)
    assert (resident(pool, ((1, 16),)), resident(pool, ((2, 16),))) == (4, 2)


def test_what_a_session_rewrote_leaves_before_what_others_keep() -> None:
    """Once its next call holds what is left of its history, the rest is nobody's, and what it shares stays its own."""
    pool = KvPool(11, 4, NextUse())
    fill(pool, "b", ((0, 8), (1, 16)), 24)
    fill(pool, "a", ((0, 8), (2, 16)), 24, at_s=1.0)
    pool.set_standing("a", Standing.ACTIVE, 2.0, 1.0)
    pool.set_standing("b", Standing.PAUSED, 9.0, 1.0)
    spans = spans_of(((0, 8), (3, 8)), 4)
    lease = pool.open("a", spans, pool.lookup(spans, 3))
    pool.rewritten("a")
    assert pool.grow(lease, 16)
    assert (resident(pool, ((0, 8), (1, 16))), resident(pool, ((0, 8), (2, 16)))) == (6, 5)
    pool.close(lease, tokens=16, at_s=3.0)
    pool.check()
    assert [len(owner.segments) for owner in pool.owners.values()] == [2, 2]


@pytest.mark.parametrize("policy", [WorkflowLru(), FarthestStep(), NextUse()], ids=lambda policy: type(policy).__name__)
def test_what_a_session_rewrote_leaves_first_whatever_the_policy_looks_at(policy: EvictionPolicy) -> None:
    """Nobody will ask for it: less probable than what a paused session may use, and farther away."""
    pool = KvPool(11, 4, policy)
    fill(pool, "b", ((1, 16),), 16)
    fill(pool, "a", ((2, 16),), 16, at_s=1.0)
    pool.set_standing("a", Standing.ACTIVE, 2.0, 0.9)
    pool.set_standing("b", Standing.PAUSED, 9.0, 0.3, steps_to_use=4.0)
    lease = pool.open("a", spans_of(((3, 16),), 4), 0)
    pool.rewritten("a")
    assert pool.grow(lease, 16)
    assert (resident(pool, ((1, 16),)), resident(pool, ((2, 16),))) == (4, 3)


def test_records_of_sessions_do_not_pile_up() -> None:
    """A thousand sessions behind one prompt leave only those with something resident in the books."""
    pool = KvPool(20, 4, Lru())
    for session in range(1000):
        fill(pool, str(session), ((0, 16), (session + 1, 8)), 24, at_s=float(session))
    assert len(pool.owners) <= 20
    pool.check()


def test_evicted_sessions_are_named_once() -> None:
    """take_evicted says who lost blocks and then forgets."""
    pool = KvPool(4, 4, PrefixLru(), report_evicted=True)
    fill(pool, "a", ((1, 16),), 16)
    fill(pool, "b", ((2, 8),), 8)
    assert pool.take_evicted() == ["a"]
    assert pool.take_evicted() == []


def test_reserving_more_than_there_is_takes_nothing() -> None:
    """A refused reservation evicts nothing."""
    pool = KvPool(4, 4, PrefixLru())
    fill(pool, "a", ((1, 16),), 16)
    assert not pool.reserve(5)
    assert (pool.free, pool.idle) == (0, 4)


def test_a_stream_that_begins_twice_is_refused() -> None:
    """A workload that breaks the rule of streams is told so."""
    pool = KvPool(20, 4, PrefixLru())
    fill(pool, "a", ((1, 8), (2, 8)), 16)
    spans = spans_of(((3, 16), (2, 8)), 4)
    lease = pool.open("b", spans, 0)
    with pytest.raises(UsageError, match="stream 2 begins at block 2"):
        pool.grow(lease, 24)


def test_check_sees_a_broken_law() -> None:
    """A pool whose count of idle blocks was tampered with says which law is broken."""
    pool = KvPool(8, 4, PrefixLru())
    fill(pool, "a", ((1, 16),), 16)
    pool.idle += 1
    with pytest.raises(InvariantViolated, match="P1"):
        pool.check()


def test_check_looks_at_what_is_nobodys_too() -> None:
    """A segment that what was rewritten has no longer is a broken law like a session's."""
    pool = KvPool(8, 4, NextUse())
    fill(pool, "a", ((1, 16),), 16)
    pool.rewritten("a")
    assert not pool.owners
    pool.check()
    (_, _, _, segment) = pool._heap[0]
    segment.owners[0].segments.clear()
    with pytest.raises(InvariantViolated, match="P5"):
        pool.check()
