"""Quantile tables: what goes in comes out, and nothing impossible goes in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.errors import UsageError
from saga.workloads.quantiles import Quantiles, chance, fit, log_normal, through


@given(st.lists(st.floats(0.01, 1e6), min_size=2, max_size=40), st.floats(0, 0.999))
def test_a_fitted_table_stays_within_its_samples_and_does_not_fall(samples: list[float], at: float) -> None:
    """Values of a table lie between the least and the greatest sample and rise with the probability."""
    table = fit(samples)
    low, high = table.at(np.array([at, min(at + 0.001, 1.0)]))
    assert min(samples) * 0.999 <= low <= high <= max(samples) * 1.001


@given(st.floats(0, 0.9999))
def test_one_value_is_the_same_as_many(at: float) -> None:
    """`one` and `at` are the same function."""
    table = through(0.18, 2.4, 28.0)
    assert table.one(at) == pytest.approx(float(table.at(np.array([at]))[0]))


def test_published_quantiles_come_back() -> None:
    """A distribution through P50, P95 and P99 has them."""
    table = through(0.18, 2.4, 28.0)
    assert table.at(np.array([0.5, 0.95, 0.99])) == pytest.approx([0.18, 2.4, 28.0])


def test_the_tail_is_cut() -> None:
    """No value lies beyond ten times P99."""
    assert through(0.18, 2.4, 28.0).values[-1] <= 280.0


def test_the_mean_is_that_of_many_draws() -> None:
    """The exact mean agrees with the mean of a large sample."""
    table = through(0.12, 0.89, 3.5)
    draws = table.draw(np.random.default_rng(1), 200_000)
    assert table.mean() == pytest.approx(float(draws.mean()), rel=0.02)


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0, 3.0])
def test_a_log_normal_has_its_mean_and_variation(cv: float) -> None:
    """Mean within 1 %, coefficient of variation within 10 % (the cut takes from the largest), for any scale."""
    draws = log_normal(2.0, cv).draw(np.random.default_rng(1), 400_000)
    assert float(draws.mean()) == pytest.approx(2.0, rel=0.02)
    assert float(draws.std() / draws.mean()) == pytest.approx(cv, rel=0.1)
    assert log_normal(2.0, cv).mean() == pytest.approx(2.0, rel=0.01)


def test_a_constant_has_itself_as_mean() -> None:
    """A flat table needs no logarithm to integrate."""
    assert Quantiles((0.0, 1.0), (7.0, 7.0)).mean() == pytest.approx(7.0)


def test_chance_is_the_normal_distribution() -> None:
    """Half of a normal lies below 0, and 97.5 % below 1.96."""
    assert chance(np.array([0.0, 1.96])) == pytest.approx([0.5, 0.975], abs=1e-3)


@pytest.mark.parametrize(
    ("probabilities", "values", "word"),
    [
        ((0.0, 1.0), (1.0,), "as many"),
        ((0.0,), (1.0,), "as many"),
        ((0.1, 1.0), (1.0, 2.0), "rise from 0 to 1"),
        ((0.0, 0.5, 0.5, 1.0), (1.0, 2.0, 3.0, 4.0), "rise from 0 to 1"),
        ((0.0, 1.0), (2.0, 1.0), "not fall"),
        ((0.0, 1.0), (-1.0, 1.0), "not negative"),
        ((0.0, 1.0), (0.0, float("inf")), "finite"),
    ],
)
def test_impossible_tables_are_refused(probabilities: list[float], values: list[float], word: str) -> None:
    """A table that is no distribution is the caller's fault, and the message says why."""
    with pytest.raises(UsageError, match=word):
        Quantiles(probabilities, values)
