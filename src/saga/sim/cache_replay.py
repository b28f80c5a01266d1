"""Replay of calls against caches alone: what each eviction policy computes again, beside the offline optimum.

No engine, no admission, no host tier: one cache of blocks, the calls of a closed loop in the one order of
`sim.cache_timeline`, and for each policy the production block pool (`engine.kv_pool`) that asks it who leaves first.
*Pinned*: a call holds its context from start to end, as in an engine, so only idle sessions lose blocks. *Free*: a
call needs its context at its start only, and anything can be evicted after. What a policy knows of a session it is
told as in production, in order and without a look ahead: by the workflow model, which learns along, by the retention
rule, and by `ends` of sessions, where the workload tells.

*Pressure* is what `saga sim` calls oversubscription: agents x mean context / tokens of the cache, the mean over calls
of prompt + output. Every prompt token is hit (resident at the start), regenerated (a cache without end would have had
it) or new (never computed before, or not in a full block). Refuses to know files, tables and the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal

from saga.cache.belady import kept_blocks
from saga.cache.eviction import EvictionPolicy
from saga.cache.lru import Lru
from saga.cache.next_use import NextUse
from saga.cache.pinned import EndedFirst, Pinned
from saga.cache.prefix_lru import PrefixLru
from saga.cache.ttl import Forever, P95Ttl, Retention, SkiRental
from saga.cache.workflow_lru import WorkflowLru
from saga.engine.hardware import hardware
from saga.engine.kv_pool import KvPool, Lease
from saga.engine.latency import Latency, LatencyModel
from saga.errors import UnknownName, UsageError
from saga.sim.cache_bound import most_saved
from saga.sim.cache_facts import Facts, Reminder, Silence, Teller
from saga.sim.cache_stays import Stays, stays_of
from saga.sim.cache_timeline import ARRIVED, FINISHED, STARTED, Timeline, Visit, lay_out
from saga.workloads.plan import Workload

Replay = Literal["pinned", "free"]
REPLAYS: tuple[Replay, ...] = ("pinned", "free")
Service = Literal["recorded", "modelled"]
SERVICES: tuple[Service, ...] = ("recorded", "modelled")
BELADY, BOUND = "belady", "bound"
DEFAULT_HARDWARE = "llama3-70b-a100x4"
LEAST_SHARE = 0.005
"""Below this share of the input that Belady regenerates, ratios to it mean nothing."""

_CHUNK_TOKENS = 2048
_PROBE_TOKENS = 65_536


@dataclass(frozen=True)
class CachePolicy:
    """An eviction policy with what it is told, and for how long a session counts as one that will be back."""

    eviction: EvictionPolicy
    description: str
    facts: type[Facts] = Silence
    retention: Retention = field(default=Forever())


POLICIES: dict[str, CachePolicy] = {
    "lru": CachePolicy(Lru(), "least recently used session first, whole sessions"),
    "prefix_lru": CachePolicy(PrefixLru(), "stock vLLM: blocks in the order of falling idle, tail first"),
    "ended_lru": CachePolicy(EndedFirst(Lru()), "ended sessions first, then least recently used", Teller),
    "ttl_lru": CachePolicy(Pinned(EndedFirst(Lru())), "ended, then past their p95 TTL, then LRU", Teller, P95Ttl()),
    "workflow_lru": CachePolicy(WorkflowLru(), "the paper's WA-LRU: recency, reuse, size", Teller),
    "next_use": CachePolicy(NextUse(), "preset saga: ended, let go by ski rental, farthest use", Teller, SkiRental()),
    "reminded": CachePolicy(NextUse(), "next_use, with overdue sessions forecast again", Reminder),
}
"""Name -> policy. A new one is one line here."""


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """One replay: a workload on one cache at one pressure. Raises UsageError naming field, value and what is right.

    ends: whether policies, and the model behind them, are told that a session has ended. service: whether calls last as
    long as their source recorded, where it did, or all of them as on the hardware. tasks: that are played, all of them
    counted.
    """

    workload: str
    pressure: float
    replay: Replay = "free"
    ends: bool = True
    service: Service = "recorded"
    tasks: int = 500
    seed: int = 0
    hardware: str = DEFAULT_HARDWARE
    kv_tokens: int | None = None
    block_tokens: int = 16

    def __post_init__(self) -> None:
        """Check every field."""
        machine = hardware(self.hardware)
        if not (isfinite(self.pressure) and 0.0 < self.pressure <= 1_000.0):
            raise UsageError(f"pressure = {self.pressure!r}: expected a number above 0 and at most 1000")
        if self.replay not in REPLAYS:
            raise UsageError(f"replay = {self.replay!r}: expected {' or '.join(REPLAYS)}")
        if self.service not in SERVICES:
            raise UsageError(f"service = {self.service!r}: expected {' or '.join(SERVICES)}")
        for name, low, high in (("tasks", 1, 10_000_000), ("seed", 0, 2**63), ("block_tokens", 1, 4096)):
            self._check_int(name, getattr(self, name), low, high)
        kv_tokens = machine.kv_tokens if self.kv_tokens is None else self.kv_tokens
        self._check_int("kv_tokens", kv_tokens, 2 * self.block_tokens, 10**12)

    def _check_int(self, name: str, value: object, low: int, high: int) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise UsageError(f"{name} = {value!r}: expected a whole number from {low} to {high}")

    @property
    def num_blocks(self) -> int:
        """Full blocks of the cache."""
        return (self.kv_tokens or hardware(self.hardware).kv_tokens) // self.block_tokens

    @property
    def capacity_tokens(self) -> int:
        """Tokens in full blocks: what a context must fit into."""
        return self.num_blocks * self.block_tokens

    def num_agents(self, mean_context_tokens: float) -> int:
        """Agents that make this pressure, at least one."""
        return max(1, round(self.pressure * self.capacity_tokens / mean_context_tokens))


@dataclass(slots=True)
class Tally:
    """Sums over all calls: prompt tokens, and device seconds that the regenerated ones cost."""

    input_tokens: int = 0
    hit_tokens: int = 0
    regenerated_tokens: int = 0
    new_tokens: int = 0
    regenerated_s: float = 0.0


@dataclass(frozen=True)
class CacheRun:
    """One finished replay. tallies: by policy, BELADY among them; bound_s: regeneration that no policy can pass.

    num_distinct_blocks: ever computed. num_recorded: calls that lasted as long as their source says.
    """

    config: CacheConfig
    num_agents: int
    num_calls: int
    num_recorded: int
    num_distinct_blocks: int
    steady: bool
    tallies: Mapping[str, Tally]
    bound_s: float | None

    def ratio(self, policy: str) -> float | None:
        """Regenerated tokens over Belady's; None where Belady regenerates too little for it to mean anything."""
        best = self.tallies[BELADY]
        if best.regenerated_tokens < LEAST_SHARE * best.input_tokens:
            return None
        return self.tallies[policy].regenerated_tokens / best.regenerated_tokens


def check_policies(names: Sequence[str]) -> tuple[str, ...]:
    """The names as given; UnknownName or UsageError where there are none, one is unknown or twice there."""
    if not names:
        raise UsageError("policy: none is named; expected at least one")
    for name in names:
        if name not in {*POLICIES, BELADY, BOUND}:
            raise UnknownName("policy", name, (*POLICIES, BELADY, BOUND))
    if len(set(names)) < len(names):
        raise UsageError(f"policy = {','.join(names)}: one is named twice; name each once")
    return tuple(names)


def competitive_ratios(
    workload: Workload,
    *,
    pressure: float,
    seed: int,
    replay: Replay = "free",
    policies: Sequence[str] = ("lru", "prefix_lru", "workflow_lru", "next_use"),
    tasks: int = 500,
    hardware: str = DEFAULT_HARDWARE,
    kv_tokens: int | None = None,
    ends: bool = True,
) -> dict[str, float | None]:
    """Regenerated tokens of each policy over Belady's, for one seed; None where Belady regenerates too little.

    The workload should be made with kv_tokens of the cache (by default those of the hardware).
    """
    config = CacheConfig(
        workload=workload.name,
        pressure=pressure,
        replay=replay,
        ends=ends,
        tasks=tasks,
        seed=seed,
        hardware=hardware,
        kv_tokens=kv_tokens,
    )
    run = replay_cache(config, workload, policies)
    return {name: run.ratio(name) for name in policies}


def call_order(config: CacheConfig, workload: Workload) -> Timeline:
    """The one order of calls that all policies of a replay are asked in; see `lay_out`."""
    return lay_out(
        workload,
        LatencyModel(hardware(config.hardware)),
        num_agents=config.num_agents(workload.mean_context_tokens),
        num_tasks=config.tasks,
        seed=config.seed,
        num_blocks=config.num_blocks,
        block_tokens=config.block_tokens,
        chunk_tokens=_CHUNK_TOKENS,
        recorded=config.service == "recorded",
    )


def replay_cache(
    config: CacheConfig,
    workload: Workload,
    policies: Sequence[str],
    on_progress: Callable[[int], None] | None = None,
) -> CacheRun:
    """Play it under every policy, Belady always among them. Deterministic.

    policies: names of POLICIES, BELADY or BOUND. on_progress gets the number of steps done, of `num_steps(policies)`.
    O(calls) in runs of blocks, never in blocks: per call some 15 us for the order, 10-20 us per policy without
    forecasts and 60 us with them, 10 us for Belady.
    """
    check_policies(policies)
    progress = on_progress or (lambda _done: None)
    latency = LatencyModel(hardware(config.hardware))
    timeline = call_order(config, workload)
    progress(1)
    cost = PrefillCost.of(latency, config.block_tokens)
    stays = stays_of(timeline, pinned=config.replay == "pinned")
    tallies = {BELADY: _belady(timeline, stays, cost)}
    progress(2)
    bound_s = _bound_s(stays, cost, tallies[BELADY]) if BOUND in policies else None
    progress(2 + (BOUND in policies))
    own = [name for name in policies if name in POLICIES]
    for place, name in enumerate(own):
        tallies[name] = _play(timeline, stays.seen_blocks, config, POLICIES[name], latency, cost)
        progress(3 + (BOUND in policies) + place)
    recorded = config.service == "recorded"
    return CacheRun(
        config,
        num_agents=config.num_agents(workload.mean_context_tokens),
        num_calls=len(stays.room),
        num_recorded=recorded * sum(visit.call.service_s is not None for visit in timeline.starts()),
        num_distinct_blocks=stays.num_distinct_blocks,
        steady=timeline.steady,
        tallies=tallies,
        bound_s=bound_s,
    )


def num_steps(policies: Sequence[str]) -> int:
    """Steps of one replay that `on_progress` counts."""
    return 2 + sum(name != BELADY for name in policies)


@dataclass(frozen=True)
class PrefillCost:
    """Device seconds to compute blocks again: per block, and more with depth (attention to what stands before it).

    seconds of blocks a..b = block_s x (b - a) + depth_s x (b^2 - a^2) / 2.
    """

    block_s: float
    depth_s: float

    @staticmethod
    def of(latency: Latency, block_tokens: int) -> PrefillCost:
        """By the rates of full chunks of the cost model."""
        flat_s = latency.iteration_s(_CHUNK_TOKENS, 0.0, 0, 0)
        deep_s = latency.iteration_s(_CHUNK_TOKENS, float(_CHUNK_TOKENS * _PROBE_TOKENS), 0, 0)
        token_s, position_s = flat_s / _CHUNK_TOKENS, (deep_s - flat_s) / (_CHUNK_TOKENS * _PROBE_TOKENS)
        return PrefillCost(token_s * block_tokens, position_s * block_tokens**2)

    def seconds(self, first: int, stop: int) -> float:
        """Of the blocks at depths first..stop."""
        return (stop - first) * (self.block_s + self.depth_s * (stop + first) / 2)


def _belady(timeline: Timeline, stays: Stays, cost: PrefillCost) -> Tally:
    """The optimum's sums: what is lost is the tail of each stay."""
    lost_blocks, lost_s = 0, 0.0
    for stay, kept in zip(stays.stays, kept_blocks(stays.stays, stays.room), strict=True):
        if kept < stay.blocks:
            lost_blocks += stay.blocks - kept
            lost_s += cost.seconds(stay.block + kept, stay.block + stay.blocks)
    input_tokens = sum(visit.call.prompt_tokens for visit in timeline.starts())
    seen = sum(stays.seen_blocks)
    block_tokens = timeline.block_tokens
    return Tally(
        input_tokens,
        (seen - lost_blocks) * block_tokens,
        lost_blocks * block_tokens,
        input_tokens - seen * block_tokens,
        lost_s,
    )


def _bound_s(stays: Stays, cost: PrefillCost, belady: Tally) -> float:
    """Device seconds of regeneration that no policy can pass, see `sim.cache_bound`."""
    worth = [cost.seconds(stay.block, stay.block + stay.blocks) for stay in stays.stays]
    total_s = sum(worth)
    return max(0.0, total_s - most_saved(stays.stays, worth, stays.room, total_s - belady.regenerated_s))


def _play(
    timeline: Timeline,
    seen_blocks: Sequence[int],
    config: CacheConfig,
    policy: CachePolicy,
    latency: Latency,
    cost: PrefillCost,
) -> Tally:
    """One policy over the whole timeline."""
    pool = KvPool(timeline.num_blocks, timeline.block_tokens, policy.eviction)
    facts = policy.facts(pool, policy.retention, latency, tells_ends=config.ends)
    tally, slot, pinned = Tally(), 0, config.replay == "pinned"
    leases: dict[str, Lease] = {}
    for at_s, kind, visit in timeline.events:
        facts.until(at_s)
        if kind == ARRIVED:
            facts.arrived(visit, at_s)
        elif kind == STARTED:
            lease = _enter(pool, visit, seen_blocks[slot], tally, cost)
            slot += 1
            if pinned:
                leases[visit.session] = lease
            else:
                pool.close(lease, tokens=visit.context_tokens, at_s=at_s, task_arrival_s=visit.began_s)
                facts.runs(visit, at_s)
        elif kind == FINISHED:
            if pinned:
                lease = leases.pop(visit.session)
                pool.close(lease, tokens=visit.context_tokens, at_s=at_s, task_arrival_s=visit.began_s)
            facts.finished(visit, at_s)
        else:
            facts.over(visit)
    return tally


def _enter(pool: KvPool, visit: Visit, seen: int, tally: Tally, cost: PrefillCost) -> Lease:
    """A call takes its room; what it found is counted."""
    hit = pool.lookup(visit.spans, visit.prompt_blocks)
    lease = pool.open(visit.session, visit.spans, hit)
    pool.rewritten(visit.session)
    if not pool.grow(lease, visit.context_tokens):
        raise UsageError(f"kv_tokens: a context of {visit.context_tokens} tokens does not fit beside those in flight")
    block_tokens, prompt_tokens = pool.block_tokens, visit.call.prompt_tokens
    tally.input_tokens += prompt_tokens
    tally.hit_tokens += hit * block_tokens
    if seen > hit:
        tally.regenerated_tokens += (seen - hit) * block_tokens
        tally.regenerated_s += cost.seconds(hit, seen)
    tally.new_tokens += prompt_tokens - max(seen, hit) * block_tokens
    return lease
