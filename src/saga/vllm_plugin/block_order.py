"""The order of free blocks inside vLLM: `owners.OwnedBlocks` in the place of vLLM's own free queue.

Everything that is known here of vLLM's blocks, pools and hashes is in `compatibility` too, and tested in
tests/vllm/test_contract.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue, resolve_block_hashes
from vllm.v1.kv_cache_interface import FullAttentionSpec

from saga.cache.eviction import EvictionPolicy
from saga.vllm_plugin.owners import Block, OwnedBlocks
from saga.vllm_plugin.sessions import Session


class SagaBlockQueue(OwnedBlocks, FreeKVCacheBlockQueue):
    """vLLM's free queue, every method of it replaced."""


def replace_queue(pool: BlockPool, policy: EvictionPolicy) -> SagaBlockQueue:
    """Give the pool a queue that orders by owner; what is free stays free, in the same order."""
    free = pool.free_block_queue.get_all_free_blocks()
    queue = SagaBlockQueue(free, policy, num_blocks=pool.num_gpu_blocks)
    pool.free_block_queue = queue
    return queue


def shared_front(groups: Sequence[Sequence[Any]]) -> list[Any]:
    """Blocks of a call that others hold too: what they share is the front of their contexts. O(those)."""
    shared = []
    for blocks in groups:
        for block in blocks:
            if block.ref_cnt == 1:
                break
            if not block.is_null:
                shared.append(block)
    return shared


def hashed(groups: Sequence[Sequence[Any]]) -> list[Any]:
    """Blocks of a call that can be hit. O(blocks)."""
    return [block for blocks in groups for block in blocks if block.block_hash is not None and not block.is_null]


class DeviceCache:
    """What a block pool holds of sessions' contexts: the blocks of its first full-attention group.

    groups: vLLM's `KVCacheConfig.kv_cache_groups`. Where none attends fully nothing is known to be held.
    """

    def __init__(self, pool: BlockPool, groups: Sequence[Any], hash_block_tokens: int) -> None:
        self._pool = pool
        full = [at for at, group in enumerate(groups) if isinstance(group.kv_cache_spec, FullAttentionSpec)]
        self._groups = full[:1]
        self._hash_block_tokens = hash_block_tokens
        self.block_tokens: int = groups[full[0]].kv_cache_spec.block_size if full else hash_block_tokens

    def num_blocks(self, session: Session) -> int:
        """Full blocks of its last context without the last token, which no step has read; 0 where nothing is known."""
        tokens = min(session.context_tokens - 1, len(session.block_hashes) * self._hash_block_tokens)
        return max(0, tokens // self.block_tokens) if self._groups else 0

    def block_at(self, session: Session, index: int) -> Block | None:
        """The block that holds block `index` of it."""
        hashes = resolve_block_hashes(session.block_hashes, self._hash_block_tokens, self.block_tokens)
        found = self._pool.get_cached_block(hashes[index], self._groups)
        block: Block | None = found[0] if found else None
        return block

    def blocks_of(self, groups: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        """Those KV cache groups of a call's blocks that lie in this pool; vLLM 0.29 has but one."""
        pool = self._pool
        return [blocks for blocks in groups if blocks and getattr(blocks[0], "pool", pool) is pool]
