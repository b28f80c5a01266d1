"""How fast a cache replay is: processor seconds per step on one core, beside a replay under plain LRU and a twin.

    python benchmarks/bench_cache.py [--workload swe_bench] [--blocks 1000000] [--pressure 1.5] [--json FILE]

As many tasks are played as make that many distinct blocks. Ratios are to the replay under `lru` (the named baseline).
The twin is Belady's rule block by block; it plays an eighth of the blocks, must give the same figure as Belady by runs,
and is compared with that on the same calls.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from math import inf
from pathlib import Path
from typing import TypeVar

from saga.engine.hardware import hardware
from saga.engine.latency import LatencyModel
from saga.sim import cache_replay
from saga.sim.cache_replay import POLICIES, CacheConfig, PrefillCost, call_order
from saga.sim.cache_stays import stays_of
from saga.sim.cache_timeline import Visit
from saga.workloads.catalogue import workload
from saga.workloads.limits import Limits
from saga.workloads.plan import Workload

BASELINE = "lru"
TWIN_SHARE = 8
Result = TypeVar("Result")


def main() -> None:
    """Measure every step once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="swe_bench")
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--pressure", type=float, default=1.5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    source = workload(options.workload, Limits(), kv_tokens=hardware("llama3-70b-a100x4").kv_tokens)
    tasks = tasks_for(options.blocks, options, source)
    rows = [row for replay in cache_replay.REPLAYS for row in measure(config_of(options, tasks, replay), source)]
    rows += compare_twin(config_of(options, max(1, tasks // TWIN_SHARE), "free"), source)
    if options.json:
        options.json.write_text(json.dumps({"schema": 1, "kind": "measured", "rows": rows}, indent=1) + "\n")


def config_of(options: argparse.Namespace, tasks: int, replay: cache_replay.Replay) -> CacheConfig:
    """One replay."""
    return CacheConfig(workload=options.workload, pressure=options.pressure, tasks=tasks, replay=replay)


def tasks_for(num_blocks: int, options: argparse.Namespace, source: Workload) -> int:
    """Enough tasks for that many distinct blocks, by a sample."""
    sample = 200
    config = config_of(options, sample, "free")
    return -(-sample * num_blocks // stays_of(call_order(config, source), pinned=False).num_distinct_blocks)


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Processor seconds, and what came out."""
    begin_s = time.process_time()
    result = work()
    return time.process_time() - begin_s, result


def measure(config: CacheConfig, source: Workload) -> Iterator[dict[str, object]]:
    """Every step of one replay, the baseline first."""
    latency = LatencyModel(hardware(config.hardware))
    cost = PrefillCost.of(latency, config.block_tokens)
    order_s, timeline = timed(lambda: call_order(config, source))
    stays_s, stays = timed(lambda: stays_of(timeline, pinned=config.replay == "pinned"))
    calls = len(stays.room)
    print(
        f"{config.replay}: {stays.num_distinct_blocks:,} distinct blocks, {calls:,} calls, {len(stays.stays):,} stays"
    )
    seconds: dict[str, float] = {}
    for name, policy in POLICIES.items():
        seconds[name], _ = timed(
            lambda policy=policy: cache_replay._play(timeline, stays.seen_blocks, config, policy, latency, cost)
        )
    seconds["order of calls"], seconds["stays"] = order_s, stays_s
    seconds["belady"], tally = timed(lambda: cache_replay._belady(timeline, stays, cost))
    seconds["bound"], _ = timed(lambda: cache_replay._bound_s(stays, cost, tally))
    seconds["all of it"] = sum(seconds.values())
    for name, taken_s in seconds.items():
        ratio = taken_s / seconds[BASELINE]
        print(f"  {name:<16} {taken_s:>7.2f} s  {1e6 * taken_s / calls:>7.1f} us per call  {ratio:>6.2f} x {BASELINE}")
        yield {"replay": config.replay, "step": name, "calls": calls, "cpu_s": taken_s, "over_baseline": ratio}


def compare_twin(config: CacheConfig, source: Workload) -> Iterator[dict[str, object]]:
    """Belady by runs and block by block on the same calls: the same figure, and what each takes."""
    timeline = call_order(config, source)
    cost = PrefillCost(1.0, 0.0)

    def by_runs() -> tuple[int, int]:
        stays = stays_of(timeline, pinned=False)
        lost = cache_replay._belady(timeline, stays, cost).regenerated_tokens
        return lost // config.block_tokens, stays.num_distinct_blocks

    runs_s, (lost, num_blocks) = timed(by_runs)
    twin_s, lost_by_blocks = timed(lambda: belady_by_blocks(list(timeline.starts()), config.num_blocks))
    if lost != lost_by_blocks:
        raise SystemExit(f"Belady by runs loses {lost} blocks, block by block {lost_by_blocks}")
    print(
        f"twin, free: {num_blocks:,} distinct blocks, {lost:,} lost by both; by runs {runs_s:.2f} s, block by block "
        f"{twin_s:.2f} s, {twin_s / runs_s:.0f} x as long"
    )
    yield {"step": "twin", "cpu_s": twin_s, "by_runs_cpu_s": runs_s, "over_by_runs": twin_s / runs_s}


def belady_by_blocks(visits: list[Visit], num_blocks: int) -> int:
    """Blocks computed again by the farthest next use, every block on its own. O(blocks touched log blocks)."""
    uses: list[list[tuple[tuple[int, int], float]]] = []
    next_use: dict[tuple[int, int], float] = {}
    for slot in range(len(visits) - 1, -1, -1):
        visit = visits[slot]
        path = [(stream, at) for stream, first, end in visit.spans for at in range(first, min(end, visit.full_blocks))]
        uses.append([(block, next_use.get(block, inf)) for block in path])
        for block in path:
            if block[1] < visit.prompt_blocks:
                next_use[block] = slot
    uses.reverse()
    cached: dict[tuple[int, int], float] = {}
    heap: list[tuple[float, int, tuple[int, int]]] = []
    seen: set[tuple[int, int]] = set()
    lost = 0
    for visit, path in zip(visits, uses, strict=True):
        for block, _ in path:
            lost += block in seen and block not in cached and block[1] < visit.prompt_blocks
            seen.add(block)
            cached.pop(block, None)
        while len(cached) + visit.held_blocks > num_blocks:
            coming, _, block = heappop(heap)
            if cached.get(block) == -coming:
                del cached[block]
        cached.update(path)
        for block, coming in path:
            heappush(heap, (-coming, -block[1], block))
    return lost


if __name__ == "__main__":
    main()
