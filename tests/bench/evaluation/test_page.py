"""The page is whole in itself, shows claim and result side by side, and escapes what it is given."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from saga.bench.evaluation.cells import Scale
from saga.bench.evaluation.claims import paper_claims
from saga.bench.evaluation.document import Report
from saga.bench.evaluation.experiments import EXPERIMENTS
from saga.bench.evaluation.page import render_page
from saga.bench.evaluation.results import Results

Build = Callable[..., Results]


@pytest.fixture
def report(results: Build, scale: Scale) -> Report:
    """All tables from made-up runs."""
    sections = [table.section(scale, results(), paper_claims()) for table in EXPERIMENTS.values()]
    return Report("A <title>", ["A & heading."], sections, paper_claims(), [], 0, 10, "saga paper --quick")


def test_the_page_is_whole_and_shows_every_table(report: Report) -> None:
    """No address, script or style sheet of others; a heading, a statement and drawings for each table; text escaped."""
    page = render_page(report)
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#)", page)
    assert "<script" not in page
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page

    assert "A &lt;title&gt;" in page
    assert page.count("<h2") == len(EXPERIMENTS)
    assert page.count("<svg") >= len(EXPERIMENTS) - 1
    assert "#0102" not in page
    for section in report.sections:
        assert f'id="{section.id}"' in page
    assert "How a verdict is found" in page


def test_names_of_code_are_set_as_code_and_escaped(report: Report) -> None:
    """What the Markdown has between backticks; whatever stands there cannot open an element of its own."""
    section = replace(report.sections[0], about="Runs `swe_bench` and `<b>` & co.")
    page = render_page(replace(report, sections=[section]))
    assert "Runs <code>swe_bench</code> and <code>&lt;b&gt;</code> &amp; co." in page


def test_a_page_without_runs_is_a_page(scale: Scale) -> None:
    """Interrupted at once: no drawings, every table says that it is incomplete."""
    sections = [table.section(scale, Results(3), paper_claims()) for table in EXPERIMENTS.values()]
    page = render_page(Report("Empty", [], sections, paper_claims(), [], 10, 10, "saga paper"))
    assert "<svg" not in page
    assert "10 of 10 runs are missing" in page


def test_a_study_without_claims_has_no_verdicts(report: Report) -> None:
    """Nothing is judged where nothing was claimed."""
    plain = [replace(section, judged=False, drawings=()) for section in report.sections]
    page = render_page(replace(report, sections=plain, claims=None))
    assert "How a verdict is found" not in page
    assert "Reproduced:" not in page
