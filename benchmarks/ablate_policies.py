"""What each part of the default policy earns: preset `saga` with one rule replaced, over all workloads and traces.

    python benchmarks/ablate_policies.py [--variants ...] [--workloads ...] [--oversubscription 1.0 1.5] [--seeds 3]
        [--tasks 300] [--dram 0 1200000] [--workers 2] [--jobs 2] [--shared FOLDER] [--json FILE]

Each variant meets the same tasks as `saga` (the named baseline). A cell is mean TCT of the variant over mean TCT of
`saga`, geometric mean over seeds; above 1.00 the rule that was replaced earns its place there. The last column is the
geometric mean over all cells with its worst and best. All figures are simulated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from math import exp, log
from pathlib import Path
from typing import NamedTuple

from bench_policies import BUILT_IN, load
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from saga.cache.prefix_lru import PrefixLru
from saga.cache.tiers import WriteBack
from saga.cache.ttl import FixedTtl, Forever, NoTtl
from saga.fairness.admission import OpenDoor, WorkingSet
from saga.fairness.agent_fair_share import NoShares
from saga.ordering.fcfs import Fcfs
from saga.presets import STICKY, preset
from saga.scheduler.composition import Composition, EngineRules
from saga.sim.config import SimConfig
from saga.sim.driver import simulate
from saga.views import SessionView


@dataclass(frozen=True)
class ShortestRemaining:
    """Forecast remaining tokens of the session, least first."""

    static: bool = True

    def rank(self, session: SessionView, at_s: float) -> float:
        """Tokens."""
        return session.remaining_tokens


@dataclass(frozen=True)
class ForecastGrowth(WorkingSet):
    """Head-room of half of what the session is still expected to grow by, instead of a share of its context."""

    part: float = 0.5

    def growth(self, context_tokens: float, forecast_tokens: float) -> float:
        """Tokens."""
        return self.part * forecast_tokens


def _engine(saga: Composition, **rules: object) -> Composition:
    return replace(saga, engine=replace(saga.engine, **rules))  # type: ignore[arg-type]


VARIANTS: dict[str, Callable[[Composition], Composition]] = {
    "saga": lambda saga: saga,
    "open door": lambda saga: replace(saga, admission=OpenDoor()),
    "no retention": lambda saga: replace(saga, retention=NoTtl()),
    "held for ever": lambda saga: replace(saga, retention=Forever()),
    "held for 90 s": lambda saga: replace(saga, retention=FixedTtl()),
    "fcfs by call": lambda saga: replace(saga, ordering=Fcfs(), engine=EngineRules(eviction=saga.engine.eviction)),
    "shortest remaining first": lambda saga: replace(saga, ordering=ShortestRemaining()),
    "no tenant shares": lambda saga: replace(saga, tenants=NoShares()),
    "plain LRU on the device": lambda saga: _engine(saga, eviction=PrefixLru()),
    "plain LRU in the tier": lambda saga: replace(saga, host_tier=WriteBack()),
    "no moves of KV": lambda saga: replace(saga, migrate=False),
    "sticky, no roaming": lambda saga: replace(saga, routing=STICKY, patience_s=1e6),
    "patience 5 s": lambda saga: replace(saga, patience_s=5.0),
    "patience 60 s": lambda saga: replace(saga, patience_s=60.0),
    "alpha 0.90": lambda saga: replace(saga, admission=WorkingSet(alpha=0.9, alpha_host=0.95)),
    "alpha 1.00": lambda saga: replace(saga, admission=WorkingSet(alpha=1.0, alpha_host=1.05)),
    "no growth": lambda saga: replace(saga, admission=WorkingSet(growth_share=0.0)),
    "growth 8 %": lambda saga: replace(saga, admission=WorkingSet(growth_share=0.08)),
    "growth by forecast": lambda saga: replace(saga, admission=ForecastGrowth()),
}


class Cell(NamedTuple):
    """One run."""

    workload: str
    variant: str
    oversubscription: float
    dram_tokens: int
    seed: int
    tasks: int
    workers: int


def run(cell: Cell) -> tuple[float, float]:
    """Mean and p99 TCT, seconds."""
    config = SimConfig(
        preset="saga",
        workload=cell.workload,
        seed=cell.seed,
        workers=cell.workers,
        oversubscription=cell.oversubscription,
        dram_tokens=cell.dram_tokens,
        tasks=cell.tasks,
    )
    metrics = simulate(config, load(cell.workload), composition=VARIANTS[cell.variant](preset("saga"))).metrics
    return float(metrics["tct_mean_s"]), float(metrics["tct_p99_s"])  # type: ignore[arg-type]


def main() -> None:
    """Run all cells, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--workloads", nargs="+", default=[], help="built-in names or paths; default: all")
    parser.add_argument("--oversubscription", nargs="+", type=float, default=[1.0, 1.5])
    parser.add_argument("--dram", nargs="+", type=int, default=[0, 1_200_000], help="tokens of host tier per worker")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--shared", default=os.environ.get("SAGA_SHARED", ""))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    traces = sorted(str(path) for path in Path(options.shared, "traces").glob("*.jsonl*")) if options.shared else []
    names = options.workloads or [*BUILT_IN, *traces]
    variants = list(dict.fromkeys(["saga", *options.variants]))
    cells = [
        Cell(name, variant, x, dram, seed, options.tasks, options.workers)
        for name in names
        for x in options.oversubscription
        for dram in options.dram
        for seed in range(options.seeds)
        for variant in variants
    ]
    found: dict[Cell, tuple[float, float]] = {}
    with ProcessPoolExecutor(options.jobs) as pool, Progress() as progress:
        bar = progress.add_task("runs", total=len(cells))
        for cell, times in zip(cells, pool.map(run, cells, chunksize=len(variants)), strict=True):
            found[cell] = times
            progress.advance(bar)
    columns = [(name, x, dram) for name in names for x in options.oversubscription for dram in options.dram]
    rows = []
    for variant in variants:
        ratios = []
        tails = []
        for name, x, dram in columns:
            of = [Cell(name, variant, x, dram, seed, options.tasks, options.workers) for seed in range(options.seeds)]
            pairs = [(found[cell], found[cell._replace(variant="saga")]) for cell in of]
            ratios.append(exp(statistics.fmean(log(own[0] / base[0]) for own, base in pairs)))
            tails.append(exp(statistics.fmean(log(own[1] / base[1]) for own, base in pairs)))
        rows.append({"variant": variant, "mean": ratios, "p99": tails})
    table = Table(
        "variant", "mean TCT, all", "worst", "best", "p99 TCT, all", title="TCT over that of `saga`, simulated"
    )
    for row in rows:
        whole = exp(statistics.fmean(map(log, row["mean"])))
        tail = exp(statistics.fmean(map(log, row["p99"])))
        table.add_row(
            row["variant"], f"{whole:.3f}", f"{min(row['mean']):.2f}", f"{max(row['mean']):.2f}", f"{tail:.3f}"
        )
    Console(width=120).print(table)
    if options.json is not None:
        document = {"kind": "simulated", "options": vars(options), "columns": columns, "rows": rows}
        options.json.write_text(json.dumps(document, indent=1, default=str))


if __name__ == "__main__":
    main()
