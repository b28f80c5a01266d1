"""What leaves a full host tier first: chunks of KV in the order of an eviction policy, by the sessions they belong to.

Theory of operation. A chunk lies in the *lane* of its owners and has a rank: fresh from every call that used it, the
tail of the call's context being the oldest, so a context is left with a front. A lane is worth what its most valuable
owner is worth (`EvictionPolicy.key`); a heap of lanes says which lane loses a chunk next, a heap in the lane which one.
Both are lazy: entries that no longer speak true are dropped or renewed when they are met, so a change of standing costs
O(lanes of the session), not O(its chunks), and nothing is sorted.

It knows keys of bytes and owners, and refuses to know vLLM, copies and clocks.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from heapq import heapify, heappop, heappush

from saga.cache.eviction import EvictionKey, EvictionPolicy
from saga.errors import InvariantViolated
from saga.views import CacheOwner

_MAX_OWNERS = 8


class _Chunk:
    """free: nobody copies it now, it may leave."""

    __slots__ = ("free", "lane", "rank")

    def __init__(self, lane: _Lane, rank: int) -> None:
        self.lane = lane
        self.rank = rank
        self.free = False


class _Lane:
    """Chunks with equal owners. oldest: a heap of (rank, key) of free ones. stamp: of its live heap entry, 0: none."""

    __slots__ = ("num_chunks", "num_free", "oldest", "owners", "stamp")

    def __init__(self, owners: tuple[CacheOwner, ...]) -> None:
        self.owners = owners
        self.oldest: list[tuple[int, bytes]] = []
        self.num_chunks = self.num_free = self.stamp = 0


class TierOrder:
    """The chunks of one tier."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self.policy = policy
        self._chunks: dict[bytes, _Chunk] = {}
        self._lanes: dict[tuple[CacheOwner, ...], _Lane] = {}
        self._lanes_of: dict[CacheOwner, dict[_Lane, None]] = {}
        self._heap: list[tuple[EvictionKey, int, _Lane]] = []
        self._stamp = 0
        self._rank = 0

    def __len__(self) -> int:
        """Chunks here."""
        return len(self._chunks)

    def insert(self, key: bytes, owner: CacheOwner) -> None:
        """A new chunk, being written: it cannot leave yet. O(1)."""
        self._rank += 1
        lane = self._lane((owner,))
        lane.num_chunks += 1
        self._chunks[key] = _Chunk(lane, self._rank)

    def remove(self, key: bytes) -> None:
        """It is gone. O(1)."""
        chunk = self._chunks.pop(key)
        self._leave(chunk)

    def free(self, key: bytes) -> None:
        """Nobody reads or writes it any more: it may leave. O(log chunks)."""
        chunk = self._chunks[key]
        if not chunk.free:
            chunk.free = True
            chunk.lane.num_free += 1
            self._list(key, chunk)

    def hold(self, key: bytes) -> None:
        """It is read: it stays until `free`. O(1)."""
        chunk = self._chunks[key]
        if chunk.free:
            chunk.free = False
            chunk.lane.num_free -= 1

    def use(self, keys: Sequence[bytes], owner: CacheOwner) -> None:
        """A call of `owner` used them, the front of its context first; unknown ones are passed over. O(keys * log)."""
        for key in reversed(keys):
            chunk = self._chunks.get(key)
            if chunk is None:
                continue
            self._rank += 1
            chunk.rank = self._rank
            if owner not in chunk.lane.owners:
                self._move(chunk, _joined(chunk.lane.owners, owner))
            if chunk.free:
                self._list(key, chunk)

    def evict(self, count: int, safe: Container[bytes] = ()) -> list[bytes] | None:
        """Take out `count` chunks outside `safe`, the first to leave first; None, and nothing done, without so many."""
        chosen: list[bytes] = []
        passed: list[bytes] = []
        while len(chosen) < count:
            key = self._take_oldest()
            if key is None:
                break
            (passed if key in safe else chosen).append(key)
        enough = len(chosen) == count
        for key in passed if enough else [*passed, *chosen]:
            self.free(key)
        if not enough:
            return None
        for key in chosen:
            self.remove(key)
        return chosen

    def rekey(self, owner: CacheOwner) -> None:
        """What is known of the owner changed. O(its lanes * log lanes)."""
        for lane in self._lanes_of.get(owner, ()):
            if lane.stamp:
                self._push(lane)

    def clear(self) -> None:
        """Nothing is here any more."""
        for index in (self._chunks, self._lanes, self._lanes_of):
            index.clear()
        self._heap.clear()

    # Lanes

    def _lane(self, owners: tuple[CacheOwner, ...]) -> _Lane:
        lane = self._lanes.get(owners)
        if lane is None:
            lane = self._lanes[owners] = _Lane(owners)
            for owner in owners:
                self._lanes_of.setdefault(owner, {})[lane] = None
        return lane

    def _move(self, chunk: _Chunk, owners: tuple[CacheOwner, ...]) -> None:
        lane = self._lane(owners)
        lane.num_chunks += 1
        lane.num_free += chunk.free
        self._leave(chunk)
        chunk.lane = lane

    def _leave(self, chunk: _Chunk) -> None:
        lane = chunk.lane
        lane.num_chunks -= 1
        lane.num_free -= chunk.free
        if lane.num_chunks:
            return
        lane.stamp = 0
        del self._lanes[lane.owners]
        for owner in lane.owners:
            lanes = self._lanes_of[owner]
            del lanes[lane]
            if not lanes:
                del self._lanes_of[owner]

    def _list(self, key: bytes, chunk: _Chunk) -> None:
        """An entry for a free chunk, under its present rank."""
        lane = chunk.lane
        if len(lane.oldest) > 2 * lane.num_chunks + 64:
            lane.oldest = list({entry for entry in lane.oldest if self._speaks_true(lane, entry)})
            heapify(lane.oldest)
        heappush(lane.oldest, (chunk.rank, key))
        if not lane.stamp:
            self._push(lane)

    def _speaks_true(self, lane: _Lane, entry: tuple[int, bytes]) -> bool:
        chunk = self._chunks.get(entry[1])
        return chunk is not None and chunk.free and chunk.lane is lane and chunk.rank == entry[0]

    def _push(self, lane: _Lane) -> None:
        self._stamp += 1
        lane.stamp = self._stamp
        if len(self._heap) > 2 * len(self._lanes) + 64:
            self._heap = [entry for entry in self._heap if entry[1] == entry[2].stamp]
            heapify(self._heap)
        heappush(self._heap, (self._worth(lane), lane.stamp, lane))

    def _worth(self, lane: _Lane) -> EvictionKey:
        return max([self.policy.key(owner) for owner in lane.owners])

    def _take_oldest(self) -> bytes | None:
        """The next chunk to leave, held from now on."""
        while self._heap:
            worth, stamp, lane = self._heap[0]
            if stamp != lane.stamp or not lane.num_free:
                heappop(self._heap)
                lane.stamp = 0 if stamp == lane.stamp else lane.stamp
            elif worth != self._worth(lane):
                heappop(self._heap)
                self._push(lane)
            else:
                entry = heappop(lane.oldest)
                if self._speaks_true(lane, entry):
                    self.hold(entry[1])
                    return entry[1]
        return None

    # Laws

    def check(self) -> None:
        """Raise InvariantViolated where the order contradicts itself. O(chunks); for tests."""
        for lane in self._lanes.values():
            mine = {key: chunk for key, chunk in self._chunks.items() if chunk.lane is lane}
            listed = {entry[1] for entry in lane.oldest if self._speaks_true(lane, entry)}
            free = {key for key, chunk in mine.items() if chunk.free}
            if (len(mine), len(free)) != (lane.num_chunks, lane.num_free) or not mine:
                raise InvariantViolated(f"O1 chunks of a lane: {len(mine)}, {len(free)} free; {lane.num_chunks} kept")
            if listed != free or (free and not lane.stamp):
                raise InvariantViolated(f"O2 every free chunk is listed: {len(free)} free, {len(listed)} listed")
        if sum(lane.num_chunks for lane in self._lanes.values()) != len(self._chunks):
            raise InvariantViolated("O3 every chunk lies in a lane")


def _joined(owners: tuple[CacheOwner, ...], owner: CacheOwner) -> tuple[CacheOwner, ...]:
    """One owner more; beyond a few one that has ended, or the first, makes room."""
    if len(owners) >= _MAX_OWNERS:
        leaver = next((other for other in owners if other.standing == "ended"), owners[0])
        owners = tuple(other for other in owners if other is not leaver)
    return (*owners, owner)
