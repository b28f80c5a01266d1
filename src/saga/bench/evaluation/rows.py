"""A claim, our estimate at the paper's load and over the sweep, and a rule: together a row with its verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from saga.bench.evaluation.cells import Cell
from saga.bench.evaluation.results import Results
from saga.bench.evaluation.sections import Elsewhere, Row
from saga.bench.evaluation.verdicts import Verdict
from saga.bench.statistics import Difference, Estimate

Rule = Callable[[float, Estimate], Verdict]
_ORDER = ("reproduced", "partly", "undecided", "not")


@dataclass(frozen=True)
class Found:
    """An estimate, None where runs are missing, with the tests of the two samples behind it where there are two."""

    ours: Estimate | None
    difference: Difference | None = None


def ratio_found(results: Results, over: Cell, under: Cell, figure: str = "tct_mean_s") -> Found:
    """The ratio of two cells, and whether they differ."""
    return Found(results.ratio(over, under, figure), results.difference(over, under, figure))


def judge(
    name: str,
    claim: float | None,
    kind: str,
    rule: Rule,
    here: Found,
    by_load: Mapping[float, Found] | None = None,
) -> Row:
    """The row: judged at the paper's load, and beside it at the load of the sweep that comes nearest the claim.

    Of a bound, beside it stands the load at which it is farthest off.
    """
    verdict: Verdict = "open" if claim is None or here.ours is None else rule(claim, here.ours)
    return Row(name, claim, here.ours, kind, verdict, here.difference, _elsewhere(claim, kind, rule, by_load or {}))


def _elsewhere(claim: float | None, kind: str, rule: Rule, by_load: Mapping[float, Found]) -> Elsewhere | None:
    found = [(load, known.ours) for load, known in by_load.items() if known.ours is not None]
    if claim is None or not found:
        return None
    if kind == "bound":
        load, ours = max(found, key=lambda point: point[1].value)
    else:
        load, ours = min(found, key=lambda point: (_ORDER.index(rule(claim, point[1])), _apart(claim, point[1], kind)))
    return Elsewhere(load, ours, rule(claim, ours))


def _apart(claim: float, ours: Estimate, kind: str) -> float:
    """How far ours is from the claim: points of a share, else the ratio of the two."""
    if kind == "share" or ours.value <= 0.0:
        return abs(claim - ours.value)
    return abs(math.log(claim / ours.value))
