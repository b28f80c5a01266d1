"""Finished runs by cell and seed, and the estimates that tables are made of.

What is not there yet is None, never 0: a partial report says so. Refuses to know claims.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from saga.bench.evaluation.cells import Cell
from saga.bench.statistics import Estimate, Welch, hedges_g, mean_estimate, ratio_of_means, welch

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
        """Its mean with a 95 % t-interval."""
        values = self.values(cell, figure)
        return mean_estimate(values) if values else None

    def ratio(self, over: Cell, under: Cell, figure: str = "tct_mean_s") -> Estimate | None:
        """The ratio of the means with its interval; None where either is missing or not positive."""
        above, below = self.values(over, figure), self.values(under, figure)
        if not above or not below or min(*above, *below) <= 0.0:
            return None
        return ratio_of_means(above, below)

    def test(self, over: Cell, under: Cell, figure: str = "tct_mean_s") -> tuple[Welch | None, Estimate | None]:
        """Welch's t-test and Hedges' g of the two; None where seeds are too few."""
        above, below = self.values(over, figure), self.values(under, figure)
        return welch(above, below), hedges_g(above, below)

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
