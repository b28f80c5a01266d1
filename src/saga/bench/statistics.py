"""The few statistics that a comparison of runs needs, with their uncertainty.

Runs are paired by seed: the same seed gives every preset the same tasks, so the ratio within a seed is free of
the luck of the draw. Ratios multiply, so they are averaged as logarithms. This module refuses to know what the
numbers mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_T_975 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    2.120,
    2.110,
    2.101,
    2.093,
    2.086,
    2.080,
    2.074,
    2.069,
    2.064,
    2.060,
    2.056,
    2.052,
    2.048,
    2.045,
    2.042,
)
_Z_975 = 1.959964


@dataclass(frozen=True)
class Speedup:
    """How many times faster, geometric mean, with its 95 % interval; low and high are None for one pair."""

    speedup: float
    low: float | None
    high: float | None


def t_quantile_975(degrees: int) -> float:
    """97.5 % quantile of Student's t, to 0.1 %. O(1).

    Table up to 30 degrees of freedom, then the first two terms of the expansion around the normal quantile
    (Abramowitz and Stegun 26.7.5). ValueError below 1.
    """
    if degrees < 1:
        raise ValueError(f"degrees of freedom must be at least 1, not {degrees}")
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z = _Z_975
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def paired_speedup(baseline: Sequence[float], other: Sequence[float]) -> Speedup:
    """Geometric mean of baseline / other, pair by pair, with a 95 % t-interval on the logarithms. O(pairs).

    Both hold seconds (or anything positive where less is better), in the order of the seeds. ValueError where they
    are empty, differ in length, or hold something that is not a positive number.
    """
    if not baseline or len(baseline) != len(other):
        raise ValueError(f"need pairs, not {len(baseline)} and {len(other)} values")
    if not all(0.0 < value < math.inf for value in (*baseline, *other)):
        raise ValueError("ratios need positive, finite values")
    logs = [math.log(base / mine) for base, mine in zip(baseline, other, strict=True)]
    mean = math.fsum(logs) / len(logs)
    if len(logs) == 1:
        return Speedup(math.exp(mean), None, None)
    variance = math.fsum((log - mean) ** 2 for log in logs) / (len(logs) - 1)
    half = t_quantile_975(len(logs) - 1) * math.sqrt(variance / len(logs))
    return Speedup(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def ecdf(values: Sequence[float], *, num_points: int = 400) -> tuple[list[float], list[float]]:
    """Points (value, share of values at or below it) of the empirical distribution; at most `num_points`.

    O(n log n). Empty in, empty out.
    """
    ordered = sorted(values)
    num_values = len(ordered)
    if num_values <= num_points:
        picks = list(range(num_values))
    else:
        picks = [round(index * (num_values - 1) / (num_points - 1)) for index in range(num_points)]
    return [ordered[pick] for pick in picks], [(pick + 1) / num_values for pick in picks]


def thin(samples: Sequence[tuple[float, ...]], most: int) -> list[tuple[float, ...]]:
    """At most `most` samples, each the mean over equally many neighbours (the last may have fewer). O(samples)."""
    size = -(-len(samples) // most)
    groups = [samples[start : start + size] for start in range(0, len(samples), max(1, size))]
    return [tuple(math.fsum(column) / len(group) for column in zip(*group, strict=True)) for group in groups]
