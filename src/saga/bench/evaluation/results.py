"""Finished runs by cell and seed, and the estimates that tables are made of.

What is not there yet is None, never 0: a partial report says so. The same seed gives every system the same tasks, so
systems are compared seed by seed, over the seeds that both have. Refuses to know claims.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from saga.bench.evaluation.cells import Cell
from saga.bench.statistics import (
    Difference,
    Estimate,
    hedges_g,
    mean_estimate,
    paired_g,
    paired_speedup,
    paired_test,
    share_estimate,
    welch,
)

Metrics = Mapping[str, object]


@dataclass
class Results:
    """Metrics by cell and seed; `wanted` seeds are expected of each cell."""

    wanted: int
    runs: dict[Cell, dict[int, Metrics]] = field(default_factory=dict)

    def add(self, cell: Cell, seed: int, metrics: Metrics) -> None:
        """One finished run."""
        self.runs.setdefault(cell, {})[seed] = metrics

    def of(self, cell: Cell) -> list[Metrics]:
        """Its runs, by seed."""
        return [metrics for _, metrics in sorted(self.runs.get(cell, {}).items())]

    def values(self, cell: Cell, figure: str) -> list[float]:
        """The figure in every run that has it. "a.b" is the entry b of the object a."""
        found = (figure_of(metrics, figure) for metrics in self.of(cell))
        return [value for value in found if value is not None]

    def mean(self, cell: Cell, figure: str) -> float | None:
        """Its mean over seeds."""
        values = self.values(cell, figure)
        return sum(values) / len(values) if values else None

    def estimate(self, cell: Cell, figure: str) -> Estimate | None:
        """Its mean with a 95 % t-interval; names of shares end in "_share"."""
        values = self.values(cell, figure)
        if not values:
            return None
        return share_estimate(values) if figure.endswith("_share") else mean_estimate(values)

    def geomean(self, cell: Cell, figure: str) -> Estimate | None:
        """The geometric mean of a figure that is a ratio, with its 95 % interval; None where one is not positive."""
        values = self.values(cell, figure)
        if not values or min(values) <= 0.0:
            return None
        found = paired_speedup(values, [1.0] * len(values))
        return Estimate(found.speedup, found.low, found.high)

    def ratio(self, over: Cell, under: Cell, figure: str = "tct_mean_s") -> Estimate | None:
        """How many times as much, geometric mean over seeds; None where no seed has both, or one is not positive."""
        return self.geomean_ratio([(over, under)], figure)

    def geomean_ratio(self, pairs: Sequence[tuple[Cell, Cell]], figure: str = "tct_mean_s") -> Estimate | None:
        """The geometric mean over pairs of cells, then over the seeds that all of them have, with its 95 % interval."""
        over = self._geomeans([above for above, _ in pairs], figure)
        under = self._geomeans([below for _, below in pairs], figure)
        shared = sorted(over.keys() & under.keys())
        if not shared:
            return None
        found = paired_speedup([over[seed] for seed in shared], [under[seed] for seed in shared])
        return Estimate(found.speedup, found.low, found.high)

    def difference(self, over: Cell, under: Cell, figure: str = "tct_mean_s") -> Difference:
        """The tests and effect sizes of the two."""
        above, below = self._geomeans([over], figure), self._geomeans([under], figure)
        shared = sorted(above.keys() & below.keys())
        pairs = [above[seed] for seed in shared], [below[seed] for seed in shared]
        samples = self.values(over, figure), self.values(under, figure)
        return Difference(
            paired_test(*pairs) if shared else None,
            paired_g(*pairs) if shared else None,
            welch(*samples),
            hedges_g(*samples),
        )

    def _geomeans(self, cells: Sequence[Cell], figure: str) -> dict[int, float]:
        """By seed that all cells have, the geometric mean of their figures; nothing where one is not positive."""
        values = [
            {
                seed: value
                for seed, run in self.runs.get(cell, {}).items()
                if (value := figure_of(run, figure)) is not None
            }
            for cell in cells
        ]
        if any(value <= 0.0 for each in values for value in each.values()):
            return {}
        shared = set.intersection(*(set(each) for each in values))
        return {seed: math.prod(each[seed] for each in values) ** (1.0 / len(values)) for seed in shared}

    def missing(self, cells: Iterable[Cell]) -> int:
        """Runs of these cells that are not there."""
        return sum(self.wanted - min(self.wanted, len(self.runs.get(cell, {}))) for cell in set(cells))

    def count(self, cells: Iterable[Cell]) -> int:
        """Runs that these cells have when all is done."""
        return self.wanted * len(set(cells))


def figure_of(metrics: Metrics, figure: str) -> float | None:
    """A finite number of a run, None where it has none."""
    found: object = metrics
    for part in figure.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) < float("inf"):
        return None
    return float(found)


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds, None for fewer than two."""
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return float(variance**0.5)
