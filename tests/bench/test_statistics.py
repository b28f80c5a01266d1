"""Statistics: laws of ratios and of distributions, then known values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.bench.statistics import ecdf, paired_speedup, t_quantile_975, thin

seconds = st.floats(min_value=1e-3, max_value=1e6)
pairs = st.lists(st.tuples(seconds, seconds), min_size=2, max_size=20)


@given(pairs)
def test_swapping_the_sides_inverts_the_speedup(values: list[tuple[float, float]]) -> None:
    """Twice as fast one way is half as fast the other way, interval included."""
    ours, theirs = [a for a, _ in values], [b for _, b in values]
    forth, back = paired_speedup(ours, theirs), paired_speedup(theirs, ours)
    assert forth.low is not None
    assert forth.high is not None
    assert back.high is not None
    assert forth.speedup * back.speedup == pytest.approx(1.0)
    assert forth.low * back.high == pytest.approx(1.0)
    assert forth.low <= forth.speedup * (1 + 1e-12)
    assert forth.speedup <= forth.high * (1 + 1e-12)


@given(pairs, st.floats(min_value=0.1, max_value=10))
def test_the_unit_of_time_does_not_matter(values: list[tuple[float, float]], unit: float) -> None:
    """Seconds or minutes: the ratio is the same."""
    ours, theirs = [a for a, _ in values], [b for _, b in values]
    assert paired_speedup([a * unit for a in ours], [b * unit for b in theirs]).speedup == pytest.approx(
        paired_speedup(ours, theirs).speedup
    )


def test_a_constant_ratio_has_no_width() -> None:
    """Where every seed says 2.0 the interval is a point, however different the seeds are."""
    answer = paired_speedup([10.0, 200.0, 3000.0], [5.0, 100.0, 1500.0])
    assert (answer.speedup, answer.low, answer.high) == pytest.approx((2.0, 2.0, 2.0))


def test_one_seed_has_no_interval() -> None:
    """One pair says nothing about its own uncertainty."""
    answer = paired_speedup([10.0], [5.0])
    assert (answer.speedup, answer.low, answer.high) == (2.0, None, None)


def test_interval_of_three_pairs_by_hand() -> None:
    """Logarithms of the ratios -1, 0, 1: mean 0, deviation 1, half width 4.303 / sqrt 3."""
    answer = paired_speedup([1.0, 1.0, math.e], [math.e, 1.0, 1.0])
    assert answer.speedup == pytest.approx(1.0)
    assert answer.high == pytest.approx(math.exp(4.303 / math.sqrt(3)), rel=1e-3)


@pytest.mark.parametrize(
    ("baseline", "other"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([1.0], [math.nan]), ([math.inf], [1.0])]
)
def test_what_is_no_ratio_is_refused(baseline: list[float], other: list[float]) -> None:
    """No pairs, unequal lengths, zero, NaN and infinity are errors, not numbers."""
    with pytest.raises(ValueError, match=r"pairs|positive"):
        paired_speedup(baseline, other)


def test_t_quantiles_fall_to_the_normal_one() -> None:
    """Table and expansion meet, fall steadily, and tend to 1.96."""
    quantiles = [t_quantile_975(degrees) for degrees in range(1, 200)]
    assert quantiles == sorted(quantiles, reverse=True)
    assert t_quantile_975(60) == pytest.approx(2.0003, abs=2e-3)
    assert quantiles[-1] == pytest.approx(1.972, abs=2e-3)
    with pytest.raises(ValueError, match="at least 1"):
        t_quantile_975(0)


@given(st.lists(st.floats(min_value=0, max_value=1e9), max_size=900))
def test_the_distribution_rises_from_the_least_to_the_greatest(values: list[float]) -> None:
    """An ECDF is monotone, ends at 1 and keeps both extremes, thinned or not."""
    xs, ys = ecdf(values, num_points=100)
    assert len(xs) == len(ys) <= 100
    assert xs == sorted(xs)
    assert ys == sorted(ys)
    if values:
        assert (xs[0], xs[-1], ys[-1]) == (min(values), max(values), 1.0)


@given(st.integers(min_value=0, max_value=500), st.integers(min_value=1, max_value=50))
def test_thinning_keeps_the_mean_of_what_divides_evenly(num_samples: int, most: int) -> None:
    """Never more points than asked for, order kept, and means of means are means where groups are equal."""
    samples = [(float(index), float(index % 7)) for index in range(num_samples)]
    thinned = thin(samples, most)
    assert len(thinned) <= most
    assert thinned == sorted(thinned)
    if num_samples <= most:
        assert thinned == samples
    elif num_samples % len(thinned) == 0 and num_samples // len(thinned) == -(-num_samples // most):
        assert sum(value for _, value in thinned) / len(thinned) == pytest.approx(
            sum(value for _, value in samples) / num_samples
        )
