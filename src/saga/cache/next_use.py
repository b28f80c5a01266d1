"""Evict what is needed last: ended sessions, then unknown ones, then paused, then idle by expected return."""

from __future__ import annotations

from dataclasses import dataclass

from saga.cache.eviction import EvictionKey
from saga.views import CacheOwner

_CLASS = {"ended": 0.0, "unknown": 1.0, "paused": 2.0, "active": 3.0}


@dataclass(frozen=True)
class NextUse:
    """By standing, then farthest expected use first; the youngest task first where that is equal."""

    def key(self, owner: CacheOwner) -> EvictionKey:
        """(class of standing, minus expected use, minus task arrival)."""
        return (_CLASS[owner.standing], -owner.expected_use_s, -owner.task_arrival_s)
