"""How good the default policy is: mean task completion time over oversubscription, against rivals and the bound.

    python benchmarks/bench_policies.py swe      [--seeds 5] [--tasks 1000] [--jobs 2] [--json FILE]
    python benchmarks/bench_policies.py rivals   the same with a host tier of 1.2M and of 300k tokens per worker
    python benchmarks/bench_policies.py traces   every trace in --shared
    python benchmarks/bench_policies.py built-in every built-in workload but swe_bench
    python benchmarks/bench_policies.py sweep    all of them at five loads, against rivals; ends in a summary

With `--out FOLDER` finished runs are kept there, and the same command goes on where it was. A run has as many tasks as
`--tasks`, and at least `--waves` for each agent of its closed loop.

All figures are simulated. Ratios are geometric means over seeds of the named baseline's mean TCT over the preset's,
with a 95 % t-interval on the paired log ratios; `of bound` is infinite_kv's mean TCT over the preset's.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rich.console import Console
from rich.progress import Progress

from saga.bench.evaluation.store import RunStore, key_of
from saga.bench.statistics import paired_speedup
from saga.errors import UsageError
from saga.presets import preset
from saga.scheduler.composition import Composition
from saga.sim.config import SimConfig
from saga.sim.driver import simulate
from saga.workloads.catalogue import workload
from saga.workloads.limits import Limits
from saga.workloads.plan import Workload

BUILT_IN = ("swe_bench", "web_arena", "claude_code", "swe_agent", "tool_service", "browser", "chat")
TRACE_LIMITS = Limits(max_context_tokens=150_000, min_calls=2, max_calls=120, gap_cap_s=300.0)
KV_TOKENS = 450_000
SWEEP = (0.6, 0.85, 1.0, 1.5, 3.0)
FIELD = (
    "vllm_apc",
    "vllm_priority",
    "sglang",
    "vllm_kvflow",
    "continuum",
    "thunderagent",
    "saga_paper",
    "vllm_apc_dram",
    "saga",
    "infinite_kv",
)
"""The baseline first; rivals that a workload of one tenant tells apart; the bound last."""
RIVALS = ("vllm_apc", "vllm_apc_dram", "vllm_priority", "session_cap", "saga_paper", "saga", "infinite_kv")


class Cell(NamedTuple):
    """One run."""

    workload: str
    preset: str
    oversubscription: float
    dram_tokens: int
    seed: int
    tasks: int
    workers: int

    def system(self) -> Composition:
        """The preset."""
        return preset(self.preset)


@cache
def load(name: str) -> Workload:
    """A workload, once per process."""
    return workload(name, TRACE_LIMITS if os.sep in name else Limits(), kv_tokens=KV_TOKENS)


def run(cell: Cell) -> dict[str, Any]:
    """The run's metrics."""
    config = SimConfig(
        preset=cell.preset,
        workload=cell.workload,
        seed=cell.seed,
        workers=cell.workers,
        oversubscription=cell.oversubscription,
        dram_tokens=cell.dram_tokens,
        tasks=cell.tasks,
    )
    return simulate(config, load(cell.workload)).metrics


def tables(options: argparse.Namespace) -> list[tuple[str, float, int, tuple[str, ...]]]:
    """(workload, oversubscription, host tier tokens, presets) of each row group."""
    if options.part == "swe":
        return [("swe_bench", x, 0, RIVALS) for x in (0.6, 0.85, 1.0, 1.5, 3.0)]
    if options.part == "rivals":
        presets = ("vllm_apc", "vllm_apc_dram", "saga", "infinite_kv")
        return [("swe_bench", x, dram, presets) for dram in (1_200_000, 300_000) for x in (0.85, 1.0, 1.5, 3.0)]
    traces = sorted(str(path) for path in Path(options.shared, "traces").glob("*.jsonl*"))
    presets = ("vllm_apc", "vllm_apc_dram", "saga", "infinite_kv")
    if options.part == "sweep":
        return [(name, x, options.dram, FIELD) for name in (*BUILT_IN, *traces) for x in SWEEP]
    names = BUILT_IN[1:] if options.part == "built-in" else traces
    return [(name, x, 1_200_000, presets) for name in names for x in (1.0, 1.5)]


def num_tasks(source: Workload, oversubscription: float, options: argparse.Namespace) -> int:
    """Tasks of a run: enough that each agent of the closed loop plays several."""
    agents = oversubscription * options.workers * KV_TOKENS / source.mean_context_tokens
    return max(options.tasks, round(options.waves * agents))


class Played(Protocol):
    """A cell: a named tuple of all that its figures depend on but the code, and the system that it plays."""

    def _asdict(self) -> dict[str, Any]: ...

    def system(self) -> Composition:
        """What is compared."""
        ...


def results_of(
    cells: Sequence[Played], play: Callable[[Any], Mapping[str, Any]], store: RunStore | None, pool: ProcessPoolExecutor
) -> Iterator[Mapping[str, Any]]:
    """The metrics that `play` gives for each cell, in order: what is kept is not run again.

    A kept run is of the same code and the same policies. Workloads and traces are told apart by their names only.
    """
    keys = [key_of({"system": repr(cell.system()), **cell._asdict()}) for cell in cells]
    kept = [None if store is None else store.load(key) for key in keys]
    missing = pool.map(play, [cell for cell, known in zip(cells, kept, strict=True) if known is None])
    for cell, key, known in zip(cells, keys, kept, strict=True):
        metrics = next(missing) if known is None else known
        if known is None and store is not None:
            store.save(key, "simulated", cell._asdict(), metrics)
        yield metrics


def main() -> None:
    """Run one part and print its table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("swe", "rivals", "traces", "built-in", "sweep"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=1_000)
    parser.add_argument("--waves", type=float, default=0.0, help="tasks per agent, at least")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--dram", type=int, default=600_000, help="tokens of host tier per worker, in the sweep")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="only workloads whose name contains this")
    parser.add_argument("--shared", default=os.environ.get("SAGA_SHARED", "../shared"))
    parser.add_argument("--out", type=Path, help="folder for finished runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    groups = [group for group in tables(options) if options.only in group[0]]
    store = None if options.out is None else RunStore(options.out)
    out: list[dict[str, Any]] = []
    size = f"{options.seeds} seeds, {options.tasks} tasks, {options.waves:g} per agent, {options.workers} workers"
    print(f"simulated; {size}; baseline vllm_apc", flush=True)
    total = sum(len(presets) for *_, presets in groups) * options.seeds
    with ProcessPoolExecutor(options.jobs) as pool, Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("runs", total=total)
        for name, x, dram, presets in groups:
            try:
                tasks = num_tasks(load(name), x, options)
                cells = [
                    Cell(name, preset, x, dram, seed, tasks, options.workers)
                    for preset in presets
                    for seed in range(options.seeds)
                ]
                results = {}
                for cell, metrics in zip(cells, results_of(cells, run, store, pool), strict=True):
                    results[cell] = metrics
                    progress.advance(bar)
            except UsageError as error:  # a workload that cannot run is a row of its own
                print(f"\n{Path(name).name} at {x}: {error}", flush=True)
                progress.advance(bar, len(presets) * options.seeds)
                continue
            print(f"\n{Path(name).name} at oversubscription {x}, host tier {dram}, {tasks} tasks", flush=True)
            out += report(presets, cells, results)
            if options.json:
                options.json.write_text(json.dumps({"schema": 1, "kind": "simulated", "rows": out}, indent=1) + "\n")
    if options.part == "sweep":
        summarise(out)


def summarise(rows: list[dict[str, Any]]) -> None:
    """A line of Markdown per workload and load: TCT of others over that of saga, and what saga is of the best.

    Least mean, least p99: the rival that comes closest by that figure.
    """
    best = ("least mean: mean, p99", "least p99", "of the bound", "throughput", "regenerated")
    heads = ("workload", "load", "vllm_apc", *best)
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for key in dict.fromkeys((row["workload"], row["oversubscription"]) for row in rows):
        own = {row["preset"]: row for row in rows if (row["workload"], row["oversubscription"]) == key}
        saga, bound = own.pop("saga"), own.pop("infinite_kv")
        by_mean = min(own.values(), key=lambda row: float(row["tct_mean_s"]))
        by_p99 = min(own.values(), key=lambda row: float(row["tct_p99_s"]))
        fastest = max(own.values(), key=lambda row: float(row["tasks_per_min"]))
        print(
            f"| {Path(key[0]).name.removesuffix('.gz').removesuffix('.jsonl')} | {key[1]:g} | {saga['speedup']:.2f} "
            f"| {by_mean['preset']} {by_mean['tct_mean_s'] / saga['tct_mean_s']:.2f}, "
            f"{by_mean['tct_p99_s'] / saga['tct_p99_s']:.2f} "
            f"| {by_p99['preset']} {by_p99['tct_p99_s'] / saga['tct_p99_s']:.2f} "
            f"| {100 * bound['tct_mean_s'] / saga['tct_mean_s']:.0f} % "
            f"| {saga['tasks_per_min'] / fastest['tasks_per_min']:.2f} | {100 * saga['regenerated_share']:.1f} % |"
        )


def report(presets: tuple[str, ...], cells: list[Cell], results: dict[Cell, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Print one group's rows and return them."""
    by_preset = {name: [results[cell] for cell in cells if cell.preset == name] for name in presets}
    base = [run["tct_mean_s"] for run in by_preset[presets[0]]]
    bound = [run["tct_mean_s"] for run in by_preset["infinite_kv"]]
    rows = []
    for name, runs in by_preset.items():
        mean = [run["tct_mean_s"] for run in runs]
        speed = paired_speedup(base, mean)
        share = paired_speedup(bound, mean)
        row = {
            **cells[0]._asdict(),
            "preset": name,
            "tct_mean_s": sum(mean) / len(mean),
            "tct_p99_s": sum(run["tct_p99_s"] for run in runs) / len(runs),
            "speedup": speed.speedup,
            "speedup_low": speed.low,
            "speedup_high": speed.high,
            "share_of_bound": share.speedup,
            "tasks_per_min": sum(run["tasks_per_min"] for run in runs) / len(runs),
            "regenerated_share": sum(run["regenerated_share"] for run in runs) / len(runs),
        }
        rows.append(row)
        interval = f"[{speed.low:.2f}, {speed.high:.2f}]" if speed.low is not None and speed.high is not None else ""
        print(
            f"  {name:<14} tct {row['tct_mean_s']:>8.0f} s  x{speed.speedup:>5.2f} {interval:<14} "
            f"of bound {share.speedup:>5.2f}  {row['tasks_per_min']:>6.2f} tasks/min  "
            f"regenerated {row['regenerated_share']:.3f}",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main()
