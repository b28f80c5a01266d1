"""`saga sim`: the same tasks under several presets, and how they compare.

Checks everything that can be wrong before the first run starts, so that no hour of simulation ends in a bad path. It
refuses to know how a run goes (`saga.sim`) and what the numbers mean (`saga.bench`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga.bench.files import write_whole
from saga.cli.output import as_json, check_writable, print_table
from saga.cli.selection import (
    FLEET,
    DramTokens,
    GapCap,
    Hardware,
    KvTokens,
    MaxCalls,
    MaxContext,
    MinCalls,
    PresetNames,
    Workers,
    WorkloadName,
)
from saga.errors import UsageError

if TYPE_CHECKING:
    from saga.bench.report import ReportGroup
    from saga.cli.farm import Job
    from saga.sim.config import SimConfig
    from saga.sim.metrics import Run
    from saga.workloads.limits import Limits
    from saga.workloads.plan import Workload

SCHEMA = 1
_LOADS = ("agents_per_worker", "oversubscription", "rate_per_s", "as_recorded")
_LOAD_FLAGS = "--agents-per-worker, --oversubscription, --rate, --as-recorded"
_LOAD, _OUTPUT = "Load (exactly one)", "Output"


def sim(
    workload: WorkloadName,
    preset: PresetNames = "vllm_apc,saga",
    agents_per_worker: Annotated[
        float | None, typer.Option(help="Agents at work per worker, closed loop.", rich_help_panel=_LOAD)
    ] = None,
    oversubscription: Annotated[
        float | None,
        typer.Option(help="The same as a ratio: contexts of all agents / KV memory.", rich_help_panel=_LOAD),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Tasks arriving per second, open loop.", rich_help_panel=_LOAD)
    ] = None,
    as_recorded: Annotated[
        bool, typer.Option("--as-recorded", help="Tasks arrive when the trace says.", rich_help_panel=_LOAD)
    ] = False,
    workers: Workers = 4,
    hardware: Hardware = "llama3-70b-a100x4",
    kv_tokens: KvTokens = None,
    dram_tokens: DramTokens = None,
    block_tokens: Annotated[int, typer.Option(help="Tokens of a KV block.", rich_help_panel=FLEET)] = 16,
    max_running: Annotated[int, typer.Option(help="Calls in one batch.", rich_help_panel=FLEET)] = 256,
    chunk_tokens: Annotated[int, typer.Option(help="Tokens of one engine step.", rich_help_panel=FLEET)] = 2048,
    max_context: MaxContext = None,
    min_calls: MinCalls = 1,
    max_calls: MaxCalls = None,
    gap_cap_s: GapCap = None,
    tasks: Annotated[int, typer.Option(help="Tasks per run.")] = 1000,
    seeds: Annotated[int, typer.Option(help="Runs per preset, each with its own tasks.")] = 3,
    jobs: Annotated[int, typer.Option(help="Processes side by side.")] = 2,
    json: Annotated[Path | None, typer.Option(help="Write all figures here.", rich_help_panel=_OUTPUT)] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report here.", rich_help_panel=_OUTPUT)] = None,
    log: Annotated[
        Path | None,
        typer.Option(help="Write events and decisions for `saga explain` (one run only).", rich_help_panel=_OUTPUT),
    ] = None,
) -> None:
    """Replay a workload under several presets on a modelled fleet and compare completion times.

    saga sim --workload swe_bench --preset vllm_apc,saga --oversubscription 1.2 --tasks 200

    saga sim --workload my_trace.jsonl --preset vllm_apc,saga,infinite_kv --agents-per-worker 12 --report out.html

    saga sim --workload swe_bench --preset saga --rate 0.2 --seeds 1 --log run.jsonl
    """
    from saga.cli.farm import Job
    from saga.sim.config import SimConfig
    from saga.workloads.limits import Limits

    loads = {
        "agents_per_worker": agents_per_worker,
        "oversubscription": oversubscription,
        "rate_per_s": rate,
        "as_recorded": as_recorded or None,
    }
    _check_one_load(loads)
    _check_counts(seeds=seeds, jobs=jobs)
    names = check_presets(preset)
    num_runs = len(names) * seeds
    _check_outputs({"--json": json, "--report": report, "--log": log}, num_runs)
    first = SimConfig(
        preset=names[0],
        workload=workload,
        workers=workers,
        hardware=hardware,
        kv_tokens=kv_tokens,
        dram_tokens=dram_tokens,
        agents_per_worker=agents_per_worker,
        oversubscription=oversubscription,
        rate_per_s=rate,
        as_recorded=as_recorded,
        tasks=tasks,
        block_tokens=block_tokens,
        max_running=max_running,
        chunk_tokens=chunk_tokens,
        log_path=None if log is None else str(log),
        detail=report is not None,
    )
    limits = Limits(max_context_tokens=max_context, min_calls=min_calls, max_calls=max_calls, gap_cap_s=gap_cap_s)
    comparison = compare([Job(first, limits)], names, seeds=seeds, jobs=jobs)[0]
    comparison.show()
    if json is not None:
        write_whole(json, as_json(comparison.as_document()))
    if report is not None:
        from saga.bench.report import write_report

        write_report(report, f"SAGA: {workload}, simulated", [comparison.as_group()])
        typer.echo(f"report: {report}")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One workload under several presets: the common configuration, the runs, and what they amount to."""

    config: SimConfig
    limits: Limits
    source: Workload
    runs: Sequence[Run]
    figures: Sequence[Mapping[str, object]]
    summary: Sequence[Mapping[str, object]]

    def show(self) -> None:
        """Print heading, tables and sentences."""
        from saga.bench.tables import meaning, preset_table, tenant_table

        typer.echo(f"{self.source.name}: {self.source.provenance}")
        typer.echo(self.setting())
        if self.source.skipped.reasons:
            typer.echo(f"left out: {self.skipped_in_words()}")
        typer.echo()
        print_table(preset_table(self.figures, self.summary))
        tenants = tenant_table(self.figures)
        if tenants is not None:
            print_table(tenants)
        for sentence in (*meaning(self.figures, self.summary), *self.caveats()):
            typer.echo(sentence)

    def caveats(self) -> list[str]:
        """What must be known before the figures are believed."""
        from saga.bench.tables import first_wave_caveat, open_loop_caveat

        rate_per_s = self.config.rate_per_s
        late = None if rate_per_s is None else open_loop_caveat(self.figures, self.config.tasks / rate_per_s)
        return [caveat for caveat in (late, first_wave_caveat(self.figures)) if caveat]

    def setting(self) -> str:
        """The experiment in one line."""
        config = self.config
        load = next(f"{name} {getattr(config, name)}" for name in _LOADS if getattr(config, name))
        fleet = f"{config.workers} workers of {config.hardware}, {load.replace('_', ' ')}"
        gaps = "" if self.limits.gap_cap_s is None else f", gaps cut to {self.limits.gap_cap_s:g} s"
        return f"{fleet}, {config.tasks:,} tasks per run{gaps}"

    def skipped_in_words(self) -> str:
        """Sessions left out, by reason."""
        return ", ".join(f"{count} sessions ({reason})" for reason, count in self.source.skipped.reasons.items())

    def as_document(self) -> dict[str, object]:
        """The whole comparison, schema 1."""
        varying = ("preset", "seed", "workload", "log_path", "detail")
        config = {key: value for key, value in self.config.as_dict().items() if key not in varying}
        return {
            "schema": SCHEMA,
            "kind": "simulated",
            "workload": self.config.workload,
            "config": config | {"limits": dataclasses.asdict(self.limits)},
            "skipped": self.source.skipped.reasons,
            "caveats": self.caveats(),
            "runs": self.figures,
            "summary": self.summary,
        }

    def as_group(self) -> ReportGroup:
        """What the report draws."""
        from saga.bench.report import ReportGroup

        notes = [self.setting(), f"left out: {self.skipped_in_words()}" if self.source.skipped.reasons else ""]
        details = {run.preset: run.detail for run in reversed(self.runs) if run.detail is not None}
        return ReportGroup(
            workload=self.source.name,
            notes=(self.source.provenance, *filter(None, notes), *self.caveats()),
            runs=self.figures,
            summary=self.summary,
            details={name: details[name] for name in dict.fromkeys(run.preset for run in self.runs) if name in details},
        )


def compare(bases: Sequence[Job], presets: Sequence[str], *, seeds: int, jobs: int) -> list[Comparison]:
    """Run every base configuration under every preset and seed, all in one pool; one comparison per base.

    Detail is kept for the first seed only, which is what a report draws.
    """
    from saga.bench.tables import summarise
    from saga.cli.farm import Job, run_all

    sources = [base.load() for base in bases]
    wanted = [
        Job(
            dataclasses.replace(base.config, preset=name, seed=seed, detail=base.config.detail and seed == 0),
            base.limits,
        )
        for base in bases
        for seed in range(seeds)
        for name in presets
    ]
    runs = run_all(wanted, jobs=jobs)
    each = seeds * len(presets)
    comparisons = []
    for index, (base, source) in enumerate(zip(bases, sources, strict=True)):
        own = runs[index * each : (index + 1) * each]
        figures = [{"preset": run.preset, "seed": run.seed, **run.metrics} for run in own]
        comparisons.append(Comparison(base.config, base.limits, source, own, figures, summarise(figures)))
    return comparisons


def check_presets(names: str) -> list[str]:
    """The names between the commas; UnknownName or UsageError where one is unknown, empty or twice there."""
    from saga.presets import preset

    found = [name.strip() for name in names.split(",")]
    if not any(found):
        raise UsageError(f"--preset {names!r} names no preset; see saga presets")
    if not all(found):
        raise UsageError(f"--preset {names!r}: a name is empty; expected one comma between two presets")
    if len(set(found)) < len(found):
        raise UsageError(f"--preset {names}: a preset is named twice; name each once")
    return [preset(name).name for name in found]


def _check_one_load(loads: Mapping[str, object]) -> None:
    """Exactly one way to set the load."""
    given = [name for name, value in loads.items() if value is not None]
    if len(given) != 1:
        problem = "no load given" if not given else f"{len(given)} loads given"
        raise UsageError(f"{problem}; give exactly one of {_LOAD_FLAGS}")


def _check_counts(**counts: int) -> None:
    """Whole numbers of at least one."""
    for name, value in counts.items():
        if value < 1:
            raise UsageError(f"--{name} {value}: must be at least 1")


def _check_outputs(paths: Mapping[str, Path | None], num_runs: int) -> None:
    """Every file can be written, none is named twice, and a log is of one run."""
    wanted = {flag: path for flag, path in paths.items() if path is not None}
    for flag, path in wanted.items():
        check_writable(path, flag)
    if len({path.resolve() for path in wanted.values()}) < len(wanted):
        raise UsageError(f"{', '.join(wanted)}: the same file is named twice; name each output differently")
    if "--log" in wanted and num_runs != 1:
        raise UsageError(f"--log records one run, not {num_runs}; give one --preset and --seeds 1")
    if "--report" in wanted:
        from saga.bench.drawing import check_installed

        check_installed()
