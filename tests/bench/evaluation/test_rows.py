"""A row is judged where the paper's load is, and shown where it comes nearest the claim or is farthest off a bound."""

from __future__ import annotations

from saga.bench.evaluation.rows import Found, judge
from saga.bench.evaluation.sections import Section, claims_table
from saga.bench.evaluation.verdicts import of_bound, of_ratio, of_share
from saga.bench.statistics import Estimate


def found(value: float | None) -> Found:
    """An estimate with a narrow interval."""
    return Found(None if value is None else Estimate(value, value * 0.99, value * 1.01))


def test_the_verdict_is_that_of_the_papers_load() -> None:
    """However well another load fits; that one stands beside it."""
    row = judge("x", 1.7, "ratio", of_ratio, found(1.0), {0.8: found(1.0), 1.2: found(1.75), 1.5: found(6.0)})
    assert row.verdict == "not"
    assert row.elsewhere is not None
    assert (row.elsewhere.load, row.elsewhere.verdict) == (1.2, "reproduced")
    assert claims_table("t", "n", [row]).rows[0][-1] == "1.75x at 1.2: reproduced"


def test_a_better_verdict_goes_before_a_smaller_distance() -> None:
    """Nearly the claim without a sure direction is less than more than claimed."""
    unsure = Found(Estimate(1.7, 0.8, 3.6))
    row = judge("x", 1.7, "ratio", of_ratio, found(1.0), {1.0: unsure, 1.5: found(6.0)})
    assert row.elsewhere is not None
    assert (row.elsewhere.load, row.elsewhere.verdict) == (1.5, "partly")


def test_a_bound_is_shown_where_it_is_farthest_off() -> None:
    """A promise that holds where nothing is at stake is not said to hold everywhere."""
    row = judge("x", 0.05, "bound", of_bound, found(0.0), {0.8: found(0.0), 1.5: found(0.3)})
    assert row.verdict == "reproduced"
    assert row.elsewhere is not None
    assert (row.elsewhere.load, row.elsewhere.verdict) == (1.5, "not")
    assert claims_table("t", "n", [row]).columns[-1] == "farthest off"


def test_what_is_missing_is_open() -> None:
    """No claim, no run here, no run elsewhere."""
    assert judge("x", None, "share", of_share, found(0.5), {1.0: found(0.5)}).elsewhere is None
    row = judge("x", 0.5, "share", of_share, found(None), {1.0: found(None)})
    assert (row.verdict, row.elsewhere) == ("open", None)


def test_the_statement_says_both() -> None:
    """At the paper's load, and over the sweep."""
    row = judge("x", 1.7, "ratio", of_ratio, found(1.0), {1.2: found(1.75)})
    statement = Section("i", "t", "a", rows=[row]).statement
    assert statement.startswith("Not reproduced: 0 of 1 rows reproduced")
    assert "each at its nearest load: 1 of 1 rows reproduced" in statement
