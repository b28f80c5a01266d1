"""`saga study`: what `saga paper` does for the paper's workloads, for a workload of one's own.

It refuses to know what the tables say (`saga.bench.evaluation.study`) and how runs are made (`saga.cli.studies`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga.cli.output import check_writable
from saga.cli.selection import (
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
    from saga.bench.evaluation.study import StudyPlan
    from saga.cli.studies import Study

_OUTPUT = "Output"


def study(
    workload: WorkloadName,
    preset: PresetNames = "vllm_apc,vllm_apc_dram,vllm_priority,sglang,continuum,saga_paper,saga,infinite_kv",
    loads: Annotated[str, typer.Option(help="Oversubscriptions, with commas between.")] = "0.6,0.85,1,1.5,3",
    workers: Workers = 2,
    hardware: Hardware = "llama3-70b-a100x4",
    kv_tokens: KvTokens = None,
    dram_tokens: DramTokens = None,
    max_context: MaxContext = None,
    min_calls: MinCalls = 1,
    max_calls: MaxCalls = None,
    gap_cap_s: GapCap = None,
    waves: Annotated[float, typer.Option(help="Tasks measured per agent, after a first wave that is not.")] = 2.0,
    seeds: Annotated[int, typer.Option(help="Runs per point, each with its own tasks.")] = 5,
    only: Annotated[
        str | None, typer.Option(help="Tables: comparison, ablation, tenants, cache [default: all].")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes side by side.")] = 2,
    out: Annotated[
        Path, typer.Option(help="Folder of the report and of finished runs.", rich_help_panel=_OUTPUT)
    ] = Path("out/study"),
    json: Annotated[Path | None, typer.Option(help="Write all figures here too.", rich_help_panel=_OUTPUT)] = None,
) -> None:
    """Study your own trace: presets over a sweep of load, ablations, tenants, and eviction against the optimum.

    Finished runs are kept in the folder: a second start computes none of them again, and after Ctrl-C the report says
    what is missing.

    saga study --workload my_trace.jsonl

    saga study --workload my_trace.jsonl --preset vllm_apc,saga --loads 1,1.5 --seeds 3 --gap-cap-s 300 --out out/mine

    saga study --workload ten_tenants --only tenants --loads 1.5
    """
    from saga.bench.drawing import check_installed
    from saga.bench.evaluation.cells import Cell
    from saga.bench.evaluation.study import PARTS, StudyPlan, choose_parts, parse_loads
    from saga.cli.sim import check_presets
    from saga.cli.studies import carry_out, check_whole, start
    from saga.workloads.limits import Limits

    check_installed()
    check_whole("--jobs", jobs)
    if not 0.0 < waves <= 1000.0:
        raise UsageError(f"--waves {waves}: must be above 0 and at most 1000")
    template = Cell(
        workload,
        workers=check_whole("--workers", workers),
        waves=waves,
        hardware=hardware,
        kv_tokens=kv_tokens,
        dram_tokens=dram_tokens,
        limits=Limits(max_context, min_calls, max_calls, gap_cap_s),
    )
    plan = StudyPlan(template, tuple(check_presets(preset)), parse_loads(loads))
    names = choose_parts(only)
    if json is not None:
        check_writable(json, "--json")
    cells = list(dict.fromkeys(cell for name in names for cell in PARTS[name].cells(plan)))
    if not cells:
        raise UsageError(f"--only {only} with --loads {loads}: nothing to run; cache replays need a load of at least 1")
    wanted = start(cells, seeds=check_whole("--seeds", seeds), folder=out)
    carry_out(wanted, jobs=jobs, write=lambda wanted: _write(wanted, plan, names, out, json))


def _write(study: Study, plan: StudyPlan, names: list[str], out: Path, json: Path | None) -> None:
    """The report from whatever has been run."""
    from saga.bench.evaluation.document import Report, as_document
    from saga.bench.evaluation.study import PARTS
    from saga.bench.files import write_whole
    from saga.cli.output import as_json
    from saga.cli.studies import command_line, load_cell, write_report

    source = load_cell(plan.template)
    left_out = ", ".join(f"{count} sessions ({reason})" for reason, count in source.skipped.reasons.items())
    template = plan.template
    report = Report(
        title=f"SAGA: a study of {source.name}",
        heading=(
            source.provenance,
            (
                f"Simulated: {template.workers} workers of {template.hardware}, {study.results.wanted} "
                f"seed{'s' * (study.results.wanted > 1)} per point."
            ),
            *([f"Left out: {left_out}."] if left_out else []),
        ),
        sections=[PARTS[name].section(plan, study.results) for name in names],
        claims=None,
        runs=study.described(),
        num_missing=len(study.runs) - len(study.found),
        num_wanted=len(study.runs),
        command=command_line(),
    )
    for section in report.sections:
        for sentence in (*section.reasons, *section.notes):
            typer.echo(sentence)
    write_report(out, report)
    if json is not None:
        write_whole(json, as_json(as_document(report)))
