"""The paper's main table: completion times of seven systems, at its load and over a sweep.

Reasons are drawn from the figures: what share of device time the baseline loses, what endless
memory would give, what the paper's own throughput says about its load.
"""

from __future__ import annotations

from collections.abc import Sequence

from saga.bench.evaluation.cells import PAPER_LOAD, Cell, Scale
from saga.bench.evaluation.claims import Claims
from saga.bench.evaluation.results import Results, spread
from saga.bench.evaluation.rows import Found, judge, ratio_found
from saga.bench.evaluation.sections import Curve, Forest, Lines, Row, Section, claims_table, write, write_estimate
from saga.bench.evaluation.systems import PAPER
from saga.bench.evaluation.verdicts import of_ratio
from saga.bench.tables import Table, write_seconds, write_share
from saga.engine.hardware import hardware
from saga.workloads.catalogue import workload as workload_of
from saga.workloads.limits import Limits

SYSTEMS = (
    "vllm",
    "vllm_apc",
    "sglang",
    "llumnix",
    "trt_llm_scaffolding",
    "vllm_kvflow",
    PAPER,
    "vllm_apc_dram",
    "saga",
    "infinite_kv",
)
"""In the order of the table; those that the paper compares, then stock offloading, ours and the bound."""

WORKLOADS = ("swe_bench", "web_arena")
OURS, BOUND, BASE = "saga", "infinite_kv", "vllm_apc"
_CLUSTER = "llama3-70b-a100x4"


def at_paper_load(scale: Scale, system: str, workload: str) -> Cell:
    """The cell at the paper's cluster and load."""
    return Cell(
        workload,
        system,
        oversubscription=PAPER_LOAD,
        workers=scale.cluster,
        waves=scale.cluster_waves,
        least_tasks=scale.least_tasks,
    )


def at_load(scale: Scale, system: str, workload: str, load: float) -> Cell:
    """A cell of the sweep, and of every table but the first."""
    return Cell(
        workload,
        system,
        oversubscription=load,
        workers=scale.fleet,
        waves=scale.waves,
        least_tasks=scale.least_tasks,
    )


def main_cells(scale: Scale, _claims: Claims) -> list[Cell]:
    """The paper's load, then the sweep."""
    here = [at_paper_load(scale, system, workload) for workload in WORKLOADS for system in SYSTEMS]
    sweep = [
        at_load(scale, system, workload, load)
        for workload in WORKLOADS
        for load in scale.loads
        for system in swept(scale)
    ]
    return list(dict.fromkeys([*here, *sweep]))


def swept(scale: Scale) -> tuple[str, ...]:
    """The systems that are run over the sweep of load."""
    return SYSTEMS if scale.sweeps_all else ("vllm", BASE, PAPER, OURS, BOUND)


def main_section(scale: Scale, results: Results, claims: Claims) -> Section:
    """Completion times, side by side, and how the ratios go with the load."""
    table = claims.table("main")
    rows: list[Row] = []
    tables: list[Table] = []
    drawings: list[Forest | Lines] = []
    reasons: list[str] = []
    for workload in WORKLOADS:
        mine = _main_rows(scale, results, claims, workload)
        rows += mine
        tables.append(_time_table(scale, results, claims, workload))
        tables.append(claims_table(f"{workload}: how many times as long as {PAPER} others take", "system", mine))
        tables.append(_sweep_table(scale, results, workload))
        drawings.append(
            Forest(f"{workload} at the paper's load: time of each system over that of {PAPER}", "ratio of times", mine)
        )
        drawings.append(_sweep_lines(scale, results, workload))
        reasons += _reasons(scale, results, claims, workload)
    rows += _geomean_row(scale, results, claims)
    reasons += _implied_load(claims)
    cells = main_cells(scale, claims)
    return Section(
        id=table.id,
        title=table.title,
        where=table.where,
        about=(
            f"Each system on {scale.cluster} modelled workers (the paper: {claims.setup.instances}) at "
            f"oversubscription {PAPER_LOAD:g}, our reading of the paper's 80 % load, and a sweep of load on "
            f"{scale.fleet} workers. Ratios are of mean completion times to that of {PAPER}, the preset that takes "
            f"the paper's rules literally; {OURS} is this project's default and {BOUND} is endless KV "
            "memory."
        ),
        rows=rows,
        tables=tables,
        drawings=drawings,
        reasons=reasons,
        missing=results.missing(cells),
        total=results.count(cells),
    )


def _main_rows(scale: Scale, results: Results, claims: Claims, workload: str) -> list[Row]:
    """One row per system: its time over that of the paper's system."""
    table, names = claims.table("main"), {"workload": workload}
    under = at_paper_load(scale, PAPER, workload)
    rows = []
    for system in SYSTEMS:
        if system == PAPER:
            continue
        claim = table.ratio("tct_mean_s", {"system": system, **names}, {"system": PAPER, **names})
        here = ratio_found(results, at_paper_load(scale, system, workload), under)
        swept_to = {
            load: ratio_found(results, at_load(scale, system, workload, load), at_load(scale, PAPER, workload, load))
            for load in scale.loads
        }
        rows.append(judge(f"{system} ({workload})", claim, "ratio", of_ratio, here, swept_to))
    return rows


def _geomean_row(scale: Scale, results: Results, claims: Claims) -> list[Row]:
    """The headline: geometric mean over both workloads against prefix caching."""
    claim = claims.table("main").value("geomean_speedup", system=BASE)
    ours = results.geomean_ratio(
        [(at_paper_load(scale, BASE, workload), at_paper_load(scale, PAPER, workload)) for workload in WORKLOADS]
    )
    return [judge(f"{BASE} (geometric mean)", claim, "ratio", of_ratio, Found(ours))]


def _time_table(scale: Scale, results: Results, claims: Claims, workload: str) -> Table:
    """Seconds, claimed and ours, and where the work went."""
    columns = ("system", "claimed TCT s", "our TCT s", "tasks/min", "regenerating", "hit on device", "KV in use")
    lines = []
    for system in SYSTEMS:
        cell = at_paper_load(scale, system, workload)
        claim = claims.table("main").find("tct_mean_s", system=system, workload=workload)
        values = results.values(cell, "tct_mean_s")
        deviation = spread(values)
        ours = "-" if not values else write_seconds(sum(values) / len(values))
        per_min = results.mean(cell, "tasks_per_min")
        lines.append(
            (
                system,
                "-" if claim is None else f"{claim.value:g} ± {claim.sd:g}" if claim.sd else f"{claim.value:g}",
                ours if deviation is None else f"{ours} ± {write_seconds(deviation)}",
                "-" if per_min is None else write_seconds(per_min),
                share_text(results, cell, "regenerated_time_share"),
                share_text(results, cell, "prefix_hit_share"),
                share_text(results, cell, "kv_used_mean_share"),
            )
        )
    title = f"{workload}, {scale.cluster} workers, oversubscription {PAPER_LOAD:g}: mean over seeds ± deviation"
    return Table(title, columns, tuple(lines))


def _sweep_table(scale: Scale, results: Results, workload: str) -> Table:
    """Ratios to the paper's system by load."""
    lines = []
    for system in swept(scale):
        if system == PAPER:
            continue
        ratios = (
            results.ratio(at_load(scale, system, workload, load), at_load(scale, PAPER, workload, load))
            for load in scale.loads
        )
        lines.append((system, *(write_estimate(ratio, "ratio") for ratio in ratios)))
    columns = ("system", *(f"load {load:g}" for load in scale.loads))
    title = f"{workload}: time of each system over that of {PAPER}, by oversubscription, {scale.fleet} workers"
    return Table(title, columns, tuple(lines))


def _sweep_lines(scale: Scale, results: Results, workload: str) -> Lines:
    return Lines(
        f"{workload}: mean completion time by load",
        "oversubscription",
        "mean TCT, s",
        curves(results, scale, swept(scale), workload, "tct_mean_s"),
        log=True,
    )


def curves(results: Results, scale: Scale, systems: Sequence[str], workload: str, figure: str) -> list[Curve]:
    """A figure over the sweep, a curve per system; those of which nothing has been run are left out."""
    drawn = []
    for system in systems:
        found = ((load, results.estimate(at_load(scale, system, workload, load), figure)) for load in scale.loads)
        drawn.append(Curve(system, [(load, estimate) for load, estimate in found if estimate is not None]))
    return [curve for curve in drawn if curve.points]


def _reasons(scale: Scale, results: Results, claims: Claims, workload: str) -> list[str]:
    """Why, at the paper's load and beyond, from the figures."""
    base, paper = at_paper_load(scale, BASE, workload), at_paper_load(scale, PAPER, workload)
    bound = results.ratio(base, at_paper_load(scale, BOUND, workload))
    ours, best = results.ratio(base, paper), results.ratio(base, at_paper_load(scale, OURS, workload))
    lost, hit = results.mean(base, "regenerated_time_share"), results.mean(base, "prefix_hit_share")
    names = {"workload": workload}
    claim = claims.table("main").ratio("tct_mean_s", {"system": BASE, **names}, {"system": PAPER, **names})
    if None in {bound, ours, best, lost, hit, claim}:
        return []
    assert bound is not None and ours is not None and best is not None and claim is not None  # noqa: PT018 - types
    assert lost is not None and hit is not None  # noqa: PT018 - same
    words = [
        (
            f"{workload} at oversubscription {PAPER_LOAD:g}: {BASE} finds {write_share(hit)} of its prompt tokens in "
            f"its cache and spends {write_share(lost)} of its device time regenerating; with endless KV memory it "
            f"would be {write(bound.value, 'ratio')} as fast. {PAPER} is {write(ours.value, 'ratio')} and {OURS} "
            f"{write(best.value, 'ratio')} as fast as {BASE}; the claim is {write(claim, 'ratio')}."
        )
    ]
    if bound.value < claim:
        words.append(
            f"{workload}: the claim is beyond what endless KV memory gains over {BASE} at this load in this model. "
            "That is no strict bound, since the order of calls matters too, but it leaves keeping KV little more."
        )
    words.append(_where_claim_holds(scale, results, workload, claim))
    return words


def _where_claim_holds(scale: Scale, results: Results, workload: str, claim: float) -> str:
    """From which load on the claimed ratio is reached."""
    found = [
        (load, results.ratio(at_load(scale, BASE, workload, load), at_load(scale, PAPER, workload, load)))
        for load in scale.loads
    ]
    ratios = [(load, ratio.value) for load, ratio in found if ratio is not None]
    if not ratios:
        return f"{workload}: no point of the sweep has been run yet."
    reached = [load for load, ratio in ratios if ratio >= claim]
    most_load, most = max(ratios, key=lambda point: point[1])
    if not reached:
        return (
            f"{workload}: over the sweep {PAPER} is at most {write(most, 'ratio')} as fast as {BASE} (at "
            f"{most_load:g}); the claimed {write(claim, 'ratio')} is reached at none of its loads."
        )
    return (
        f"{workload}: over the sweep the claimed {write(claim, 'ratio')} is reached first at oversubscription "
        f"{reached[0]:g}; the most is {write(most, 'ratio')}, at {most_load:g}."
    )


def _implied_load(claims: Claims) -> list[str]:
    """What the claimed throughput and time imply by Little's law."""
    queue = claims.table("queue")
    names = {"workload": "swe_bench", "setting": "Hybrid"}
    tct_s, per_min = queue.value("tct_mean_s", **names), queue.value("tasks_per_min", **names)
    if tct_s is None or per_min is None:
        return []
    agents = tct_s * per_min / 60.0
    each = agents / claims.setup.instances
    load = each * workload_of("swe_bench", Limits()).mean_context_tokens / hardware(_CLUSTER).kv_tokens
    return [
        (
            f"The paper does not say how many agents were at work. By Little's law its own {per_min:g} tasks a "
            f"minute of {tct_s:g} s each are {agents:.0f} agents at a time, {each:.1f} per instance: "
            f"oversubscription {load:.2f} with our tasks and our count of its instances' KV memory, about the first "
            "load of the sweep."
        )
    ]


def share_text(results: Results, cell: Cell, figure: str) -> str:
    """The mean of a share, as people read it."""
    value = results.mean(cell, figure)
    return "-" if value is None else write_share(value)
