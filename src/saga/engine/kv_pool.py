"""A prefix cache of KV blocks that behaves block by block and is stored run by run.

Theory of operation. A prompt is a path of streams (`views.PromptPath`); block b (block_tokens tokens) belongs to
the stream that contains its last token, so the streams form a tree of blocks: each stream begins at one block of
its parent and is resident as a run of consecutive blocks from there. A run is cut into *segments*: consecutive
blocks held by the same number of leases and fallen idle at the same time. Everything costs O(segments touched),
one or two per stream of a path, never O(blocks).

A *lease* is what a running call holds: `hashed` blocks that others can hit too, and `blocks - hashed` anonymous
ones (the partial tail, blocks in transfer). A block held by no lease is idle: it can be hit, and it can be
evicted. Only what nothing resident builds upon can be evicted (leaf first, tail first), in the order of
(policy key of its most valuable owner, time of falling idle, depth); with `PrefixLru` this is the order of the
free queue of vLLM v1 (0.32 `BlockPool`): a lease returns its blocks tail first, unhashed blocks are used again
first. One difference: where two calls compute the same block at the same time vLLM keeps both copies until they
are evicted, this pool keeps one.

It refuses to know calls, iterations and seconds, except the time that a policy is told.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from sys import maxsize
from typing import TypeAlias

from saga.cache.eviction import EvictionKey, EvictionPolicy
from saga.commands import Standing
from saga.errors import InvariantViolated, UsageError
from saga.views import CacheOwner, PromptPath

Span: TypeAlias = tuple[int, int, int]
"""(stream, first block, one past the last block) of a path; the last span of a path is open-ended."""

OPEN_END = maxsize
_MAX_OWNERS = 8
_ENDED: str = Standing.ENDED.value


def spans_of(path: PromptPath, block_tokens: int) -> tuple[Span, ...]:
    """The path as spans of blocks; streams too short to contain the end of a block are left out. O(streams)."""
    spans: list[Span] = []
    tokens = first = 0
    for stream, num_tokens in path:
        tokens += num_tokens
        end = tokens // block_tokens
        if end > first:
            spans.append((stream, first, end))
            first = end
    last = path[-1][0]
    if spans and spans[-1][0] == last:
        first = spans.pop()[1]
    spans.append((last, first, OPEN_END))
    return tuple(spans)


class OwnerRecord(CacheOwner):
    """A session that something in the pool belongs to, with the context it last left there.

    spans, tokens: of that context. segments: what is listed as its own; the record lives as long as there are any.
    moved: (first, one past the last) block that came from another worker and was not yet used. stale: it stands for
    what a session has rewritten, which is nobody's.
    """

    __slots__ = ("moved", "segments", "spans", "stale", "tokens")

    def __init__(self, session: str, capacity_tokens: int) -> None:
        super().__init__(session, capacity_tokens=capacity_tokens)
        self.spans: tuple[Span, ...] = ()
        self.tokens = 0
        self.moved = (0, 0)
        self.stale = False
        self.segments: dict[Segment, None] = {}


class Segment:
    """Blocks start..end of one stream with equal holders. stamp: names its live heap entry, 0 where it has none."""

    __slots__ = ("end", "freed", "key", "owners", "refs", "stamp", "start", "stream")

    def __init__(self, stream: Stream, start: int, end: int, refs: int) -> None:
        self.stream = stream
        self.start = start
        self.end = end
        self.refs = refs
        self.freed = 0
        self.stamp = 0
        self.key: EvictionKey = ()
        self.owners: tuple[OwnerRecord, ...] = ()


class Stream:
    """The resident run of one stream: `segments` in order from block `first`, never empty while it is known.

    forks: block -> number of resident streams that begin there, on blocks of this one.
    """

    __slots__ = ("first", "forks", "name", "parent", "segments")

    def __init__(self, name: int, first: int, parent: Stream | None) -> None:
        self.name = name
        self.first = first
        self.parent = parent
        self.segments: list[Segment] = []
        self.forks: dict[int, int] = {}


class Lease:
    """Blocks held for one call: the first `hashed` ones are in streams, the others anonymous.

    tail, tail_end: the stream that it extended last, and where its part of that stream ends.
    """

    __slots__ = ("blocks", "hashed", "session", "spans", "tail", "tail_end")

    def __init__(self, session: str, spans: tuple[Span, ...], blocks: int) -> None:
        self.session = session
        self.spans = spans
        self.blocks = blocks
        self.hashed = blocks
        self.tail: Stream | None = None
        self.tail_end = 0


class KvPool:
    """num_blocks blocks of block_tokens tokens. `free` blocks hold nothing, `idle` ones can be hit or evicted.

    held blocks = num_blocks - free - idle. evicted: sessions that lost blocks since `take_evicted`.
    """

    def __init__(
        self, num_blocks: int, block_tokens: int, policy: EvictionPolicy, *, report_evicted: bool = False
    ) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.policy = policy
        self.free = num_blocks
        self.idle = 0
        self.owners: dict[str, OwnerRecord] = {}
        self.evicted: dict[str, None] = {}
        self._report_evicted = report_evicted
        self._streams: dict[int, Stream] = {}
        self._heap: list[tuple[EvictionKey, int, int, Segment]] = []
        self._num_leaves = 0
        self._clock = 0

    # What is here

    @property
    def available(self) -> int:
        """Blocks that a lease could get now: free and idle ones."""
        return self.free + self.idle

    def lookup(self, spans: tuple[Span, ...], max_blocks: int) -> int:
        """Leading blocks of the path that are resident, at most max_blocks. O(streams)."""
        streams, hit = self._streams, 0
        for name, first, end in spans:
            if first >= max_blocks:
                break
            stream = streams.get(name)
            if stream is None:
                return first
            hit = stream.segments[-1].end
            if hit < end:
                return min(max_blocks, hit)
            hit = end
        return min(max_blocks, hit)

    def idle_within(self, spans: tuple[Span, ...], blocks: int) -> int:
        """How many of the first `blocks` blocks of the path, all resident, are idle. O(segments)."""
        idle = 0
        for name, first, end in spans:
            if first >= blocks:
                break
            stop = min(blocks, end)
            for segment in self._streams[name].segments:
                if segment.start >= stop:
                    break
                if not segment.refs:
                    idle += (min(stop, segment.end)) - segment.start
        return idle

    # Leases

    def open(self, session: str, spans: tuple[Span, ...], blocks: int) -> Lease:
        """Hold the first `blocks` blocks of the path, all resident (`lookup`). O(segments)."""
        for name, first, end in spans:
            if first >= blocks:
                break
            self._hold(self._streams[name], first, min(blocks, end))
        return Lease(session, spans, blocks)

    def rewritten(self, session: str) -> None:
        """A call of the session holds what it hit: what is idle and its alone is no part of its context any more.

        It is nobody's then, so that an agent that rewrites its history does not fill the cache (the plug-in's
        `OwnedBlocks.rewritten`). O(its segments * log).
        """
        owner = self.owners.get(session)
        if owner is None:
            return
        left = [segment for segment in owner.segments if not segment.refs and len(segment.owners) == 1]
        if not left:
            return
        nobody = OwnerRecord("", owner.capacity_tokens)
        nobody.stale = True
        nobody.stand_for_rewritten(owner)
        for segment in left:
            self._leave(owner, segment)
            segment.owners = (nobody,)
            nobody.segments[segment] = None
        self._rekey(nobody)

    def reserve(self, blocks: int) -> bool:
        """Take anonymous blocks, evicting idle ones at need; False, and nothing taken, where they are too few.

        The caller accounts for them: `Lease.blocks` of some lease grows by as many.
        """
        if blocks > self.free:
            if blocks > self.free + self.idle:
                return False
            self._evict(blocks - self.free)
        self.free -= blocks
        return True

    def grow(self, lease: Lease, tokens: int, *, publish: bool = True) -> bool:
        """Let the lease hold `tokens` tokens and, with `publish`, let others hit its full blocks. O(segments)."""
        more = -(-tokens // self.block_tokens) - lease.blocks
        if more > 0:
            if not self.reserve(more):
                return False
            lease.blocks += more
        if publish:
            self.publish(lease, tokens // self.block_tokens)
        return True

    def publish(self, lease: Lease, blocks: int) -> None:
        """Hash the lease's anonymous blocks up to block `blocks`. O(segments).

        Raises UsageError where a stream begins at two different places (a workload that breaks `PromptPath`).
        """
        if blocks <= lease.hashed:
            return
        if lease.tail is not None and blocks <= lease.tail_end:
            self._extend(lease.tail, lease.hashed, blocks)
            lease.hashed = blocks
            return
        parent: Stream | None = None
        for name, first, end in lease.spans:
            if first >= blocks:
                break
            stream = self._streams.get(name)
            if end > lease.hashed:
                stop = min(blocks, end)
                if stream is None:
                    stream = self._begin(name, first, parent)
                elif stream.first != first:
                    raise UsageError(f"stream {name} begins at block {stream.first} in one prompt, {first} in another")
                self._extend(stream, max(first, lease.hashed), stop)
                lease.hashed = stop
                lease.tail, lease.tail_end = stream, end
            parent = stream

    def close(self, lease: Lease, *, tokens: int, at_s: float, task_arrival_s: float = 0.0) -> None:
        """Give the lease's blocks back, the hashed ones to be hit again or evicted, tail first. O(segments).

        tokens: of context that the session leaves behind.
        """
        self.free += lease.blocks - lease.hashed
        if not lease.hashed:
            return
        owner = self._owner(lease, tokens, at_s, task_arrival_s)
        for name, first, end in reversed(lease.spans):
            if first < lease.hashed:
                self._drop(self._streams[name], min(lease.hashed, end), owner)
        self._rekey(owner)

    # Policy facts

    def set_standing(
        self,
        session: str,
        standing: Standing,
        expected_use_s: float,
        reuse_probability: float,
        steps_to_use: float = 1.0,
    ) -> None:
        """Tell the policy about a session; unknown ones are ignored. O(its segments * log)."""
        owner = self.owners.get(session)
        if owner is not None:
            owner.standing = standing.value
            owner.expected_use_s = expected_use_s
            owner.reuse_probability = reuse_probability
            owner.steps_to_use = steps_to_use
            self._rekey(owner)

    def take_evicted(self) -> list[str]:
        """Sessions, those known to have ended apart, that lost blocks since the last call; needs report_evicted."""
        sessions = list(self.evicted)
        self.evicted.clear()
        return sessions

    # Segments

    def _begin(self, name: int, first: int, parent: Stream | None) -> Stream:
        stream = Stream(name, first, parent)
        self._streams[name] = stream
        if parent is not None:
            parent.forks[first] = parent.forks.get(first, 0) + 1
        return stream

    def _hold(self, stream: Stream, start: int, stop: int) -> None:
        """One more lease on the blocks start..stop, all resident; start is a boundary of segments or held ones."""
        segments = stream.segments
        index = 0
        while index < len(segments):
            segment = segments[index]
            if segment.start >= stop:
                return
            if segment.end > start:
                if segment.end > stop:
                    segment = self._split(segment, index, stop)
                if not segment.refs:
                    self.idle -= segment.end - segment.start
                    self._unlist(segment)
                segment.refs += 1
            index += 1

    def _split(self, segment: Segment, index: int, at: int) -> Segment:
        """Cut a segment in two; the tail stays the same object (it may be in the heap), the head is returned."""
        head = Segment(segment.stream, segment.start, at, segment.refs)
        head.freed, head.owners = segment.freed, segment.owners
        for owner in head.owners:
            owner.segments[head] = None
        segment.start = at
        segment.stream.segments.insert(index, head)
        return head

    def _extend(self, stream: Stream, start: int, stop: int) -> None:
        """Anonymous blocks become start..stop of the stream; those that somebody else made are shared instead."""
        segments = stream.segments
        resident = segments[-1].end if segments else stream.first
        if resident > start:
            shared = min(resident, stop)
            self._hold(stream, start, shared)
            self.free += shared - start
            start = shared
        if start == stop:
            return
        if segments and segments[-1].refs == 1:
            segments[-1].end = stop
        else:
            segments.append(Segment(stream, start, stop, 1))

    def _drop(self, stream: Stream, stop: int, owner: OwnerRecord) -> None:
        """One lease less on the blocks up to `stop`; what falls idle is merged and, where a leaf, offered."""
        segments = stream.segments
        index = len(segments) - 1
        while segments[index].start >= stop:
            index -= 1
        later: Segment | None = None
        while index >= 0:
            segment = segments[index]
            segment.refs -= 1
            if owner not in segment.owners:
                self._add_owner(segment, owner)
            if not segment.refs:
                self.idle += segment.end - segment.start
                if later is not None and later.owners == segment.owners:
                    segment.freed = later.freed
                    segment.end = later.end
                    self._disown(later)
                    segments.remove(later)
                else:
                    self._clock += 1
                    segment.freed = self._clock
                later = segment
            index -= 1
        self._offer(stream)

    def _offer(self, stream: Stream) -> None:
        """Put the stream's tail into the heap if it is idle and has blocks that nothing builds upon."""
        tail = stream.segments[-1]
        if tail.refs or tail.stamp or (stream.forks and max(stream.forks) >= tail.end):
            return
        self._num_leaves += 1
        self._push(tail)

    def _push(self, segment: Segment) -> None:
        self._clock += 1
        segment.stamp = self._clock
        owners = segment.owners
        key = self.policy.key
        segment.key = key(owners[0]) if len(owners) == 1 else max(key(owner) for owner in owners)
        if len(self._heap) > 2 * self._num_leaves + 64:
            self._heap = [entry for entry in self._heap if entry[3].stamp == entry[2]]
            heapify(self._heap)
        heappush(self._heap, (segment.key, segment.freed, segment.stamp, segment))

    def _unlist(self, segment: Segment) -> None:
        if segment.stamp:
            segment.stamp = 0
            self._num_leaves -= 1

    def _evict(self, blocks: int) -> None:
        """Free `blocks` idle blocks in the order of the policy. Amortised O(log) per segment touched."""
        heap = self._heap
        while blocks > 0:
            _, _, stamp, segment = heap[0]
            if segment.stamp != stamp:
                heappop(heap)
                continue
            blocks -= self._shrink(segment, blocks)
            heap = self._heap

    def _shrink(self, segment: Segment, blocks: int) -> int:
        """Evict at most `blocks` blocks from the tail of a leaf; how many went."""
        stream = segment.stream
        floor = max(segment.start, *stream.forks) if stream.forks else segment.start
        gone = min(blocks, segment.end - floor)
        segment.end -= gone
        self.idle -= gone
        self.free += gone
        if self._report_evicted:
            for owner in segment.owners:
                if owner.standing != _ENDED and not owner.stale:
                    self.evicted[owner.session] = None
        if segment.end == floor:
            self._unlist(segment)
            if segment.end == segment.start:
                stream.segments.pop()
                self._disown(segment)
                self._after_loss(stream)
        return gone

    def _after_loss(self, stream: Stream) -> None:
        """A whole segment went: what lies under it may be a leaf now."""
        if stream.segments:
            self._offer(stream)
            return
        del self._streams[stream.name]
        parent = stream.parent
        if parent is not None:
            parent.forks[stream.first] -= 1
            if not parent.forks[stream.first]:
                del parent.forks[stream.first]
            self._offer(parent)

    # Owners

    def _owner(self, lease: Lease, tokens: int, at_s: float, task_arrival_s: float) -> OwnerRecord:
        owner = self.owners.get(lease.session)
        if owner is None:
            owner = OwnerRecord(lease.session, self.num_blocks * self.block_tokens)
            self.owners[lease.session] = owner
        owner.spans = lease.spans
        owner.tokens = owner.context_tokens = tokens
        owner.last_use_s = at_s
        owner.task_arrival_s = task_arrival_s
        return owner

    def _add_owner(self, segment: Segment, owner: OwnerRecord) -> None:
        """List a session as an owner; beyond a few the one that matters least makes room."""
        owners = segment.owners
        if owners and owners[0].stale:
            del owners[0].segments[segment]
            owners = ()
        if len(owners) >= _MAX_OWNERS:
            leaver = owners[0]
            for other in owners:
                if other.standing == _ENDED:
                    leaver = other
                    break
            owners = tuple(other for other in owners if other is not leaver)
            self._leave(leaver, segment)
        segment.owners = (*owners, owner)
        owner.segments[segment] = None

    def _leave(self, owner: OwnerRecord, segment: Segment) -> None:
        del owner.segments[segment]
        if not owner.segments and not owner.stale:
            del self.owners[owner.session]

    def _disown(self, segment: Segment) -> None:
        for owner in segment.owners:
            self._leave(owner, segment)
        segment.owners = ()

    def _rekey(self, owner: OwnerRecord) -> None:
        """A fact of the owner changed: new heap entries for its leaves whose key is another now."""
        key = self.policy.key(owner)
        for segment in owner.segments:
            if segment.stamp and segment.key != key:
                self._push(segment)

    # Laws

    def check(self) -> None:
        """Raise InvariantViolated where the pool contradicts itself. O(everything); for tests and sampling."""
        idle = held = leaves = 0
        for stream in self._streams.values():
            self._check_stream(stream)
            for segment in stream.segments:
                size = segment.end - segment.start
                if segment.refs:
                    held += size
                else:
                    idle += size
                leaves += bool(segment.stamp)
        if idle != self.idle:
            raise InvariantViolated(f"P1 idle blocks: counted {idle}, kept {self.idle}")
        if self.free < 0 or self.free + idle + held > self.num_blocks:
            raise InvariantViolated(f"P2 blocks conserved: {self.free} free + {idle} idle + {held} held")
        if leaves != self._num_leaves:
            raise InvariantViolated(f"P3 evictable leaves: counted {leaves}, kept {self._num_leaves}")
        live = sum(entry[3].stamp == entry[2] for entry in self._heap)
        if live != leaves:
            raise InvariantViolated(f"P4 every leaf has one live heap entry: {live} entries, {leaves} leaves")
        self._check_owners()

    def _check_owners(self) -> None:
        resident = {segment for stream in self._streams.values() for segment in stream.segments}
        owners = {*self.owners.values(), *(owner for segment in resident for owner in segment.owners)}
        for owner in owners:
            listed = {segment for segment in resident if owner in segment.owners}
            if not listed or listed != owner.segments.keys():
                raise InvariantViolated(f"P5 owner {owner.session!r} is listed by its segments, of which it has some")
            if not owner.stale and self.owners.get(owner.session) is not owner:
                raise InvariantViolated(f"P5 owner {owner.session!r} of a segment is not in the books")

    def _check_stream(self, stream: Stream) -> None:
        at, refs = stream.first, maxsize
        for segment in stream.segments:
            if segment.start != at or segment.end <= at or segment.refs > refs:
                raise InvariantViolated(f"P6 stream {stream.name}: segments follow each other, held by ever fewer")
            at, refs = segment.end, segment.refs
        if at == stream.first:
            raise InvariantViolated(f"P7 stream {stream.name} is known but empty")
        if stream.parent is not None and stream.parent.segments[-1].end < stream.first:
            raise InvariantViolated(f"P8 stream {stream.name} is resident, what it builds upon is not")
        tail = stream.segments[-1]
        leaf = not tail.refs and not (stream.forks and max(stream.forks) >= tail.end)
        if leaf != bool(tail.stamp) or any(segment.stamp for segment in stream.segments[:-1]):
            raise InvariantViolated(f"P9 stream {stream.name}: exactly an idle tail without descendants is evictable")

    def held_blocks(self) -> int:
        """Hashed blocks under lease, by counting. O(segments); for checks."""
        return sum(
            segment.end - segment.start
            for stream in self._streams.values()
            for segment in stream.segments
            if segment.refs
        )
