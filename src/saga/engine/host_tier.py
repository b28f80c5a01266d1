"""The DRAM tier of one worker: blocks behind the device's cache, and the link that loads them.

Theory of operation. Blocks are known by (stream, number), each for itself: unlike on the device, a block may stay
where the one before it has gone, and is of use again only when the device still holds, or somebody writes again, what
comes before it. A stream's blocks are kept as *runs* of equal recency, so everything costs O(runs touched), a few per
stream of a path. Recency is given twice: when a block is written, the first of a prompt being the oldest, and again
when the call that saw it ends, now the last being the oldest. Blocks being loaded are pinned. The order of leaving is
(key of the most valuable owner, recency). A store that cannot make room stores nothing, and may be asked for again.

Source: vLLM 0.32 `OffloadingConnectorScheduler._build_store_jobs`, `CPUOffloadingManager`, `LRUCachePolicy`. One
simplification: what is written is here at once (the real copy is asynchronous, on a link of its own, and rarely the
bottleneck). This module refuses to know calls and iterations.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from saga.cache.eviction import EvictionKey, EvictionPolicy
from saga.commands import Standing
from saga.engine.kv_pool import Span
from saga.engine.link import Link
from saga.errors import InvariantViolated
from saga.views import CacheOwner

_ENDED: str = Standing.ENDED.value
_MAX_OWNERS = 8


@dataclass(frozen=True)
class EndedFirst:
    """Sessions known to have ended leave first, the others' blocks in the order of their recency."""

    def key(self, owner: CacheOwner) -> EvictionKey:
        """0 where ended, else 1."""
        return (0.0 if owner.standing == _ENDED else 1.0,)


class HostOwner(CacheOwner):
    """A session that something in the tier belongs to, with the context it last left here; lives while `runs` has any.

    key: of the policy, for the facts as they are.
    """

    __slots__ = ("key", "runs", "spans", "tokens")

    def __init__(self, session: str, capacity_tokens: int) -> None:
        super().__init__(session, capacity_tokens=capacity_tokens)
        self.spans: tuple[Span, ...] = ()
        self.tokens = 0
        self.runs: dict[Run, None] = {}
        self.key: EvictionKey = ()


class Run:
    """Blocks start..end of one stream that became recent one after the other.

    fresh: written, not yet used, so the front is the oldest, else the tail. rank: of the oldest block, each next one
    has one more. stamp: names its live heap entry, 0 where it has none (pinned); key: what that entry says, at most
    what the owners say now.
    """

    __slots__ = ("end", "fresh", "key", "owners", "pins", "rank", "stamp", "start", "stream")

    def __init__(self, stream: int, start: int, end: int) -> None:
        self.stream = stream
        self.start = start
        self.end = end
        self.pins = self.rank = self.stamp = 0
        self.fresh = True
        self.key: EvictionKey = ()
        self.owners: tuple[HostOwner, ...] = ()


class HostTier:
    """capacity_tokens of DRAM in blocks of block_tokens; load_tokens_per_s of its link to the device.

    used: blocks written; pinned: those of them that are being loaded; promised: blocks that answers in progress have
    filled, for which room is kept until they are stored.
    """

    def __init__(
        self,
        capacity_tokens: int,
        block_tokens: int,
        load_tokens_per_s: float,
        policy: EvictionPolicy,
        *,
        report_evicted: bool = False,
    ) -> None:
        self.num_blocks = capacity_tokens // block_tokens
        self.block_tokens = block_tokens
        self.policy = policy
        self.link = Link(load_tokens_per_s)
        self.used = 0
        self.pinned = 0
        self.promised = 0
        self.owners: dict[str, HostOwner] = {}
        self.evicted: dict[str, None] = {}
        self._report_evicted = report_evicted
        self._streams: dict[int, list[Run]] = {}
        self._heap: list[tuple[EvictionKey, int, int, Run]] = []
        self._num_runs = 0
        self._clock = 0
        self._stamp = 0

    # What is here

    def lookup(self, spans: tuple[Span, ...], max_blocks: int, first: int = 0) -> int:
        """One past the last of the blocks of the path that follow each other here from `first` on. O(runs)."""
        hit = first
        for name, _, end in spans:
            if end <= hit:
                continue
            stop = min(end, max_blocks)
            for run in self._streams.get(name, ()):
                if run.start > hit or hit >= stop:
                    break
                hit = max(hit, run.end)
            if hit < stop:
                return hit
            hit = stop
            if hit == max_blocks:
                break
        return hit

    # What comes and goes

    def store(
        self, session: str, spans: tuple[Span, ...], first: int, stop: int, at_s: float, *, used: bool = False
    ) -> bool:
        """Write the blocks first..stop of the path that are not here; False, and nothing written, without room.

        Those that are here are safe from this call. used: `use` follows at once, so recency need not be kept apart.
        O(runs) and what it evicts, amortised O(log runs) each.
        """
        gaps: list[tuple[int, int, int]] = []
        present: set[Run] = set()
        missing = self._missing(spans, first, stop, gaps, present)
        if not missing:
            return True
        need = missing + self.promised - (self.num_blocks - self.used)
        if need > 0 and not self._evict(need, present):
            return False
        owner = self.owners.get(session) or self._owner(session, spans, stop, at_s)
        self.used += missing
        for name, start, end in gaps:
            before = self._streams[name][-1] if used and name in self._streams else None
            if before is not None and before.end == start and before.owners == (owner,) and not before.pins:
                before.end = end
            else:
                self._insert(name, start, end, owner)
        return True

    def promise(self, blocks: int) -> None:
        """Keep room for the blocks that answers in progress have filled, as far as there is any. O(what it evicts)."""
        self.promised = blocks
        need = min(blocks + self.used - self.num_blocks, self.used - self.pinned)
        if need > 0:
            self._evict(need, set())

    def _missing(
        self,
        spans: tuple[Span, ...],
        first: int,
        stop: int,
        gaps: list[tuple[int, int, int]],
        present: set[Run],
    ) -> int:
        """How many of the blocks first..stop are not here; fills in where, and the runs that are. O(runs)."""
        missing = 0
        for name, begin, end in spans:
            if begin >= stop:
                break
            at, last = max(first, begin), min(stop, end)
            if at >= last:
                continue
            for run in self._streams.get(name, ()):
                if run.start >= last:
                    break
                if run.end > at:
                    present.add(run)
                    if run.start > at:
                        gaps.append((name, at, run.start))
                        missing += run.start - at
                    at = run.end
            if at < last:
                gaps.append((name, at, last))
                missing += last - at
        return missing

    def use(
        self, session: str, spans: tuple[Span, ...], first: int, stop: int, at_s: float, task_arrival_s: float = 0.0
    ) -> None:
        """A call that saw the blocks first..stop has ended: what is here of them is the most recent now. O(runs)."""
        self._rewritten(session, spans)
        owner = self._owner(session, spans, stop, at_s)
        owner.task_arrival_s = task_arrival_s
        self._rekey(owner)
        for name, begin, end in reversed(spans):
            start, last = max(first, begin), min(stop, end)
            if start < last and (runs := self._streams.get(name)) is not None:
                self._refresh(runs, start, last, owner)
        if not owner.runs:
            del self.owners[session]

    def load(self, spans: tuple[Span, ...], first: int, stop: int, at_s: float) -> float:
        """Start loading the blocks first..stop, all here, and pin them; when they are there, seconds. O(runs)."""
        for run in self._within(spans, first, stop, cut=True):
            if not run.pins:
                run.stamp = 0
                self.pinned += run.end - run.start
            run.pins += 1
        return self.link.transfer((stop - first) * self.block_tokens, at_s)

    def unpin(self, spans: tuple[Span, ...], first: int, stop: int) -> None:
        """The load of these blocks has ended. O(runs)."""
        for run in self._within(spans, first, stop):
            run.pins -= 1
            if not run.pins:
                self.pinned -= run.end - run.start
                self._push(run)

    # Policy facts

    def set_standing(
        self,
        session: str,
        standing: Standing,
        expected_use_s: float,
        reuse_probability: float,
        steps_to_use: float = 1.0,
    ) -> None:
        """Tell the policy about a session; unknown ones are ignored. O(its runs * log)."""
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

    # Runs

    def _within(self, spans: tuple[Span, ...], first: int, stop: int, *, cut: bool = False) -> list[Run]:
        """The runs of the blocks first..stop; with `cut`, of them only."""
        found: list[Run] = []
        for name, begin, end in spans:
            start, last = max(begin, first), min(end, stop)
            if start < last:
                runs = self._streams[name]
                if cut:
                    self._split(runs, start)
                    self._split(runs, last)
                found += [run for run in runs if start <= run.start < last]
        return found

    def _insert(self, name: int, start: int, end: int, owner: HostOwner) -> None:
        run = Run(name, start, end)
        run.owners = (owner,)
        owner.runs[run] = None
        run.rank = self._clock
        self._clock += end - start
        runs = self._streams.setdefault(name, [])
        runs.append(run)
        if len(runs) > 1 and runs[-2].start > start:
            runs.sort(key=_start)
        self._num_runs += 1
        self._push(run)

    def _refresh(self, runs: list[Run], start: int, last: int, owner: HostOwner) -> None:
        """New recency for the blocks start..last of a stream, the last being the oldest; equal neighbours merge."""
        if runs[0].start < start or runs[-1].end > last:
            self._split(runs, start)
            self._split(runs, last)
        later: Run | None = None
        for index in range(len(runs) - 1, -1, -1):
            run = runs[index]
            if run.start >= last:
                continue
            if run.start < start:
                break
            if owner not in run.owners:
                self._add_owner(run, owner)
            run.fresh = False
            run.rank = self._clock
            self._clock += run.end - run.start
            if later is not None and later.start == run.end and later.pins == run.pins and later.owners == run.owners:
                run.end, run.rank = later.end, later.rank
                self._discard(runs, later)
            later = run

    def _split(self, runs: list[Run], at: int) -> None:
        """Let a run begin at block `at` of the stream where one goes through it."""
        for index, run in enumerate(runs):
            if run.start < at < run.end:
                head = Run(run.stream, run.start, at)
                head.pins, head.rank, head.fresh, head.owners = run.pins, run.rank, run.fresh, run.owners
                for owner in head.owners:
                    owner.runs[head] = None
                if run.fresh:
                    run.rank += at - run.start
                else:
                    head.rank += run.end - at
                run.start = at
                runs.insert(index, head)
                self._num_runs += 1
                if not head.pins:
                    self._push(head)
                return

    def _discard(self, runs: list[Run], run: Run) -> None:
        run.stamp = 0
        runs.remove(run)
        self._num_runs -= 1
        for owner in run.owners:
            self._leave(owner, run)

    def _push(self, run: Run) -> None:
        """A heap entry for a run that may leave; old ones are dropped when met, or all at once when they are many.

        An entry may say less than the run is worth by now, which is noticed when it is met, never more.
        """
        run.key = _worth(run)
        self._stamp += 1
        run.stamp = self._stamp
        if len(self._heap) > 64 + 4 * self._num_runs:
            self._heap = [entry for entry in self._heap if entry[3].stamp == entry[2]]
            heapify(self._heap)
        heappush(self._heap, (run.key, run.rank, run.stamp, run))

    def _oldest(self) -> Run:
        """The run to leave first, its heap entry on top. Amortised O(log runs)."""
        while True:
            key, rank, stamp, run = self._heap[0]
            live = run.stamp == stamp
            if live and rank == run.rank and key == _worth(run):
                return run
            heappop(self._heap)
            if live:
                self._push(run)

    def _evict(self, blocks: int, present: set[Run]) -> bool:
        """Free `blocks` blocks outside `present`, or none: False where there are too few. Amortised O(log) per run."""
        safe = sum([run.end - run.start for run in present if not run.pins])
        if blocks > self.used - self.pinned - safe:
            return False
        kept = []
        while blocks > 0:
            run = self._oldest()
            if run in present:
                kept.append(heappop(self._heap))
            else:
                blocks -= self._shrink(run, blocks)
        for entry in kept:
            heappush(self._heap, entry)
        return True

    def _shrink(self, run: Run, blocks: int) -> int:
        """Evict at most `blocks` blocks of a run, the oldest first; how many went."""
        gone = min(blocks, run.end - run.start)
        run.rank += gone
        self.used -= gone
        if self._report_evicted:
            for owner in run.owners:
                if owner.standing != _ENDED:
                    self.evicted[owner.session] = None
        if gone == run.end - run.start:
            runs = self._streams[run.stream]
            self._discard(runs, run)
            if not runs:
                del self._streams[run.stream]
        elif run.fresh:
            run.start += gone
        else:
            run.end -= gone
        return gone

    # Owners

    def _rewritten(self, session: str, spans: tuple[Span, ...]) -> None:
        """What is the session's alone and no part of its context any more is nobody's, and the first to leave.

        Else an agent that rewrites its history fills the tier with what is never asked for again. O(its runs), where
        its context ends in another stream than before.
        """
        owner = self.owners.get(session)
        if owner is None or not owner.spans or owner.spans[-1][0] == spans[-1][0]:
            return
        ends = {name: end for name, _, end in spans}
        nobody: HostOwner | None = None
        for run in list(owner.runs):
            end = ends.get(run.stream, 0)
            if len(run.owners) > 1 or run.end <= end:
                continue
            if run.start < end:
                self._split(self._streams[run.stream], end)
            if nobody is None:
                nobody = HostOwner("", self.num_blocks * self.block_tokens)
                nobody.standing, nobody.last_use_s = _ENDED, owner.last_use_s
                nobody.key = self.policy.key(nobody)
            del owner.runs[run]
            run.owners = (nobody,)
            nobody.runs[run] = None
            if run.stamp:
                self._push(run)

    def _owner(self, session: str, spans: tuple[Span, ...], blocks: int, at_s: float) -> HostOwner:
        owner = self.owners.get(session)
        if owner is None:
            owner = self.owners[session] = HostOwner(session, self.num_blocks * self.block_tokens)
        owner.spans = spans
        owner.tokens = owner.context_tokens = blocks * self.block_tokens
        owner.last_use_s = at_s
        if owner.key == ():
            owner.key = self.policy.key(owner)
        return owner

    def _add_owner(self, run: Run, owner: HostOwner) -> None:
        """List a session as an owner; beyond a few the one that matters least makes room."""
        owners = run.owners
        if len(owners) >= _MAX_OWNERS:
            leaver = next((other for other in owners if other.standing == _ENDED), owners[0])
            owners = tuple([other for other in owners if other is not leaver])
            self._leave(leaver, run)
        run.owners = (*owners, owner)
        owner.runs[run] = None
        if run.stamp and run.key > _worth(run):
            self._push(run)

    def _leave(self, owner: HostOwner, run: Run) -> None:
        del owner.runs[run]
        if not owner.runs:
            self.owners.pop(owner.session, None)

    def _rekey(self, owner: HostOwner) -> None:
        """A fact of the owner changed: new heap entries for its runs that may be worth less now than theirs say."""
        key = self.policy.key(owner)
        if key < owner.key:
            owner.key = key
            for run in owner.runs:
                if run.stamp and run.key > key:
                    self._push(run)
        owner.key = key

    # Laws

    def check(self) -> None:
        """Raise InvariantViolated where the tier contradicts itself. O(everything); for tests and sampling."""
        used = pinned = listed = 0
        for name, runs in self._streams.items():
            at = -1
            for run in runs:
                if run.start < at or run.end <= run.start or run.stream != name or not run.owners:
                    raise InvariantViolated(f"H1 stream {name}: runs in order, none empty, each somebody's")
                at = run.end
                used += run.end - run.start
                pinned += (run.end - run.start) if run.pins else 0
                listed += bool(run.stamp)
                if bool(run.stamp) == bool(run.pins):
                    raise InvariantViolated(f"H2 stream {name}: a run may leave exactly when it is not pinned")
        if (used, pinned) != (self.used, self.pinned) or used > self.num_blocks:
            raise InvariantViolated(f"H3 blocks: {used} used and {pinned} pinned, kept {self.used} and {self.pinned}")
        entries = [entry for entry in self._heap if entry[3].stamp == entry[2]]
        live = sum(entry[:2] <= (_worth(entry[3]), entry[3].rank) for entry in entries)
        if live != listed or sum(map(len, self._streams.values())) != self._num_runs:
            raise InvariantViolated(f"H4 every run that may leave has one entry, never too high: {live}, {listed}")
        for session, owner in self.owners.items():
            if owner.session != session or any(owner not in run.owners for run in owner.runs):
                raise InvariantViolated(f"H5 owner {session!r} is listed by all of its runs")


def _worth(run: Run) -> EvictionKey:
    """The key of the most valuable owner."""
    owners = run.owners
    return owners[0].key if len(owners) == 1 else max([owner.key for owner in owners])


def _start(run: Run) -> int:
    return run.start
