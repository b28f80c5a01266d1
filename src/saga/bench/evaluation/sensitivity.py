"""The paper's constants at the ends of their ranges: how much completion time changes at most."""

from __future__ import annotations

from dataclasses import replace

from saga.bench.evaluation.cells import Cell, Scale
from saga.bench.evaluation.claims import Claim, Claims
from saga.bench.evaluation.comparison import at_load
from saga.bench.evaluation.results import Results
from saga.bench.evaluation.rows import Found, judge
from saga.bench.evaluation.sections import Forest, Section, claims_table, write_estimate
from saga.bench.evaluation.systems import PAPER, varied
from saga.bench.evaluation.verdicts import of_bound
from saga.bench.statistics import Estimate
from saga.bench.tables import Table, write_share

WORKLOAD = "swe_bench"


def sensitivity_cells(scale: Scale, claims: Claims) -> list[Cell]:
    """The default and both ends of every constant's range."""
    ends = [name for claim in claims.table("sensitivity").claims for name in _ends(claim)]
    return [at_load(scale, name, WORKLOAD, load) for load in scale.sensitivity_loads for name in (PAPER, *ends)]


def sensitivity_section(scale: Scale, results: Results, claims: Claims) -> Section:
    """The larger of the two changes, up or down, against its bound."""
    table, here = claims.table("sensitivity"), scale.sensitivity_loads[0]
    rows = []
    for claim in table.claims:
        by_load = {load: Found(_largest_change(scale, results, claim, load)) for load in scale.sensitivity_loads}
        name = f"{claim.setting} {claim.low} to {claim.high}"
        others = by_load if len(by_load) > 1 else {}
        rows.append(judge(name, claim.value, "bound", of_bound, by_load[here], others))
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
            claims_table("Claimed and ours, at the paper's load", "constant", rows),
            *(_ratios(scale, results, claims, load) for load in scale.sensitivity_loads),
        ],
        drawings=[Forest("Largest change of completion time at the paper's load", "change", rows, one=None)],
        reasons=[words for load in scale.sensitivity_loads if (words := _at_stake(scale, results, load))],
        missing=results.missing(cells),
        total=results.count(cells),
    )


def _largest_change(scale: Scale, results: Results, claim: Claim, load: float) -> Estimate | None:
    base, ends = at_load(scale, PAPER, WORKLOAD, load), _ends(claim)
    ratios = [results.ratio(at_load(scale, end, WORKLOAD, load), base) for end in ends]
    changes = [_change(ratio) for ratio in ratios if ratio is not None]
    if not changes or len(changes) < len(ends):
        return None
    largest = max(changes, key=lambda change: change.value)
    highs = [change.high for change in changes if change.high is not None]
    return replace(largest, high=max(highs)) if largest.high is not None else largest


def _ratios(scale: Scale, results: Results, claims: Claims, load: float) -> Table:
    base, lines = at_load(scale, PAPER, WORKLOAD, load), []
    for claim in claims.table("sensitivity").claims:
        ratios = (results.ratio(at_load(scale, end, WORKLOAD, load), base) for end in _ends(claim))
        lines.append((claim.setting, *(write_estimate(ratio, "ratio") for ratio in ratios)))
    columns = ("constant", "at the low end", "at the high end")
    return Table(f"time over that of the default, oversubscription {load:g}", columns, tuple(lines))


def _at_stake(scale: Scale, results: Results, load: float) -> str:
    base = at_load(scale, PAPER, WORKLOAD, load)
    lost, evicted = results.mean(base, "regenerated_time_share"), results.mean(base, "evicted_share")
    if lost is None or evicted is None:
        return ""
    return (
        f"At oversubscription {load:g} {PAPER} spends {write_share(lost)} of its device time regenerating and finds "
        f"{write_share(evicted)} of what it could reuse gone from the device: so much is at stake for constants of "
        "eviction and retention."
    )


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
