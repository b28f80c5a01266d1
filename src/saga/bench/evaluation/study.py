"""The same study of anybody's workload: presets over a sweep of load, ablations, tenants, cache ratios. No claims.

The first system is what the others are compared with. Nothing here knows what ought to come out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from saga.bench.evaluation.ablation import DEFAULT_ABLATED
from saga.bench.evaluation.cache import REPLAYS, pressure_lines, pressure_table
from saga.bench.evaluation.cells import Cell
from saga.bench.evaluation.results import Metrics, Results, figure_of
from saga.bench.evaluation.sections import Curve, Forest, Lines, Row, Section, claims_table, write, write_estimate
from saga.bench.statistics import mean_estimate
from saga.bench.tables import Table, write_seconds, write_share
from saga.errors import UnknownName, UsageError

OURS, BOUND = "saga", "infinite_kv"
_IN_TIME = {"1.5x": "within_1_5x_share", "2x": "within_2x_share", "2.5x": "within_2_5x_share"}
_TENANT_FIGURES = {"TCT mean s": "tct_mean_s", **{f"within {words}": figure for words, figure in _IN_TIME.items()}}


@dataclass(frozen=True)
class StudyPlan:
    """What is studied. template: workload, fleet and limits of every cell; loads: oversubscription, ascending."""

    template: Cell
    systems: tuple[str, ...]
    loads: tuple[float, ...]

    @property
    def crowded_load(self) -> float:
        """Where ablations and tenants are looked at: the first load of 1.5 or more, else the largest."""
        return next((load for load in self.loads if load >= 1.5), self.loads[-1])

    def at(self, system: str, load: float) -> Cell:
        """One system at one load."""
        return replace(self.template, system=system, oversubscription=load)

    def cache_cell(self, load: float, replay: str) -> Cell:
        """A cache-only replay at that pressure."""
        return Cell(
            self.template.workload,
            kind="cache",
            oversubscription=load,
            hardware=self.template.hardware,
            kv_tokens=self.template.kv_tokens,
            limits=self.template.limits,
            replay="pinned" if replay == "pinned" else "free",
        )


@dataclass(frozen=True)
class Part:
    """One table of a study."""

    cells: Callable[[StudyPlan], Sequence[Cell]]
    section: Callable[[StudyPlan, Results], Section]


def parse_loads(text: str) -> tuple[float, ...]:
    """The numbers between the commas, ascending, each once. UsageError where there are none or one cannot be a load."""
    loads = []
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        try:
            load = float(piece)
        except ValueError:
            raise UsageError(
                f"--loads {text!r}: {piece!r} is no number; give oversubscriptions such as 0.8,1,1.5"
            ) from None
        if not 0.0 < load <= 100.0:
            raise UsageError(f"--loads {text!r}: {piece} must be above 0 and at most 100")
        loads.append(load)
    if not loads:
        raise UsageError(f"--loads {text!r} names no load; give oversubscriptions such as 0.8,1,1.5")
    return tuple(sorted(set(loads)))


def choose_parts(only: str | None) -> list[str]:
    """The parts between the commas, in the order of the report; all for None. UsageError, UnknownName."""
    if only is None:
        return list(PARTS)
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    if not wanted:
        raise UsageError(f"--only {only!r} names no table; tables are {', '.join(PARTS)}")
    for name in wanted:
        if name not in PARTS:
            raise UnknownName("table", name, PARTS)
    return [name for name in PARTS if name in wanted]


def _comparison_cells(plan: StudyPlan) -> list[Cell]:
    return [plan.at(system, load) for load in plan.loads for system in plan.systems]


def _comparison_section(plan: StudyPlan, results: Results) -> Section:
    base = plan.systems[0]
    times = _by_load(plan, "mean TCT, s", lambda cell: _written(results.mean(cell, "tct_mean_s"), write_seconds))
    speedups = _by_load(
        plan,
        f"times as fast as {base} (95 % interval)",
        lambda cell: write_estimate(results.ratio(replace(cell, system=base), cell), "ratio"),
    )
    lost = _by_load(
        plan,
        "device time spent regenerating",
        lambda cell: _written(results.mean(cell, "regenerated_time_share"), write_share),
    )
    throughput = _by_load(
        plan, "tasks per minute", lambda cell: _written(results.mean(cell, "tasks_per_min"), write_seconds)
    )
    in_time = _by_load(
        plan, f"tasks within {' / '.join(_IN_TIME)} of their isolated time", lambda cell: _in_time(results, cell)
    )
    curves = [_curve(plan, results, system, "tct_mean_s") for system in plan.systems]
    cells = _comparison_cells(plan)
    return Section(
        id="comparison",
        title="Presets over a sweep of load",
        about=(
            "Load is oversubscription: contexts of all agents at work over the KV memory of the fleet, in a closed "
            "loop. Below 1 everything fits; beyond it a scheduler has to choose."
        ),
        tables=[times, speedups, in_time, lost, throughput],
        drawings=[
            Lines(
                "Mean completion time by load",
                "oversubscription",
                "mean TCT, s",
                [curve for curve in curves if curve.points],
                log=True,
            )
        ],
        reasons=[sentence for load in plan.loads if (sentence := _sentence(plan, results, load))],
        missing=results.missing(cells),
        total=results.count(cells),
        judged=False,
    )


def _ablation_cells(plan: StudyPlan) -> list[Cell]:
    return [plan.at(system, plan.crowded_load) for system in (OURS, *DEFAULT_ABLATED)]


def _ablation_section(plan: StudyPlan, results: Results) -> Section:
    whole, rows = plan.at(OURS, plan.crowded_load), []
    for system in DEFAULT_ABLATED:
        cell = plan.at(system, plan.crowded_load)
        rows.append(Row(system, None, results.ratio(cell, whole), "ratio", difference=results.difference(cell, whole)))
    cells = _ablation_cells(plan)
    return Section(
        id="ablation",
        title=f"What each mechanism of {OURS} is worth here",
        about=f"Completion time without one mechanism over that of the whole, at load {plan.crowded_load:g}.",
        rows=rows,
        tables=[_without_claims(claims_table("above 1 the mechanism helps", "preset", rows))],
        drawings=[Forest("Time without the mechanism over time with it", "ratio of times", rows)],
        missing=results.missing(cells),
        total=results.count(cells),
        judged=False,
    )


def _tenant_cells(plan: StudyPlan) -> list[Cell]:
    return [plan.at(system, plan.crowded_load) for system in plan.systems]


def _tenant_section(plan: StudyPlan, results: Results) -> Section:
    cells = {system: plan.at(system, plan.crowded_load) for system in plan.systems}
    names = sorted({name for cell in cells.values() for run in results.of(cell) for name in _tenants(run)})
    about = (
        f"Completion by tenant at oversubscription {plan.crowded_load:g}: within 1.5x, 2x and 2.5x of the time that a "
        "task would take alone. Fair is where no tenant waits longer for the others' sake."
    )
    missing, total = results.missing(cells.values()), results.count(cells.values())
    title = "Tenants"
    if len(names) < 2:
        note = "The workload has one tenant: nothing to share." if names else ""
        return Section("tenants", title, about, notes=[note] * bool(note), missing=missing, total=total, judged=False)
    tables, reasons = [], []
    for words, figure in _TENANT_FIGURES.items():
        writer = write_seconds if figure.endswith("_s") else write_share
        lines = []
        for name in names:
            values = (_of_tenant(results, cell, name, figure) for cell in cells.values())
            lines.append((name, *(_written(value, writer) for value in values)))
        tables.append(Table(words, ("tenant", *cells), tuple(lines)))
    for system, cell in cells.items():
        shares = {
            name: share for name in names if (share := _of_tenant(results, cell, name, "within_2x_share")) is not None
        }
        if shares:
            worst = min(shares, key=shares.__getitem__)
            best = max(shares, key=shares.__getitem__)
            reasons.append(
                f"{system}: the worst served tenant, {worst}, has {write_share(shares[worst])} of its tasks within "
                f"2x, the best, {best}, {write_share(shares[best])}."
            )
    return Section("tenants", title, about, tables=tables, reasons=reasons, missing=missing, total=total, judged=False)


def _cache_cells(plan: StudyPlan) -> list[Cell]:
    return [plan.cache_cell(load, replay) for load in _pressures(plan) for replay in ("pinned", "free")]


def _cache_section(plan: StudyPlan, results: Results) -> Section:
    pressures = _pressures(plan)
    tables, drawings = [], []
    for replay in REPLAYS:
        cell_at = partial(plan.cache_cell, replay=replay)
        title = f"tokens regenerated over Belady's, {replay}"
        tables.append(pressure_table(title, results, cell_at, pressures))
        drawings += pressure_lines(f"Tokens regenerated over Belady's, {replay}", results, cell_at, pressures)
    cells = _cache_cells(plan)
    return Section(
        id="cache",
        title="Eviction against the offline optimum",
        about=(
            "Cache-only replays of the same requests in the same order. Pinned: what a call in flight uses cannot "
            "leave; free: anything can. A dash where Belady's rule regenerates less than 0.5 % of the input: a "
            "ratio would mean nothing. Figures are geometric means of the seeds' ratios."
        ),
        tables=tables if cells else [],
        drawings=drawings,
        notes=[] if cells else ["No load of 1 or more was asked for: nothing would ever have to leave."],
        missing=results.missing(cells),
        total=results.count(cells),
        judged=False,
    )


PARTS: dict[str, Part] = {
    "comparison": Part(_comparison_cells, _comparison_section),
    "ablation": Part(_ablation_cells, _ablation_section),
    "tenants": Part(_tenant_cells, _tenant_section),
    "cache": Part(_cache_cells, _cache_section),
}


def _pressures(plan: StudyPlan) -> list[float]:
    return [load for load in plan.loads if load >= 1.0]


def _by_load(plan: StudyPlan, title: str, cell_text: Callable[[Cell], str]) -> Table:
    lines = tuple((system, *(cell_text(plan.at(system, load)) for load in plan.loads)) for system in plan.systems)
    return Table(title, ("system", *(f"load {load:g}" for load in plan.loads)), lines)


def _in_time(results: Results, cell: Cell) -> str:
    shares = [results.mean(cell, figure) for figure in _IN_TIME.values()]
    return " / ".join(_written(share, write_share) for share in shares)


def _curve(plan: StudyPlan, results: Results, system: str, figure: str) -> Curve:
    found = ((load, results.estimate(plan.at(system, load), figure)) for load in plan.loads)
    return Curve(system, [(load, estimate) for load, estimate in found if estimate is not None])


def _sentence(plan: StudyPlan, results: Results, load: float) -> str:
    """Who is fastest at this load, once all have run, and why there is something or nothing to gain."""
    base, others = plan.systems[0], [name for name in plan.systems[1:] if name != BOUND]
    ratios = {
        name: ratio.value
        for name in others
        if (ratio := results.ratio(plan.at(base, load), plan.at(name, load))) is not None
    }
    lost = results.mean(plan.at(base, load), "regenerated_time_share")
    if len(ratios) < len(others) or not ratios or lost is None:
        return ""
    best = max(ratios, key=ratios.__getitem__)
    words = (
        f"At load {load:g} {base} spends {write_share(lost)} of its device time regenerating; the fastest of the "
        f"others is {best}, {write(ratios[best], 'ratio')} as fast"
    )
    bound = results.ratio(plan.at(base, load), plan.at(BOUND, load)) if BOUND in plan.systems else None
    return f"{words}." if bound is None else f"{words}; endless KV memory would be {write(bound.value, 'ratio')}."


def _tenants(run: Metrics) -> Mapping[str, Metrics]:
    tenants = run.get("tenants")
    return tenants if isinstance(tenants, Mapping) else {}


def _of_tenant(results: Results, cell: Cell, name: str, figure: str) -> float | None:
    found = [figure_of(tenants[name], figure) for run in results.of(cell) if name in (tenants := _tenants(run))]
    values = [value for value in found if value is not None]
    return mean_estimate(values).value if values else None


def _written(value: float | None, writer: Callable[[float], str]) -> str:
    return "-" if value is None else writer(value)


def _without_claims(table: Table) -> Table:
    """The same table without the columns that only a paper fills."""
    keep = [index for index, name in enumerate(table.columns) if name not in {"claimed", "verdict"}]
    return Table(
        table.title,
        tuple(table.columns[index] for index in keep),
        tuple(tuple(row[index] for index in keep) for row in table.rows),
    )
