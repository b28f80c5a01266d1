"""What could be kept: a timeline turned into stays and room, for the offline optimum and its bound.

Slots are the starts of calls, numbered in order. A call in flight holds its whole context (pinned replay), or only at
the moment of its start (free replay: anything may be evicted at any time, even what a call in flight is using). What
lies idle from then until a later call starts that asks for it is a stay. Everything is runs of blocks of a stream; a
stream is always used from its first block on, so a use is one number, how far it reaches.

Refuses to know policies; costs O(uses log uses) over all streams of all calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from saga.cache.belady import Stay
from saga.sim.cache_timeline import FINISHED, STARTED, Timeline, Visit


@dataclass(frozen=True)
class Stays:
    """stays: by `begins`. room: by slot, blocks beside what calls in flight hold.

    seen_blocks: by slot, leading blocks of the prompt that a cache without end would have found. In one stay all
    blocks are used at slot `ends` by a prompt.
    """

    stays: list[Stay]
    room: list[int]
    seen_blocks: list[int]
    num_distinct_blocks: int


def stays_of(timeline: Timeline, *, pinned: bool) -> Stays:
    """All stays of a timeline. O(uses log uses)."""
    return _Sweep(timeline, pinned=pinned).run()


@dataclass(slots=True)
class _Use:
    """A call's use of one stream.

    reach: one past the last block that it asks for; leaves: one past the last that it leaves. wider: index of the next
    use in the stream that leaves more.
    """

    slot: int
    reach: int
    leaves: int
    wider: int = 0


@dataclass(slots=True)
class _Stream:
    """uses in order; passed: how many have started; held: where those in flight end; known: blocks ever computed."""

    uses: list[_Use] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    passed: int = 0
    known: int = 0


class _Sweep:
    """Passes over the events once; see the module."""

    def __init__(self, timeline: Timeline, *, pinned: bool) -> None:
        self._timeline = timeline
        self._pinned = pinned
        self._streams: dict[int, _Stream] = {}
        self._stays: list[Stay] = []
        self._room: list[int] = []
        self._seen: list[int] = []
        self._in_flight = 0
        self._num_distinct = 0
        for slot, visit in enumerate(timeline.starts()):
            self._note(slot, visit)
        for stream in self._streams.values():
            _link(stream.uses)

    def run(self) -> Stays:
        for _, kind, visit in self._timeline.events:
            if kind == STARTED:
                self._start(visit)
                if not self._pinned:
                    self._release(visit)
            elif kind == FINISHED and self._pinned:
                self._release(visit)
        return Stays(self._stays, self._room, self._seen, self._num_distinct)

    def _note(self, slot: int, visit: Visit) -> None:
        for name, first, end in visit.spans:
            leaves = min(end, visit.full_blocks)
            if leaves > first:
                stream = self._streams.setdefault(name, _Stream(known=first))
                stream.uses.append(_Use(slot, min(end, visit.prompt_blocks), leaves))

    def _start(self, visit: Visit) -> None:
        self._seen.append(self._known(visit))
        self._in_flight += visit.held_blocks - visit.full_blocks
        for name, first, end in visit.spans:
            leaves = min(end, visit.full_blocks)
            if leaves <= first:
                break
            stream = self._streams[name]
            stream.passed += 1
            if leaves > stream.known:
                self._num_distinct += leaves - stream.known
                stream.known = leaves
            self._in_flight += max(0, leaves - max(stream.held, default=first))
            stream.held.append(leaves)
        self._room.append(self._timeline.num_blocks - self._in_flight)

    def _known(self, visit: Visit) -> int:
        """Leading blocks of the prompt that were computed before."""
        known = 0
        for name, _, end in visit.spans:
            stream = self._streams.get(name)
            if stream is None or not stream.passed:
                break
            known = min(end, visit.prompt_blocks, stream.known)
            if known < end:
                break
        return known

    def _release(self, visit: Visit) -> None:
        """The call holds its blocks no longer; those that nobody else holds begin to stay for their next use."""
        self._in_flight -= visit.held_blocks - visit.full_blocks
        for name, first, end in visit.spans:
            leaves = min(end, visit.full_blocks)
            if leaves <= first:
                break
            stream = self._streams[name]
            stream.held.remove(leaves)
            still = max(stream.held, default=first)
            if leaves > still:
                self._in_flight -= leaves - still
                self._stay(stream, still, leaves)

    def _stay(self, stream: _Stream, start: int, stop: int) -> None:
        """Blocks start..stop fall idle: until the next uses that reach them, or for good."""
        begins, place, uses = len(self._room), stream.passed, stream.uses
        while start < stop and place < len(uses):
            use = uses[place]
            reached = min(use.reach, stop)
            if reached > start:
                self._stays.append(Stay(begins, use.slot, start, reached - start))
            start = max(start, min(use.leaves, stop))  # what it leaves without asking for it is computed anew anyway
            place = use.wider


def _link(uses: list[_Use]) -> None:
    """Point each use to the next that leaves more. O(uses)."""
    wider: list[int] = []
    for place in range(len(uses) - 1, -1, -1):
        while wider and uses[wider[-1]].leaves <= uses[place].leaves:
            wider.pop()
        uses[place].wider = wider[-1] if wider else len(uses)
        wider.append(place)
