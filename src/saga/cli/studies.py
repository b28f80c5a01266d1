"""Runs what a report needs and has not got, and writes the report: what `saga paper` and `saga study` share.

Here cells of an evaluation become runs of the simulator. Finished runs are kept one by one, so that a second start goes
on where the first ended; an interrupt writes the report as far as it is. It refuses to know what the tables say.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from saga.bench.evaluation.cells import Cell
from saga.cli.farm import Job, run_all
from saga.errors import SagaError, UsageError

if TYPE_CHECKING:
    from saga.bench.evaluation.document import Report
    from saga.bench.evaluation.results import Metrics, Results
    from saga.bench.evaluation.store import RunStore
    from saga.scheduler.composition import Composition
    from saga.sim.config import SimConfig
    from saga.sim.metrics import Run
    from saga.workloads.plan import Workload


@dataclass(frozen=True)
class CellRun:
    """A cell under one seed, as work for the farm."""

    cell: Cell
    seed: int
    num_tasks: int
    config: SimConfig

    @property
    def composition(self) -> Composition:
        """What is simulated; of a cache replay, which has none, the preset in its configuration."""
        from saga.bench.evaluation.systems import system

        return system(self.cell.system or self.config.preset)

    def perform(self, count: Callable[[int], None]) -> Run:
        """See farm.Work."""
        from saga.sim.metrics import Run

        workload = load_cell(self.cell)
        if self.cell.kind == "cache":
            from saga.sim.cache_replay import competitive_ratios

            assert self.cell.oversubscription is not None
            ratios = competitive_ratios(
                workload,
                pressure=self.cell.oversubscription,
                seed=self.seed,
                replay=self.cell.replay,
                tasks=self.num_tasks,
                hardware=self.cell.hardware,
                kv_tokens=self.cell.kv_tokens,
            )
            return Run("", self.seed, dict(ratios))
        if self.cell.kind == "timed":
            from saga.sim.decisions import decision_times

            return Run(self.cell.system, self.seed, {**decision_times(self.config, workload), **timed_on()})
        from saga.sim.driver import simulate

        return simulate(self.config, workload, count, composition=self.composition)

    def described(self) -> dict[str, object]:
        """Plain data that tells this run from every other one."""
        found = dataclasses.asdict(self.cell) | {"seed": self.seed, "tasks": self.num_tasks}
        path = Path(self.cell.workload)
        if path.is_file():
            from saga.bench.evaluation.store import file_version

            found["trace"] = file_version(path)
        return found | timed_on() if self.cell.kind == "timed" else found

    def key(self) -> str:
        """Under which its figures are kept."""
        from saga.bench.evaluation.store import key_of
        from saga.engine.hardware import hardware

        machine = repr(hardware(self.cell.hardware))  # a name in a user's file says nothing about what is in it
        return key_of(self.described() | {"composition": repr(self.composition), "modelled": machine})


@dataclass
class Study:
    """The runs of a report: which are wanted, which are there."""

    store: RunStore
    runs: Sequence[CellRun]
    results: Results
    found: list[tuple[CellRun, Metrics]] = dataclasses.field(default_factory=list)

    def read(self) -> list[CellRun]:
        """Take what is kept already; the runs that are not."""
        missing = []
        for run in self.runs:
            metrics = self.store.load(run.key())
            if metrics is None:
                missing.append(run)
            else:
                self._take(run, metrics)
        return missing

    def run(self, missing: Sequence[CellRun], *, jobs: int) -> None:
        """Run them, keeping each as soon as it is finished."""

        def keep(index: int, run: Run) -> None:
            mine = missing[index]
            kind = "measured" if mine.cell.kind == "timed" else "simulated"
            self.store.save(mine.key(), kind, mine.described(), run.metrics)
            self._take(mine, run.metrics)

        run_all(missing, jobs=jobs, on_done=keep)

    def described(self) -> list[tuple[Mapping[str, object], Metrics]]:
        """Every finished run, for the JSON."""
        order = {run: index for index, run in enumerate(self.runs)}
        return [(run.described(), metrics) for run, metrics in sorted(self.found, key=lambda found: order[found[0]])]

    def _take(self, run: CellRun, metrics: Metrics) -> None:
        self.found.append((run, metrics))
        self.results.add(run.cell, run.seed, metrics)


def start(cells: Sequence[Cell], *, seeds: int, folder: Path) -> Study:
    """Check everything that can be wrong, then plan every run.

    Seeds are outermost: what an interrupt leaves is a part of every table, not one table and nothing of the others.
    """
    from saga.bench.evaluation.results import Results
    from saga.bench.evaluation.store import RunStore

    runs = [_plan(cell, seed) for seed in range(seeds) for cell in cells]
    return Study(RunStore(folder), runs, Results(seeds))


@functools.cache
def timed_on() -> dict[str, str]:
    """What measured times depend on beside the code: the core that is chosen, and the machine with its Python."""
    machine = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        machine = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), machine)
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return {"core": os.environ.get("SAGA_CORE", "python"), "machine": f"{machine}, {platform.system()}, {python}"}


def carry_out(study: Study, *, jobs: int, write: Callable[[Study], None]) -> None:
    """Run what is missing and write the report; an interrupt or the error of a run is passed on after that."""
    missing = study.read()
    if study.found:
        typer.echo(f"{len(study.found)} of {len(study.runs)} runs are kept from before", err=True)
    try:
        if missing:
            study.run(missing, jobs=jobs)
    except (KeyboardInterrupt, SagaError) as error:
        what = "interrupted" if isinstance(error, KeyboardInterrupt) else "a run failed"
        typer.echo(f"{what}; writing what there is, the same command goes on from here", err=True)
        write(study)
        raise
    write(study)


def write_report(folder: Path, report: Report) -> None:
    """report.json, report.md and report.html, each written whole."""
    from saga.bench.evaluation.document import as_document, as_markdown
    from saga.bench.evaluation.page import render_page
    from saga.bench.files import write_whole
    from saga.cli.output import as_json

    write_whole(folder / "report.json", as_json(as_document(report)))
    write_whole(folder / "report.md", as_markdown(report))
    write_whole(folder / "report.html", render_page(report))
    typer.echo(f"report: {folder / 'report.html'} (also report.md, report.json)")


def command_line() -> str:
    """What was typed, for the report: it says how to make it again."""
    return shlex.join(["saga", *sys.argv[1:]])


def check_whole(flag: str, value: int) -> int:
    """A count of at least 1; UsageError otherwise."""
    if value < 1:
        raise UsageError(f"{flag} {value}: must be at least 1")
    return value


def _plan(cell: Cell, seed: int) -> CellRun:
    """The run: its configuration is checked, and its number of tasks follows from the number of agents."""
    from saga.engine.hardware import hardware
    from saga.sim.config import SimConfig

    kv_tokens = cell.kv_tokens or hardware(cell.hardware).kv_tokens
    tasks = cell.least_tasks
    if cell.oversubscription is not None:
        agents = max(1, round(cell.oversubscription * kv_tokens / load_cell(cell).mean_context_tokens * cell.workers))
        tasks = agents + max(cell.least_tasks, math.ceil(cell.waves * agents))
    config = SimConfig(
        preset=cell.system.partition("~")[0] or "vllm_apc",
        workload=cell.workload,
        seed=seed,
        workers=cell.workers,
        hardware=cell.hardware,
        kv_tokens=cell.kv_tokens,
        dram_tokens=cell.dram_tokens,
        oversubscription=cell.oversubscription,
        rate_per_s=None if cell.rate_per_worker_s is None else cell.rate_per_worker_s * cell.workers,
        tasks=tasks,
    )
    return CellRun(cell, seed, tasks, config)


def load_cell(cell: Cell) -> Workload:
    """The cell's workload, read once per process."""
    from saga.sim.config import SimConfig

    config = SimConfig(
        preset="vllm_apc",
        workload=cell.workload,
        hardware=cell.hardware,
        kv_tokens=cell.kv_tokens,
        agents_per_worker=1,
    )
    return Job(config, cell.limits).load()
