"""The report for programs and as text: claims and results apart, partial reports valid."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import msgspec
import pytest

from saga.bench.evaluation.cells import Scale
from saga.bench.evaluation.claims import paper_claims
from saga.bench.evaluation.document import Report, as_document, as_markdown
from saga.bench.evaluation.experiments import EXPERIMENTS
from saga.bench.evaluation.results import Results

Build = Callable[..., Results]


@pytest.fixture
def report(results: Build, scale: Scale) -> Callable[..., Report]:
    """A report of all tables from made-up runs."""

    def build(*, seeds: int = 3, missing: int = 0) -> Report:
        found = results(seeds=seeds)
        sections = [table.section(scale, found, paper_claims()) for table in EXPERIMENTS.values()]
        runs = [({"system": cell.system, "seed": 0}, found.of(cell)[0]) for cell in found.runs]
        return Report("A title", ["A heading."], sections, paper_claims(), runs, missing, 100, "saga paper")

    return build


def test_claims_and_results_are_kept_apart(report: Callable[..., Report]) -> None:
    """Each under its own kind; no run has a claim in it and no claim a result."""
    document = json.loads(msgspec.json.encode(as_document(report())))
    assert (document["schema"], document["kind"], document["complete"]) == (2, "evaluation", True)
    assert document["claims"]["kind"] == "claim"
    assert document["results"]["kind"] == "simulated"
    assert all("claim" not in json.dumps(run) for run in document["results"]["runs"])
    assert [table["id"] for table in document["tables"]] == list(EXPERIMENTS)
    assert all(
        row["verdict"] in {"reproduced", "partly", "not", "open"} for t in document["tables"] for row in t["rows"]
    )


def test_a_partial_report_says_what_is_missing(report: Callable[..., Report]) -> None:
    """In the JSON, at the head, and at every table; figures that are there are shown."""
    partial = report(seeds=1, missing=60)
    assert as_document(partial)["complete"] is False
    text = as_markdown(partial)
    assert "Partial: 60 of 100 runs are missing" in text
    assert "Incomplete: " in text


def test_text_has_every_table_and_rule(report: Callable[..., Report]) -> None:
    """All titles, all statements, and rows as wide as their heads."""
    found = report()
    text = as_markdown(found)
    for section in found.sections:
        assert f"## {section.title}" in text
        assert section.statement in text
    lines = text.split("\n")
    for above, below in itertools.pairwise(lines):
        if above.startswith("|") and below.startswith("|"):
            assert above.count("|") == below.count("|")
