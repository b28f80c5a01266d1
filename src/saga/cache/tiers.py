"""The host tier: whether evicted prefixes have somewhere to go, and when they are copied there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from saga.cache.eviction import EvictionKey, EvictionPolicy
from saga.cache.prefix_lru import PrefixLru
from saga.views import CacheOwner

_CLASS = {"ended": 0.0, "active": 1.0, "unknown": 2.0, "paused": 3.0}


class HostTier(Protocol):
    """A frozen dataclass: what is done with host memory."""

    @property
    def enabled(self) -> bool:
        """Whether workers keep a host tier at all."""
        ...

    @property
    def eviction(self) -> EvictionPolicy:
        """What leaves the tier when it is full."""
        ...


@dataclass(frozen=True)
class PausedLast:
    """Keep what only the tier has.

    Ended sessions leave first, then active ones (their prefix is on the device), then paused ones by farthest use.
    A tier that also copies what is on the device holds nothing more than the device as soon as it is the smaller one.
    """

    def key(self, owner: CacheOwner) -> EvictionKey:
        """(class of standing, minus expected use, time of last use)."""
        return (_CLASS[owner.standing], -owner.expected_use_s, owner.last_use_s)


@dataclass(frozen=True)
class NoHostTier:
    """What leaves the device is gone."""

    enabled: bool = False
    eviction: EvictionPolicy = field(default=PrefixLru())


@dataclass(frozen=True)
class WriteBack:
    """What is computed is written back at once, so that eviction costs nothing later.

    By default blocks leave in the order of their own last use, as in vLLM (0.32 `LRUCachePolicy`).
    """

    enabled: bool = True
    eviction: EvictionPolicy = field(default=PrefixLru())
