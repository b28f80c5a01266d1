"""The report for programs and for plain text: JSON (claims and results apart, verdicts between them) and Markdown.

Refuses to know how sections came about.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from saga import __version__
from saga.bench.evaluation.claims import Claims
from saga.bench.evaluation.results import Metrics
from saga.bench.evaluation.sections import Row, Section
from saga.bench.evaluation.verdicts import RULES
from saga.bench.tables import Table

SCHEMA = 2

STATISTICS = (
    (
        "The same seed gives every system the same tasks, so systems are compared seed by seed: a ratio is the "
        "geometric mean over seeds of the ratios of mean completion times (or of whatever is compared), with Student's "
        "95 % interval of their logarithms. A mean has Student's 95 % interval over seeds."
    ),
    (
        "Two two-sided tests stand beside a ratio. Paired: Student's t-test of the logarithms of the seeds' ratios, "
        "which goes with the interval; g in brackets is Hedges' g of these logarithms, their mean in their own "
        "deviations. Welch's: the test that the paper names, of the two means as if seeds were independent samples; "
        "its g is Hedges' g of the difference in pooled deviations of one seed. Both g are corrected for few seeds."
    ),
)
"""How figures are compared, for every report."""


@dataclass(frozen=True)
class Report:
    """Everything that is written. claims: None where there are none, as for somebody's own trace.

    runs: description and metrics of every finished run. num_missing, num_wanted: runs, over all sections.
    """

    title: str
    heading: Sequence[str]
    sections: Sequence[Section]
    claims: Claims | None
    runs: Sequence[tuple[Mapping[str, object], Metrics]]
    num_missing: int
    num_wanted: int
    command: str

    @property
    def state(self) -> str:
        """Whether all is there, in a sentence."""
        if not self.num_missing:
            return f"Complete: {self.num_wanted} runs."
        return (
            f"Partial: {self.num_missing} of {self.num_wanted} runs are missing; the same command goes on where this "
            "one ended and computes none of the finished runs again."
        )


def as_document(report: Report) -> dict[str, object]:
    """The JSON, schema 2. Claims have a kind of their own; no object holds a claim and a result but a verdict."""
    return {
        "schema": SCHEMA,
        "kind": "evaluation",
        "version": __version__,
        "title": report.title,
        "command": report.command,
        "complete": not report.num_missing,
        "runs_missing": report.num_missing,
        "runs_wanted": report.num_wanted,
        "statistics": STATISTICS,
        "rules": RULES if report.claims is not None else (),
        "claims": None if report.claims is None else msgspec.to_builtins(report.claims),
        "tables": [_section(section) for section in report.sections],
        "results": {
            "kind": "simulated",
            "runs": [{**what, "metrics": metrics} for what, metrics in report.runs],
        },
    }


def as_markdown(report: Report) -> str:
    """The report as text: the same sentences and tables, without drawings."""
    lines = [f"# {report.title}", "", *(f"{line}\n" for line in report.heading), report.state, ""]
    lines += [f"`{report.command}`, SAGA {__version__}", ""]
    judged = [section for section in report.sections if section.judged]
    if judged:
        lines += ["| table | verdict |", "|---|---|"]
        lines += [f"| {section.title} | {section.statement} |" for section in judged]
        lines += ["", "## How a verdict is found", "", *(f"- {rule}" for rule in RULES), ""]
    lines += ["## How figures are compared", "", *(f"- {sentence}" for sentence in STATISTICS), ""]
    for section in report.sections:
        lines += _markdown(section)
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section) -> dict[str, object]:
    return {
        "id": section.id,
        "title": section.title,
        "kind": section.kind,
        "verdict": section.verdict if section.judged else None,
        "statement": section.statement,
        "runs_missing": section.missing,
        "runs_wanted": section.total,
        "rows": [_row(row) for row in section.rows],
        "tables": [dataclasses.asdict(table) for table in section.tables],
        "reasons": list(section.reasons),
    }


def _row(row: Row) -> dict[str, object]:
    return {
        "name": row.name,
        "compared_as": row.kind,
        "claim": row.claim,
        "result": None if row.ours is None else dataclasses.asdict(row.ours),
        "tests": None if row.difference is None else dataclasses.asdict(row.difference),
        "comparable": row.comparable,
        "verdict": row.verdict,
        "elsewhere": None if row.elsewhere is None else dataclasses.asdict(row.elsewhere),
    }


def _markdown(section: Section) -> list[str]:
    lines = [f"## {section.title}", "", section.about, ""]
    if section.where:
        ours = "" if section.skipped else f" Our figures are {section.kind}."
        lines += [f"In the paper: {section.where}.{ours}", ""]
    if section.statement:
        lines += [f"**{section.statement}**", ""]
    lines += [f"- {reason}" for reason in (*section.reasons, *section.notes)]
    lines += [""] if section.reasons or section.notes else []
    for table in section.tables:
        lines += _table(table)
    return lines


def _table(table: Table) -> list[str]:
    head = "| " + " | ".join(table.columns) + " |"
    rule = "|" + "---|" * len(table.columns)
    rows = ["| " + " | ".join(row) + " |" for row in table.rows]
    return [f"*{table.title}*", "", head, rule, *rows, ""]
