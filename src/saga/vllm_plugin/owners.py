"""Free blocks in the order in which an eviction policy lets their owners go.

Theory of operation. Blocks with the same owners lie in one *lane*, a doubly linked list in the order in which they fell
free, tail of the context first. A lane is worth what its most valuable owner is worth (`EvictionPolicy.key`); a heap of
lanes, smallest key first and longest free first among equals, names the next block to leave. So

- blocks that nothing can hit leave first of all, the last one to fall free at once (vLLM does that too);
- a block with several owners leaves when the last of them has no use for it: heads of contexts have all the owners that
  their tails have, fell free later than these, and so leave after them;
- blocks without owner are one lane of their own, known as *nobody's*: a policy sees an owner of unknown standing that
  was last used when the longest free of them fell free. Among themselves they leave in that order, as in stock vLLM,
  and so do sessions of which nobody said anything;
- what a session has rewritten is a *stale* lane, whose owner is unknown too and will not use it again. Only free blocks
  are stale: one that is hit is nobody's until it is given back.

Cost: O(1) per block, and O(log lanes) per lane whenever an owner's facts change or a call gives blocks back; nothing is
sorted per allocation. Lanes are split only where a session shares part of a lane. Taking a block back that is hit
(`remove`) unlinks it and nothing else.

It knows of a block its id and its links, and refuses to know hashes, calls, sessions and clocks.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from heapq import heapify, heappop, heappush, heapreplace
from math import inf, nextafter
from typing import Any, Protocol

from saga.cache.eviction import EvictionKey, EvictionPolicy
from saga.errors import InvariantViolated
from saga.views import CacheOwner


class Block(Protocol):
    """What is used of vLLM's `KVCacheBlock`. block_hash: None where nothing can hit it."""

    block_id: int
    is_null: bool
    prev_free_block: Any
    next_free_block: Any

    @property
    def block_hash(self) -> bytes | None:
        """Its content's hash."""
        ...


class _End:
    """One end of a linked list of blocks."""

    __slots__ = ("block_id", "next_free_block", "prev_free_block")

    def __init__(self) -> None:
        self.block_id = -1
        self.prev_free_block: Any = None
        self.next_free_block: Any = None


class Owner:
    """A session that blocks belong to. key: what it is worth; negated: the same for a heap with the largest on top.

    alone: the lane of the blocks that nobody shares, None where there are none.
    """

    __slots__ = ("alone", "facts", "key", "lanes", "negated")

    def __init__(self, facts: CacheOwner, key: EvictionKey) -> None:
        self.facts = facts
        self.lanes: dict[Lane, None] = {}
        self.alone: Lane | None = None
        self.key = key
        self.negated = tuple([-part for part in key])


class Lane:
    """Blocks with equal owners. num_blocks: free ones and those in use; stamp: of its live heap entry, 0 for none.

    freed_s: when a block last fell free here. worth: a heap of (negated key, tie, owner), old keys among them. stale:
    its one owner is no session, and not in the books.
    """

    __slots__ = ("first", "freed_s", "key", "last", "num_blocks", "owners", "stale", "stamp", "worth")

    def __init__(self) -> None:
        self.first = _End()
        self.last = _End()
        self.first.next_free_block = self.last
        self.last.prev_free_block = self.first
        self.owners: dict[Owner, None] = {}
        self.worth: list[tuple[EvictionKey, int, Owner]] = []
        self.key: EvictionKey = ()
        self.freed_s = 0.0
        self.num_blocks = 0
        self.stale = False
        self.stamp = 0

    @property
    def empty(self) -> bool:
        """No block of it is free."""
        return self.first.next_free_block is self.last

    def take(self, num_blocks: int, taken: list[Any], lane_of: list[Lane], lane: Lane) -> int:
        """Move at most so many blocks from the front to `taken`, `lane` being theirs now; how many. O(that)."""
        first, last = self.first, self.last
        block = first.next_free_block
        begin = len(taken)
        for _ in range(num_blocks):
            if block is last:
                break
            taken.append(block)
            lane_of[block.block_id] = lane
            following = block.next_free_block
            block.prev_free_block = block.next_free_block = None
            block = following
        first.next_free_block = block
        block.prev_free_block = first
        return len(taken) - begin

    def blocks(self) -> Iterator[Any]:
        """Its free blocks, first to leave first."""
        block = self.first.next_free_block
        while block is not self.last:
            yield block
            block = block.next_free_block


class OwnedBlocks:
    """A queue of free blocks with the methods of vLLM's `FreeKVCacheBlockQueue`, ordered by owner.

    num_blocks: of the whole pool, ids run below it. now_s: the time, kept up to date by whoever owns the queue.
    """

    def __init__(self, blocks: Sequence[Any], policy: EvictionPolicy, *, num_blocks: int) -> None:
        self.policy = policy
        self.num_free_blocks = 0
        self.now_s = 0.0
        self.owners: dict[CacheOwner, Owner] = {}
        self._losers: set[CacheOwner] = set()
        self._lossy: dict[Lane, None] = {}
        self._instant_s = 0.0
        self._stamp = 0
        self._giver: Owner | None = None
        self._unhashed = Lane()
        self._nobodys = Lane()
        self._nobody = CacheOwner("")
        self._lane_of = [self._nobodys] * num_blocks
        self._freed_s = array("d", bytes(8 * num_blocks))
        self._heap: list[tuple[EvictionKey, float, int, Lane]] = []
        self._sweep_at = 64
        self.prepend_n(blocks)

    # What vLLM calls

    def popleft(self) -> Block:
        """The next block to leave; ValueError where none is free."""
        if not self.num_free_blocks:
            raise ValueError("No free blocks available")
        block: Block = self.popleft_n(1)[0]
        return block

    def popleft_n(self, n: int) -> list[Any]:
        """The next n blocks to leave; there must be as many. O(n + lanes touched * log)."""
        assert self.num_free_blocks >= n
        self.num_free_blocks -= n
        taken: list[Any] = []
        if not self._unhashed.empty:
            n -= self._unhashed.take(n, taken, self._lane_of, self._nobodys)
        while n:
            n -= self._take_from_next(n, taken)
        return taken

    def remove(self, block: Block) -> None:
        """Take a free block out, wherever it is; RuntimeError where it is not free. O(1)."""
        before, after = block.prev_free_block, block.next_free_block
        if before is None or after is None:
            raise RuntimeError(f"remove() called on an invalid block: {block}")
        before.next_free_block = after
        after.prev_free_block = before
        block.prev_free_block = block.next_free_block = None
        self.num_free_blocks -= 1
        lane = self._lane_of[block.block_id]
        if lane.stale:
            self._lane_of[block.block_id] = self._nobodys
            self._lost(lane, 1)

    def append(self, block: Block) -> None:
        """A block that can be hit falls free."""
        self.append_n([block])

    def append_n(self, blocks: Sequence[Any]) -> None:
        """Blocks that can be hit fall free, first to leave first. O(blocks + lanes touched * log)."""
        if not blocks:
            return
        self.num_free_blocks += len(blocks)
        self._instant_s = max(self.now_s, nextafter(self._instant_s, inf))
        if self._giver is not None:
            blocks = self._append_alone(self._giver, blocks)
            if not blocks:
                return
            self._own(self._giver, blocks)
        lane_of, freed_s, instant_s = self._lane_of, self._freed_s, self._instant_s
        lane: Lane | None = None
        end: Any = None
        for block in blocks:
            its_lane = lane_of[block.block_id]
            if its_lane is not lane:
                if lane is not None:
                    self._close_run(lane, end)
                lane = its_lane
                end = its_lane.last.prev_free_block
            end.next_free_block = block
            block.prev_free_block = end
            end = block
            if lane is self._nobodys:
                freed_s[block.block_id] = instant_s
        if lane is not None:
            self._close_run(lane, end)

    def prepend_n(self, blocks: Sequence[Any]) -> None:
        """Blocks that nothing can hit fall free. O(blocks)."""
        end = self._unhashed.first
        beyond = end.next_free_block
        lane_of, nobodys = self._lane_of, self._nobodys
        for block in blocks:
            end.next_free_block = block
            block.prev_free_block = end
            end = block
            lane = lane_of[block.block_id]
            if lane is not nobodys:
                lane_of[block.block_id] = nobodys
                self._lost(lane, 1)
        end.next_free_block = beyond
        beyond.prev_free_block = end
        self.num_free_blocks += len(blocks)

    def get_all_free_blocks(self) -> list[Any]:
        """All of them, in the order in which `popleft` would give them. O(free blocks * log)."""
        runs = [(lane.key, lane.freed_s, lane.stamp, list(lane.blocks())) for lane in self._listed()]
        runs += [
            (self._key_of_nobody(block), self._freed_s[block.block_id], self._nobodys.stamp, [block])
            for block in self._nobodys.blocks()
        ]
        runs.sort(key=lambda run: run[:3])
        return [*self._unhashed.blocks(), *(block for run in runs for block in run[3])]

    def iter_blocks_after(self, cursor: Block | None) -> Iterator[Any]:
        """Free blocks in that order after `cursor`; from the start where it is None or not free."""
        blocks = self.get_all_free_blocks()
        begin = next((at + 1 for at, block in enumerate(blocks) if block is cursor), 0)
        return iter(blocks[begin:])

    # Owners

    @contextmanager
    def given_by(self, facts: CacheOwner, in_use: Sequence[Any]) -> Iterator[None]:
        """Within it a call of the session gives its blocks back: what falls free belongs to the session too.

        in_use: its blocks that others use as well and that do not fall free. O(blocks).
        """
        owner = self.owners.get(facts)
        if owner is None:
            owner = self.owners[facts] = Owner(facts, self.policy.key(facts))
        self._own(owner, in_use)
        self._giver = owner
        try:
            yield
        finally:
            self._giver = None
            if not owner.lanes:
                self.owners.pop(facts, None)

    def rewritten(self, facts: CacheOwner) -> None:
        """A call of the session has begun: what is its alone and still free is no part of its context any more.

        It is stale then, so that an agent that rewrites its history does not fill the cache. O(those blocks).
        """
        owner = self.owners.get(facts)
        alone = owner.alone if owner is not None else None
        if alone is None or alone.empty:
            return
        nobody = CacheOwner("", capacity_tokens=facts.capacity_tokens)
        nobody.stand_for_rewritten(facts)
        nobody.last_use_s = alone.freed_s
        lane = self._new_lane((Owner(nobody, self.policy.key(nobody)),))
        lane.stale = True
        blocks: list[Any] = []
        lane.num_blocks = alone.take(alone.num_blocks, blocks, self._lane_of, lane)
        self.num_free_blocks -= lane.num_blocks
        self._lost(alone, lane.num_blocks)
        self.append_n(blocks)

    def rekey(self, facts: CacheOwner) -> None:
        """The session's facts changed. O(its lanes * log)."""
        owner = self.owners.get(facts)
        if owner is None:
            return
        key = self.policy.key(facts)
        if key == owner.key:
            return
        owner.key = key
        owner.negated = tuple([-part for part in key])
        for lane in owner.lanes:
            if len(lane.owners) > 1:
                self._note_worth(lane, owner)
            if lane.stamp:
                self._push(lane)

    def num_blocks_of(self, sessions: Iterable[CacheOwner]) -> int:
        """Blocks that belong to any of the sessions, free or in use. O(their lanes)."""
        owners = [self.owners[facts] for facts in sessions if facts in self.owners]
        return sum(lane.num_blocks for lane in {lane for owner in owners for lane in owner.lanes})

    def take_losers(self) -> set[CacheOwner]:
        """Sessions that lost blocks since the last call. O(them)."""
        losers, self._losers = self._losers, set()
        losers.update(owner.facts for lane in self._lossy for owner in lane.owners)
        self._lossy.clear()
        return losers

    def forget_losers(self) -> None:
        """Nobody wants to know. O(1)."""
        self._losers.clear()
        self._lossy.clear()

    def disown_all(self) -> None:
        """Nothing can be hit any more: all blocks, free or not, are nobody's, and free ones unhashed. O(blocks)."""
        blocks = self.get_all_free_blocks()
        for lane in (self._unhashed, self._nobodys, *self._listed()):
            lane.take(len(blocks), [], self._lane_of, self._nobodys)
            lane.stamp = 0
        self._losers.update(self.owners)
        self._lossy.clear()
        self.owners.clear()
        self._heap.clear()
        self._lane_of = [self._nobodys] * len(self._lane_of)
        self.num_free_blocks = 0
        self.prepend_n(blocks)

    # Lanes

    def _append_alone(self, owner: Owner, blocks: Sequence[Any]) -> Sequence[Any]:
        """Put those from the front that nobody shares into the owner's own lane; the rest. O(blocks)."""
        alone, nobodys, lane_of = owner.alone, self._nobodys, self._lane_of
        if alone is None:
            if lane_of[blocks[0].block_id] is not nobodys:
                return blocks
            alone = owner.alone = self._new_lane((owner,))
        end = before = alone.last.prev_free_block
        num_new = 0
        rest: Sequence[Any] = ()
        coming = iter(blocks)
        for block in coming:
            block_id = block.block_id
            lane = lane_of[block_id]
            if lane is not alone:
                if lane is not nobodys:
                    rest = [block, *coming]
                    break
                lane_of[block_id] = alone
                num_new += 1
            end.next_free_block = block
            block.prev_free_block = end
            end = block
        if end is not before:
            alone.num_blocks += num_new
            self._close_run(alone, end)
        return rest

    def _own(self, owner: Owner, blocks: Sequence[Any]) -> None:
        """These blocks, none of them in a list, belong to the session too. O(blocks)."""
        alone = owner.alone
        lane_of, nobodys = self._lane_of, self._nobodys
        shared: dict[Lane, list[int]] = {}
        known = alone
        for block in blocks:
            block_id = block.block_id
            lane = lane_of[block_id]
            if lane is known:
                continue
            if lane is alone or owner in lane.owners:
                known = lane
                continue
            if lane is not nobodys:
                shared.setdefault(lane, []).append(block_id)
                continue
            if alone is None:
                alone = owner.alone = self._new_lane((owner,))
            lane_of[block_id] = alone
            alone.num_blocks += 1
        for lane, ids in shared.items():
            self._share(lane, ids, owner)

    def _close_run(self, lane: Lane, end: Block) -> None:
        """Blocks were linked behind the lane's last one, up to `end`."""
        end.next_free_block = lane.last
        lane.last.prev_free_block = end
        lane.freed_s = self._instant_s
        self._push(lane)

    def _push(self, lane: Lane) -> None:
        """A new entry for a lane with free blocks; older ones die."""
        if lane is self._nobodys:
            if lane.stamp:
                return
            block = lane.first.next_free_block
            lane.key, lane.freed_s = self._key_of_nobody(block), self._freed_s[block.block_id]
        else:
            lane.key = self._worth(lane)
        self._stamp += 1
        lane.stamp = self._stamp
        if len(self._heap) > self._sweep_at:
            self._sweep()
        heappush(self._heap, (lane.key, lane.freed_s, lane.stamp, lane))

    def _sweep(self) -> None:
        """Drop dead entries and those of lanes without free blocks."""
        live = []
        for entry in self._heap:
            lane = entry[3]
            if entry[2] == lane.stamp:
                if lane.empty:
                    lane.stamp = 0
                else:
                    live.append(entry)
        heapify(live)
        self._heap = live
        self._sweep_at = 2 * len(live) + 64

    def _take_from_next(self, num_blocks: int, taken: list[Any]) -> int:
        """At most so many blocks of the lane that is next; how many, perhaps none."""
        heap = self._heap
        _, freed_s, stamp, lane = heap[0]
        if stamp != lane.stamp:
            heappop(heap)
            return 0
        if lane is self._nobodys and not lane.empty and len(heap) > 1:
            block = lane.first.next_free_block
            its_freed_s = self._freed_s[block.block_id]
            if its_freed_s != freed_s:  # what this entry spoke of is gone
                heapreplace(heap, (self._key_of_nobody(block), its_freed_s, stamp, lane))
                return 0
            num_blocks = self._num_freed_at(its_freed_s, num_blocks)
        num_taken = lane.take(num_blocks, taken, self._lane_of, self._nobodys)
        if lane.empty:
            heappop(heap)
            lane.stamp = 0
        if lane is not self._nobodys and num_taken:
            self._lost(lane, num_taken)
        return num_taken

    def _num_freed_at(self, freed_s: float, most: int) -> int:
        """How many of nobody's blocks, at most `most`, fell free together first."""
        count = 0
        for block in self._nobodys.blocks():
            if count == most or self._freed_s[block.block_id] != freed_s:
                break
            count += 1
        return count

    def _lost(self, lane: Lane, num_blocks: int) -> None:
        """So many blocks of the lane became nobody's. O(1), the last ones O(owners)."""
        lane.num_blocks -= num_blocks
        if not lane.stale:
            self._lossy[lane] = None
        if not lane.num_blocks:
            self._end(lane)

    def _end(self, lane: Lane) -> None:
        """Its last block left: nothing points at it any more, nor it at anybody."""
        if self._lossy.pop(lane, self) is None:
            self._losers.update(owner.facts for owner in lane.owners)
        for owner in lane.owners:
            del owner.lanes[lane]
            if owner.alone is lane:
                owner.alone = None
            if not owner.lanes:
                self.owners.pop(owner.facts, None)
        lane.owners = {}
        lane.worth = []
        lane.stamp = -1
        lane.first.next_free_block = lane.last.prev_free_block = None

    def _new_lane(self, owners: Iterable[Owner]) -> Lane:
        lane = Lane()
        for owner in owners:
            self._join(lane, owner)
        return lane

    def _join(self, lane: Lane, owner: Owner) -> None:
        lane.owners[owner] = None
        owner.lanes[lane] = None
        self._note_worth(lane, owner)

    def _share(self, lane: Lane, ids: list[int], owner: Owner) -> None:
        """These blocks of the lane, none of them free, get one more owner: all of it, or a lane of their own."""
        if len(ids) == lane.num_blocks:
            other = next(iter(lane.owners))
            if other.alone is lane:
                other.alone = None
            if len(lane.owners) == 1:
                self._note_worth(lane, other)  # its key may have moved while it was the only one
            self._join(lane, owner)
            return
        split = self._new_lane((*lane.owners, owner))
        split.num_blocks = len(ids)
        lane.num_blocks -= len(ids)
        for block_id in ids:
            self._lane_of[block_id] = split

    def _note_worth(self, lane: Lane, owner: Owner) -> None:
        """The owner's key is new to the lane. O(log owners), amortised."""
        if len(lane.worth) > 2 * len(lane.owners) + 16:
            lane.worth = [(other.negated, at, other) for at, other in enumerate(lane.owners) if other is not owner]
            heapify(lane.worth)
        self._stamp += 1
        heappush(lane.worth, (owner.negated, self._stamp, owner))

    @staticmethod
    def _worth(lane: Lane) -> EvictionKey:
        """The key of its most valuable owner. Amortised O(log owners)."""
        if len(lane.owners) == 1:
            return next(iter(lane.owners)).key
        worth = lane.worth
        while worth[0][0] is not worth[0][2].negated:
            heappop(worth)
        return worth[0][2].key

    def _key_of_nobody(self, block: Block) -> EvictionKey:
        self._nobody.last_use_s = self._freed_s[block.block_id]
        return self.policy.key(self._nobody)

    def _listed(self) -> list[Lane]:
        """Owned lanes with free blocks."""
        return [
            lane
            for _, _, stamp, lane in self._heap
            if stamp == lane.stamp and not lane.empty and lane is not self._nobodys
        ]

    # Laws

    def check(self) -> None:
        """Raise InvariantViolated where the queue contradicts itself. O(blocks); for tests and sampling."""
        free = [block.block_id for block in self.get_all_free_blocks()]
        if len(free) != self.num_free_blocks or len(set(free)) != len(free):
            raise InvariantViolated(f"Q1 free blocks: {len(free)} listed, {self.num_free_blocks} counted")
        for lane in {*self._lane_of} - {self._nobodys}:
            self._check_lane(lane)
        for facts, owner in self.owners.items():
            if owner.facts is not facts or not owner.lanes or any(not lane.num_blocks for lane in owner.lanes):
                raise InvariantViolated(f"Q2 owner {facts.session!r} has lanes, and each of them has blocks")
            if owner.alone is not None and list(owner.alone.owners) != [owner]:
                raise InvariantViolated(f"Q3 what is {facts.session!r}'s alone has no other owner")

    def _check_lane(self, lane: Lane) -> None:
        count = sum(its_lane is lane for its_lane in self._lane_of)
        if count != lane.num_blocks:
            raise InvariantViolated(f"Q4 blocks of a lane: {count} point at it, {lane.num_blocks} counted")
        if not lane.owners or any(lane not in owner.lanes for owner in lane.owners):
            raise InvariantViolated("Q5 a lane has owners, and each of them lists it")
        if any(self._lane_of[block.block_id] is not lane for block in lane.blocks()):
            raise InvariantViolated("Q6 a free block lies in the lane of its owners")
        if not lane.empty and lane.key != max(owner.key for owner in lane.owners):
            raise InvariantViolated("Q7 a lane is worth what its most valuable owner is worth")
