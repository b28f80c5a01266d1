"""The paper's queue strategies: breadth first, depth first, hybrid, in place of each other."""

from __future__ import annotations

from saga.bench.evaluation.cells import Cell, Scale
from saga.bench.evaluation.claims import Claims, ClaimTable
from saga.bench.evaluation.comparison import at_load
from saga.bench.evaluation.results import Results
from saga.bench.evaluation.rows import Found, judge, ratio_found
from saga.bench.evaluation.sections import Forest, Section, claims_table
from saga.bench.evaluation.systems import PAPER
from saga.bench.evaluation.verdicts import of_ratio, of_share
from saga.bench.tables import Table, write_seconds, write_share

WORKLOAD = "swe_bench"
QUEUES = {"BFS": "saga_paper_bfs", "DFS": "saga_paper_dfs", "Hybrid": PAPER}
"""Presets by the paper's name for their queue strategy."""

_NAMES = {"workload": WORKLOAD}
_FIGURES = (("tct_mean_s", write_seconds), ("tasks_per_min", write_seconds), ("evicted_share", write_share))


def queue_cells(scale: Scale, _claims: Claims) -> list[Cell]:
    """Three orders at both loads."""
    return [at_load(scale, system, WORKLOAD, load) for load in scale.variation_loads for system in QUEUES.values()]


def queue_section(scale: Scale, results: Results, claims: Claims) -> Section:
    """Time and throughput over those of the hybrid, and evictions."""
    table, here = claims.table("queue"), scale.variation_loads[0]

    def cell(name: str, load: float) -> Cell:
        return at_load(scale, QUEUES[name], WORKLOAD, load)

    rows = []
    for figure, words in (("tct_mean_s", "time"), ("tasks_per_min", "tasks/min")):
        for name in ("BFS", "DFS"):
            claim = table.ratio(figure, {"setting": name, **_NAMES}, {"setting": "Hybrid", **_NAMES})
            by_load = {
                load: ratio_found(results, cell(name, load), cell("Hybrid", load), figure)
                for load in scale.variation_loads
            }
            rows.append(judge(f"{name} over Hybrid: {words}", claim, "ratio", of_ratio, by_load[here], by_load))
    for name in QUEUES:
        claim = table.value("evicted_share", setting=name, **_NAMES)
        shares = {load: Found(results.estimate(cell(name, load), "evicted_share")) for load in scale.variation_loads}
        rows.append(judge(f"{name}: evicted", claim, "share", of_share, shares[here], shares))
    wanted = queue_cells(scale, claims)
    return Section(
        id=table.id,
        title=table.title,
        where=table.where,
        about=(
            f"{PAPER} with each strategy as the order of its calls. Evicted: share of the reusable prompt tokens "
            "that had left the device when they were wanted, our reading of the paper's eviction rate. The rule of "
            "Hybrid is ours (docs/policies.md): the paper names it only."
        ),
        rows=rows,
        tables=[
            claims_table("Claimed and ours, at the paper's load", "figure", rows),
            *(_as_they_are(scale, results, table, load) for load in scale.variation_loads),
        ],
        drawings=[Forest("Queue strategies over Hybrid", "ratio", [row for row in rows if row.kind == "ratio"])],
        reasons=_reasons(scale, results),
        missing=results.missing(wanted),
        total=results.count(wanted),
    )


def _as_they_are(scale: Scale, results: Results, table: ClaimTable, load: float) -> Table:
    lines = []
    for name, system in QUEUES.items():
        line = [name]
        for figure, writer in _FIGURES:
            claim = table.value(figure, setting=name, **_NAMES)
            ours = results.mean(at_load(scale, system, WORKLOAD, load), figure)
            line += ["-" if claim is None else writer(claim), "-" if ours is None else writer(ours)]
        lines.append(tuple(line))
    columns = ("strategy", "claimed TCT s", "ours", "claimed tasks/min", "ours", "claimed evicted", "ours")
    return Table(f"as they are, oversubscription {load:g}, {scale.fleet} workers", columns, tuple(lines))


def _reasons(scale: Scale, results: Results) -> list[str]:
    words = []
    for load in scale.variation_loads:
        found = {}
        for name, system in QUEUES.items():
            cell = at_load(scale, system, WORKLOAD, load)
            tct_s, per_min = results.mean(cell, "tct_mean_s"), results.mean(cell, "tasks_per_min")
            if tct_s is not None and per_min:
                found[name] = (tct_s, per_min)
        if len(found) < len(QUEUES):
            continue
        fastest = min(found, key=lambda name: found[name][0])
        busiest = max(found, key=lambda name: found[name][1])
        loss = 1.0 - found[fastest][1] / found[busiest][1]
        words.append(
            f"At oversubscription {load:g} {fastest} has the shortest completion time and {busiest} the highest "
            f"throughput; choosing the first for its time costs {write_share(loss)} of throughput (the paper: about "
            "30 %)."
        )
    return words
