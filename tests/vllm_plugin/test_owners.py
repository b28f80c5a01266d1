"""The order of free blocks, with blocks that are nothing but ids and links; vLLM's own are in tests/vllm."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.cache.eviction import EvictionKey
from saga.cache.lru import Lru
from saga.cache.next_use import NextUse
from saga.cache.steps_to_use import FarthestStep
from saga.cache.workflow_lru import WorkflowLru
from saga.views import CacheOwner
from saga.vllm_plugin.owners import OwnedBlocks


@dataclass(eq=False)
class Page:
    """A block. content: what it holds, None where nothing can hit it."""

    block_id: int
    content: object = None
    is_null: bool = False
    prev_free_block: object = field(default=None, repr=False)
    next_free_block: object = field(default=None, repr=False)

    @property
    def block_hash(self):
        return self.content


@dataclass(frozen=True)
class Stated:
    """Worth is what the owner says; nobody's blocks are worth 5."""

    def key(self, owner: CacheOwner) -> EvictionKey:
        return (owner.reuse_probability if owner.session else 5.0,)


def queue_of(num: int, policy=None) -> tuple[OwnedBlocks, list[Page]]:
    """A queue in which all of `num` blocks are free, and the blocks."""
    blocks = [Page(at) for at in range(num)]
    return OwnedBlocks(blocks, policy or Stated(), num_blocks=num), blocks


def owner(name: str, worth: float = 0.0) -> CacheOwner:
    """A session that `Stated` values at `worth`."""
    facts = CacheOwner(name)
    facts.reuse_probability = worth
    return facts


def leave(queue: OwnedBlocks, facts: CacheOwner | None, context: list[Page]) -> None:
    """A call gives its context back, as vLLM does: tail first."""
    for at, block in enumerate(context):
        block.content = block.content or (id(context), at)
    with queue.given_by(facts, []) if facts is not None else nullcontext():
        queue.append_n(context[::-1])


def ids(blocks) -> list[int]:
    """Their ids."""
    return [block.block_id for block in blocks]


def test_a_new_queue_gives_blocks_by_id():
    """Nothing can be hit yet: the order is that of the ids, as in vLLM."""
    queue, _ = queue_of(4)
    assert ids(queue.popleft_n(3)) == [0, 1, 2]
    assert queue.popleft().block_id == 3
    with pytest.raises(ValueError, match="No free blocks"):
        queue.popleft()


def test_a_block_that_is_not_free_cannot_be_removed():
    """Our caller's bug is told as vLLM tells it."""
    queue, blocks = queue_of(2)
    queue.popleft()
    with pytest.raises(RuntimeError, match="invalid block"):
        queue.remove(blocks[0])


def test_the_least_valuable_session_leaves_first_its_tail_before_its_head():
    """Whole sessions by key, each from its end."""
    queue, _ = queue_of(6)
    dear, cheap = queue.popleft_n(3), queue.popleft_n(3)
    leave(queue, owner("dear", 9), dear)
    leave(queue, owner("cheap", 1), cheap)
    assert ids(queue.get_all_free_blocks()) == [5, 4, 3, 2, 1, 0]
    assert ids(queue.popleft_n(4)) == [5, 4, 3, 2]
    queue.check()


def test_blocks_that_nothing_can_hit_leave_before_all_others():
    """The last one first, as in vLLM."""
    queue, _ = queue_of(4)
    context, loose = queue.popleft_n(2), queue.popleft_n(2)
    leave(queue, owner("ended", -100), context)
    queue.prepend_n(loose[:1])
    queue.prepend_n(loose[1:])
    assert ids(queue.popleft_n(4)) == [3, 2, 1, 0]


def test_a_shared_block_is_worth_what_its_most_valuable_owner_is_worth():
    """With the last user as its only owner a shared prompt would leave with the cheapest session."""
    queue, _ = queue_of(8)
    prompt, dear, cheap, other = (queue.popleft_n(2) for _ in range(4))
    leave(queue, owner("dear", 9), prompt + dear)
    for block in prompt:
        queue.remove(block)
    leave(queue, owner("cheap", 1), prompt + cheap)
    leave(queue, owner("other", 5), other)
    assert ids(queue.popleft_n(8)) == ids(cheap[::-1] + other[::-1] + dear[::-1] + prompt[::-1])


def test_a_shared_block_falls_with_its_best_owner_to_the_next_best():
    """An owner that has ended counts no more; the lane is where the others put it, without being touched."""
    queue, _ = queue_of(4)
    prompt, middle = queue.popleft_n(2), queue.popleft_n(2)
    best, second = owner("best", 9), owner("second", 1)
    leave(queue, best, prompt)
    for block in prompt:
        queue.remove(block)
    leave(queue, second, prompt)
    leave(queue, owner("middle", 5), middle)
    best.reuse_probability = -1
    queue.rekey(best)
    assert ids(queue.get_all_free_blocks()) == ids(prompt[::-1] + middle[::-1])
    second.reuse_probability = 7
    queue.rekey(second)
    assert ids(queue.popleft_n(4)) == ids(middle[::-1] + prompt[::-1])
    queue.check()


def test_sessions_of_which_nobody_said_anything_mix_with_nobodys_blocks_as_in_stock():
    """NextUse has no opinion about the unknown: the longest free leave first, whoever they belong to."""
    queue, _ = queue_of(6, NextUse())
    first, second, third = queue.popleft_n(2), queue.popleft_n(2), queue.popleft_n(2)
    for at_s, (facts, context) in enumerate([(None, first), (owner("silent"), second), (None, third)]):
        queue.now_s = float(at_s)
        leave(queue, facts, context)
    assert ids(queue.get_all_free_blocks()) == [1, 0, 3, 2, 5, 4]
    assert ids(queue.popleft_n(5)) == [1, 0, 3, 2, 5]


def test_nobodys_blocks_take_the_place_that_their_age_gives_them():
    """A policy by last use sees nobody's blocks as last used when each fell free."""
    queue, _ = queue_of(6, Lru())
    old, young, mine = queue.popleft_n(2), queue.popleft_n(2), queue.popleft_n(2)
    for at_s, context in ((10.0, old), (30.0, young)):
        queue.now_s = at_s
        leave(queue, None, context)
    facts = owner("mine")
    facts.last_use_s = 20.0
    leave(queue, facts, mine)
    assert ids(queue.get_all_free_blocks()) == [1, 0, 5, 4, 3, 2]
    assert ids(queue.popleft_n(6)) == [1, 0, 5, 4, 3, 2]


def test_what_a_session_rewrote_is_nobodys():
    """An agent that rewrites its history does not fill the cache with contexts that it will never send again."""
    queue, _ = queue_of(8)
    head, old, new = queue.popleft_n(1), queue.popleft_n(2), queue.popleft_n(2)
    facts = owner("writer", 9)
    leave(queue, facts, head + old)
    queue.remove(head[0])
    queue.rewritten(facts)
    queue.check()
    assert queue.num_blocks_of([facts]) == 1
    leave(queue, facts, head + new)
    queue.check()
    assert ids(queue.get_all_free_blocks())[3:] == ids(old[::-1] + new[::-1] + head)


@pytest.mark.parametrize("policy", [WorkflowLru(), FarthestStep(), NextUse()], ids=lambda policy: type(policy).__name__)
def test_what_a_session_rewrote_leaves_before_what_others_may_use_again(policy):
    """Whatever the policy looks at: nobody will ask for it. Calls without a session are not held for such."""
    queue, _ = queue_of(8, policy)
    others, old, new, loose = (queue.popleft_n(2) for _ in range(4))
    facts, other = owner("writer", 0.9), owner("other", 0.3)
    facts.standing, other.standing, other.steps_to_use = "active", "paused", 4.0
    for at_s, (whose, context) in enumerate([(other, others), (None, loose), (facts, old)]):
        queue.now_s = float(at_s)
        leave(queue, whose, context)
    queue.rewritten(facts)
    queue.check()
    leave(queue, facts, new)
    if isinstance(policy, NextUse):  # the unknown leave first, in the order of falling free
        assert ids(queue.popleft_n(2)) == ids(loose[::-1])
    assert ids(queue.popleft_n(2)) == ids(old[::-1])
    queue.check()
    assert not queue.take_losers() - {facts}


def test_what_was_rewritten_and_is_hit_is_its_new_users():
    """By a session, or by a call without one: the order among nobody's blocks is stock's then."""
    queue, _ = queue_of(6, WorkflowLru())
    old, loose = queue.popleft_n(3), queue.popleft_n(3)
    facts, heir = owner("writer", 0.9), owner("heir", 0.9)
    leave(queue, facts, old)
    queue.rewritten(facts)
    for block in old[:2]:
        queue.remove(block)
    leave(queue, heir, old[:1])
    queue.now_s = 1.0
    leave(queue, None, loose)
    queue.now_s = 2.0
    leave(queue, None, old[1:2])
    queue.check()
    assert queue.num_blocks_of([heir]) == 1
    assert ids(queue.popleft_n(1)) == ids(old[2:])
    assert queue.take_losers() == {facts}
    left = ids(queue.get_all_free_blocks())
    assert [each for each in left if each != old[0].block_id] == ids([*loose[::-1], old[1]])


def test_losers_are_told_once():
    """Who lost blocks since the last question, owners of shared ones all together."""
    queue, _ = queue_of(4)
    context, rest = queue.popleft_n(2), queue.popleft_n(2)
    one, two = owner("one", 1), owner("two", 1)
    leave(queue, one, context)
    for block in context:
        queue.remove(block)
    leave(queue, two, context)
    queue.prepend_n(rest)
    queue.popleft_n(3)
    assert {facts.session for facts in queue.take_losers()} == {"one", "two"}
    assert queue.take_losers() == set()


def test_an_owner_without_blocks_is_forgotten():
    """State follows blocks: nothing grows with the number of sessions that were served."""
    queue, _ = queue_of(4)
    for turn in range(20):
        leave(queue, owner(f"s{turn}"), queue.popleft_n(4))
    assert len(queue.owners) == 1
    queue.popleft_n(4)
    assert not queue.owners


def test_disown_all_forgets_owners_and_keeps_blocks():
    """After vLLM reset its prefix cache nothing can be hit, and every block is still there."""
    queue, _ = queue_of(6)
    leave(queue, owner("one", 1), queue.popleft_n(3))
    queue.disown_all()
    queue.check()
    assert not queue.owners
    assert sorted(ids(queue.popleft_n(6))) == list(range(6))


def test_a_cursor_walks_the_order_of_leaving():
    """What a lazily offloading connector asks for."""
    queue, _ = queue_of(6)
    leave(queue, owner("one", 1), queue.popleft_n(3))
    order = queue.get_all_free_blocks()
    assert list(queue.iter_blocks_after(None)) == order
    assert list(queue.iter_blocks_after(order[2])) == order[3:]
    assert list(queue.iter_blocks_after(Page(99))) == order


class StockModel:
    """vLLM's free queue as an ordered dictionary."""

    def __init__(self, num: int) -> None:
        self.order = OrderedDict.fromkeys(range(num))

    def pop(self, num: int) -> list[int]:
        return [self.order.popitem(last=False)[0] for _ in range(num)]

    def append(self, block_ids) -> None:
        self.order.update(dict.fromkeys(block_ids))

    def prepend(self, block_ids) -> None:
        for block_id in reversed(block_ids):
            self.order[block_id] = None
            self.order.move_to_end(block_id, last=False)


@pytest.mark.parametrize("policy", [NextUse(), Lru()], ids=lambda policy: type(policy).__name__)
@given(moves=st.lists(st.tuples(st.sampled_from(["take", "hit", "back", "spill"]), st.integers(0, 99)), max_size=60))
def test_without_sessions_the_order_is_that_of_stock_vllm(policy, moves):
    """Calls that name no session: the same blocks in the same order, whatever is done."""
    queue, blocks = queue_of(12, policy)
    model, used = StockModel(12), []
    for at, (move, number) in enumerate(moves):
        queue.now_s = at / 2
        if move == "take":
            num = number % (queue.num_free_blocks + 1)
            taken = queue.popleft_n(num)
            assert ids(taken) == model.pop(num)
            for block in taken:
                block.content = None
            used += taken
        elif move == "hit" and model.order:
            block = blocks[list(model.order)[number % len(model.order)]]
            if block.content is not None:
                queue.remove(block)
                del model.order[block.block_id]
                used.append(block)
        elif used:
            some = [used.pop() for _ in range(1 + number % len(used))]
            if move == "back":
                for block in some:
                    block.content = block.block_id
                queue.append_n(some)
                model.append(ids(some))
            else:
                for block in some:
                    block.content = None
                queue.prepend_n(some)
                model.prepend(ids(some))
        assert ids(queue.get_all_free_blocks()) == list(model.order)
        assert queue.num_free_blocks == len(model.order)
        queue.check()


class Engine:
    """Just enough of a prefix cache: contexts are paths of content, calls hold blocks and give them back."""

    def __init__(self, num: int) -> None:
        self.queue, self.blocks = queue_of(num)
        self.cached: dict[object, Page] = {}
        self.holders = [0] * num
        self.calls: list[tuple[CacheOwner, list[Page]]] = []

    def begin(self, facts: CacheOwner, path: list[object]) -> bool:
        hit = []
        for at in range(len(path)):
            block = self.cached.get(tuple(path[: at + 1]))
            if block is None:
                break
            hit.append(block)
        more = len(path) - len(hit)
        if more > self.queue.num_free_blocks - sum(not self.holders[block.block_id] for block in hit):
            return False
        for block in hit:
            if not self.holders[block.block_id]:
                self.queue.remove(block)
            self.holders[block.block_id] += 1
        fresh = self.queue.popleft_n(more)
        self.evict(fresh)
        for at, block in enumerate(fresh, len(hit)):
            self.holders[block.block_id] = 1
            content = tuple(path[: at + 1])
            block.content = content
            self.cached.setdefault(content, block)
        self.calls.append((facts, hit + fresh))
        return True

    def evict(self, fresh: list[Page]) -> None:
        for block in fresh:
            content, block.content = block.content, None
            if content is not None and self.cached.get(content) is block:
                del self.cached[content]
                free = {id(each) for each in self.queue.get_all_free_blocks()}
                for other, child in self.cached.items():
                    if other[:-1] == content and id(child) in free:
                        raise AssertionError(f"{content} left before {other}, which nobody can hit now")

    def end(self, at: int) -> None:
        facts, context = self.calls.pop(at)
        with self.queue.given_by(facts, [block for block in context if self.holders[block.block_id] > 1]):
            free = []
            for block in reversed(context):
                self.holders[block.block_id] -= 1
                if not self.holders[block.block_id]:
                    free.append(block)
            self.queue.prepend_n([block for block in free if block.content is None])
            self.queue.append_n([block for block in free if block.content is not None])


_MOVE = st.tuples(
    st.sampled_from(["begin", "end", "worth", "rewrite"]), st.integers(0, 4), st.integers(0, 9), st.integers(1, 7)
)


@given(moves=st.lists(_MOVE, max_size=80))
def test_no_head_leaves_before_its_tail_and_blocks_are_conserved(moves):
    """Sessions that share prompts, come back, fork, rise and fall in worth: a context only ever loses its end."""
    engine = Engine(14)
    sessions = [owner(f"s{number}", number) for number in range(5)]
    for at, (move, who, number, length) in enumerate(moves):
        engine.queue.now_s = float(at)
        if move == "begin":
            shared = ["prompt", "tools"][: 1 + number % 2]
            engine.begin(sessions[who], [*shared, *[(who, number // 5, turn) for turn in range(length)]])
        elif move == "end" and engine.calls:
            engine.end(number % len(engine.calls))
        elif move == "worth":
            sessions[who].reuse_probability = float(number)
            engine.queue.rekey(sessions[who])
        elif move == "rewrite":
            engine.queue.rewritten(sessions[who])
        engine.queue.check()
        held = sum(1 for holders in engine.holders if holders)
        assert held + engine.queue.num_free_blocks == 14
    rest = engine.queue.get_all_free_blocks()
    assert ids(rest) == [engine.queue.popleft().block_id for _ in rest]
