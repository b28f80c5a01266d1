"""The modelled engine: continuous batching as stock vLLM v1 does it, in virtual time.

Theory of operation. An iteration serves the running calls first, one token for each that decodes or a chunk for
the one that prefills, within a budget of tokens; a running call that cannot get a block preempts the last running
one (or, with priorities, the one that matters least), possibly itself. Then, if nothing was preempted, the head of
the waiting queue is admitted while it fits: its cached prefix is looked up only now, its whole prompt must fit in
free and evictable blocks, and the first that does not fit ends the loop. Source: vLLM 0.32 `Scheduler.schedule`,
`KVCacheManager.allocate_slots` (scheduler_reserve_full_isl).

Iterations in which nobody is admitted and nobody prefills are all alike, so the engine plans as many of them as
pass before something changes (a *jump*) and cuts the plan at the end of the iteration in progress when something
is submitted. Decoding calls are kept in sums: their number, their contexts, and a histogram of context mod
block_tokens that says how many new blocks any run of iterations needs, so that a jump costs O(block_tokens).

An iteration's seconds are shared by its calls in proportion to the tokens they had in it: `service_s`.

Times come in as arguments and never run back. The engine refuses to know tenants, workflows and other workers.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from typing import Any

from saga.commands import Standing
from saga.engine.calls import (
    DECODE,
    GONE,
    LOADING,
    NO_LEASE,
    PREFILL,
    WAITING,
    EngineRequest,
    EngineSettings,
    Outcome,
)
from saga.engine.host_tier import HostOwner, HostTier
from saga.engine.kv_pool import KvPool, OwnerRecord, Span, spans_of
from saga.engine.latency import Latency
from saga.engine.link import Link
from saga.engine.queues import FcfsQueue, PriorityQueue, WaitingQueue
from saga.errors import InvariantViolated, UsageError
from saga.views import PromptPath

__all__ = ["EngineRequest", "EngineSettings", "ModelledEngine", "Outcome"]

_INFINITE_BLOCKS = 1 << 48


class _Transfer:
    """Blocks on their way to the device: for one request that waits, or (request None) for a session's next call."""

    __slots__ = ("blocked", "blocks", "first", "lease", "moved", "ready_s", "request", "session", "spans")

    def __init__(self, session: str, spans: tuple[Span, ...], first: int, blocks: int, ready_s: float) -> None:
        self.session = session
        self.spans = spans
        self.first = first
        self.blocks = blocks
        self.ready_s = ready_s
        self.lease = NO_LEASE
        self.request: EngineRequest | None = None
        self.blocked: list[EngineRequest] = []
        self.moved = False


class ModelledEngine:
    """One worker. Every method costs O(log running) plus the segments it touches, amortised."""

    def __init__(self, settings: EngineSettings, latency: Latency) -> None:
        self.settings = settings
        self._report_first_tokens = settings.report_first_tokens
        self.latency = latency
        self._own_share = latency.own_share
        block = settings.block_tokens
        report = settings.report_residency
        num_blocks = _INFINITE_BLOCKS if settings.infinite_kv else settings.kv_tokens // block
        self.pool = KvPool(num_blocks, block, settings.eviction, report_evicted=report)
        self.host: HostTier | None = None
        if settings.host_kv_tokens >= block and settings.load_tokens_per_s > 0 and settings.prefix_caching:
            self.host = HostTier(
                settings.host_kv_tokens,
                block,
                settings.load_tokens_per_s,
                settings.host_eviction,
                report_evicted=report,
            )
        self._network = Link(settings.move_tokens_per_s) if settings.move_tokens_per_s > 0 else None
        self._block = block
        self._requests: dict[str, EngineRequest] = {}
        kind = FcfsQueue if settings.queue == "fcfs" else PriorityQueue
        self._queue: WaitingQueue = kind()
        self._landed: WaitingQueue = kind()  # those of `_holding`, served before the others
        self._running: dict[str, EngineRequest] = {}  # in order of admission
        self._partial: EngineRequest | None = None  # the one running call that prefills; always the last admitted
        self._holding: dict[str, EngineRequest] = {}  # waiting calls whose loaded blocks are already theirs
        self._sequence = 0
        # The decoding calls as sums, at iteration boundary `_iteration`, time `_now`.
        self._now = 0.0
        self._iteration = 0
        self._num_decodes = 0
        self._context = 0
        self._residues = [0] * block  # [(context - iteration) mod block]
        self._num_offered = 0  # blocks of theirs that the host tier was offered
        self._ended: list[tuple[EngineRequest, int, int, int]] = []  # calls to retire: seen, offered, computed blocks
        self._finishes: list[list[Any]] = []  # [iteration, admission, sequence, request or None]
        self._growing: dict[int, EngineRequest] = {}  # stream -> the call whose answer extends it
        self._share = 0.0  # device seconds that a call which decodes all the time would have got
        self._grown = -1  # the iteration whose new decode blocks are already taken
        # The plan: `_length` iterations from `_now`, 0 for none.
        self._length = 0
        self._end = inf
        self._prefills: list[tuple[EngineRequest, int]] = []
        self._stalled: list[EngineRequest] = []
        self._watched = False  # whether the head that does not fit may fit before anything else changes
        self._cut = False  # somebody was preempted in the plan: one iteration, nobody admitted
        # Transfers, and what waits for the next boundary.
        self._arrivals: list[tuple[float, int, _Transfer]] = []
        self._inbound: dict[str, _Transfer] = {}
        self._ordered: list[_Transfer] = []
        self._outcomes: list[Outcome] = []

    # What a driver asks

    def submit(self, request: EngineRequest, at_s: float) -> None:
        """Queue a call. Raises UsageError where it can never fit, or its path does not add up."""
        needed = -(-(request.prompt_tokens + request.output_tokens - 1) // self._block)
        if needed > self.pool.num_blocks:
            raise UsageError(
                f"step {request.step!r} needs {needed} KV blocks, the worker has {self.pool.num_blocks}: "
                f"prompt {request.prompt_tokens} + output {request.output_tokens} tokens"
            )
        if request.prompt_tokens < 1 or request.output_tokens < 1:
            raise UsageError(f"step {request.step!r}: prompt_tokens and output_tokens must be at least 1")
        if request.step in self._requests:
            raise UsageError(f"step {request.step!r} is already here")
        self._run_to(at_s)
        if request.arrival_s == request.arrival_s:  # not nan: it has been somewhere before
            request.renew()
        request.arrival_s = at_s
        request.spans = spans_of(request.path, self._block)
        self._sequence += 1
        request.sequence = self._sequence
        request.state = WAITING
        self._requests[request.step] = request
        behind = len(self._queue) > 0
        self._queue.push(request)
        # Behind a head that already waits nothing changes before the plan's end.
        if not behind or self._queue.head() is request:
            self._interrupt(at_s)

    def cancel(self, step: str, at_s: float) -> bool:
        """Take a call away, waiting or running; False where unknown. O(log n), O(transfers) while it loads.

        A running one gives its blocks back at once, the iteration in progress takes its time all the same.
        """
        self._run_to(at_s)
        request = self._requests.pop(step, None)
        if request is None:
            return False
        self._interrupt(at_s)
        if request.state == WAITING:
            self._dequeue(request)
            if request.lease is not NO_LEASE:
                self._close(request)
        elif request.state == LOADING:
            self._abandon(request)
        else:
            self._remove(request)
        request.state = GONE
        return True

    def reprioritize(self, step: str, priority: int, at_s: float | None = None) -> None:
        """Change a call's priority; with `at_s` a new head of the queue is tried after the iteration in progress."""
        request = self._requests.get(step)
        if request is None or request.priority == priority:
            return
        request.priority = priority
        if request.state == WAITING and self.settings.queue == "priority":
            queue = self._landed if request.step in self._holding else self._queue
            queue.discard(request)
            queue.push(request)
            if at_s is not None and queue.head() is request:
                self._interrupt(at_s)

    def next_event_s(self) -> float:
        """When to call `advance` next if nothing is submitted before; inf when idle.

        Nothing becomes visible earlier. Starts the next iteration: calls submitted later at the same instant miss it.
        """
        if self._outcomes:
            return self._outcomes[0].at_s
        if self._length or self._plan():
            return self._end
        return self._wake_s()

    def advance(self, to_s: float) -> list[Outcome]:
        """Run everything up to and including `to_s`; outcomes in order of time."""
        self._run_to(to_s)
        outcomes = self._outcomes
        if not outcomes or outcomes[-1].at_s <= to_s:
            self._outcomes = []
            return outcomes
        self._outcomes = [outcome for outcome in outcomes if outcome.at_s > to_s]
        return [outcome for outcome in outcomes if outcome.at_s <= to_s]

    def _run_to(self, to_s: float) -> None:
        """Commit every plan that ends by `to_s`. The iteration that would start then is not begun."""
        while True:
            if self._length:
                if self._end > to_s:
                    break
                self._commit()
            elif self._now >= to_s or not self._plan():
                wake_s = self._wake_s()
                if self._now >= to_s or wake_s > to_s:
                    break
                self._now = max(self._now, wake_s)

    def set_standing(
        self,
        session: str,
        standing: Standing,
        *,
        at_s: float,
        expected_use_s: float = inf,
        reuse_probability: float = 1.0,
        steps_to_use: float = 1.0,
    ) -> None:
        """Tell the eviction policies about a session. `at_s` only documents the caller's clock."""
        self.pool.set_standing(session, standing, expected_use_s, reuse_probability, steps_to_use)
        if self.host is not None:
            self.host.set_standing(session, standing, expected_use_s, reuse_probability, steps_to_use)

    def offload(self, session: str, at_s: float) -> None:
        """Copy what the device has of the session's context to the host tier, as far as it is not there yet."""
        owner = self.pool.owners.get(session)
        if self.host is not None and owner is not None:
            blocks = self.pool.lookup(owner.spans, owner.tokens // self._block)
            if self.host.store(session, owner.spans, 0, blocks, at_s):
                self.host.use(session, owner.spans, 0, blocks, at_s, owner.task_arrival_s)

    def prefetch(self, session: str, at_s: float) -> None:
        """Load the session's prefix from the host tier in the background; a call that comes meanwhile waits for it."""
        owner = self.host.owners.get(session) if self.host is not None else None
        if self.host is None or owner is None or session in self._inbound:
            return
        full = owner.tokens // self._block
        here = self.pool.lookup(owner.spans, full)
        blocks = self.host.lookup(owner.spans, full, here)
        if blocks > here:
            ready_s = self.host.load(owner.spans, here, blocks, at_s)
            self._order(_Transfer(session, owner.spans, here, blocks, ready_s), at_s)

    def export_tokens(self, session: str) -> int:
        """Leading tokens of the session's last context that are here, on the device or in the host tier."""
        owner: OwnerRecord | HostOwner | None = self.pool.owners.get(session)
        if owner is None and self.host is not None:
            owner = self.host.owners.get(session)
        if owner is None:
            return 0
        full = owner.tokens // self._block
        blocks = self.pool.lookup(owner.spans, full)
        if self.host is not None:
            blocks = self.host.lookup(owner.spans, full, blocks)
        return blocks * self._block

    def import_prefix(
        self, session: str, path: PromptPath, tokens: int, at_s: float, ready_s: float | None = None
    ) -> float:
        """The first `tokens` of `path` arrive from another worker; when they are here, seconds.

        ready_s: when, where the caller models the network; else over this worker's own link. A call of the session
        that is submitted meanwhile waits for them. What finds no room is left out.
        """
        spans = spans_of(path, self._block)
        full = tokens // self._block
        missing = full - self.pool.lookup(spans, full)
        if ready_s is None:
            if self._network is None:
                raise UsageError("import_prefix needs move_tokens_per_s above 0 or ready_s")
            ready_s = self._network.transfer(max(0, missing) * self._block, at_s)
        if missing > 0 and self.settings.prefix_caching and session not in self._inbound:
            transfer = _Transfer(session, spans, full, full, ready_s)
            transfer.moved = True
            self._order(transfer, at_s)
        return ready_s

    def report(self) -> tuple[int, int, int, int]:
        """(running calls, waiting calls, KV tokens held by running calls, KV tokens resident), at the last boundary."""
        pool = self.pool
        running = len(self._running)
        held, resident = pool.num_blocks - pool.available, pool.num_blocks - pool.free
        return running, len(self._requests) - running, held * self._block, resident * self._block

    def generated(self, request: EngineRequest, at_s: float) -> int:
        """Tokens of a call's answer there at `at_s`, in the middle of a plan too; at most all but the last. O(1)."""
        tokens = request.generated
        if request.state == DECODE:
            tokens += self._iteration - request.joined
            if self._length > 1 and self._now < at_s < self._end:
                tokens += int(self._length * (at_s - self._now) / (self._end - self._now))
            tokens = min(tokens, request.output_tokens - 1)
        return tokens

    # Plan: what the next iterations do

    def _plan(self) -> bool:
        """Plan from `_now`; False where there is nothing to do until something arrives."""
        while True:
            if self._ordered or self._arrivals:
                self._settle()
            self._cut = self._watched = broken = False
            if self._num_decodes and self._grown != self._iteration:
                broken = not self._grow_decodes() and self._squeeze()
                self._grown = self._iteration
            budget = self.settings.chunk_tokens - self._num_decodes
            if self._partial is not None and not broken:
                budget = self._continue_prefill(self._partial, budget)
            if budget and not self._cut and (self._holding or len(self._queue)):
                self._admit(budget)
            if self.host is not None and (self._prefills or self._ended):
                self._write_back(self.host)
            if self.settings.report_residency:
                self._report_removed()
            if self._prefills or self._num_decodes:
                self._measure()
                return True
            if not self._cut:
                return False
            self._rejoin()
            self._grown = -1

    def _measure(self) -> None:
        """Length and end of the plan."""
        latency, decodes = self.latency, self._num_decodes
        context = self._context + decodes
        if self._prefills:
            tokens, work = 0, 0.0
            for request, new in self._prefills:
                tokens += new
                work += new * (request.computed + self._own_share * new)
            self._length = 1
            self._end = self._now + latency.iteration_s(tokens, work, decodes, context)
            return
        length = 1
        if not self._cut and not self._watched:
            length = min(self._next_finish() - self._iteration, self.settings.max_jump_iterations)
            length = 1 + self._growth_limit(length - 1)
            if self._arrivals and length > 1:
                wait_s = self._arrivals[0][0] - self._now
                length = max(1, latency.decode_iterations_within(decodes, context, length, wait_s))
        self._length = length
        self._end = self._now + self._run_s(length)

    def _next_finish(self) -> int:
        finishes = self._finishes
        while finishes[0][-1] is None:
            heappop(finishes)
        return int(finishes[0][0])

    def _growth(self, iterations: int) -> int:
        """Blocks that the decoding calls take in `iterations` iterations after the present one. O(block_tokens)."""
        block, residues = self._block, self._residues
        cycles, rest = divmod(iterations, block)
        end = -(self._iteration + 1) % block + 1
        first = end - rest  # the residues first..end, counted backwards and around
        some = sum(residues[first:end]) if first >= 0 else sum(residues[:end]) + sum(residues[first:])
        return cycles * self._num_decodes + some

    def _growth_limit(self, iterations: int) -> int:
        """How many of these further iterations the pool can feed."""
        available = self.pool.available
        if (iterations // self._block + 1) * self._num_decodes <= available or self._growth(iterations) <= available:
            return iterations
        fed = available // self._num_decodes * self._block
        while self._growth(fed + 1) <= available:
            fed += 1
        return fed

    def _grow_decodes(self) -> bool:
        """Take the blocks that the decoding calls need in this iteration; False where they are too few."""
        if not self.pool.reserve(self._residues[-self._iteration % self._block]):
            return False
        self._grown = self._iteration
        return True

    def _squeeze(self) -> bool:
        """The blocks do not suffice for this iteration: serve the running calls in order, preempting. Slow, exact.

        True: a call preempted itself, which ends the turn: the calls behind it are set aside for one iteration.
        """
        turn = list(self._running.values())
        grown: set[str] = set()
        for position, request in enumerate(turn):
            if request.state != DECODE or request.step not in self._running or request.step in grown:
                continue
            if (request.computed + self._iteration - request.joined) % self._block:
                continue
            while request.step in self._running and not self.pool.reserve(1):
                victim = self._victim()
                self._preempt(victim, extra=1 if victim.step in grown else 0)
                grown.discard(victim.step)
            if request.step not in self._running:
                self._stall(turn[position + 1 :])
                return True
            grown.add(request.step)
        return False

    def _stall(self, requests: list[EngineRequest]) -> None:
        for request in requests:
            if request.state == DECODE and request.step in self._running:
                self._leave_decode(request, 0)
                self._stalled.append(request)

    def _victim(self) -> EngineRequest:
        running = self._running
        if self.settings.queue == "fcfs":
            return running[next(reversed(running))]
        return max(running.values(), key=lambda request: (request.priority, request.arrival_s, request.sequence))

    def _continue_prefill(self, request: EngineRequest, budget: int) -> int:
        """The next chunk of the running prefill; budget left."""
        new = min(request.prompt_tokens + request.generated - request.computed, budget)
        while request.state == PREFILL and not self._take(request, request.computed + new):
            victim = self._victim()
            self._preempt(victim, extra=self._extra(victim))
        if request.state != PREFILL:
            return 0
        self._prefills.append((request, new))
        return budget - new

    def _take(self, request: EngineRequest, tokens: int) -> bool:
        lease = request.lease
        return self.pool.grow(lease, tokens, publish=self.settings.prefix_caching)

    def _admit(self, budget: int) -> None:
        """Admit waiting calls from the head while they fit."""
        queue, landed, running, settings = self._queue, self._landed, self._running, self.settings
        while budget and len(running) < settings.max_running and (len(landed) or len(queue)):
            request = (landed if len(landed) else queue).head()
            transfer = self._inbound.get(request.session) if self._inbound else None
            if transfer is not None and request.lease is NO_LEASE:
                queue.discard(request)
                request.state = LOADING
                transfer.blocked.append(request)
                continue
            target = request.prompt_tokens + request.generated
            if request.lease is NO_LEASE:
                if not self._look_up(request, target):
                    break
                if request.state == LOADING:
                    continue
            elif -(-target // self._block) - request.lease.blocks > self.pool.available and not self._unwedge(request):
                break
            self._dequeue(request)
            new = min(target - request.computed, budget)
            if not self._take(request, request.computed + new):
                raise InvariantViolated(f"E1 an admitted call fits: {request.step!r}")
            budget -= new
            self._start(request)
            self._prefills.append((request, new))

    def _look_up(self, request: EngineRequest, target: int) -> bool:
        """Find the cached prefix and hold it, or start loading it; False where the whole prompt does not fit."""
        pool, block = self.pool, self._block
        spans = request.spans
        hit = resident = loaded = 0
        writers: list[EngineRequest] = []
        if self.settings.prefix_caching:
            most = (target - 1) // block
            hit = resident = pool.lookup(spans, most)
            if resident < most and self._growing:
                hit, writers = self._written(spans, resident, most)
        need = -(-target // block) - hit
        if need > pool.available or need + (idle := pool.idle_within(spans, resident)) > pool.available:
            self._watched = bool(writers)
            return self._unwedge(request) and self._look_up(request, target)
        if self.host is not None:
            self.host.promise(self._unoffered(0))
            loaded = self.host.lookup(spans, (target - 1) // block, hit) - hit
        if loaded and loaded + idle + self._reserved() > pool.available:
            self._watched = True
            return self._unwedge(request) and self._look_up(request, target)
        for writer in writers:
            self._publish_answer(writer)
        request.lease = pool.open(request.session, spans, hit)
        request.computed = (hit + loaded) * block
        if not request.num_preemptions:
            self._note_hit(request, hit, loaded)
        pool.rewritten(request.session)
        self._is_at_work(request.session)
        if loaded and self.host is not None:
            self._load(request, hit, hit + loaded, self.host.load(spans, hit, hit + loaded, self._now))
        return True

    def _is_at_work(self, session: str) -> None:
        """Its prefix is on the device and due now, whatever was said of it before (the plug-in's `Retention.came`).

        Else a session that was let go and has come back counts for the host tier as one that only the tier has.
        """
        self.pool.set_standing(session, Standing.ACTIVE, -inf, 1.0)
        if self.host is not None:
            self.host.set_standing(session, Standing.ACTIVE, -inf, 1.0)

    def _written(self, spans: tuple[Span, ...], hit: int, most: int) -> tuple[int, list[EngineRequest]]:
        """The hit with the answers in progress that it runs on into, and who writes them: not yet published.

        A call that is tried and does not fit must leave no trace, however often it is tried.
        """
        writers = []
        for name, first, end in spans:
            writer = self._growing.get(name) if first <= hit < end else None
            if writer is not None:
                computed = writer.computed + self._iteration - writer.joined + 1
                hit = max(hit, min(computed // self._block, end, most))
                writers.append(writer)
        return hit, writers

    def _publish_answer(self, request: EngineRequest) -> None:
        """What a decoding call has written so far can be hit; done only when somebody asks for its stream."""
        computed = request.computed + self._iteration - request.joined + 1
        request.lease.blocks = -(-computed // self._block)
        self.pool.publish(request.lease, computed // self._block)

    def _note_hit(self, request: EngineRequest, hit: int, loaded: int) -> None:
        owner = self.pool.owners.get(request.session)
        moved = 0
        if owner is not None and owner.moved[1]:
            first, end = owner.moved
            moved = max(0, min(hit, end) - first)
            owner.moved = (0, 0)
        request.moved_tokens = moved * self._block
        request.cached_tokens = (hit - moved) * self._block
        request.host_tokens = loaded * self._block

    def _load(self, request: EngineRequest, first: int, blocks: int, ready_s: float) -> None:
        """Start the load of a call's own prefix; it waits outside the queue, its blocks are taken now."""
        self._queue.discard(request)
        request.state = LOADING
        self.pool.grow(request.lease, blocks * self._block, publish=False)
        request.offered, request.seen = blocks, min(request.seen, first)
        transfer = _Transfer(request.session, request.spans, first, blocks, ready_s)
        transfer.lease, transfer.request = request.lease, request
        self._fly(transfer)

    def _reserved(self) -> int:
        """Blocks that prompts already begun still need: a load must leave them (vLLM `reserved_blocks`)."""
        begun = [transfer.request for _, _, transfer in self._arrivals]
        total = 0
        for request in (self._partial, *begun, *self._holding.values(), *(request for request, _ in self._prefills)):
            if request is not None and request.lease is not NO_LEASE:
                target = request.prompt_tokens + request.generated
                total += max(0, -(-target // self._block) - request.lease.blocks)
        return total

    def _unwedge(self, request: EngineRequest) -> bool:
        """With nothing running or on its way, the last waiting call that holds loaded blocks gives them back."""
        if self._running or self._arrivals:
            return False
        holder = next((other for other in reversed(self._holding.values()) if other is not request), None)
        if holder is None:
            return False
        self._landed.discard(holder)
        self._close(holder)
        holder.computed = 0
        self._queue.push_front(holder)
        return True

    def _dequeue(self, request: EngineRequest) -> None:
        held = self._holding.pop(request.step, None) is not None
        (self._landed if held else self._queue).discard(request)

    def _start(self, request: EngineRequest) -> None:
        request.state = PREFILL
        self._running[request.step] = request
        self._sequence += 1
        request.admission = self._sequence
        if request.started_s != request.started_s:  # nan
            request.started_s = self._now

    # Commit: what the planned iterations did

    def _commit(self) -> None:
        """The plan's iterations are over: count them, let calls finish."""
        self._advance_plan()
        finishes, iteration = self._finishes, self._iteration
        while finishes and finishes[0][0] <= iteration:
            request = heappop(finishes)[-1]
            if request is not None:
                self._leave_decode(request, 0)
                self._finish(request)
        if self._prefills:
            prefills, self._prefills = self._prefills, []
            self._partial = None
            for request, new in prefills:
                self._prefilled(request, new)
        if self._stalled:
            self._rejoin()
        if self.settings.report_residency:
            self._report_removed()

    def _advance_plan(self) -> None:
        """Count the plan's iterations: time, tokens, blocks, shares of the device."""
        length, decodes, seconds = self._length, self._num_decodes, self._end - self._now
        if self._prefills:
            seconds /= decodes + sum([new for _, new in self._prefills])
            self._share += seconds
            for request, new in self._prefills:
                request.service_s += seconds * new
        elif decodes:
            self._share += seconds / decodes
            if length > 1:
                self._take_growth(length - 1)
        self._iteration += length
        self._context += decodes * length
        self._now = self._end
        self._length = 0
        self._end = inf

    def _take_growth(self, iterations: int) -> None:
        """Take the blocks of `iterations` further iterations; the plan made sure that they are there."""
        if not self.pool.reserve(self._growth(iterations)):
            raise InvariantViolated("E7 a planned jump has the blocks it needs")

    def _rejoin(self) -> None:
        stalled, self._stalled = self._stalled, []
        for request in stalled:
            self._join_decode(request)

    def _prefilled(self, request: EngineRequest, new: int) -> None:
        """A chunk is done; after the last one a token has come."""
        request.computed += new
        request.prefilled_tokens += new
        if request.computed < request.prompt_tokens + request.generated:
            self._partial = request
            return
        request.generated += 1
        if request.generated == 1:
            request.first_token_s = self._now
            if self._report_first_tokens:
                self._outcomes.append(Outcome("first_token", self._now, request.step))
        if request.generated == request.output_tokens:
            self._finish(request)
        else:
            self._join_decode(request)

    def _finish(self, request: EngineRequest) -> None:
        request.finished_s = self._now
        del self._running[request.step]
        self._close(request, used=True)
        request.state = GONE
        del self._requests[request.step]
        self._outcomes.append(Outcome("finished", self._now, request.step, request))

    def _join_decode(self, request: EngineRequest) -> None:
        iteration = self._iteration
        request.state = DECODE
        request.joined = iteration
        request.share = self._share
        self._num_decodes += 1
        self._context += request.computed
        self._num_offered += request.offered
        self._residues[(request.computed - iteration) % self._block] += 1
        self._growing[request.spans[-1][0]] = request
        self._sequence += 1
        finish = iteration + request.output_tokens - request.generated
        request.entry = [finish, request.admission, self._sequence, request]
        heappush(self._finishes, request.entry)

    def _leave_decode(self, request: EngineRequest, extra: int) -> None:
        """Bring a decoding call's own figures up to date; extra: blocks taken for it beyond its tokens."""
        iterations = self._iteration - request.joined
        self._residues[(request.computed - request.joined) % self._block] -= 1
        self._growing.pop(request.spans[-1][0], None)
        request.computed += iterations
        request.generated += iterations
        request.service_s += self._share - request.share
        request.entry[-1] = None
        request.entry = []
        request.state = PREFILL
        self._num_decodes -= 1
        self._context -= request.computed
        self._num_offered -= request.offered
        request.lease.blocks = -(-request.computed // self._block) + extra

    def _extra(self, request: EngineRequest) -> int:
        """1 where a decoding call's block for the present iteration is already taken."""
        if request.state != DECODE or self._grown != self._iteration:
            return 0
        return int((request.computed + self._iteration - request.joined) % self._block == 0)

    def _preempt(self, request: EngineRequest, extra: int) -> None:
        """Back to the queue's front with nothing computed; its full blocks can be hit until they are evicted."""
        self._cut = True
        if request.state == DECODE:
            self._leave_decode(request, extra)
        del self._running[request.step]
        if self._partial is request:
            self._partial = None
        self._close(request)
        request.computed = 0
        request.num_preemptions += 1
        request.state = WAITING
        self._queue.push_front(request)

    def _close(self, request: EngineRequest, *, used: bool = False) -> None:
        """Give the call's blocks back; what it computed stays behind as its session's context.

        used: the call has ended, which is when the host tier counts what it saw as used.
        """
        lease = request.lease
        request.lease = NO_LEASE
        self._holding.pop(request.step, None)
        tokens = request.computed
        blocks = tokens // self._block
        if self.settings.prefix_caching:
            self.pool.publish(lease, blocks)
            if self.host is not None:
                if not used:
                    self._offer(request, tokens)
                elif blocks:
                    self._ended.append((request, request.seen, request.offered, blocks))
                    self._num_offered -= max(0, blocks - request.offered)
        self.pool.close(lease, tokens=tokens, at_s=self._now, task_arrival_s=request.task_arrival_s)

    def _offer(self, request: EngineRequest, tokens: int) -> None:
        """Write to the host tier what it lacks of a context's blocks, from where the last offer of this call ended.

        Where there is no room nothing is written, and the next offer begins again there.
        """
        first, blocks = request.offered, tokens // self._block
        if self.host is not None and blocks > first:
            self.host.promise(self._unoffered(1))
            request.seen = min(request.seen, first)
            if self.host.store(request.session, request.spans, first, blocks, self._now):
                request.offered = blocks

    def _write_back(self, host: HostTier) -> None:
        """The stores of an iteration, behind its admissions; then what ended calls saw in the tier counts as used."""
        for request, new in self._prefills:
            self._offer(request, request.computed + new)
        if not self._ended:
            return
        ended, self._ended = self._ended, []
        for request, seen, offered, blocks in ended:
            session, spans = request.session, request.spans
            self._num_offered += max(0, blocks - offered)
            host.promise(self._unoffered(1))
            if blocks > offered:
                host.store(session, spans, offered, blocks, self._now, used=True)
            host.use(session, spans, min(seen, offered), blocks, self._now, request.task_arrival_s)

    def _unoffered(self, ahead: int) -> int:
        """Blocks of decoding and just ended calls that are full `ahead` iterations on and not offered to the host tier.

        vLLM offers a block in the iteration that fills it, behind the admissions. O(block_tokens).
        """
        if not self._num_decodes:
            return -self._num_offered
        block, shift = self._block, self._iteration + ahead
        partial = sum([(index + shift) % block * count for index, count in enumerate(self._residues) if count])
        return (self._context + ahead * self._num_decodes - partial) // block - self._num_offered

    # Interruptions and transfers

    def _interrupt(self, at_s: float) -> None:
        """Something changed at `at_s`: let the plan end with the iteration in progress then."""
        if not self._length:
            if not self._running:
                self._now = max(self._now, at_s)
            return
        if self._prefills or self._cut or at_s >= self._end:
            return
        length = int(at_s > self._now)
        if self._length > 1 and length:
            decodes, context = self._num_decodes, self._context + self._num_decodes
            length = self.latency.decode_iterations_within(decodes, context, self._length, at_s - self._now)
            while length > 1 and self._now + self._run_s(length - 1) >= at_s:
                length -= 1
        if length < self._length:
            self._length = length
            self._end = self._now + self._run_s(length) if length else inf

    def _run_s(self, iterations: int) -> float:
        """Seconds of this many decode iterations from the present boundary."""
        return self.latency.decode_run_s(self._num_decodes, self._context + self._num_decodes, iterations)

    def _order(self, transfer: _Transfer, at_s: float) -> None:
        """A background transfer: its blocks are taken at the next boundary."""
        self._inbound[transfer.session] = transfer
        self._ordered.append(transfer)
        self._interrupt(at_s)

    def _fly(self, transfer: _Transfer) -> None:
        self._sequence += 1
        heappush(self._arrivals, (transfer.ready_s, self._sequence, transfer))

    def _wake_s(self) -> float:
        """When an engine without a plan has something to do again."""
        return self._arrivals[0][0] if self._arrivals else inf

    def _settle(self) -> None:
        """At a boundary: ordered transfers take their blocks, ended ones land."""
        if self._ordered:
            ordered, self._ordered = self._ordered, []
            for transfer in ordered:
                self._take_room(transfer)
                self._fly(transfer)
        landed: list[EngineRequest] = []
        while self._arrivals and self._arrivals[0][0] <= self._now:
            landed += self._land(heappop(self._arrivals)[2])
        for request in reversed(landed):
            request.state = WAITING
            self._queue.push_front(request)

    def _remove(self, request: EngineRequest) -> None:
        """A running call leaves; the iterations of the plan that are over count, the one in progress does not."""
        if self._length > 1:
            end_s, self._end = self._end, self._now + self._run_s(self._length - 1)
            self._length -= 1
            self._advance_plan()
            self._length, self._end = 1, end_s
            self._grow_decodes()
        if request.state == DECODE:
            self._leave_decode(request, self._extra(request))
        self._prefills = [(other, new) for other, new in self._prefills if other is not request]
        if request in self._stalled:
            self._stalled.remove(request)
        if self._partial is request:
            self._partial = None
        del self._running[request.step]
        self._close(request, used=True)

    def _abandon(self, request: EngineRequest) -> None:
        """A call that waits for a transfer leaves; what arrives stays behind as its session's context."""
        for _, _, transfer in self._arrivals:
            if transfer.request is request:
                transfer.request = None
                request.lease = NO_LEASE
        inbound = self._inbound.get(request.session)
        if inbound is not None and request in inbound.blocked:
            inbound.blocked.remove(request)

    def _take_room(self, transfer: _Transfer) -> None:
        pool = self.pool
        hit = pool.lookup(transfer.spans, transfer.blocks)
        room = pool.available - pool.idle_within(transfer.spans, hit) - self._reserved()
        transfer.lease = pool.open(transfer.session, transfer.spans, hit)
        pool.grow(transfer.lease, (hit + max(0, min(transfer.blocks - hit, room))) * self._block, publish=False)

    def _land(self, transfer: _Transfer) -> list[EngineRequest]:
        """Blocks have arrived; the calls that waited for them."""
        lease, request = transfer.lease, transfer.request
        first = lease.hashed
        self.pool.publish(lease, lease.blocks)
        if self.host is not None and transfer.blocks > transfer.first:
            self.host.promise(self._unoffered(0))
            self.host.unpin(transfer.spans, transfer.first, transfer.blocks)
        if request is not None:
            self._holding[request.step] = request
            request.state = WAITING
            self._landed.push(request)
            return []
        if self._inbound.get(transfer.session) is transfer:
            del self._inbound[transfer.session]
        self.pool.close(lease, tokens=lease.blocks * self._block, at_s=self._now)
        if transfer.moved and lease.blocks:
            self.pool.owners[transfer.session].moved = (first, lease.blocks)
        return transfer.blocked

    def _report_removed(self) -> None:
        if not self.pool.evicted and (self.host is None or not self.host.evicted):
            return
        sessions = self.pool.take_evicted()
        if self.host is not None:
            sessions += [session for session in self.host.take_evicted() if session not in sessions]
        for session in sessions:
            device = self._tokens_in(self.pool, session)
            host = self._tokens_in(self.host, session) if self.host is not None else 0
            self._outcomes.append(Outcome("removed", self._now, "", None, session, device, host))

    def _tokens_in(self, pool: KvPool | HostTier, session: str) -> int:
        owner: OwnerRecord | HostOwner | None = pool.owners.get(session)
        return pool.lookup(owner.spans, owner.tokens // self._block) * self._block if owner is not None else 0

    # Laws

    def check(self) -> None:
        """Raise InvariantViolated where the engine contradicts itself. O(everything); for tests and sampling."""
        self.pool.check()
        if self.host is not None:
            self.host.check()
        decodes = [request for request in self._running.values() if request.state == DECODE]
        if len(decodes) != self._num_decodes:
            raise InvariantViolated(f"E2 decoding calls: counted {len(decodes)}, kept {self._num_decodes}")
        context = sum(request.computed + self._iteration - request.joined for request in decodes)
        if context != self._context:
            raise InvariantViolated(f"E3 tokens of decoding contexts: counted {context}, kept {self._context}")
        if len(self._running) > self.settings.max_running:
            raise InvariantViolated(f"E4 at most {self.settings.max_running} calls run: {len(self._running)}")
        anonymous = sum(self._anonymous(request) for request in self._running.values())
        leases = [transfer.lease for _, _, transfer in self._arrivals]
        leases += [request.lease for request in self._holding.values()]
        anonymous += sum(lease.blocks - lease.hashed for lease in leases)
        held = self.pool.num_blocks - self.pool.available
        if anonymous + self.pool.held_blocks() != held:
            raise InvariantViolated(
                f"E5 held blocks: {anonymous} unhashed + {self.pool.held_blocks()} hashed by count, {held} kept"
            )
        if self._partial is not None and not self._prefills and next(reversed(self._running)) != self._partial.step:
            raise InvariantViolated("E6 the call that prefills is the last running")

    def _anonymous(self, request: EngineRequest) -> int:
        lease = request.lease
        if request.state != DECODE:
            return lease.blocks - lease.hashed
        computed = request.computed + self._iteration - request.joined
        return -(-computed // self._block) + self._extra(request) - lease.hashed
