"""The tables of the paper, in the order of the report: for each what to run, and how to read it.

Adding a table is adding an entry to EXPERIMENTS. This module refuses to run anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from saga.bench.evaluation.ablation import ablation_cells, ablation_section
from saga.bench.evaluation.cache import cache_cells, cache_section
from saga.bench.evaluation.cells import Cell, Scale
from saga.bench.evaluation.claims import Claims
from saga.bench.evaluation.comparison import main_cells, main_section
from saga.bench.evaluation.overheads import kernels_section, overheads_cells, overheads_section
from saga.bench.evaluation.queue import queue_cells, queue_section
from saga.bench.evaluation.regeneration import regeneration_cells, regeneration_section
from saga.bench.evaluation.results import Results
from saga.bench.evaluation.sections import Section
from saga.bench.evaluation.sensitivity import sensitivity_cells, sensitivity_section
from saga.bench.evaluation.slo import slo_cells, slo_section
from saga.bench.evaluation.variance import variance_cells, variance_section
from saga.errors import UnknownName, UsageError


@dataclass(frozen=True)
class Experiment:
    """One table: its cells at a scale, and its section from whatever of them has been run."""

    cells: Callable[[Scale, Claims], Sequence[Cell]]
    section: Callable[[Scale, Results, Claims], Section]


EXPERIMENTS: dict[str, Experiment] = {
    "main": Experiment(main_cells, main_section),
    "regeneration": Experiment(regeneration_cells, regeneration_section),
    "competitive": Experiment(cache_cells, cache_section),
    "slo": Experiment(slo_cells, slo_section),
    "ablation": Experiment(ablation_cells, ablation_section),
    "queue": Experiment(queue_cells, queue_section),
    "variance": Experiment(variance_cells, variance_section),
    "sensitivity": Experiment(sensitivity_cells, sensitivity_section),
    "overheads": Experiment(overheads_cells, overheads_section),
    "kernels": Experiment(lambda _scale, _claims: (), kernels_section),
}


def choose(only: str | None) -> list[str]:
    """The tables between the commas, in the order of the report; all for None. UsageError, UnknownName."""
    if only is None:
        return list(EXPERIMENTS)
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    if not wanted:
        raise UsageError(f"--only {only!r} names no table; tables are {', '.join(EXPERIMENTS)}")
    for name in wanted:
        if name not in EXPERIMENTS:
            raise UnknownName("table", name, EXPERIMENTS)
    return [name for name in EXPERIMENTS if name in wanted]


def cells_of(names: Sequence[str], scale: Scale, claims: Claims) -> list[Cell]:
    """Every cell of these tables, once."""
    return list(dict.fromkeys(cell for name in names for cell in EXPERIMENTS[name].cells(scale, claims)))
