"""What decisions and moves cost; and the paper's kernels, which are no system and are not simulated.

Moves are simulated; the time of a decision is measured, on whatever machine this runs, and said to be.
"""

from __future__ import annotations

from dataclasses import replace

from saga.bench.evaluation.cells import Cell, Scale
from saga.bench.evaluation.claims import Claims
from saga.bench.evaluation.comparison import at_load, at_paper_load
from saga.bench.evaluation.results import Results
from saga.bench.evaluation.rows import Found, judge
from saga.bench.evaluation.sections import Forest, Row, Section, claims_table, write
from saga.bench.evaluation.systems import PAPER
from saga.bench.evaluation.verdicts import of_figure
from saga.bench.tables import Table

_FIGURES = ("decision_p50_s", "decision_p99_s", "decision_mean_s")


def timed_cell(scale: Scale, system: str) -> Cell:
    """A run whose every decision is timed, where there is much to decide."""
    return replace(at_load(scale, system, "swe_bench", scale.loads[-1]), kind="timed")


def overheads_cells(scale: Scale, _claims: Claims) -> list[Cell]:
    """Timed runs of both schedulers; moves come from the main table's cells."""
    return [timed_cell(scale, PAPER), timed_cell(scale, "saga"), at_paper_load(scale, PAPER, "swe_bench")]


def overheads_section(scale: Scale, results: Results, claims: Claims) -> Section:
    """Decision times and moves against the claims."""
    table = claims.table("overheads")
    names = {"system": PAPER, "workload": "swe_bench"}
    decision = results.estimate(timed_cell(scale, PAPER), "decision_p99_s")
    limit = table.value("decision_p99_s", **names)
    assert limit is not None
    rows = [Row("decision p99, at most (measured; no verdict)", limit, decision, "seconds", comparable=False)]
    moves = at_paper_load(scale, PAPER, "swe_bench")
    for figure, words in (("move_mean_s", "move, mean (simulated)"), ("move_p95_s", "move, p95 (simulated)")):
        found = Found(results.estimate(moves, figure))
        rows.append(judge(words, table.value(figure, **names), "seconds", of_figure, found))
    lines = []
    for system in (PAPER, "saga"):
        times = (results.mean(timed_cell(scale, system), figure) for figure in _FIGURES)
        lines.append((system, *("-" if value is None else f"{1e6 * value:,.0f} µs" for value in times)))
    cells = overheads_cells(scale, claims)
    return Section(
        id=table.id,
        title=table.title,
        where=table.where,
        about=(
            f"A decision is one call of the scheduler with one event, in processor time of {_where(scale, results)}. "
            "The paper's 5 ms also hold the round trip to its coordinator, which is not in ours: the two stand side "
            "by side without a verdict. A move is the time that a "
            "session's KV takes over the modelled network (see docs/engine-model.md), waiting for others left out."
        ),
        rows=rows,
        tables=[
            claims_table("Claimed and ours", "figure", rows),
            Table(
                f"decisions, measured on {_where(scale, results)}", ("scheduler", "p50", "p99", "mean"), tuple(lines)
            ),
        ],
        drawings=[Forest("Overheads, claimed and ours", "seconds", rows, one=None)],
        reasons=_reasons(results, moves),
        missing=results.missing(cells),
        total=results.count(cells),
        kind="measured (decisions) and simulated (moves)",
    )


def _where(scale: Scale, results: Results) -> str:
    """The machine and the core that were timed, as the runs say."""
    found = next((run for system in (PAPER, "saga") for run in results.of(timed_cell(scale, system))), {})
    return f"{found.get('machine', 'this machine')}, core {found.get('core', 'unknown')}"


def kernels_section(_scale: Scale, _results: Results, claims: Claims) -> Section:
    """Claims without a result, and why."""
    table = claims.table("kernels")
    rows = [Row(claim.setting, claim.value, None, "ratio") for claim in table.claims]
    return Section(
        id=table.id,
        title=table.title,
        where=table.where,
        about="Listed for completeness.",
        rows=rows,
        tables=[claims_table("Claimed", "kernel", rows)],
        skipped=table.not_simulated,
    )


def _reasons(results: Results, moves: Cell) -> list[str]:
    count, mean_s = results.mean(moves, "moves"), results.mean(moves, "move_mean_s")
    tasks = results.mean(moves, "tasks_completed")
    if count is None or mean_s is None or not tasks:
        return []
    return [
        (
            f"{PAPER} moves sessions {count:,.0f} times per run of {tasks:,.0f} measured tasks at the paper's load, "
            f"{write(mean_s, 'seconds')} each."
        )
    ]
