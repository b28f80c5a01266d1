"""Hard retention: blocks that are held as if a call used them, so that no other call gets them.

Held blocks starve calls that need room, so they are few (`max_blocks`), end with the session's retention, and are given
back at once where a call cannot run without them (`make_room`). It refuses to know sessions' standings and requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from saga.vllm_plugin.sessions import Session


class Pool(Protocol):
    """What is used of vLLM's `BlockPool`."""

    def touch(self, blocks: Sequence[Any]) -> None:
        """One more holder of each block."""
        ...

    def free_blocks(self, ordered_blocks: Iterable[Any]) -> None:
        """One holder less, in the order in which they should leave."""
        ...

    def get_num_free_blocks(self) -> int:
        """Blocks that nobody holds."""
        ...


class Pins:
    """At most max_blocks blocks of a pool, by session, the longest held first."""

    def __init__(self, pool: Pool, max_blocks: int) -> None:
        self.max_blocks = max_blocks
        self.num_blocks = 0
        self._pool = pool
        self._held: dict[Session, Sequence[Any]] = {}

    def __len__(self) -> int:
        """Sessions that hold blocks."""
        return len(self._held)

    def pin(self, session: Session, blocks: Sequence[Any]) -> bool:
        """Hold the session's blocks, as many from the front as the bound leaves room for; whether that is all."""
        self.unpin(session)
        held = blocks[: self.max_blocks - self.num_blocks]
        if held:
            self._pool.touch(held)
            self._held[session] = held
            self.num_blocks += len(held)
        return len(held) == len(blocks)

    def unpin(self, session: Session) -> None:
        """Let go, tail first; nothing where nothing is held."""
        held = self._held.pop(session, None)
        if held is not None:
            self.num_blocks -= len(held)
            self._pool.free_blocks(reversed(held))

    def make_room(self, num_blocks: int) -> int:
        """Let go of sessions until so many blocks are free or none is held; how many sessions."""
        count = 0
        while self._held and self._pool.get_num_free_blocks() < num_blocks:
            self.unpin(next(iter(self._held)))
            count += 1
        return count

    def unpin_all(self) -> None:
        """Let go of everything."""
        for session in list(self._held):
            self.unpin(session)
