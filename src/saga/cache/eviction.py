"""The eviction protocol: a policy names a key for an idle owner, and the smallest key leaves first.

The key is computed when the owner falls idle and again only when one of its facts changes, so a cache
keeps an incremental order (a heap) and never re-sorts. Within one owner blocks leave tail first; a block
with several owners has the largest of their keys. Policies refuse to know blocks, prefixes and clocks.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

from saga.views import CacheOwner

EvictionKey: TypeAlias = tuple[float, ...]


class EvictionPolicy(Protocol):
    """A frozen dataclass with this one question. Keys of one policy have one length."""

    def key(self, owner: CacheOwner) -> EvictionKey:
        """Rank of an idle owner: the smallest is evicted first. O(1)."""
        ...
