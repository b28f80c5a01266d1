"""The DRAM tier of one worker: a second prefix cache behind the device's, and the link that loads from it.

What a finished or preempted call computed is written back at once (the real write is asynchronous and rarely the
bottleneck; its time is not modelled), loading takes its time on a serial link. Source of the behaviour: vLLM 0.32
`OffloadingConnector`. This module refuses to know calls and iterations.
"""

from __future__ import annotations

from dataclasses import dataclass

from saga.cache.eviction import EvictionKey, EvictionPolicy
from saga.commands import Standing
from saga.engine.kv_pool import KvPool, Span
from saga.engine.link import Link
from saga.views import CacheOwner

_ENDED: str = Standing.ENDED.value


@dataclass(frozen=True)
class EndedFirst:
    """Sessions known to have ended leave first, the others in the order of their last use."""

    def key(self, owner: CacheOwner) -> EvictionKey:
        """(0 where ended, else 1; time of last use, seconds)."""
        return (0.0 if owner.standing == _ENDED else 1.0, owner.last_use_s)


class HostTier:
    """capacity_tokens of DRAM in blocks of block_tokens; load_tokens_per_s of its link to the device."""

    def __init__(
        self,
        capacity_tokens: int,
        block_tokens: int,
        load_tokens_per_s: float,
        policy: EvictionPolicy,
        *,
        report_evicted: bool = False,
    ) -> None:
        self.pool = KvPool(capacity_tokens // block_tokens, block_tokens, policy, report_evicted=report_evicted)
        self.link = Link(load_tokens_per_s)

    def store(self, session: str, spans: tuple[Span, ...], tokens: int, at_s: float) -> None:
        """Write back the full blocks of a context that are not here yet, as far as they fit. O(segments)."""
        pool = self.pool
        blocks = tokens // pool.block_tokens
        hit = pool.lookup(spans, blocks)
        lease = pool.open(session, spans, hit)
        pool.grow(lease, min(blocks, hit + pool.available) * pool.block_tokens)
        pool.close(lease, tokens=tokens, at_s=at_s)

    def lookup(self, spans: tuple[Span, ...], max_blocks: int) -> int:
        """Leading blocks of the path that are here. O(streams)."""
        return self.pool.lookup(spans, max_blocks)

    def load(self, blocks: int, at_s: float) -> float:
        """Start loading `blocks` blocks to the device; when they are there, seconds."""
        return self.link.transfer(blocks * self.pool.block_tokens, at_s)
