"""Pins and drops: standings put before another policy's order. Each wraps a policy, and refuses to know which."""

from __future__ import annotations

from dataclasses import dataclass

from saga.cache.eviction import EvictionKey, EvictionPolicy
from saga.views import CacheOwner


@dataclass(frozen=True)
class Pinned:
    """A retained prefix leaves only when nothing else is left (a pin that cannot deadlock the engine)."""

    within: EvictionPolicy

    def key(self, owner: CacheOwner) -> EvictionKey:
        """(pinned or not, the key of the policy within)."""
        return (1.0 if owner.standing == "active" else 0.0, *self.within.key(owner))


@dataclass(frozen=True)
class EndedFirst:
    """What is known to have ended leaves before everything else (TensorRT-LLM's proactive drop)."""

    within: EvictionPolicy

    def key(self, owner: CacheOwner) -> EvictionKey:
        """(ended or not, the key of the policy within)."""
        return (0.0 if owner.standing == "ended" else 1.0, *self.within.key(owner))
