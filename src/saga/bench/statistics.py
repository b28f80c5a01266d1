"""The few statistics that a comparison of runs needs, with their uncertainty.

Runs are paired by seed: the same seed gives every preset the same tasks, so the ratio within a seed is free of
the luck of the draw. Ratios multiply, so they are averaged as logarithms. This module refuses to know what the
numbers mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_NORMAL_975 = 1.959964  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Speedup:
    """How many times faster, geometric mean, with its 95 % interval; low and high are None for one pair."""

    speedup: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; low and high are None where one value says nothing about its own spread."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class TTest:
    """A two-sided t-test: t, degrees of freedom, p."""

    t: float
    degrees: float
    p: float


@dataclass(frozen=True)
class Difference:
    """Whether and how far two samples differ, seed by seed and as independent samples; None where values are too few.

    paired: t-test of the logarithms of the pairs' ratios; paired_g: their mean in their own deviations. welch: Welch's
    t-test of the means; pooled_g: their difference in deviations of one sample. Both g are corrected for small samples.
    """

    paired: TTest | None
    paired_g: Estimate | None
    welch: TTest | None
    pooled_g: Estimate | None


def t_tail(t: float, degrees: float) -> float:
    """P(|T| > |t|) of Student's t with `degrees` of freedom (any positive number), to 1e-10.

    The regularised incomplete beta function I_x(degrees / 2, 1 / 2) at x = degrees / (degrees + t^2). ValueError where
    degrees is not positive.
    """
    if not degrees > 0.0:
        raise ValueError(f"degrees of freedom must be positive, not {degrees}")
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(degrees / (degrees + t * t), degrees / 2.0, 0.5)


def t_quantile_975(degrees: float) -> float:
    """97.5 % quantile of Student's t, to 1e-9, by bisection of `t_tail`. ValueError below 1."""
    if not degrees >= 1.0:
        raise ValueError(f"degrees of freedom must be at least 1, not {degrees}")
    low, high = 1.0, 13.0
    while high - low > 1e-9:
        middle = (low + high) / 2.0
        low, high = (middle, high) if t_tail(middle, degrees) > 0.05 else (low, middle)
    return low


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b) by Lentz's continued fraction (DLMF 8.17.22), on the side where it converges fast."""
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - _incomplete_beta(1.0 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    tiny, value, c, d = 1e-300, 1.0, 1.0, 0.0
    for step in range(500):
        m = step // 2
        if step == 0:
            numerator = 1.0
        elif step % 2 == 0:
            numerator = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            numerator = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1.0 / (1.0 + numerator * d or tiny)
        c = 1.0 + numerator / c or tiny
        value *= c * d
        if abs(1.0 - c * d) < 1e-14:
            break
    return front * (value - 1.0) / a


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Arithmetic mean with a 95 % t-interval. ValueError for no values. O(values)."""
    mean, variance = _moments(values)
    if len(values) == 1:
        return Estimate(mean)
    half = t_quantile_975(len(values) - 1) * math.sqrt(variance / len(values))
    return Estimate(mean, mean - half, mean + half)


def share_estimate(values: Sequence[float]) -> Estimate:
    """As `mean_estimate`, of shares 0..1: no interval reaches beyond what a share can be. ValueError for no values."""
    found = mean_estimate(values)
    if found.low is None or found.high is None:
        return found
    return Estimate(found.value, max(0.0, found.low), min(1.0, found.high))


def welch(one: Sequence[float], other: Sequence[float]) -> TTest | None:
    """Whether two independent samples have the same mean (Welch 1947); None with fewer than two values in either.

    Equal constants give p = 1, different ones p = 0. O(values).
    """
    if min(len(one), len(other)) < 2:
        return None
    (mean, variance), (mean_other, variance_other) = _moments(one), _moments(other)
    parts = (variance / len(one), variance_other / len(other))
    total = math.fsum(parts)
    if total == 0.0:
        degrees = float(len(one) + len(other) - 2)
        return TTest(0.0, degrees, 1.0) if mean == mean_other else TTest(math.inf, degrees, 0.0)
    degrees = _welch_degrees(parts, (len(one), len(other)))
    t = (mean - mean_other) / math.sqrt(total)
    return TTest(t, degrees, t_tail(t, degrees))


def hedges_g(one: Sequence[float], other: Sequence[float]) -> Estimate | None:
    """(mean(one) - mean(other)) in pooled standard deviations, corrected for small samples, with a 95 % interval.

    Hedges 1981: g = J d with J = 1 - 3 / (4 (n1 + n2) - 9); variance (n1 + n2) / (n1 n2) + g^2 / (2 (n1 + n2)), normal
    interval. None with fewer than two values in either, or where neither varies. O(values).
    """
    num_one, num_other = len(one), len(other)
    if min(num_one, num_other) < 2:
        return None
    (mean, variance), (mean_other, variance_other) = _moments(one), _moments(other)
    total = num_one + num_other
    pooled = ((num_one - 1) * variance + (num_other - 1) * variance_other) / (total - 2)
    if pooled == 0.0:
        return None
    g = (1.0 - 3.0 / (4.0 * total - 9.0)) * (mean - mean_other) / math.sqrt(pooled)
    half = _NORMAL_975 * math.sqrt(total / (num_one * num_other) + g * g / (2.0 * total))
    return Estimate(g, g - half, g + half)


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and unbiased variance (0 for one value)."""
    if not values:
        raise ValueError("no values")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _welch_degrees(parts: tuple[float, float], sizes: tuple[int, int]) -> float:
    """Degrees of freedom of Welch and Satterthwaite for two variances of means; at least 1."""
    under = math.fsum(part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True))
    return max(1.0, math.fsum(parts) ** 2 / under) if under > 0.0 else float(sum(sizes) - 2)


def paired_speedup(baseline: Sequence[float], other: Sequence[float]) -> Speedup:
    """Geometric mean of baseline / other, pair by pair, with a 95 % t-interval on the logarithms. O(pairs).

    Both hold seconds (or anything positive where less is better), in the order of the seeds. ValueError where they
    are empty, differ in length, or hold something that is not a positive number.
    """
    logs = _log_ratios(baseline, other)
    mean, variance = _moments(logs)
    if len(logs) == 1:
        return Speedup(math.exp(mean), None, None)
    half = t_quantile_975(len(logs) - 1) * math.sqrt(variance / len(logs))
    return Speedup(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def paired_test(over: Sequence[float], under: Sequence[float]) -> TTest | None:
    """Whether the ratios of the pairs have a geometric mean of 1: Student's t-test of their logarithms. O(pairs).

    None for one pair. p is below 0.05 where the interval of `paired_speedup` excludes 1. ValueError as there.
    """
    logs = _log_ratios(over, under)
    if len(logs) == 1:
        return None
    mean, variance = _moments(logs)
    degrees = len(logs) - 1.0
    if variance == 0.0:
        return TTest(0.0, degrees, 1.0) if mean == 0.0 else TTest(math.copysign(math.inf, mean), degrees, 0.0)
    t = mean / math.sqrt(variance / len(logs))
    return TTest(t, degrees, t_tail(t, degrees))


def paired_g(over: Sequence[float], under: Sequence[float]) -> Estimate | None:
    """Mean logarithm of the pairs' ratios in deviations of these logarithms, corrected, with a 95 % interval. O(pairs).

    The effect size of `paired_test` (Borenstein et al. 2009, ch. 4, for a change in its own deviations): J = 1 - 3 / (4
    (n - 1) - 1); variance 1 / n + g^2 / (2 n), normal interval. None for fewer than three pairs, of which no unbiased g
    exists, or where nothing varies.
    """
    logs = _log_ratios(over, under)
    if len(logs) < 3:
        return None
    mean, variance = _moments(logs)
    if variance == 0.0:
        return None
    num_pairs = len(logs)
    g = (1.0 - 3.0 / (4.0 * (num_pairs - 1) - 1.0)) * mean / math.sqrt(variance)
    half = _NORMAL_975 * math.sqrt(1.0 / num_pairs + g * g / (2.0 * num_pairs))
    return Estimate(g, g - half, g + half)


def _log_ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """log(over / under), pair by pair."""
    if not over or len(over) != len(under):
        raise ValueError(f"need pairs, not {len(over)} and {len(under)} values")
    if not all(0.0 < value < math.inf for value in (*over, *under)):
        raise ValueError("ratios need positive, finite values")
    return [math.log(above / below) for above, below in zip(over, under, strict=True)]


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
