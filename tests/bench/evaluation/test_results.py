"""Estimates come from runs that are there; what is not there is None."""

from __future__ import annotations

import math

import pytest

from saga.bench.evaluation.cells import Cell
from saga.bench.evaluation.results import Results, figure_of, spread

SLOW, FAST = Cell("w", "slow"), Cell("w", "fast")


def both(seeds: int = 3) -> Results:
    """Runs of two cells, one twice as slow."""
    found = Results(3)
    for seed in range(seeds):
        found.add(SLOW, seed, {"tct_mean_s": 20.0 + seed, "tenants": {"a": {"within": 0.5}}})
        found.add(FAST, seed, {"tct_mean_s": 10.0 + seed / 2})
    return found


def test_figures_are_in_the_order_of_seeds() -> None:
    """Whenever they came; a figure within an object is found by its path."""
    found = Results(2)
    found.add(SLOW, 1, {"tct_mean_s": 2.0})
    found.add(SLOW, 0, {"tct_mean_s": 1.0})
    assert found.values(SLOW, "tct_mean_s") == [1.0, 2.0]
    assert both().values(SLOW, "tenants.a.within") == [0.5] * 3


def test_a_ratio_is_over_paired_seeds() -> None:
    """Twice as slow in every seed: no width, however much seeds differ, and both kinds of test."""
    ratio = both().ratio(SLOW, FAST)
    assert ratio is not None
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))
    found = both().difference(SLOW, FAST)
    assert found.paired is not None
    assert found.welch is not None
    assert found.pooled_g is not None
    assert found.paired.p < found.welch.p < 0.01
    assert found.pooled_g.value > 0


def test_only_seeds_that_both_have_are_compared() -> None:
    """A report of an interrupted run pairs what there is, and never one seed's tasks with another's."""
    found = both()
    found.add(SLOW, 7, {"tct_mean_s": 1e6})
    ratio = found.ratio(SLOW, FAST)
    assert ratio is not None
    assert ratio.value == pytest.approx(2.0)
    apart = Results(2)
    apart.add(SLOW, 0, {"tct_mean_s": 20.0})
    apart.add(FAST, 1, {"tct_mean_s": 10.0})
    assert apart.ratio(SLOW, FAST) is None
    assert apart.difference(SLOW, FAST).paired is None


def test_a_geometric_mean_is_over_pairs_of_cells_and_over_seeds() -> None:
    """Ratios 2 and 8 are 4; a ratio that has no seed leaves none."""
    found = both()
    other = Cell("v", "slow"), Cell("v", "fast")
    for seed in range(3):
        found.add(other[0], seed, {"tct_mean_s": 80.0})
        found.add(other[1], seed, {"tct_mean_s": 10.0})
    ratio = found.geomean_ratio([(SLOW, FAST), other])
    assert ratio is not None
    assert (ratio.value, ratio.low) == pytest.approx((4.0, 4.0))
    assert found.geomean_ratio([(SLOW, FAST), (Cell("u"), other[1])]) is None


def test_figures_that_are_ratios_have_a_geometric_mean() -> None:
    """2 and 8 are 4, as in `saga cache`; a ratio of nothing leaves none."""
    found = Results(2)
    found.add(SLOW, 0, {"lru": 2.0, "best": 0.0})
    found.add(SLOW, 1, {"lru": 8.0, "best": 1.0})
    mean = found.geomean(SLOW, "lru")
    assert mean is not None
    assert mean.value == pytest.approx(4.0)
    assert found.geomean(SLOW, "best") is None
    assert found.geomean(FAST, "lru") is None


def test_what_is_missing_is_none_and_counted() -> None:
    """No estimate without a run, and a partial report knows how many it lacks."""
    found = both(seeds=1)
    assert found.missing([SLOW, FAST]) == 4
    assert found.count([SLOW, FAST, SLOW]) == 6
    assert found.mean(Cell("w", "other"), "tct_mean_s") is None
    assert found.estimate(Cell("w", "other"), "tct_mean_s") is None
    assert found.ratio(SLOW, Cell("w", "other")) is None
    assert found.ratio(SLOW, FAST, "moves") is None
    one = found.ratio(SLOW, FAST)
    assert one is not None
    assert one.low is None


@pytest.mark.parametrize("value", [None, "1", True, math.nan, math.inf, {"a": 1}])
def test_only_finite_numbers_are_figures(value: object) -> None:
    """Anything else is none."""
    assert figure_of({"x": value}, "x") is None


def test_one_value_has_no_spread() -> None:
    """Two have the deviation of a sample."""
    assert spread([1.0]) is None
    assert spread([1.0, 3.0]) == pytest.approx(math.sqrt(2.0))
