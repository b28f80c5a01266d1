"""A table of the evaluation as data: rows, verdict, sentences and what to draw. Every writer reads these.

Refuses to know HTML, Markdown and JSON, and where figures come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from saga.bench.evaluation.verdicts import Verdict, in_words, of_table
from saga.bench.statistics import Difference, Estimate, TTest
from saga.bench.tables import Table, write_seconds, write_share


@dataclass(frozen=True)
class Elsewhere:
    """What a row is at another load of the sweep."""

    load: float
    ours: Estimate
    verdict: Verdict


@dataclass(frozen=True)
class Row:
    """A claim and what we found. kind says how the two are written; difference: the tests behind a ratio.

    elsewhere: the load at which it comes nearest the claim, or is farthest from a bound. comparable: False where claim
    and figure are not of the same thing; then there is no verdict.
    """

    name: str
    claim: float | None
    ours: Estimate | None
    kind: str
    verdict: Verdict = "open"
    difference: Difference | None = None
    elsewhere: Elsewhere | None = None
    comparable: bool = True


@dataclass(frozen=True)
class Forest:
    """Claim and result of each row on one axis; `one`: where no difference is, None where there is no such place."""

    caption: str
    axis: str
    rows: Sequence[Row]
    one: float | None = 1.0


@dataclass(frozen=True)
class Curve:
    """(x, estimate) in order of x; claimed: drawn apart from what we found."""

    name: str
    points: Sequence[tuple[float, Estimate]]
    claimed: bool = False


@dataclass(frozen=True)
class Lines:
    """Curves over one axis; log: the upright axis is logarithmic."""

    caption: str
    x_axis: str
    y_axis: str
    curves: Sequence[Curve]
    log: bool = False


@dataclass(frozen=True)
class Section:
    """One table. missing: runs of it that are not there, of `total`; kind of its figures: simulated or measured."""

    id: str
    title: str
    about: str
    rows: Sequence[Row] = ()
    tables: Sequence[Table] = ()
    drawings: Sequence[Forest | Lines] = ()
    reasons: Sequence[str] = ()
    notes: Sequence[str] = ()
    where: str = ""
    missing: int = 0
    total: int = 0
    kind: str = "simulated"
    judged: bool = True
    skipped: str = field(default="")

    @property
    def verdict(self) -> Verdict:
        """Of the whole table; `open` while rows wait for runs."""
        return of_table(row.verdict for row in self._judged if self.missing or row.verdict != "open")

    @property
    def _judged(self) -> list[Row]:
        """Rows that can have a verdict."""
        return [row for row in self.rows if row.claim is not None and row.comparable]

    @property
    def statement(self) -> str:
        """The verdict as a sentence, with how much stands behind it."""
        if self.skipped:
            return f"Not simulated: {self.skipped}."
        if not self.judged:
            return ""
        found = {
            "reproduced": "Reproduced",
            "partly": "Partly reproduced",
            "undecided": "Undecided",
            "not": "Not reproduced",
            "open": "No statement yet",
        }[self.verdict]
        rows, waiting = self._judged, self.missing > 0
        found += " so far" if waiting and self.verdict != "open" else ""
        swept = [row for row in rows if row.elsewhere is not None]
        words = f"{found}: {in_words((row.verdict for row in rows), waiting=waiting)}."
        if swept:
            which = "at the load where each is farthest off" if swept[0].kind == "bound" else "each at its nearest load"
            words += f" Over the sweep of load, {which}: "
            words += f"{in_words(row.elsewhere.verdict for row in swept if row.elsewhere is not None)}."
        return words + self.incomplete

    @property
    def incomplete(self) -> str:
        """What is missing, in a sentence; empty where nothing is."""
        if not self.missing:
            return ""
        return f" Incomplete: {self.missing} of {self.total} runs are missing."


def write(value: float, kind: str) -> str:
    """A figure as people read it; kind: ratio, share, seconds, bound (a share) or count."""
    if kind == "ratio":
        return f"{value:.2f}x"
    if kind in {"share", "bound"}:
        return write_share(value)
    if kind == "seconds":
        return f"{1e3 * value:,.3g} ms" if value < 1.0 else f"{write_seconds(value)} s"
    return f"{value:,.3g}"


def write_estimate(ours: Estimate | None, kind: str) -> str:
    """`1.73x (1.70 to 1.76)`, with the unit at every figure where it is not always the same; "-" for none."""
    if ours is None:
        return "-"
    if ours.low is None or ours.high is None or ours.low == ours.high:
        return write(ours.value, kind)
    middle, low, high = (write(value, kind) for value in (ours.value, ours.low, ours.high))
    unit = next((unit for unit in ("x", " %", " ms", " s") if middle.endswith(unit)), "")
    if low.endswith(unit) and high.endswith(unit):
        low, high = low.removesuffix(unit), high.removesuffix(unit)
    return f"{middle} ({low} to {high})"


def write_p(p: float | None) -> str:
    """A p-value, bounded below."""
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


TESTS = ("paired t-test, p (g)", "Welch's, p (g)")
"""Columns of `claims_table`: what the intervals go by, and the test that the paper names."""


def claims_table(title: str, first: str, rows: Sequence[Row]) -> Table:
    """Claim and result side by side, with the tests and the verdict of each row, and what it is at another load."""
    tested = any(row.difference is not None and row.difference.welch is not None for row in rows)
    swept = any(row.elsewhere is not None for row in rows)
    columns = [first, "claimed", "ours (95 % interval)", *(TESTS if tested else ()), "verdict"]
    if swept:
        columns.append("farthest off" if rows[0].kind == "bound" else "nearest, at load")
    lines = []
    for row in rows:
        at_most = "at most " if row.kind == "bound" else ""
        claim = "-" if row.claim is None else at_most + write(row.claim, row.kind)
        line = [row.name, claim, write_estimate(row.ours, row.kind)]
        line += _tests(row.difference) if tested else []
        line += ["-" if row.verdict == "open" else row.verdict]
        line += [_elsewhere(row)] if swept else []
        lines.append(tuple(line))
    return Table(title, tuple(columns), tuple(lines))


def _tests(difference: Difference | None) -> list[str]:
    """`< 0.001 (3.2)`: p and Hedges' g of each test."""
    if difference is None:
        return ["-", "-"]
    return [_test(difference.paired, difference.paired_g), _test(difference.welch, difference.pooled_g)]


def _test(test: TTest | None, g: Estimate | None) -> str:
    if test is None:
        return "-"
    return write_p(test.p) if g is None else f"{write_p(test.p)} ({g.value:.1f})"


def _elsewhere(row: Row) -> str:
    other = row.elsewhere
    return "-" if other is None else f"{write(other.ours.value, row.kind)} at {other.load:g}: {other.verdict}"
