"""The paper's WA-LRU: a weighted sum of recency, improbability of reuse and size; the highest sum leaves first."""

from __future__ import annotations

from dataclasses import dataclass

from saga.cache.eviction import EvictionKey
from saga.views import CacheOwner


@dataclass(frozen=True)
class WorkflowLru:
    """P_evict = alpha x recency + beta x (1 - P_reuse) + gamma x size, each 0..1 (paper: 0.3 / 0.5 / 0.2).

    Recency is age / horizon (TTL_max, 300 s) without a clip, so that the order does not change as time passes and
    needs no re-sorting: all ages grow alike. P_reuse of a session that has ended is 0. Size is context / capacity.
    """

    alpha: float = 0.3
    beta: float = 0.5
    gamma: float = 0.2
    horizon_s: float = 300.0

    def key(self, owner: CacheOwner) -> EvictionKey:
        """Minus P_evict up to the part of recency that is the same for all."""
        stale = -self.alpha * owner.last_use_s / self.horizon_s
        reuse = 0.0 if owner.standing == "ended" else owner.reuse_probability
        improbable = self.beta * (1.0 - reuse)
        size = self.gamma * owner.context_tokens / owner.capacity_tokens
        return (-(stale + improbable + size),)
