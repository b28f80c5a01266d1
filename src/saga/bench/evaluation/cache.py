"""Regeneration against Belady's offline optimum, in cache-only replays: which prefix leaves, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from saga.bench.evaluation.cells import COLLAPSED_LOAD, Cell, Scale
from saga.bench.evaluation.claims import Claims
from saga.bench.evaluation.results import Results
from saga.bench.evaluation.rows import Found, judge
from saga.bench.evaluation.sections import Curve, Forest, Lines, Section, claims_table, write_estimate
from saga.bench.evaluation.verdicts import of_figure
from saga.bench.tables import Table

POLICIES = {
    "lru": "LRU",
    "prefix_lru": "LRU with prefixes",
    "workflow_lru": "WA-LRU",
    "next_use": "next use (as in saga)",
}
WORKLOADS = ("swe_bench", "web_arena")
REPLAYS = ("pinned", "free")


def cache_cell(scale: Scale, workload: str, pressure: float, replay: str) -> Cell:
    """One replay under all policies."""
    return Cell(
        workload,
        kind="cache",
        oversubscription=pressure,
        waves=scale.cache_waves,
        replay="pinned" if replay == "pinned" else "free",
    )


def cache_cells(scale: Scale, _claims: Claims) -> list[Cell]:
    """Both workloads, both replays, every pressure."""
    return [
        cache_cell(scale, workload, pressure, replay)
        for workload in WORKLOADS
        for pressure in scale.cache_pressures
        for replay in REPLAYS
    ]


def cache_section(scale: Scale, results: Results, claims: Claims) -> Section:
    """Competitive ratios, claimed and found."""
    table = claims.table("competitive")
    rows = []
    for workload in WORKLOADS:
        cell = _judged(scale, results, workload)
        for policy, words in POLICIES.items():
            claim = table.value("competitive_ratio", system=policy, workload=workload)
            if claim is None:
                continue
            by_load = {
                pressure: Found(results.geomean(cache_cell(scale, workload, pressure, "free"), policy))
                for pressure in scale.cache_pressures
            }
            name = f"{words} ({workload}, {cell.oversubscription:g})"
            rows.append(judge(name, claim, "ratio", of_figure, Found(results.geomean(cell, policy)), by_load))
    cells = cache_cells(scale, claims)
    replayed = {
        (workload, replay): partial(cache_cell, scale, workload, replay=replay)
        for workload in WORKLOADS
        for replay in REPLAYS
    }
    return Section(
        id=table.id,
        title=table.title,
        where=table.where,
        about=(
            "Tokens regenerated under a policy over those under Belady's rule, on the same requests in the same "
            "order. Free: anything can leave once its call has begun, as Belady's rule is usually stated, and rows "
            "compare these; pinned: what a call in flight uses cannot, as in an engine. The paper does not say "
            f"under what pressure: each workload is compared at the first from {COLLAPSED_LOAD:g} on at which Belady "
            "regenerates at least 0.5 % of the input. Below that a ratio means nothing and none is given. Figures are "
            "geometric means of the seeds' ratios."
        ),
        rows=rows,
        tables=[
            claims_table("free replay, pressure in brackets", "policy", rows),
            *(
                pressure_table(f"{workload}, {replay}", results, cell_at, scale.cache_pressures)
                for (workload, replay), cell_at in replayed.items()
            ),
        ],
        drawings=[
            Forest("Regeneration over Belady's", "competitive ratio", rows),
            *(
                drawing
                for (workload, replay), cell_at in replayed.items()
                for drawing in pressure_lines(f"{workload}, {replay}", results, cell_at, scale.cache_pressures)
            ),
        ],
        reasons=_reasons(scale, results),
        missing=results.missing(cells),
        total=results.count(cells),
    )


def pressure_table(title: str, results: Results, cell_at: Callable[[float], Cell], pressures: Sequence[float]) -> Table:
    """Ratios to Belady by policy and pressure; cell_at: the replay at a pressure."""
    lines = []
    for policy, words in POLICIES.items():
        found = (results.geomean(cell_at(pressure), policy) for pressure in pressures)
        lines.append((words, *(write_estimate(ratio, "ratio") for ratio in found)))
    return Table(title, ("policy", *(f"pressure {pressure:g}" for pressure in pressures)), tuple(lines))


def pressure_lines(
    title: str, results: Results, cell_at: Callable[[float], Cell], pressures: Sequence[float]
) -> list[Lines]:
    """The same drawn, where some policy has a ratio at more than one pressure."""
    curves = []
    for policy, words in POLICIES.items():
        found = ((pressure, results.geomean(cell_at(pressure), policy)) for pressure in pressures)
        curves.append(Curve(words, [(pressure, ratio) for pressure, ratio in found if ratio is not None]))
    if all(len(curve.points) < 2 for curve in curves):
        return []
    return [Lines(title, "pressure", "regenerated / Belady's", curves, log=True)]


def _judged(scale: Scale, results: Results, workload: str) -> Cell:
    """The replay that claims are compared with: the first from the collapsed load on that has ratios."""
    cells = [
        cache_cell(scale, workload, pressure, "free")
        for pressure in scale.cache_pressures
        if pressure >= COLLAPSED_LOAD
    ]
    return next((cell for cell in cells if results.geomean(cell, "lru") is not None), cells[0])


def _reasons(scale: Scale, results: Results) -> list[str]:
    words = []
    for workload in WORKLOADS:
        cell = _judged(scale, results, workload)
        known = {policy: ratio.value for policy in POLICIES if (ratio := results.geomean(cell, policy)) is not None}
        if not known:
            if results.of(cell):
                words.append(f"{workload}: Belady regenerates too little for a ratio at every pressure that was run.")
            continue
        best = min(known, key=known.__getitem__)
        others = ", ".join(f"{POLICIES[policy]} {ratio:.2f}x" for policy, ratio in known.items() if policy != best)
        words.append(
            f"{workload}: at pressure {cell.oversubscription:g} {POLICIES[best]} is nearest to Belady "
            f"({known[best]:.2f}x); {others}."
        )
    return words
