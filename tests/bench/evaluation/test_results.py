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


def test_a_ratio_is_of_means_with_an_interval_and_a_test() -> None:
    """Twice as slow, with what three seeds can say of it."""
    ratio = both().ratio(SLOW, FAST)
    assert ratio is not None
    assert ratio.value == pytest.approx(2.0)
    assert ratio.low is not None
    assert ratio.low < 2.0
    test, effect = both().test(SLOW, FAST)
    assert test is not None
    assert effect is not None
    assert test.p < 0.01
    assert effect.value > 0


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
