"""The free queue inside vLLM's own block pool: the laws that the pool relies on, with vLLM's queue as the model."""

from __future__ import annotations

import random

import pytest

from saga.cache.next_use import NextUse
from saga.views import CacheOwner

from .standalone import Loop, real_vllm, words


def pools(num=20):
    """A pool of vLLM, and one with the queue of the plug-in."""
    real_vllm()
    from vllm.v1.core.block_pool import BlockPool

    from saga.vllm_plugin.block_order import replace_queue

    stock, ours = (BlockPool(num_gpu_blocks=num, enable_caching=True, hash_block_size=16) for _ in range(2))
    return stock, ours, replace_queue(ours, NextUse())


def cache(pool, block) -> None:
    """Let the block be found."""
    from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id

    key = make_block_hash_with_group_id(b"%032d" % block.block_id, 0)
    block.set_block_hash(key)
    pool.cached_block_hash_to_block.insert(key, block)


def test_the_queue_takes_over_what_is_free_in_the_same_order():
    """The null block stays out, the rest as it was."""
    stock, ours, queue = pools()
    order = [block.block_id for block in stock.free_block_queue.get_all_free_blocks()]
    assert [block.block_id for block in queue.get_all_free_blocks()] == order == list(range(1, 20))
    assert ours.get_num_free_blocks() == 19
    assert ours.free_block_queue is queue


def test_without_owners_a_pool_gives_the_same_blocks_as_stock():
    """Random allocation, hits and returns: the same block ids in the same order, to the end."""
    dice = random.Random(2)
    stock, ours, queue = pools()
    held: list[int] = []
    for _ in range(2_000):
        move = dice.random()
        if move < 0.4:
            count = dice.randrange(min(6, stock.get_num_free_blocks()) + 1)
            got = [[block.block_id for block in pool.get_new_blocks(count)] for pool in (stock, ours)]
            assert got[0] == got[1]
            held += got[0]
            for block_id in got[0]:
                if dice.random() < 0.8:
                    for pool in (stock, ours):
                        cache(pool, pool.blocks[block_id])
        elif move < 0.6:
            cached = [block.block_id for block in stock.blocks if block.block_hash is not None]
            some = dice.sample(cached, min(len(cached), dice.randrange(4)))
            for pool in (stock, ours):
                pool.touch([pool.blocks[block_id] for block_id in some])
            held += some
        else:
            dice.shuffle(held)
            some = [held.pop() for _ in range(min(len(held), dice.randrange(6)))]
            for pool in (stock, ours):
                pool.free_blocks([pool.blocks[block_id] for block_id in some])
        assert ours.get_num_free_blocks() == stock.get_num_free_blocks()
        queue.check()
    orders = [[block.block_id for block in pool.free_block_queue.get_all_free_blocks()] for pool in (stock, ours)]
    assert orders[0] == orders[1]


def test_too_many_blocks_are_refused_as_by_stock():
    """A pool without blocks says so, and nothing is lost."""
    _, ours, queue = pools(4)
    ours.get_new_blocks(3)
    with pytest.raises(ValueError, match="free blocks"):
        ours.get_new_blocks(1)
    with pytest.raises(ValueError, match="No free blocks"):
        queue.popleft()


def test_blocks_that_only_others_hold_on_to_are_owned_too():
    """A session that leaves while another uses the shared front: the front is its own all the same."""
    _, ours, queue = pools()
    front = ours.get_new_blocks(2)
    for block in front:
        cache(ours, block)
    ours.touch(front)
    one, two = CacheOwner("one"), CacheOwner("two")
    with queue.given_by(one, front):
        ours.free_blocks(reversed(front))
    assert ours.get_num_free_blocks() == 17
    with queue.given_by(two, []):
        ours.free_blocks(reversed(front))
    queue.check()
    assert [queue.num_blocks_of([facts]) for facts in (one, two)] == [2, 2]


def test_an_owner_whose_key_moved_while_it_was_alone_still_counts_when_it_shares():
    """A lane that gets its second owner is worth the first one's present key, not what it was worth at first."""
    _, ours, queue = pools()
    blocks = ours.get_new_blocks(2)
    for block in blocks:
        cache(ours, block)
    dear, cheap = CacheOwner("dear"), CacheOwner("cheap")
    with queue.given_by(dear, []):
        ours.free_blocks(blocks)
    dear.standing, cheap.standing = "active", "ended"
    queue.rekey(dear)
    ours.touch(blocks)
    with queue.given_by(cheap, []):
        ours.free_blocks(blocks)
    queue.check()


def test_an_engine_that_serves_sessions_keeps_every_law_at_every_step():
    """Forks, shared prompts, preemption for blocks, growth: the queue is checked after each step."""
    dice = random.Random(7)
    loop = Loop(blocks=70, running=5, depth=2)
    for at in range(80):
        number = dice.randrange(6)
        prompt = words(99, 64 * dice.randrange(1, 4)) + words(number, 40 + 16 * dice.randrange(20))
        loop.submit(f"c{at}", prompt, dice.randrange(3, 80), session=f"s{number}", saga_expected_gap_s=float(number))
        for _ in range(dice.randrange(10)):
            loop.step(0.05)
            loop.queue.check()
    loop.run()
    loop.check()
    assert sum(each.num_preemptions for each in loop.requests.values()) > 0
