"""Evict by steps to execution: what is needed the most steps from now leaves first (KVFlow)."""

from __future__ import annotations

from dataclasses import dataclass

from saga.cache.eviction import EvictionKey
from saga.views import CacheOwner


@dataclass(frozen=True)
class FarthestStep:
    """Ended sessions first, then by steps until the session's next call (farthest first), then the oldest last use."""

    def key(self, owner: CacheOwner) -> EvictionKey:
        """(ended or not, minus steps to the next use, time of last use in seconds)."""
        return (0.0 if owner.standing == "ended" else 1.0, -owner.steps_to_use, owner.last_use_s)
