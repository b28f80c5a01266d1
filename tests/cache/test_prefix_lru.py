"""Stock order: the policy has no opinion, so that the order of freeing decides."""

from __future__ import annotations

from saga.cache.prefix_lru import PrefixLru
from saga.views import CacheOwner


def test_no_owner_comes_before_another() -> None:
    """Whatever is known of them, two owners are equal: the cache falls back to its own order."""
    old, ended = CacheOwner("old"), CacheOwner("ended", capacity_tokens=9, task_arrival_s=3.0)
    ended.standing, ended.last_use_s, ended.context_tokens = "ended", 50.0, 1_000
    assert PrefixLru().key(old) == PrefixLru().key(ended)
