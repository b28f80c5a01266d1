"""Reproduced, partly, undecided or not: the rules, in one place, the same for every table.

Each rule looks at a claimed figure and an estimate of ours and refuses to know what they are about. RULES says in words
what the functions do; a report prints it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from saga.bench.statistics import Estimate

Verdict = Literal["reproduced", "partly", "undecided", "not", "open"]

_NEAR, _FAR = 0.15, 2.0
_HALF, _TWICE = 0.5, 2.0
_POINTS, _MOST_POINTS = 0.03, 0.10
_SURE_WITHOUT_INTERVAL = 0.02
_WIDEST = 1.5
_EXACT = 1e-12  # what rounding may do

RULES = (
    (
        "A ratio (who is faster, by how much) is reproduced where ours has the same direction (its 95 % interval "
        "over paired seeds lies on the claim's side of 1; from one seed: it is 2 % or more beyond 1), at least half of "
        "the effect and at most twice (as logarithms), and the claim lies in our interval or within 15 % of our ratio; "
        "partly with the same direction and at least half of the effect, however much more; undecided where the "
        "interval includes "
        "both 1 and the claim; not otherwise."
    ),
    (
        "A share is reproduced where the claim is within 3 percentage points and a factor of 2 of ours and our 95 % "
        "interval, if there is one, is at most 3 points to either side; partly within 10 points and a factor of 2; "
        "not otherwise."
    ),
    (
        "A bound (at most so much) is reproduced where the upper end of our 95 % interval keeps it (from one seed: "
        "ours does), partly where ours is at most twice the bound, not otherwise."
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
        "A table is reproduced where all of its rows are, not where none of them is even partly (undecided where "
        "some of those are), partly in between. It has no verdict while rows wait for runs; rows that cannot be "
        "compared when all is done do not count."
    ),
)


def of_ratio(claim: float, ours: Estimate) -> Verdict:
    """See RULES; both positive, 1 is no difference."""
    effect, found = math.log(claim), math.log(ours.value)
    if not _same_side(effect, ours) or abs(found) < _HALF * abs(effect):
        return "undecided" if _holds_both(claim, ours) else "not"
    near = _inside(claim, ours) or abs(found - effect) <= math.log1p(_NEAR)
    return "reproduced" if near and abs(found) <= _TWICE * abs(effect) + _EXACT else "partly"


def of_share(claim: float, ours: Estimate) -> Verdict:
    """See RULES; both 0..1."""
    apart = abs(claim - ours.value)
    if not claim / _FAR - _EXACT <= ours.value <= claim * _FAR + _EXACT or apart > _MOST_POINTS + _EXACT:
        return "not"
    wide = ours.low is not None and ours.high is not None and ours.high - ours.low > 2 * _POINTS + _EXACT
    return "partly" if wide or apart > _POINTS + _EXACT else "reproduced"


def of_bound(claim: float, ours: Estimate) -> Verdict:
    """See RULES; both not negative."""
    if (ours.value if ours.high is None else ours.high) <= claim:
        return "reproduced"
    return "partly" if ours.value <= _FAR * claim else "not"


def of_figure(claim: float, ours: Estimate) -> Verdict:
    """See RULES; both positive."""
    apart = abs(math.log(claim / ours.value))
    if _inside(claim, ours) or apart <= math.log1p(_NEAR):
        return "reproduced"
    return "partly" if apart <= math.log(_FAR) else "not"


def of_table(rows: Iterable[Verdict]) -> Verdict:
    """See RULES; `open` where nothing was compared, or not all yet. Rows that can never be are left out before."""
    found = set(rows)
    if not found or "open" in found:
        return "open"
    if found == {"reproduced"}:
        return "reproduced"
    if found <= {"undecided", "not"}:
        return "undecided" if "undecided" in found else "not"
    return "partly"


def in_words(rows: Iterable[Verdict], *, waiting: bool = True) -> str:
    """How many of which: "2 of 6 rows reproduced, 1 partly, 3 not"; waiting: open ones may still be compared."""
    found = list(rows)
    counts = {name: found.count(name) for name in ("reproduced", "partly", "undecided", "not", "open")}
    words = [f"{counts['reproduced']} of {len(found)} rows reproduced", f"{counts['partly']} partly"]
    words += [f"{counts['undecided']} undecided"] if counts["undecided"] else []
    words.append(f"{counts['not']} not")
    if counts["open"]:
        words.append(f"{counts['open']} {'not compared yet' if waiting else 'that cannot be compared'}")
    return ", ".join(words)


def _same_side(effect: float, ours: Estimate) -> bool:
    """Whether ours differs from 1, as far as we know, in the direction of the claim."""
    low, high = ours.low, ours.high
    if low is None or high is None:
        low = high = ours.value * (1.0 - _SURE_WITHOUT_INTERVAL if effect > 0.0 else 1.0 + _SURE_WITHOUT_INTERVAL)
    return low > 1.0 if effect > 0.0 else high < 1.0


def _holds_both(claim: float, ours: Estimate) -> bool:
    """Whether the interval excludes neither that nothing is there nor the claim."""
    low, high = ours.low, ours.high
    return low is not None and high is not None and low <= min(1.0, claim) and max(1.0, claim) <= high


def _inside(claim: float, ours: Estimate) -> bool:
    """Whether the interval holds the claim; one that is too wide holds too much to say so."""
    low, high = ours.low, ours.high
    return low is not None and high is not None and low <= claim <= high <= _WIDEST * low
