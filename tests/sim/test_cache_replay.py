"""Policies beside the optimum, over one order of calls."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from dataclasses import dataclass
from math import inf

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from saga.cache.belady import kept_blocks
from saga.cache.eviction import EvictionKey
from saga.engine.latency import ConstantLatency
from saga.errors import UsageError
from saga.sim import cache_replay
from saga.sim.cache_replay import (
    BELADY,
    BOUND,
    POLICIES,
    CacheConfig,
    CachePolicy,
    CacheRun,
    PrefillCost,
    Replay,
    check_policies,
    competitive_ratios,
    num_steps,
    replay_cache,
)
from saga.sim.cache_stays import stays_of
from saga.sim.cache_timeline import STARTED
from saga.views import CacheOwner
from saga.workloads.catalogue import workload
from saga.workloads.limits import Limits

from .small_caches import Small, answers_below_a_stay, least_cost, small_timeline, small_workloads

EVERYTHING = (*POLICIES, BELADY, BOUND)
KV_TOKENS = 60_000


def crowded(replay: Replay, name: str = "swe_bench", *, ends: bool = True, pressure: float = 1.5) -> CacheRun:
    """A small cache, a few tasks, all policies."""
    config = CacheConfig(workload=name, pressure=pressure, replay=replay, ends=ends, tasks=20, kv_tokens=KV_TOKENS)
    return replay_cache(config, workload(name, Limits(), kv_tokens=KV_TOKENS), EVERYTHING)


def small_run(small: Small, replay: Replay, capacity: int = 10) -> CacheRun:
    """All policies on a workload of three sessions, in blocks of one token."""
    pressure = 3 * small.mean_context_tokens / capacity
    config = CacheConfig(
        workload="small", pressure=pressure, replay=replay, tasks=3, kv_tokens=capacity, block_tokens=1
    )
    return replay_cache(config, small, EVERYTHING)


@pytest.mark.parametrize("name", ["swe_bench", "browser"])
@pytest.mark.parametrize("replay", ["pinned", "free"])
def test_every_prompt_token_is_hit_regenerated_or_new(replay: Replay, name: str) -> None:
    """Conserved for every policy, and what is new is new for all of them."""
    tallies = crowded(replay, name).tallies
    for tally in tallies.values():
        assert tally.hit_tokens + tally.regenerated_tokens + tally.new_tokens == tally.input_tokens
        assert min(dataclasses.astuple(tally)) >= 0
    assert len({(tally.input_tokens, tally.new_tokens) for tally in tallies.values()}) == 1


@pytest.mark.parametrize("replay", ["pinned", "free"])
@given(small=small_workloads(max_calls=5))
def test_no_policy_regenerates_less_than_belady_or_passes_the_bound(small: Small, replay: Replay) -> None:
    """Tokens: Belady's are the fewest. Seconds: the bound is below Belady and below every policy."""
    run = small_run(small, replay)
    assert run.bound_s is not None
    for tally in run.tallies.values():
        assert tally.regenerated_tokens >= run.tallies[BELADY].regenerated_tokens
        assert tally.regenerated_s >= run.bound_s * (1 - 1e-9)


@pytest.mark.parametrize("pinned", [True, False])
@settings(max_examples=25)
@given(small=small_workloads(), num_blocks=st.integers(9, 11), depth_s=st.floats(0.0, 30.0))
def test_the_bound_is_below_the_cheapest_of_all_ways(
    small: Small, num_blocks: int, depth_s: float, pinned: bool
) -> None:
    """Exhaustively, where deep blocks cost much more and Belady need not be the cheapest."""
    timeline = small_timeline(small, num_blocks)
    stays, cost = stays_of(timeline, pinned=pinned), PrefillCost(1.0, depth_s)
    belady = cache_replay._belady(timeline, stays, cost)
    cost_of = {depth: cost.seconds(depth, depth + 1) for depth in range(12)}
    cheapest = least_cost(timeline, pinned=pinned, leaf_first=True, cost_of=cost_of)
    assert cache_replay._bound_s(stays, cost, belady) <= cheapest * (1 + 1e-9) + 1e-9
    assert cheapest <= belady.regenerated_s * (1 + 1e-9) or answers_below_a_stay(timeline)


@dataclass(frozen=True)
class Oracle:
    """A policy that knows when each session's next call starts: Belady as a policy of the block pool."""

    starts: dict[str, list[float]]

    def key(self, owner: CacheOwner) -> EvictionKey:
        mine = self.starts[owner.session]
        place = bisect_right(mine, owner.last_use_s)
        return (-mine[place] if place < len(mine) else -inf,)


def test_the_block_pool_with_an_oracle_gives_the_same_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ways to the optimum: farthest next use in the production pool, and stays. Free, sessions that append."""
    config = CacheConfig(workload="swe_bench", pressure=1.5, replay="free", tasks=12, kv_tokens=200_000)
    source = workload("swe_bench", Limits(), kv_tokens=200_000)
    starts: dict[str, list[float]] = {}
    for at_s, kind, visit in cache_replay.lay_out(
        source,
        cache_replay.LatencyModel(cache_replay.hardware(config.hardware)),
        num_agents=config.num_agents(source.mean_context_tokens),
        num_tasks=12,
        seed=0,
        num_blocks=config.num_blocks,
        block_tokens=16,
        chunk_tokens=2_048,
    ).events:
        if kind == STARTED:
            starts.setdefault(visit.session, []).append(at_s)
    monkeypatch.setitem(POLICIES, "oracle", CachePolicy(Oracle(starts), "knows the future"))
    run = replay_cache(config, source, ("oracle",))
    best = run.tallies[BELADY].regenerated_tokens
    assert 0 < best <= run.tallies["oracle"].regenerated_tokens <= 1.01 * best


@pytest.mark.parametrize("replay", ["pinned", "free"])
def test_a_bigger_cache_never_makes_the_optimum_worse(replay: Replay) -> None:
    """In the same order of calls, room to spare loses nothing."""
    small = workload("swe_bench", Limits(), kv_tokens=KV_TOKENS)
    timeline = cache_replay.lay_out(
        small,
        ConstantLatency(0.01),
        num_agents=5,
        num_tasks=10,
        seed=0,
        num_blocks=KV_TOKENS // 16,
        block_tokens=16,
        chunk_tokens=2_048,
    )
    lost = []
    for more in (0, 500, 1_000, 5_000):
        stays = stays_of(
            dataclasses.replace(timeline, num_blocks=timeline.num_blocks + more), pinned=replay == "pinned"
        )
        lost.append(sum(s.blocks for s in stays.stays) - sum(kept_blocks(stays.stays, stays.room)))
    assert lost == sorted(lost, reverse=True)
    assert lost[0] > 0


@pytest.mark.parametrize("replay", ["pinned", "free"])
def test_ends_that_are_not_told_are_not_known(replay: Replay) -> None:
    """Ended-first is plain LRU where nobody says that a session has ended; plain LRU is itself either way."""
    told, untold = crowded(replay), crowded(replay, ends=False)
    assert untold.tallies["ended_lru"] == untold.tallies["lru"] == told.tallies["lru"]
    assert told.tallies["ended_lru"] != told.tallies["lru"]


def test_the_same_seed_gives_the_same_figures() -> None:
    """Nothing but the seed decides."""
    assert crowded("free").tallies == crowded("free").tallies


def test_a_ratio_to_almost_nothing_is_none() -> None:
    """Without pressure the optimum regenerates nothing, and no ratio is given."""
    run = crowded("free", pressure=0.3)
    assert run.ratio("lru") is None
    assert run.ratio(BELADY) is None


def test_competitive_ratios_are_those_of_a_replay() -> None:
    """The short way and the long way agree."""
    source = workload("swe_bench", Limits(), kv_tokens=KV_TOKENS)
    ratios = competitive_ratios(
        source, pressure=1.5, seed=0, policies=("lru", "next_use"), tasks=20, kv_tokens=KV_TOKENS
    )
    run = crowded("free")
    assert ratios == {name: run.ratio(name) for name in ("lru", "next_use")}


def test_competitive_ratios_are_of_the_hardware_that_is_asked_for() -> None:
    """Its memory, and its speed, are those of the replay on it."""
    source = workload("swe_bench", Limits(), kv_tokens=KV_TOKENS)
    name = "llama3-8b-h100"
    ratios = competitive_ratios(
        source, pressure=1.5, seed=0, policies=("lru",), tasks=20, hardware=name, kv_tokens=KV_TOKENS
    )
    config = CacheConfig(workload="swe_bench", pressure=1.5, tasks=20, hardware=name, kv_tokens=KV_TOKENS)
    assert ratios == {"lru": replay_cache(config, source, ("lru",)).ratio("lru")}
    assert ratios != competitive_ratios(source, pressure=1.5, seed=0, policies=("lru",), tasks=20, kv_tokens=KV_TOKENS)


def test_progress_counts_every_step() -> None:
    """The bar ends where it was said to end."""
    config = CacheConfig(workload="swe_bench", pressure=1.0, tasks=5, kv_tokens=KV_TOKENS)
    done: list[int] = []
    names = ("lru", "next_use", BOUND)
    replay_cache(config, workload("swe_bench", Limits(), kv_tokens=KV_TOKENS), names, done.append)
    assert done == sorted(done)
    assert done[-1] == num_steps(names)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pressure": 0.0}, "pressure = 0.0: expected a number above 0"),
        ({"pressure": float("nan")}, "pressure = nan"),
        ({"replay": "loose"}, "replay = 'loose': expected pinned or free"),
        ({"tasks": 0}, "tasks = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"block_tokens": 0}, "block_tokens = 0"),
        ({"kv_tokens": 16}, "kv_tokens = 16: expected a whole number from 32"),
        ({"hardware": "abacus"}, "abacus"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], words: str) -> None:
    """Field, value and what would be right, before anything is read."""
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        CacheConfig(**{"workload": "swe_bench", "pressure": 1.5} | changes)


@pytest.mark.parametrize(
    ("names", "words"), [((), "none is named"), (("lruu",), "did you mean 'lru'"), (("lru", "lru"), "twice")]
)
def test_policies_are_known_and_named_once(names: tuple[str, ...], words: str) -> None:
    """A typo is found before the replay."""
    with pytest.raises(UsageError, match=words):
        check_policies(names)
