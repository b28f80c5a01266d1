"""Reproduced, partly, or not: the rules, in one place, the same for every table.

Each rule looks at a claimed figure and an estimate of ours and refuses to know what they are about. RULES says in words
what the functions do; a report prints it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from saga.bench.statistics import Estimate

Verdict = Literal["reproduced", "partly", "not", "open"]

_NEAR, _FAR = 0.15, 2.0
_HALF = 0.5
_POINTS, _MOST_POINTS = 0.03, 0.10
_SURE_WITHOUT_INTERVAL = 0.02
_WIDEST = 1.5

RULES = (
    (
        "A ratio (who is faster, by how much) is reproduced where ours has the same direction (its 95 % interval "
        "lies on the claim's side of 1; from one seed: it is 2 % or more beyond 1), at least half of the effect (as "
        "logarithms), and the claim lies in our interval or within 15 % of our ratio; partly with the same "
        "direction and at least half of the effect, however much more; not otherwise."
    ),
    "A share is reproduced where the claim is within 3 percentage points of ours, partly within 10, not otherwise.",
    (
        "A bound (at most so much) is reproduced where ours keeps it, partly where ours is at most twice the bound, "
        "not otherwise."
    ),
    (
        "Any other figure is reproduced where the claim is within 15 % of ours or in our 95 % interval, partly "
        "within a factor of 2, not otherwise."
    ),
    (
        "An interval whose upper end is more than 1.5 times its lower one holds too much to confirm a claim: then only "
        "the 15 % count."
    ),
    (
        "A table is reproduced where all of its rows are, not where none is even partly, partly in between; rows "
        "that could not be compared do not count."
    ),
)


def of_ratio(claim: float, ours: Estimate) -> Verdict:
    """See RULES; both positive, 1 is no difference."""
    effect, found = math.log(claim), math.log(ours.value)
    if not _same_side(effect, ours) or abs(found) < _HALF * abs(effect):
        return "not"
    return "reproduced" if _inside(claim, ours) or abs(found - effect) <= math.log1p(_NEAR) else "partly"


def of_share(claim: float, ours: Estimate) -> Verdict:
    """See RULES; both 0..1."""
    apart = abs(claim - ours.value)
    if apart <= _POINTS + 1e-12:
        return "reproduced"
    return "partly" if apart <= _MOST_POINTS + 1e-12 else "not"


def of_bound(claim: float, ours: Estimate) -> Verdict:
    """See RULES; both not negative."""
    if ours.value <= claim:
        return "reproduced"
    return "partly" if ours.value <= _FAR * claim else "not"


def of_figure(claim: float, ours: Estimate) -> Verdict:
    """See RULES; both positive."""
    apart = abs(math.log(claim / ours.value))
    if _inside(claim, ours) or apart <= math.log1p(_NEAR):
        return "reproduced"
    return "partly" if apart <= math.log(_FAR) else "not"


def of_table(rows: Iterable[Verdict]) -> Verdict:
    """See RULES; `open` where nothing was compared."""
    found = [row for row in rows if row != "open"]
    if not found:
        return "open"
    if all(row == "reproduced" for row in found):
        return "reproduced"
    return "not" if all(row == "not" for row in found) else "partly"


def in_words(rows: Iterable[Verdict]) -> str:
    """How many of which: "2 of 6 rows reproduced, 1 partly, 3 not"."""
    found = list(rows)
    counts = {name: found.count(name) for name in ("reproduced", "partly", "not", "open")}
    words = [f"{counts['reproduced']} of {len(found)} rows reproduced", f"{counts['partly']} partly"]
    words.append(f"{counts['not']} not")
    if counts["open"]:
        words.append(f"{counts['open']} not compared yet")
    return ", ".join(words)


def _same_side(effect: float, ours: Estimate) -> bool:
    """Whether ours differs from 1, as far as we know, in the direction of the claim."""
    low, high = ours.low, ours.high
    if low is None or high is None:
        low = high = ours.value * (1.0 - _SURE_WITHOUT_INTERVAL if effect > 0.0 else 1.0 + _SURE_WITHOUT_INTERVAL)
    return low > 1.0 if effect > 0.0 else high < 1.0


def _inside(claim: float, ours: Estimate) -> bool:
    """Whether the interval holds the claim; one that is too wide holds too much to say so."""
    low, high = ours.low, ours.high
    return low is not None and high is not None and low <= claim <= high <= _WIDEST * low
