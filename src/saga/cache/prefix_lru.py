"""What stock vLLM does: blocks leave in the order in which they fell free, tail first.

Source: vLLM v1 `FreeKVCacheBlockQueue` (0.32): a finished request appends its blocks in reverse order.
"""

from __future__ import annotations

from dataclasses import dataclass

from saga.cache.eviction import EvictionKey
from saga.views import CacheOwner


@dataclass(frozen=True)
class PrefixLru:
    """No opinion about owners: with equal keys the cache falls back to the order of freeing."""

    def key(self, owner: CacheOwner) -> EvictionKey:
        """The same for everybody."""
        return (0.0,)
