"""Figures are written as people read them, and a section says how much stands behind it."""

from __future__ import annotations

import pytest

from saga.bench.evaluation.sections import Row, Section, claims_table, write, write_estimate, write_p
from saga.bench.statistics import Difference, Estimate, TTest


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (1.734, "ratio", "1.73x"),
        (0.38, "share", "38.0 %"),
        (0.05, "bound", "5.0 %"),
        (0.23, "seconds", "230 ms"),
        (203.4, "seconds", "203 s"),
        (1070.0, "count", "1.07e+03"),
    ],
)
def test_every_kind_has_its_unit(value: float, kind: str, text: str) -> None:
    """Ratios, shares, bounds, times."""
    assert write(value, kind) == text


def test_an_interval_is_written_where_there_is_one() -> None:
    """Without its unit twice; nothing for one seed, a dash for none."""
    assert write_estimate(Estimate(1.73, 1.7, 1.76), "ratio") == "1.73x (1.70 to 1.76)"
    assert write_estimate(Estimate(0.38, 0.37, 0.39), "share") == "38.0 % (37.0 to 39.0)"
    assert write_estimate(Estimate(1.73), "ratio") == "1.73x"
    assert write_estimate(Estimate(0.604, 0.158, 1.05), "seconds") == "604 ms (158 ms to 1.05 s)"
    assert write_estimate(Estimate(203.0, 101.0, 305.0), "seconds") == "203 s (101 to 305)"
    assert write_estimate(None, "ratio") == "-"
    assert [write_p(p) for p in (None, 0.0002, 0.04)] == ["-", "< 0.001", "0.040"]


def test_the_tests_are_shown_where_there_are_any() -> None:
    """Columns that name each test, with its effect size, only where a row has them."""
    difference = Difference(TTest(3.0, 9.0, 0.01), Estimate(2.0), TTest(1.0, 17.0, 0.3), None)
    plain = claims_table("t", "n", [Row("a", 1.5, Estimate(1.4), "ratio", "reproduced")])
    tested = claims_table("t", "n", [Row("a", 1.5, Estimate(1.4), "ratio", "reproduced", difference)])
    assert plain.columns == ("n", "claimed", "ours (95 % interval)", "verdict")
    assert tested.columns[3:5] == ("paired t-test, p (g)", "Welch's, p (g)")
    assert tested.rows[0] == ("a", "1.50x", "1.40x", "0.010 (2.0)", "0.300", "reproduced")


def test_a_section_says_what_is_missing_and_what_is_not_simulated() -> None:
    """Incomplete sections and skipped ones are told from judged ones."""
    assert "Incomplete: 3 of 9 runs" in Section("i", "t", "a", missing=3, total=9).statement
    assert Section("i", "t", "a", skipped="no system").statement == "Not simulated: no system."
    assert Section("i", "t", "a", judged=False).statement == ""


def test_a_table_has_no_verdict_while_rows_wait_for_runs() -> None:
    """One row of three is no table; rows of too few runs are "so far"; what cannot be compared does not count."""
    done, open_row = Row("a", 1.5, Estimate(1.5), "ratio", "reproduced"), Row("b", 1.5, None, "ratio")
    waiting = Section("i", "t", "a", rows=[done, open_row, open_row], missing=2, total=3)
    assert waiting.verdict == "open"
    assert waiting.statement.startswith("No statement yet: 1 of 3 rows reproduced, 0 partly, 0 not, 2 not compared yet")
    assert Section("i", "t", "a", rows=[done], missing=2, total=3).statement.startswith("Reproduced so far: ")
    whole = Section("i", "t", "a", rows=[done, open_row, Row("c", 1.0, Estimate(1.0), "ratio", comparable=False)])
    assert whole.statement == "Reproduced: 1 of 2 rows reproduced, 0 partly, 0 not, 1 that cannot be compared."
