"""What each mechanism is worth: the paper's system without one of them, and this project's default likewise.

On `swe_bench`, at the paper's load and where the memory is full, since at the first nothing may be at stake.
"""

from __future__ import annotations

from collections.abc import Sequence

from saga.bench.evaluation.cells import Cell, Scale
from saga.bench.evaluation.claims import Claims
from saga.bench.evaluation.comparison import at_load
from saga.bench.evaluation.results import Results
from saga.bench.evaluation.rows import judge, ratio_found
from saga.bench.evaluation.sections import Forest, Section, claims_table, write, write_estimate
from saga.bench.evaluation.systems import PAPER
from saga.bench.evaluation.verdicts import of_ratio
from saga.bench.tables import Table, write_share

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


def ablation_cells(scale: Scale, _claims: Claims) -> list[Cell]:
    """Both families, each with its whole; the default's where it has something to do."""
    paper = [at_load(scale, name, WORKLOAD, load) for load in scale.variation_loads for name in (PAPER, *ABLATED)]
    crowded = scale.loads[-1]
    return paper + [at_load(scale, name, WORKLOAD, crowded) for name in ("saga", *DEFAULT_ABLATED)]


def ablation_section(scale: Scale, results: Results, claims: Claims) -> Section:
    """Time without a mechanism over time with it."""
    table, names = claims.table("ablation"), {"workload": WORKLOAD}
    rows = []
    for system in ABLATED:
        claim = table.ratio("tct_mean_s", {"system": system, **names}, {"system": PAPER, **names})
        by_load = {
            load: ratio_found(results, at_load(scale, system, WORKLOAD, load), at_load(scale, PAPER, WORKLOAD, load))
            for load in scale.variation_loads
        }
        rows.append(judge(system, claim, "ratio", of_ratio, by_load[scale.variation_loads[0]], by_load))
    cells = ablation_cells(scale, claims)
    return Section(
        id=table.id,
        title=table.title,
        where=table.where,
        about=(
            f"Mean completion time of each ablated preset over that of the whole, {scale.fleet} workers, "
            f"`{WORKLOAD}`. Above 1 the mechanism helps, below 1 it harms. The last table ablates this project's "
            "default, on which the paper says nothing."
        ),
        rows=rows,
        tables=[
            claims_table(f"{PAPER} without one mechanism: time over that of the whole", "preset", rows),
            _by_load(scale, results, scale.variation_loads, (PAPER, *ABLATED)),
            _by_load(scale, results, scale.loads[-1:], ("saga", *DEFAULT_ABLATED)),
        ],
        drawings=[Forest("Time without the mechanism over time with it, at the paper's load", "ratio of times", rows)],
        reasons=_reasons(scale, results),
        missing=results.missing(cells),
        total=results.count(cells),
    )


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


def _reasons(scale: Scale, results: Results) -> list[str]:
    words = []
    for load in scale.variation_loads:
        whole = at_load(scale, PAPER, WORKLOAD, load)
        found = {
            system: ratio
            for system in ABLATED
            if (ratio := results.ratio(at_load(scale, system, WORKLOAD, load), whole)) is not None
        }
        lost = results.mean(whole, "regenerated_time_share")
        if not found or lost is None:
            continue
        most = max(found, key=lambda name: found[name].value)
        least = min(found, key=lambda name: found[name].value)
        words.append(
            f"At oversubscription {load:g} {PAPER} spends {write_share(lost)} of its device time regenerating. "
            f"Without its most useful mechanism ({most}) it takes {write(found[most].value, 'ratio')} as long, "
            f"without its least useful one ({least}) {write(found[least].value, 'ratio')}."
        )
    return words
