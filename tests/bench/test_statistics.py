"""Statistics: laws of ratios and of distributions, then known values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.bench.statistics import (
    ecdf,
    hedges_g,
    mean_estimate,
    paired_g,
    paired_speedup,
    paired_test,
    share_estimate,
    t_quantile_975,
    t_tail,
    thin,
    welch,
)

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
    """They fall steadily, also between whole degrees of freedom, from the published values towards 1.96."""
    quantiles = [t_quantile_975(degrees / 2) for degrees in range(2, 400)]
    assert quantiles == sorted(quantiles, reverse=True)
    published = {1: 12.7062, 2: 4.30265, 3: 3.18245, 10: 2.22814, 30: 2.04227, 60: 2.00030}
    assert {n: t_quantile_975(n) for n in published} == pytest.approx(published, abs=1e-4)
    assert quantiles[-1] == pytest.approx(1.972, abs=2e-3)
    with pytest.raises(ValueError, match="at least 1"):
        t_quantile_975(0)


@given(st.floats(min_value=0, max_value=50), st.floats(min_value=0.5, max_value=200))
def test_the_tail_of_t_falls_and_is_a_probability(t: float, degrees: float) -> None:
    """1 at 0, less and less beyond, the same on both sides."""
    tail = t_tail(t, degrees)
    assert 0.0 <= tail <= 1.0
    assert t_tail(-t, degrees) == tail
    assert t_tail(t + 0.5, degrees) <= tail + 1e-12


def test_the_tail_of_t_has_its_known_values() -> None:
    """One degree of freedom is Cauchy's distribution; 10 degrees from published tables; none are not a distribution."""
    assert t_tail(0.0, 5.0) == pytest.approx(1.0)
    assert t_tail(1.0, 1.0) == pytest.approx(0.5)
    assert t_tail(2.228139, 10.0) == pytest.approx(0.05, abs=1e-6)
    assert t_tail(math.inf, 3.0) == 0.0
    with pytest.raises(ValueError, match="positive"):
        t_tail(1.0, 0.0)


samples = st.lists(seconds, min_size=2, max_size=12)


@given(samples, samples)
def test_comparing_the_other_way_turns_the_comparison_round(one: list[float], other: list[float]) -> None:
    """Negated t and effect size, the same p."""
    test, tset = welch(one, other), welch(other, one)
    assert test is not None
    assert tset is not None
    assert test.t == pytest.approx(-tset.t) or math.isinf(test.t)
    assert test.p == pytest.approx(tset.p)
    effect, tceffe = hedges_g(one, other), hedges_g(other, one)
    assert (effect is None) == (tceffe is None)
    if effect is not None and tceffe is not None:
        assert effect.value == pytest.approx(-tceffe.value)


@given(pairs)
def test_the_paired_test_goes_with_the_paired_interval(values: list[tuple[float, float]]) -> None:
    """Where the interval excludes 1, p is below 0.05; the effect size has the sign of t and turns with the sides."""
    ours, theirs = [a for a, _ in values], [b for _, b in values]
    ratio, test, effect = paired_speedup(ours, theirs), paired_test(ours, theirs), paired_g(ours, theirs)
    assert test is not None
    assert ratio.low is not None
    assert ratio.high is not None
    if abs(test.p - 0.05) > 1e-6:
        assert (test.p < 0.05) == (ratio.low > 1.0 or ratio.high < 1.0)
    back = paired_g(theirs, ours)
    if effect is not None and back is not None:
        assert effect.value == pytest.approx(-back.value)
        assert effect.value * test.t >= 0.0


def test_the_paired_test_by_hand() -> None:
    """Logarithms 1, 2, 3: t = 2 sqrt 3 with 2 degrees; g = 2 x (1 - 3 / 7), variance 1 / 3 + g^2 / 6."""
    over, under = [math.e, math.e**2, math.e**3], [1.0, 1.0, 1.0]
    test, effect = paired_test(over, under), paired_g(over, under)
    assert test is not None
    assert (test.t, test.degrees) == (pytest.approx(2.0 * math.sqrt(3.0)), 2.0)
    assert test.p == pytest.approx(0.0742, abs=1e-4)
    assert effect is not None
    assert effect.value == pytest.approx(2.0 * 4.0 / 7.0)
    assert effect.high == pytest.approx(effect.value + 1.959964 * math.sqrt(1 / 3 + effect.value**2 / 6))


def test_what_all_seeds_share_is_nothing_to_the_paired_test() -> None:
    """Seeds that differ tenfold and systems that differ by a tenth: Welch sees luck, the pairs see the tenth."""
    over, under = [11.0, 110.5, 1100.0, 56.0], [10.0, 100.0, 1000.0, 50.0]
    paired, independent = paired_test(over, under), welch(over, under)
    assert paired is not None
    assert independent is not None
    assert paired.p < 0.001
    assert independent.p > 0.5


def test_welch_by_hand() -> None:
    """Means 3 and 4.6, variances 2.5 and 7.3: t = -1.6 / sqrt(0.5 + 1.46), degrees by Welch and Satterthwaite."""
    found = welch([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 3.0, 4.0, 5.0, 9.0])
    assert found is not None
    assert found.t == pytest.approx(-1.6 / math.sqrt(1.96))
    assert found.degrees == pytest.approx(1.96**2 / (0.5**2 / 4 + 1.46**2 / 4))
    assert found.p == pytest.approx(t_tail(found.t, found.degrees))


def test_hedges_g_by_hand() -> None:
    """The difference in pooled deviations sqrt(4.9), times 1 - 3 / 31."""
    found = hedges_g([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 3.0, 4.0, 5.0, 9.0])
    assert found is not None
    assert found.value == pytest.approx((1 - 3 / 31) * -1.6 / math.sqrt(4.9))


def test_constants_are_equal_or_surely_different() -> None:
    """No spread: p is 1 or 0, an effect size has no unit."""
    same, apart = welch([2.0, 2.0], [2.0, 2.0]), welch([2.0, 2.0], [1.0, 1.0])
    assert same is not None
    assert apart is not None
    assert (same.p, apart.p) == (1.0, 0.0)
    assert hedges_g([2.0, 2.0], [1.0, 1.0]) is None
    assert paired_g([2.0, 2.0, 2.0], [1.0, 1.0, 1.0]) is None
    paired = [paired_test([2.0, 4.0], [2.0, 4.0]), paired_test([1.0, 2.0], [2.0, 4.0])]
    assert [test and (test.t, test.p) for test in paired] == [(0.0, 1.0), (-math.inf, 0.0)]


def test_one_value_says_nothing_of_its_spread() -> None:
    """No interval, no test; no values and no positive values are errors."""
    assert mean_estimate([3.0]).low is None
    assert paired_test([1.0], [2.0]) is None
    assert paired_g([1.0, 3.0], [2.0, 4.0]) is None
    assert welch([1.0], [1.0, 2.0]) is None
    assert hedges_g([1.0], [1.0, 2.0]) is None
    with pytest.raises(ValueError, match="no values"):
        mean_estimate([])
    with pytest.raises(ValueError, match="positive"):
        paired_test([1.0], [0.0])


def test_no_share_is_beyond_nothing_or_all() -> None:
    """The interval of shares near an end stops there; in the middle it is that of any mean."""
    assert share_estimate([0.0, 0.1]).low == 0.0
    assert share_estimate([1.0, 0.9]).high == 1.0
    assert share_estimate([0.5, 0.51, 0.49]) == mean_estimate([0.5, 0.51, 0.49])
    assert share_estimate([0.5]).low is None


def test_the_interval_of_a_mean_by_hand() -> None:
    """1, 2, 3: 2 plus or minus 4.303 / sqrt 3."""
    found = mean_estimate([1.0, 2.0, 3.0])
    assert found.high == pytest.approx(2.0 + 4.30265 / math.sqrt(3), rel=1e-5)


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
