"""Verdicts follow from a claim and an estimate by rule, whichever way the figures turn out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.bench.evaluation.verdicts import Verdict, in_words, of_bound, of_figure, of_ratio, of_share, of_table
from saga.bench.statistics import Estimate

ratios = st.floats(min_value=1.05, max_value=20.0)


@given(ratios)
def test_the_very_same_figure_is_reproduced(claim: float) -> None:
    """Whatever is claimed, finding exactly that is finding it, up or down."""
    for value in (claim, 1.0 / claim):
        assert of_ratio(value, Estimate(value, value * 0.99, value * 1.01)) == "reproduced"
        assert of_figure(value, Estimate(value)) == "reproduced"


@given(ratios, ratios)
def test_the_other_direction_is_never_reproduced(claim: float, found: float) -> None:
    """Faster where slower is claimed is not even partly so."""
    assert of_ratio(claim, Estimate(1.0 / found)) == "not"
    assert of_ratio(1.0 / claim, Estimate(found)) == "not"


@given(ratios, ratios)
def test_turning_a_ratio_round_changes_no_verdict(claim: float, found: float) -> None:
    """Twice as long without it is half as long with it."""
    ours = Estimate(found, found * 0.97, found * 1.03)
    turned = Estimate(1 / found, 1 / (found * 1.03), 1 / (found * 0.97))
    assert of_ratio(claim, ours) == of_ratio(1 / claim, turned)


@pytest.mark.parametrize(
    ("claim", "ours", "verdict"),
    [
        (1.73, Estimate(1.73, 1.70, 1.76), "reproduced"),
        (1.73, Estimate(1.55, 1.54, 1.56), "reproduced"),  # within 15 %
        (1.73, Estimate(1.40, 1.39, 1.41), "partly"),  # more than half of the effect
        (1.73, Estimate(1.20, 1.19, 1.21), "not"),  # less than half
        (1.73, Estimate(6.50, 6.40, 6.60), "partly"),  # far more
        (1.73, Estimate(6.50, 1.60, 26.0), "partly"),  # the same, with an interval that holds anything
        (1.73, Estimate(1.50, 0.90, 2.50), "undecided"),  # our interval excludes neither nothing nor the claim
        (1.08, Estimate(1.02, 1.01, 1.03), "not"),  # near, but less than half of a small effect
        (1.08, Estimate(1.01), "not"),  # one seed, no difference worth the name
        (1.08, Estimate(1.07), "reproduced"),
        (0.96, Estimate(0.95, 0.94, 0.96), "reproduced"),
        (1.075, Estimate(1.23), "partly"),  # within 15 %, and three times the effect
        (1.73, Estimate(1.20, 0.90, 1.60), "not"),  # nothing may be there, but not the claim
    ],
)
def test_ratios_by_the_rule(claim: float, ours: Estimate, verdict: Verdict) -> None:
    """Direction, half of the effect, nearness."""
    assert of_ratio(claim, ours) == verdict


@pytest.mark.parametrize(
    ("claim", "ours", "verdict"),
    [
        (0.80, Estimate(0.80), "reproduced"),
        (0.80, Estimate(0.83), "reproduced"),
        (0.80, Estimate(0.90), "partly"),
        (0.80, Estimate(0.901), "not"),
        (0.80, Estimate(0.10), "not"),
        (0.80, Estimate(0.81, 0.78, 0.84), "reproduced"),
        (0.80, Estimate(0.81, 0.70, 0.92), "partly"),  # an interval that holds anything
        (0.03, Estimate(0.0), "not"),  # a small share is not reproduced by nothing
        (0.08, Estimate(0.0), "not"),
        (0.03, Estimate(0.02), "reproduced"),
    ],
)
def test_shares_by_the_rule(claim: float, ours: Estimate, verdict: Verdict) -> None:
    """3 points, 10 points, a factor of 2, and an interval that can tell."""
    assert of_share(claim, ours) == verdict


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (Estimate(0.0), "reproduced"),
        (Estimate(0.05), "reproduced"),
        (Estimate(0.1), "partly"),
        (Estimate(0.11), "not"),
        (Estimate(0.02, 0.0, 0.05), "reproduced"),
        (Estimate(0.02, 0.0, 0.2), "partly"),  # kept on average, but not for sure
    ],
)
def test_bounds_by_the_rule(ours: Estimate, verdict: Verdict) -> None:
    """Kept, kept within twice, broken; better than promised is kept."""
    assert of_bound(0.05, ours) == verdict


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (Estimate(0.26), "reproduced"),
        (Estimate(0.40), "partly"),
        (Estimate(0.28, 0.22, 0.33), "reproduced"),
        (Estimate(0.40, 0.2, 0.6), "partly"),  # an interval that holds anything
        (Estimate(0.47), "not"),
        (Estimate(0.11), "not"),
    ],
)
def test_figures_by_the_rule(ours: Estimate, verdict: Verdict) -> None:
    """15 % or the interval, a factor of 2."""
    assert of_figure(0.23, ours) == verdict


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ((), "open"),
        (("open", "open"), "open"),
        (("reproduced", "open", "open"), "open"),
        (("reproduced", "not"), "partly"),
        (("partly", "partly"), "partly"),
        (("not", "not"), "not"),
        (("not", "undecided"), "undecided"),
        (("not", "undecided", "partly"), "partly"),
        (("reproduced", "undecided"), "partly"),
    ],
)
def test_a_table_by_its_rows(rows: tuple[Verdict, ...], verdict: Verdict) -> None:
    """All, none, in between; none while some wait, which is said."""
    assert of_table(rows) == verdict
    assert ("not compared yet" in in_words(rows)) == ("open" in rows)
