"""`saga paper`: the paper's tables, run here, claim and result side by side.

It refuses to know what the tables say (`saga.bench.evaluation`) and how runs are made (`saga.cli.studies`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga.cli.output import check_writable

if TYPE_CHECKING:
    from saga.bench.evaluation.cells import Scale
    from saga.cli.studies import Study


def paper(
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller fleets and two seeds: minutes, wide intervals.")
    ] = False,
    seeds: Annotated[int | None, typer.Option(help="Runs per point [default: 10, with --quick 2].")] = None,
    only: Annotated[str | None, typer.Option(help="Tables, with commas between [default: all].")] = None,
    jobs: Annotated[int, typer.Option(help="Processes side by side.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder of the report and of finished runs.")] = Path("out/paper"),
    json: Annotated[Path | None, typer.Option(help="Write all figures here too.")] = None,
) -> None:
    """Run every table of the SAGA paper (arXiv 2605.00528) that can be simulated, beside what it claims.

    Finished runs are kept in the folder: a second start computes none of them again, and after Ctrl-C the report says
    what is missing.

    Tables: main, regeneration, competitive, slo, ablation, queue, variance, sensitivity, overheads, kernels.

    saga paper --quick

    saga paper --jobs 8 --out ~/evaluation

    saga paper --only main,slo --seeds 5
    """
    from saga.bench.drawing import check_installed
    from saga.bench.evaluation.cells import SCALES
    from saga.bench.evaluation.claims import paper_claims
    from saga.bench.evaluation.experiments import cells_of, choose
    from saga.cli.studies import carry_out, check_whole, start

    check_installed()
    scale = SCALES["quick" if quick else "full"]
    check_whole("--jobs", jobs)
    num_seeds = scale.seeds if seeds is None else check_whole("--seeds", seeds)
    names = choose(only)
    if json is not None:
        check_writable(json, "--json")
    study = start(cells_of(names, scale, paper_claims()), seeds=num_seeds, folder=out)
    carry_out(study, jobs=jobs, write=lambda study: _write(study, names, scale, out, json))


def _write(study: Study, names: list[str], scale: Scale, out: Path, json: Path | None) -> None:
    """The report from whatever has been run."""
    from saga.bench.evaluation.claims import paper_claims
    from saga.bench.evaluation.document import Report, as_document
    from saga.bench.evaluation.experiments import EXPERIMENTS
    from saga.bench.files import write_whole
    from saga.cli.output import as_json
    from saga.cli.studies import command_line, write_report

    claims = paper_claims()
    sections = [EXPERIMENTS[name].section(scale, study.results, claims) for name in names]
    report = Report(
        title="The SAGA paper's tables, run again",
        heading=(
            (
                f"Claims: {claims.source.title}, {claims.source.reference}. Results: simulated by this project on "
                f"modelled workers, {study.results.wanted} seed{'s' * (study.results.wanted > 1)} per point; no "
                "figure of the paper is among them."
            ),
        ),
        sections=sections,
        claims=claims,
        runs=study.described(),
        num_missing=len(study.runs) - len(study.found),
        num_wanted=len(study.runs),
        command=command_line(),
    )
    for section in sections:
        typer.echo(f"{section.title}: {section.statement}")
    write_report(out, report)
    if json is not None:
        write_whole(json, as_json(as_document(report)))
