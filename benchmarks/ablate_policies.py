"""What each part of the default policy earns: preset `saga` with one rule replaced, over all workloads and traces.

    python benchmarks/ablate_policies.py [--variants ...] [--workloads ...] [--oversubscription 1.0 1.5] [--seeds 3]
        [--tasks 120] [--waves 3] [--dram 0 600000] [--workers 1] [--jobs 2] [--shared FOLDER] [--out FOLDER]
        [--json FILE]

With `--out` finished runs are kept there, and the same command goes on where it was. Each variant meets the same tasks
as `saga` (the named baseline). A cell is mean TCT of the variant over mean TCT of `saga`, geometric mean over seeds;
above 1.00 the rule that was replaced earns its place there. The table in the end gives the geometric mean over all
cells, and the most and the least of them. All figures are simulated.
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
from typing import Any, Literal, NamedTuple

from bench_policies import BUILT_IN, load, num_tasks, results_of
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from saga.bench.evaluation.store import RunStore
from saga.cache.prefix_lru import PrefixLru
from saga.cache.tiers import WriteBack
from saga.cache.ttl import FixedTtl, Forever, NoTtl, SkiRental
from saga.errors import UsageError
from saga.fairness.admission import OpenDoor
from saga.fairness.agent_fair_share import NoShares
from saga.ordering.fcfs import Fcfs
from saga.presets import STICKY, preset
from saga.scheduler.composition import Composition, EngineRules
from saga.sim.config import SimConfig
from saga.sim.driver import simulate
from saga.views import SessionView, WorkerView


@dataclass(frozen=True)
class ShortestRemaining:
    """Forecast remaining tokens of the session, least first."""

    static: bool = True

    def rank(self, session: SessionView, at_s: float) -> float:
        """Tokens."""
        return session.remaining_tokens


@dataclass(frozen=True)
class CriticalPath:
    """By arrival of the task; of its agents the one with most steps to go, so that the parent waits least."""

    static: bool = True

    def rank(self, session: SessionView, at_s: float) -> float:
        """Seconds, less a millisecond per step."""
        return session.task_arrival_s - 1e-3 * min(100.0, session.remaining_steps)


@dataclass(frozen=True)
class Gate:
    """`WorkingSet` with its choices open (the compiled one cannot be inherited from).

    growth_part: of what the session is forecast to grow by, at most a quarter of its context, instead of growth_share.
    live: share of both tiers that live contexts may fill. pause: who gives up its place first where contexts outgrow.
    """

    alpha: float = 0.95
    alpha_host: float = 1.0
    growth_share: float = 0.04
    growth_part: float = 0.0
    live: float = 1.0
    pause: Literal["youngest", "longest", "shortest", "least left"] = "youngest"
    gates: bool = True

    def growth(self, context_tokens: float, forecast_tokens: float) -> float:
        """Tokens."""
        by_forecast = min(self.growth_part * forecast_tokens, 0.25 * context_tokens)
        return by_forecast if self.growth_part else self.growth_share * context_tokens

    def fits(self, worker: WorkerView, extra_tokens: float, *, new: bool) -> bool:
        """As `WorkingSet`."""
        host_tokens = worker.host_kv_tokens
        room = (self.alpha_host if host_tokens else self.alpha) * worker.kv_tokens
        if worker.num_active == 0:
            return True
        if worker.reserved_tokens + extra_tokens > room:
            return False
        both = self.live * (worker.kv_tokens + host_tokens)
        return not (new and host_tokens) or worker.live_tokens + extra_tokens <= both

    def excess(self, worker: WorkerView) -> float:
        """As `WorkingSet`."""
        return worker.active_tokens - worker.kv_tokens

    def pause_rank(self, session: SessionView) -> float:
        """The highest goes first."""
        return {
            "youngest": session.task_arrival_s,
            "longest": float(session.context_tokens),
            "shortest": -float(session.context_tokens),
            "least left": -session.remaining_tokens,
        }[self.pause]


def _engine(saga: Composition, **rules: object) -> Composition:
    return replace(saga, engine=replace(saga.engine, **rules))  # type: ignore[arg-type]


VARIANTS: dict[str, Callable[[Composition], Composition]] = {
    "saga": lambda saga: saga,
    "open door": lambda saga: replace(saga, admission=OpenDoor()),
    "no retention": lambda saga: replace(saga, retention=NoTtl()),
    "held for ever": lambda saga: replace(saga, retention=Forever()),
    "price of a lost prefix 1": lambda saga: replace(saga, retention=SkiRental(price=1.0)),
    "price of a lost prefix 4": lambda saga: replace(saga, retention=SkiRental(price=4.0)),
    "held for 90 s": lambda saga: replace(saga, retention=FixedTtl()),
    "fcfs by call": lambda saga: replace(saga, ordering=Fcfs(), engine=EngineRules(eviction=saga.engine.eviction)),
    "shortest remaining first": lambda saga: replace(saga, ordering=ShortestRemaining()),
    "no tenant shares": lambda saga: replace(saga, tenants=NoShares()),
    "critical path first": lambda saga: replace(saga, ordering=CriticalPath()),
    "plain LRU on the device": lambda saga: _engine(saga, eviction=PrefixLru()),
    "plain LRU in the tier": lambda saga: replace(saga, host_tier=WriteBack()),
    "no moves of KV": lambda saga: replace(saga, migrate=False),
    "sticky, no roaming": lambda saga: replace(saga, routing=STICKY, patience_s=1e6),
    "patience 5 s": lambda saga: replace(saga, patience_s=5.0),
    "patience 60 s": lambda saga: replace(saga, patience_s=60.0),
    "alpha 0.90": lambda saga: replace(saga, admission=Gate(alpha=0.9, alpha_host=0.95)),
    "alpha 1.00": lambda saga: replace(saga, admission=Gate(alpha=1.0, alpha_host=1.05)),
    "no growth": lambda saga: replace(saga, admission=Gate(growth_share=0.0)),
    "growth 8 %": lambda saga: replace(saga, admission=Gate(growth_share=0.08)),
    "growth by forecast": lambda saga: replace(saga, admission=Gate(growth_part=0.5)),
    "tiers filled to 80 %": lambda saga: replace(saga, admission=Gate(live=0.8)),
    "longest paused first": lambda saga: replace(saga, admission=Gate(pause="longest")),
    "shortest paused first": lambda saga: replace(saga, admission=Gate(pause="shortest")),
    "least left paused first": lambda saga: replace(saga, admission=Gate(pause="least left")),
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

    def system(self) -> Composition:
        """The variant of the default."""
        return VARIANTS[self.variant](preset("saga"))


def run(cell: Cell) -> dict[str, Any]:
    """The run's metrics."""
    config = SimConfig(
        preset="saga",
        workload=cell.workload,
        seed=cell.seed,
        workers=cell.workers,
        oversubscription=cell.oversubscription,
        dram_tokens=cell.dram_tokens,
        tasks=cell.tasks,
    )
    return simulate(config, load(cell.workload), composition=cell.system()).metrics


def main() -> None:
    """Run all cells, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--workloads", nargs="+", default=[], help="built-in names or paths; default: all")
    parser.add_argument("--oversubscription", nargs="+", type=float, default=[1.0, 1.5])
    parser.add_argument("--dram", nargs="+", type=int, default=[0, 600_000], help="tokens of host tier per worker")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=120)
    parser.add_argument("--waves", type=float, default=3.0, help="tasks per agent, at least")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--shared", default=os.environ.get("SAGA_SHARED", ""))
    parser.add_argument("--out", type=Path, help="folder for finished runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    traces = sorted(str(path) for path in Path(options.shared, "traces").glob("*.jsonl*")) if options.shared else []
    names = options.workloads or [*BUILT_IN, *traces]
    variants = list(dict.fromkeys(["saga", *options.variants]))
    store = None if options.out is None else RunStore(options.out)
    places = [(name, x, dram) for name in names for x in options.oversubscription for dram in options.dram]
    columns: list[tuple[str, float, int]] = []
    mean: dict[str, list[float]] = {variant: [] for variant in variants}
    tail: dict[str, list[float]] = {variant: [] for variant in variants}
    with ProcessPoolExecutor(options.jobs) as pool, Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("runs", total=len(places) * len(variants) * options.seeds)
        for name, x, dram in places:
            try:
                tasks = num_tasks(load(name), x, options)
            except UsageError as error:  # a trace of single calls has nothing to schedule
                print(f"{Path(name).name}: {error}", flush=True)
                progress.advance(bar, len(variants) * options.seeds)
                continue
            cells = [
                Cell(name, variant, x, dram, seed, tasks, options.workers)
                for variant in variants
                for seed in range(options.seeds)
            ]
            found = {}
            for cell, metrics in zip(cells, results_of(cells, run, store, pool), strict=True):
                found[cell] = metrics
                progress.advance(bar)
            columns.append((name, x, dram))
            for variant in variants:
                pairs = [
                    (found[cell], found[cell._replace(variant="saga")]) for cell in cells if cell.variant == variant
                ]
                mean[variant].append(exp(statistics.fmean(log(a["tct_mean_s"] / b["tct_mean_s"]) for a, b in pairs)))
                tail[variant].append(exp(statistics.fmean(log(a["tct_p99_s"] / b["tct_p99_s"]) for a, b in pairs)))
            print(f"{Path(name).name} at {x:g}, tier {dram}, {tasks} tasks: ", end="")
            print(", ".join(f"{variant} {mean[variant][-1]:.3f}" for variant in variants[1:]), flush=True)
    rows = [{"variant": variant, "mean": mean[variant], "p99": tail[variant]} for variant in variants]
    table = Table(
        "variant", "mean TCT, all", "most", "least", "p99 TCT, all", title="TCT over that of `saga`, simulated"
    )
    for row in rows:
        whole = exp(statistics.fmean(map(log, row["mean"])))
        late = exp(statistics.fmean(map(log, row["p99"])))
        table.add_row(
            str(row["variant"]), f"{whole:.3f}", f"{max(row['mean']):.2f}", f"{min(row['mean']):.2f}", f"{late:.3f}"
        )
    Console(width=120).print(table)
    if options.json is not None:
        document = {"kind": "simulated", "options": vars(options), "columns": columns, "rows": rows}
        options.json.write_text(json.dumps(document, indent=1, default=str))


if __name__ == "__main__":
    main()
