"""Least recently used first, by session."""

from __future__ import annotations

from dataclasses import dataclass

from saga.cache.eviction import EvictionKey
from saga.views import CacheOwner


@dataclass(frozen=True)
class Lru:
    """The oldest last use leaves first, whole sessions at a time (the paper's LRU)."""

    def key(self, owner: CacheOwner) -> EvictionKey:
        """Time of last use, seconds."""
        return (owner.last_use_s,)
