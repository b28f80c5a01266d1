"""The paper's system varied: without one mechanism, with another queue, other tools, other constants.

All on `swe_bench`, at the paper's load and where plain caching has collapsed, since at the first nothing may be at
stake. Claims are compared at the load at which they are stated to hold: the paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from saga.bench.evaluation.cells import Cell, Scale
from saga.bench.evaluation.claims import Claim, Claims, ClaimTable
from saga.bench.evaluation.comparison import at_load
from saga.bench.evaluation.results import Results
from saga.bench.evaluation.sections import (
    Curve,
    Forest,
    Lines,
    Row,
    Section,
    claims_table,
    write,
    write_estimate,
)
from saga.bench.evaluation.systems import PAPER, varied
from saga.bench.evaluation.verdicts import of_bound, of_ratio, of_share
from saga.bench.statistics import Estimate
from saga.bench.tables import Table, write_seconds, write_share
from saga.workloads.catalogue import TOOL_CV

WORKLOAD = "swe_bench"
ABLATED = (
    "saga_no_affinity",
    "saga_no_walru",
    "saga_no_ttl",
    "saga_no_stealing",
    "saga_no_prefetch",
    "saga_no_afs",
)
"""Presets that ablate the paper's system, in the order of its table."""

DEFAULT_ABLATED = (
    "saga_no_admission",
    "saga_no_dram",
    "saga_no_retention",
    "saga_no_order",
    "saga_no_next_use",
    "saga_no_moves",
)
"""Presets that ablate this project's default; the paper says nothing about them."""

QUEUES = {"BFS": "saga_paper_bfs", "DFS": "saga_paper_dfs", "Hybrid": PAPER}
"""Presets by the paper's name for their queue strategy."""

_CLAIMED = {"workload": WORKLOAD}


def ablation_cells(scale: Scale) -> list[Cell]:
    """Both families, each with its whole."""
    paper = [at_load(scale, name, WORKLOAD, load) for load in scale.variation_loads for name in (PAPER, *ABLATED)]
    crowded = scale.variation_loads[-1]
    return paper + [at_load(scale, name, WORKLOAD, crowded) for name in ("saga", *DEFAULT_ABLATED)]


def ablation_section(scale: Scale, results: Results, claims: Claims) -> Section:
    """What each mechanism is worth: time without it over time with it."""
    table = claims.table("ablation")

    def claimed(system: str) -> float | None:
        return table.ratio("tct_mean_s", {"system": system, **_CLAIMED}, {"system": PAPER, **_CLAIMED})

    rows = _ratio_rows(scale, results, ABLATED, PAPER, claimed)
    tables = [
        claims_table(
            f"{PAPER} without one mechanism, at the paper's load: time over that of the whole", "preset", rows
        ),
        _by_load(scale, results, scale.variation_loads, (PAPER, *ABLATED)),
        _by_load(scale, results, scale.variation_loads[-1:], ("saga", *DEFAULT_ABLATED)),
    ]
    cells = ablation_cells(scale)
    return Section(
        id=table.id,
        title=table.title,
        where=table.where,
        about=(
            f"Mean completion time of each ablated preset over that of the whole, {scale.fleet} workers, "
            f"`{WORKLOAD}`. Above 1 the mechanism helps. The last table ablates this project's default, on which the "
            "paper says nothing."
        ),
        rows=rows,
        tables=[shown for shown in tables if shown.rows],
        drawings=[Forest("Time without the mechanism over time with it, at the paper's load", "ratio of times", rows)],
        reasons=_ablation_reasons(scale, results),
        missing=results.missing(cells),
        total=results.count(cells),
    )


def queue_cells(scale: Scale) -> list[Cell]:
    """Three orders at both loads."""
    return [at_load(scale, system, WORKLOAD, load) for load in scale.variation_loads for system in QUEUES.values()]


def queue_section(scale: Scale, results: Results, claims: Claims) -> Section:
    """Breadth first, depth first, hybrid: time, throughput, evictions."""
    table, load = claims.table("queue"), scale.variation_loads[0]
    cells = {name: at_load(scale, QUEUES[name], WORKLOAD, load) for name in QUEUES}
    rows = []
    for figure, words in (("tct_mean_s", "time"), ("tasks_per_min", "tasks/min")):
        for name in ("BFS", "DFS"):
            claim = table.ratio(figure, {"setting": name, **_CLAIMED}, {"setting": "Hybrid", **_CLAIMED})
            ours = results.ratio(cells[name], cells["Hybrid"], figure)
            verdict = "open" if claim is None or ours is None else of_ratio(claim, ours)
            test, g = results.test(cells[name], cells["Hybrid"], figure)
            p = None if test is None else test.p
            rows.append(Row(f"{name} over Hybrid: {words}", claim, ours, "ratio", verdict, p, g))
    for name in QUEUES:
        claim = table.value("evicted_share", setting=name, **_CLAIMED)
        ours = results.estimate(cells[name], "evicted_share")
        verdict = "open" if claim is None or ours is None else of_share(claim, ours)
        rows.append(Row(f"{name}: evicted", claim, ours, "share", verdict))
    tables = [claims_table("At the paper's load", "figure", rows)]
    tables += [_queue_table(scale, results, table, load) for load in scale.variation_loads]
    wanted = queue_cells(scale)
    return Section(
        id=table.id,
        title=table.title,
        where=table.where,
        about=(
            f"{PAPER} with its order of calls replaced by each strategy. Evicted: share of the reusable prompt "
            "tokens that had left the device when they were wanted, our reading of the paper's eviction rate. The "
            "rule of Hybrid is ours (docs/policies.md): the paper names it only."
        ),
        rows=rows,
        tables=tables,
        drawings=[Forest("Queue strategies over Hybrid", "ratio", [row for row in rows if row.kind == "ratio"])],
        reasons=_queue_reasons(scale, results),
        missing=results.missing(wanted),
        total=results.count(wanted),
    )


def variance_cells(scale: Scale, claims: Claims) -> list[Cell]:
    """The paper's system at every variation of tool latency that the paper lists, at the paper's load."""
    settings = _settings(claims.table("variance"), "tct_mean_s")
    return [
        replace(at_load(scale, PAPER, WORKLOAD, load), workload=f"{TOOL_CV}{float(setting):g}")
        for load in scale.variation_loads
        for setting in settings
    ]


def variance_section(scale: Scale, results: Results, claims: Claims) -> Section:
    """Completion time, promises kept and evictions by the variation of tool latency."""
    table = claims.table("variance")
    settings = _settings(table, "tct_mean_s")
    wanted = variance_cells(scale, claims)
    cells = dict(zip(settings, wanted[: len(settings)], strict=True))
    rows = []
    for name in settings:
        if name == "1.0":
            continue
        claim = table.ratio("tct_mean_s", {"setting": name, **_CLAIMED}, {"setting": "1.0", **_CLAIMED})
        ours = results.ratio(cells[name], cells["1.0"])
        verdict = "open" if claim is None or ours is None else of_ratio(claim, ours)
        test, g = results.test(cells[name], cells["1.0"])
        rows.append(
            Row(f"CV {name}: time over CV 1.0", claim, ours, "ratio", verdict, None if test is None else test.p, g)
        )
    for figure, words in (("holds_kept_share", "TTL kept"), ("evicted_share", "evicted")):
        for name in settings:
            claim, ours = table.value(figure, setting=name, **_CLAIMED), results.estimate(cells[name], figure)
            verdict = "open" if claim is None or ours is None else of_share(claim, ours)
            rows.append(Row(f"CV {name}: {words}", claim, ours, "share", verdict))
    claimed = [
        (float(name), Estimate(value))
        for name in settings
        if (value := table.value("holds_kept_share", setting=name, **_CLAIMED)) is not None
    ]
    found = [
        (float(name), estimate)
        for name in settings
        if (estimate := results.estimate(cells[name], "holds_kept_share")) is not None
    ]
    return Section(
        id=table.id,
        title=table.title,
        where=table.where,
        about=(
            f"{PAPER} on `{TOOL_CV}CV`: tools of the same mean latency by class and another coefficient of "
            "variation, log-normal. TTL kept is our reading of TTL accuracy: the share of gaps that ended before "
            "the time for which the prefix was to be kept. Evicted as in the table of queue strategies."
        ),
        rows=rows,
        tables=[
            claims_table("At the paper's load", "figure", rows),
            *(_variance_table(results, settings, wanted, scale, index) for index in range(len(scale.variation_loads))),
        ],
        drawings=[
            Lines(
                "Share of gaps that end before the TTL",
                "coefficient of variation of tool latency",
                "share",
                [curve for curve in (Curve("claimed", claimed, claimed=True), Curve(PAPER, found)) if curve.points],
            )
        ],
        reasons=_variance_reasons(results, cells),
        missing=results.missing(wanted),
        total=results.count(wanted),
    )


def sensitivity_cells(scale: Scale, claims: Claims) -> list[Cell]:
    """The default and both ends of every constant's range, at the paper's load."""
    load = scale.variation_loads[0]
    ends = [name for claim in claims.table("sensitivity").claims for name in _ends(claim)]
    return [at_load(scale, name, WORKLOAD, load) for name in (PAPER, *ends)]


def sensitivity_section(scale: Scale, results: Results, claims: Claims) -> Section:
    """How much completion time changes, at most, over each constant's range."""
    table, load = claims.table("sensitivity"), scale.variation_loads[0]
    base = at_load(scale, PAPER, WORKLOAD, load)
    rows, lines = [], []
    for claim in table.claims:
        ends = _ends(claim)
        ratios = [results.ratio(at_load(scale, end, WORKLOAD, load), base) for end in ends]
        changes = [_change(ratio) for ratio in ratios if ratio is not None]
        ours = max(changes, key=lambda change: change.value) if len(changes) == len(ends) else None
        verdict = "open" if ours is None else of_bound(claim.value, ours)
        rows.append(Row(f"{claim.setting} {claim.low} to {claim.high}", claim.value, ours, "bound", verdict))
        lines.append((claim.setting, *(write_estimate(ratio, "ratio") for ratio in ratios)))
    cells = sensitivity_cells(scale, claims)
    return Section(
        id=table.id,
        title=table.title,
        where=table.where,
        about=(
            f"{PAPER} with one constant at either end of the range that the paper names; the larger of the two "
            "changes of mean completion time, up or down, is what the paper bounds. Noise counts as change: the "
            "interval says how much there is."
        ),
        rows=rows,
        tables=[
            claims_table("At the paper's load", "constant", rows),
            Table("time over that of the default", ("constant", "at the low end", "at the high end"), tuple(lines)),
        ],
        drawings=[Forest("Largest change of completion time", "change", rows, one=None)],
        reasons=_pressure_reason(results, base),
        missing=results.missing(cells),
        total=results.count(cells),
    )


def _ratio_rows(
    scale: Scale, results: Results, systems: Sequence[str], whole: str, claimed: Callable[[str], float | None]
) -> list[Row]:
    load, rows = scale.variation_loads[0], []
    under = at_load(scale, whole, WORKLOAD, load)
    for system in systems:
        over = at_load(scale, system, WORKLOAD, load)
        claim, ours = claimed(system), results.ratio(over, under)
        test, g = results.test(over, under)
        verdict = "open" if claim is None or ours is None else of_ratio(claim, ours)
        rows.append(Row(system, claim, ours, "ratio", verdict, None if test is None else test.p, g))
    return rows


def _by_load(scale: Scale, results: Results, loads: Sequence[float], systems: Sequence[str]) -> Table:
    """Ratios to the first system, which is the whole."""
    whole, *parts = systems
    lines = []
    for system in parts:
        ratios = (
            results.ratio(at_load(scale, system, WORKLOAD, load), at_load(scale, whole, WORKLOAD, load))
            for load in loads
        )
        lines.append((system, *(write_estimate(ratio, "ratio") for ratio in ratios)))
    columns = ("preset", *(f"load {load:g}" for load in loads))
    return Table(f"time over that of {whole}, by oversubscription", columns, tuple(lines))


def _ablation_reasons(scale: Scale, results: Results) -> list[str]:
    words = []
    for load in scale.variation_loads:
        whole = at_load(scale, PAPER, WORKLOAD, load)
        found = {
            system: ratio.value
            for system in ABLATED
            if (ratio := results.ratio(at_load(scale, system, WORKLOAD, load), whole)) is not None
        }
        lost = results.mean(whole, "regenerated_time_share")
        if not found or lost is None:
            continue
        most, least = max(found, key=found.__getitem__), min(found, key=found.__getitem__)
        words.append(
            f"At oversubscription {load:g} {PAPER} spends {write_share(lost)} of its device time regenerating; what "
            f"it needs most is what {most} lacks ({write(found[most], 'ratio')} as long without it), least what "
            f"{least} lacks ({write(found[least], 'ratio')})."
        )
    return words


def _queue_table(scale: Scale, results: Results, table: ClaimTable, load: float) -> Table:
    lines = []
    for name, system in QUEUES.items():
        cell = at_load(scale, system, WORKLOAD, load)
        line = [name]
        for figure, writer in (
            ("tct_mean_s", write_seconds),
            ("tasks_per_min", write_seconds),
            ("evicted_share", write_share),
        ):
            claim, ours = table.value(figure, setting=name, **_CLAIMED), results.mean(cell, figure)
            line += ["-" if claim is None else writer(claim), "-" if ours is None else writer(ours)]
        lines.append(tuple(line))
    columns = ("strategy", "claimed TCT s", "ours", "claimed tasks/min", "ours", "claimed evicted", "ours")
    return Table(f"as they are, oversubscription {load:g}, {scale.fleet} workers", columns, tuple(lines))


def _queue_reasons(scale: Scale, results: Results) -> list[str]:
    words = []
    for load in scale.variation_loads:
        found = {
            name: (tct_s, per_min)
            for name in QUEUES
            if (tct_s := results.mean(at_load(scale, QUEUES[name], WORKLOAD, load), "tct_mean_s")) is not None
            and (per_min := results.mean(at_load(scale, QUEUES[name], WORKLOAD, load), "tasks_per_min")) is not None
        }
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


def _variance_table(
    results: Results, settings: Sequence[str], cells: Sequence[Cell], scale: Scale, index: int
) -> Table:
    mine = cells[index * len(settings) : (index + 1) * len(settings)]
    lines = []
    for name, cell in zip(settings, mine, strict=True):
        tct_s = results.mean(cell, "tct_mean_s")
        shares = (
            results.mean(cell, figure) for figure in ("holds_kept_share", "evicted_share", "regenerated_time_share")
        )
        lines.append(
            (
                name,
                "-" if tct_s is None else write_seconds(tct_s),
                *("-" if share is None else write_share(share) for share in shares),
            )
        )
    columns = ("CV", "our TCT s", "TTL kept", "evicted", "regenerating")
    return Table(f"{PAPER}, oversubscription {scale.variation_loads[index]:g}", columns, tuple(lines))


def _variance_reasons(results: Results, cells: dict[str, Cell]) -> list[str]:
    times = {name: tct_s for name, cell in cells.items() if (tct_s := results.mean(cell, "tct_mean_s")) is not None}
    kept = {name: k for name, cell in cells.items() if (k := results.mean(cell, "holds_kept_share")) is not None}
    if len(times) < len(cells) or len(kept) < len(cells):
        return []
    return [
        (
            "From the least to the greatest variation completion time goes from "
            f"{write_seconds(min(times.values()))} to {write_seconds(max(times.values()))} s, and between "
            f"{write_share(min(kept.values()))} and {write_share(max(kept.values()))} of the gaps end before the "
            "TTL: a TTL that is a learned 95 % quantile follows the tail of the tools, as far as its limit and "
            "pressure let it."
        ),
    ]


def _pressure_reason(results: Results, base: Cell) -> list[str]:
    lost, kept = results.mean(base, "regenerated_time_share"), results.mean(base, "kv_used_mean_share")
    if lost is None or kept is None:
        return []
    return [
        (
            f"At this load {PAPER} spends {write_share(lost)} of its device time regenerating, and running calls "
            f"hold {write_share(kept)} of the KV memory: that is what constants of eviction and retention could "
            "change."
        )
    ]


def _change(ratio: Estimate) -> Estimate:
    """A ratio as a change up or down."""
    value = abs(ratio.value - 1.0)
    if ratio.low is None or ratio.high is None:
        return Estimate(value)
    ends = sorted((abs(ratio.low - 1.0), abs(ratio.high - 1.0)))
    return Estimate(value, 0.0 if ratio.low <= 1.0 <= ratio.high else ends[0], ends[1])


def _ends(claim: Claim) -> list[str]:
    """The system at both ends of the range over which a constant is varied."""
    return [varied(claim.setting, end) for end in (claim.low, claim.high) if end is not None]


def _settings(table: ClaimTable, figure: str) -> list[str]:
    """What was varied, in the order of the paper."""
    return [claim.setting for claim in table.claims if claim.figure == figure]
