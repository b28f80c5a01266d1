"""How long a gap lasts: a bounded, robust model of heavy-tailed times.

Tool and human latencies span six decades and their tails decide what a retained prefix costs, so a mean is
useless and a plain log-normal lies about the tail. A `GapModel` keeps a log-spaced histogram (the empirical
body and tail), smooths it with a log-normal fitted to its quartiles (robust: a stuck tool cannot move it), and
leans on a parent model (tool -> all tools of the kind -> all kinds) while it has seen little. It refuses to know
what a tool, a workflow or a scheduler is: seconds in, probabilities out.

Survival is piecewise linear between the edges, so `survival`, `quantile`, `expected_min` and `curve` agree
exactly with each other. Source: paper section on tool-aware TTL (log-normal); ski rental for what is made of it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import pairwise
from math import erfc, exp, log
from typing import Any, TypeAlias

Curve: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""(edges in seconds, survival at the edges); equal lengths, survival falls from 1 to 0."""

_MIN_S = 1e-3
_MAX_S = 1e6
_NUM_LOG_BINS = 96
_LOG_MIN = log(_MIN_S)
_BINS_PER_E = _NUM_LOG_BINS / (log(_MAX_S) - _LOG_MIN)
NUM_BINS = _NUM_LOG_BINS + 1
EDGES_S: tuple[float, ...] = (0.0, *(exp(_LOG_MIN + i / _BINS_PER_E) for i in range(_NUM_LOG_BINS)), _MAX_S)
_LOG_EDGES = tuple(log(edge) for edge in EDGES_S[1:])

_PARENT_WEIGHT = 3.0
_FIT_WEIGHT = 1.0
_FIT_FROM = 4.0
_MIN_SIGMA = 0.1
_QUARTILES_IN_SIGMA = 1.349
_PRIOR_MEDIAN_S = 1.0
_PRIOR_SIGMA = 2.5
_REFRESH_SHARE = 8.0
_MEAN_TRUNCATED_AT = 0.99


def bin_of(gap_s: float) -> int:
    """Index of the bin that holds a gap of `gap_s` seconds; gaps outside 0..1e6 s count at the ends. O(1)."""
    if gap_s < _MIN_S:
        return 0
    if gap_s >= _MAX_S:
        return NUM_BINS - 1
    return min(NUM_BINS - 1, 1 + int((log(gap_s) - _LOG_MIN) * _BINS_PER_E))


def _log_normal_mass(median_s: float, sigma: float) -> list[float]:
    """Mass of a log-normal in each bin; sums to one. O(bins)."""
    mu, scale = log(median_s), 1.0 / (sigma * 2.0**0.5)
    above = [0.5 * erfc((edge - mu) * scale) for edge in _LOG_EDGES]
    above[-1] = 0.0
    mass = [1.0 - above[0]]
    mass += [high - low for high, low in pairwise(above)]
    return mass


_PRIOR_MASS = tuple(_log_normal_mass(_PRIOR_MEDIAN_S, _PRIOR_SIGMA))


class GapModel:
    """Distribution of one kind of gap, learned one observation at a time.

    parent: the broader model that it leans on with the weight of three observations; None leans on a wide
    log-normal around one second. window: total weight at which old observations are halved, so that the model
    follows slow drift. Answers are refreshed when the evidence has grown by an eighth (at once while young);
    `version` changes exactly when answers may. State: about 1 KB, and 6 KB of derived
    numbers once it is asked. derived: what others computed from the present curve (`curve` first, then read or write);
    emptied when it changes.
    """

    __slots__ = (
        "_area_s",
        "_below",
        "_counts",
        "_due",
        "_mass",
        "_median_s",
        "_parent",
        "_parent_version",
        "_stale",
        "_survival",
        "_weight",
        "_window",
        "derived",
        "version",
    )

    def __init__(self, parent: GapModel | None = None, *, window: float = 4096.0) -> None:
        self._parent = parent
        self._parent_version = -1
        self._window = window
        self._counts = [0.0] * NUM_BINS
        self._weight = 0.0
        self._due = 0.0
        self._stale = True
        self._mass = array("d")
        self._below = array("d")
        self._survival: tuple[float, ...] = ()
        self._area_s = array("d")
        self._median_s = 0.0
        self.derived: dict[tuple[float, float], float] = {}
        self.version = 0

    @classmethod
    def around(cls, median_s: float, sigma: float = 0.6) -> GapModel:
        """A log-normal around `median_s` (> 0): what a trusted hint says. O(bins)."""
        model = cls()
        model._settle(_log_normal_mass(max(_MIN_S, min(median_s, 0.1 * _MAX_S)), sigma))
        model._stale = False
        model._weight = model._due = model._window
        return model

    @property
    def weight(self) -> float:
        """Number of observations, aged."""
        return self._weight

    # learning

    def observe(self, gap_s: float) -> None:
        """Learn one finished gap, seconds. O(1)."""
        self.observe_bin(bin_of(gap_s))

    def observe_bin(self, index: int) -> None:
        """Learn a gap by its `bin_of`; for callers that teach several models the same gap. O(1), amortised."""
        self._counts[index] += 1.0
        self._weight += 1.0
        if self._weight >= self._due:
            self._due = self._weight * (1.0 + 1.0 / _REFRESH_SHARE)
            self._stale = True
            self.version += 1
            if self._weight >= self._window:
                self._age()

    def _age(self) -> None:
        self._counts = [0.5 * count for count in self._counts]
        self._weight *= 0.5
        self._due = self._weight

    # asking

    def survival(self, t_s: float, waited_s: float = 0.0) -> float:
        """P(gap > t | gap > waited); one for t <= waited. O(1) after a refresh."""
        if t_s <= waited_s:
            return 1.0
        self._refresh()
        if waited_s <= 0.0:
            return self._survival_at(t_s)
        alive = self._survival_at(waited_s)
        return self._survival_at(t_s) / alive if alive > 0.0 else 0.0

    def quantile(self, q: float, waited_s: float = 0.0) -> float:
        """The total gap, seconds, >= waited, that a share q (0..1) of the gaps longer than waited stays within."""
        self._refresh()
        if waited_s <= 0.0:
            return self._median_s if q == 0.5 else self._time_at(1.0 - (1.0 - q))
        below = 1.0 - (1.0 - q) * self._survival_at(waited_s)
        return max(waited_s, self._time_at(below))

    def expected_min(self, t_s: float, waited_s: float = 0.0) -> float:
        """E[min(gap, t) | gap > waited], seconds: what is paid for holding until t at most. O(1)."""
        if t_s <= waited_s:
            return t_s
        self._refresh()
        alive = self._survival_at(waited_s)
        if alive <= 0.0:
            return waited_s
        return waited_s + (self._area_at(t_s) - self._area_at(waited_s)) / alive

    def expected_remaining_s(self, waited_s: float = 0.0) -> float:
        """Mean further wait, seconds, with the longest hundredth cut to its start, so that it stays finite."""
        return self.expected_min(self.quantile(_MEAN_TRUNCATED_AT, waited_s), waited_s) - waited_s

    def curve(self) -> Curve:
        """Edges (98, seconds) and survival at them, memoised until `version` changes. For argmin scans."""
        self._refresh()
        return EDGES_S, self._survival

    # derived state

    def _refresh(self) -> None:
        parent = self._parent
        if not self._stale and (parent is None or self._weight > 8.0 * _PARENT_WEIGHT):
            return
        if parent is not None:
            parent._refresh()  # noqa: SLF001 - a model and its parent are one class
            if not self._stale and parent.version == self._parent_version:
                return
            self._parent_version = parent.version
            if not self._stale:
                self.version += 1
        self._stale = False
        self._settle(self._blend(parent._mass if parent is not None else _PRIOR_MASS))  # noqa: SLF001 - as above

    def _blend(self, prior: Iterable[float]) -> list[float]:
        """Histogram, log-normal fit and prior, weighted by what they know; sums to one."""
        weight, counts = self._weight, self._counts
        if weight < _FIT_FROM:
            scale = 1.0 / (weight + _PARENT_WEIGHT)
            return [(count + _PARENT_WEIGHT * p) * scale for count, p in zip(counts, prior, strict=True)]
        fit = _log_normal_mass(*self._robust_fit())
        scale = 1.0 / (weight + _PARENT_WEIGHT + _FIT_WEIGHT)
        return [
            (count + _PARENT_WEIGHT * p + _FIT_WEIGHT * f) * scale
            for count, p, f in zip(counts, prior, fit, strict=True)
        ]

    def _robust_fit(self) -> tuple[float, float]:
        """Median (s) and sigma of the log-normal through the quartiles of the histogram."""
        marks = [0.25 * self._weight, 0.5 * self._weight, 0.75 * self._weight]
        found: list[float] = []
        below = 0.0
        for index, count in enumerate(self._counts):
            while len(found) < len(marks) and below + count >= marks[len(found)] and count > 0.0:
                low, high = EDGES_S[index], EDGES_S[index + 1]
                found.append(low + (high - low) * (marks[len(found)] - below) / count)
            below += count
        low_s, median_s, high_s = (max(value, 0.1 * _MIN_S) for value in found)
        return median_s, max(_MIN_SIGMA, (log(high_s) - log(low_s)) / _QUARTILES_IN_SIGMA)

    def _settle(self, mass: list[float]) -> None:
        """Derive survival and its integral from the bins' masses. O(bins)."""
        below, survival, area_s = [0.0], [1.0], [0.0]
        low, alive, area, total = 0.0, 1.0, 0.0, 0.0
        for high, share in zip(EDGES_S[1:], mass, strict=True):
            total += share
            left = 1.0 - total if total < 1.0 else 0.0
            area += 0.5 * (alive + left) * (high - low)
            below.append(total)
            survival.append(left)
            area_s.append(area)
            low, alive = high, left
        below[-1], survival[-1] = 1.0, 0.0
        self._survival = tuple(survival)
        self.derived = {}
        self._mass, self._below, self._area_s = array("d", mass), array("d", below), array("d", area_s)
        self._median_s = self._time_at(0.5)

    def _survival_at(self, t_s: float) -> float:
        if t_s <= 0.0:
            return 1.0
        if t_s >= _MAX_S:
            return 0.0
        index = bisect_right(EDGES_S, t_s) - 1
        low, high = EDGES_S[index], EDGES_S[index + 1]
        alive = self._survival[index]
        return alive - (alive - self._survival[index + 1]) * (t_s - low) / (high - low)

    def _area_at(self, t_s: float) -> float:
        """Integral of survival from 0 to t, seconds."""
        if t_s <= 0.0:
            return 0.0
        if t_s >= _MAX_S:
            return self._area_s[-1]
        index = bisect_right(EDGES_S, t_s) - 1
        low = EDGES_S[index]
        return self._area_s[index] + 0.5 * (t_s - low) * (self._survival[index] + self._survival_at(t_s))

    def _time_at(self, below: float) -> float:
        """The time by which a share `below` of the gaps has ended."""
        if below <= 0.0:
            return 0.0
        index = min(NUM_BINS, bisect_left(self._below, below))
        low, high = EDGES_S[index - 1], EDGES_S[index]
        start, end = self._below[index - 1], self._below[index]
        return low + (high - low) * min(1.0, (below - start) / (end - start)) if end > start else high

    # keeping

    def snapshot(self) -> dict[str, Any]:
        """What was learned, as plain data: {bin index: weight}."""
        return {str(index): count for index, count in enumerate(self._counts) if count}

    def restore(self, data: dict[str, Any]) -> None:
        """Take over what `snapshot` gave, in place of what was learned here."""
        self._counts = [0.0] * NUM_BINS
        for index, count in data.items():
            self._counts[int(index)] = float(count)
        self._weight = self._due = sum(self._counts)
        self.version += 1
        self._stale = True
