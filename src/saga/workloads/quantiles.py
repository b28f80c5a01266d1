"""Distributions as tables of quantiles: what is carried of real traces, and all that generators draw from.

A table is interpolated log-linearly: between two knots the logarithm of the value is linear in the
probability. This module refuses to know what the numbers mean; tokens and seconds are the caller's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import exp
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from saga.errors import UsageError

Floats: TypeAlias = NDArray[np.float64]

KNOTS: tuple[float, ...] = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
_FLOOR = 1e-3  # a logarithm needs a positive number: a thousandth of a token or of a second is none
_NORMAL = NormalDist()


class Quantiles:
    """A distribution of non-negative numbers, given by `values` at `probabilities` (0 first, 1 last).

    Raises UsageError where the knots do not ascend, or a value is negative or not finite. Drawing n numbers costs O(n).
    """

    __slots__ = ("_log_list", "_logs", "_probabilities", "probabilities", "values")

    def __init__(self, probabilities: Sequence[float], values: Sequence[float]) -> None:
        self.probabilities = tuple(float(p) for p in probabilities)
        self.values = tuple(float(v) for v in values)
        _check(self.probabilities, self.values)
        self._probabilities: Floats = np.array(self.probabilities)
        self._logs: Floats = np.log(np.maximum(np.array(self.values), _FLOOR))
        self._log_list: list[float] = self._logs.tolist()

    def at(self, probabilities: Floats) -> Floats:
        """The values at `probabilities`, any shape."""
        found: Floats = np.exp(np.interp(probabilities, self._probabilities, self._logs))
        return found

    def one(self, probability: float) -> float:
        """The value at one probability, 0 <= p < 1; the same as `at`, cheaper. O(log knots)."""
        k = bisect_right(self.probabilities, probability, 1, len(self.probabilities) - 1)
        low, high = self.probabilities[k - 1], self.probabilities[k]
        start, end = self._log_list[k - 1], self._log_list[k]
        return exp(start + (end - start) * (probability - low) / (high - low))

    def draw(self, rng: np.random.Generator, size: int) -> Floats:
        """`size` independent values."""
        return self.at(rng.random(size))

    def mean(self) -> float:
        """Expected value, exact for the interpolated table. O(knots)."""
        low, high = np.exp(self._logs[:-1]), np.exp(self._logs[1:])
        rise = np.diff(self._logs)
        flat = np.abs(rise) < 1e-9
        pieces = np.where(flat, low, (high - low) / np.where(flat, 1.0, rise))
        return float(np.sum(pieces * np.diff(self._probabilities)))


def fit(samples: Sequence[float], digits: int = 4) -> Quantiles:
    """The table of `samples` (at least one) at KNOTS, values kept to `digits` significant digits."""
    values = np.quantile(np.asarray(samples, dtype=np.float64), KNOTS)
    return Quantiles(KNOTS, [float(f"{value:.{digits}g}") for value in values])


def through(p50: float, p95: float, p99: float, *, tail: float = 10.0) -> Quantiles:
    """The distribution through three published quantiles: log-normal on each side of P95.

    The logarithm is linear in the standard normal quantile between the given points; the lower half goes on with the
    first slope, the part past P99 with the last slope, cut at `tail` times P99 because nobody published more.
    """
    z95, z99 = _NORMAL.inv_cdf(0.95), _NORMAL.inv_cdf(0.99)
    body = np.log(p95 / p50) / z95
    beyond = np.log(p99 / p95) / (z99 - z95)
    body_knots = (k / 40 for k in range(1, 39))
    probabilities = (0.0, *body_knots, 0.96, 0.97, 0.98, 0.985, 0.99, 0.993, 0.996, 0.998, 0.999, 1.0)
    values = []
    for probability in probabilities:
        z = _NORMAL.inv_cdf(min(max(probability, 0.001), 0.9999))
        log = np.log(p50) + body * z if z <= z95 else np.log(p95) + beyond * (z - z95)
        values.append(min(float(np.exp(log)), tail * p99))
    return Quantiles(probabilities, values)


def log_normal(mean: float, cv: float) -> Quantiles:
    """The log-normal distribution with this mean and coefficient of variation, both above 0; cut at P0.01 and P99.99.

    The cut leaves the mean (within 0.5 % up to a cv of 5) and takes from a large cv: drawn numbers have 2.8 for 3.
    """
    variance = np.log1p(cv * cv)
    knots = (0.0001, 0.001, 0.005, *(k / 100 for k in range(1, 100)), 0.995, 0.998, 0.999, 0.9995, 0.9998)
    middle = np.log(mean) - variance / 2
    ends = [float(np.exp(middle + np.sqrt(variance) * _NORMAL.inv_cdf(p))) for p in (0.0001, *knots, 0.9999)]
    return Quantiles((0.0, *knots, 1.0), ends)


_GRID: Floats = np.linspace(-4.5, 4.5, 361)
_GRID_CHANCES: Floats = np.array([_NORMAL.cdf(float(z)) for z in _GRID])


def chance(normal: Floats) -> Floats:
    """The standard normal distribution function, to three digits: turns correlated normals into probabilities."""
    found: Floats = np.interp(normal, _GRID, _GRID_CHANCES)
    return found


def _check(probabilities: tuple[float, ...], values: tuple[float, ...]) -> None:
    if len(probabilities) != len(values) or len(values) < 2:
        raise UsageError(f"a quantile table needs as many values as probabilities, at least two: {len(values)} values")
    if probabilities[0] != 0.0 or probabilities[-1] != 1.0 or any(np.diff(probabilities) <= 0):
        raise UsageError(f"probabilities of a quantile table must rise from 0 to 1: {probabilities}")
    if not np.all(np.isfinite(values)) or values[0] < 0 or any(np.diff(values) < 0):
        raise UsageError(f"values of a quantile table must be finite, not negative, and not fall: {values}")
