"""What clients say about their own future, and how far to believe them.

A hint overrides the learned forecast while hints of its field are trusted for that kind of workflow and for that
session. Trust is a beta-binomial mean over an ageing record in which a miss weighs as much as three hits: it is
lost in a few misses and regained slowly. The module refuses to know how forecasts are made.

A hint is right when: next_tools equals the tools called; gap_s and output_tokens are within a factor of three;
final is followed by no step, not-final by one; remaining_steps predicts the session's length within two
steps or a factor of 1.5, whichever is wider.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from saga.errors import UsageError

NEXT_TOOLS, GAP, REMAINING, OUTPUT, FINAL = "next_tools", "gap_s", "remaining_steps", "output_tokens", "final"
FIELDS = (NEXT_TOOLS, GAP, REMAINING, OUTPUT, FINAL)
TRUSTED_FROM = 0.5

_PRIOR_HITS, _PRIOR_MISSES = 8.0, 1.0
_MISS_WEIGHT = 3.0
_KEEP = 0.98
_WITHIN_FACTOR = 3.0
_SMALLEST_GAP_S = 0.05
_SESSION_MISS_FACTOR = 0.5
_SESSION_HIT_FACTOR = 1.1
_STEPS_SLACK, _STEPS_FACTOR = 2, 1.5


class HintTrust:
    """The record of the hints of one kind of workflow. State: two numbers per field."""

    __slots__ = ("_hits", "_misses")

    def __init__(self) -> None:
        self._hits = dict.fromkeys(FIELDS, 0.0)
        self._misses = dict.fromkeys(FIELDS, 0.0)

    def judge(self, name: str, *, right: bool) -> None:
        """Learn that a hint of field `name` came true or not. O(1)."""
        self._hits[name] = self._hits[name] * _KEEP + right
        self._misses[name] = self._misses[name] * _KEEP + (not right)

    def trust(self, name: str) -> float:
        """0..1; hints of the field are followed from 0.5 on. O(1)."""
        hits = self._hits[name] + _PRIOR_HITS
        return hits / (hits + _PRIOR_MISSES + _MISS_WEIGHT * self._misses[name])

    def snapshot(self) -> dict[str, list[float]]:
        """Plain data: {field: [hits, misses]}."""
        return {name: [self._hits[name], self._misses[name]] for name in FIELDS}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over what `snapshot` gave."""
        for name in FIELDS:
            self._hits[name], self._misses[name] = (float(value) for value in data[name])


class SessionTrust:
    """What this one session did to our trust: a factor 0..1, halved by a miss, a tenth regained by a hit."""

    __slots__ = ("factor",)

    def __init__(self) -> None:
        self.factor = 1.0

    def judge(self, *, right: bool) -> None:
        """Learn one outcome, whatever its field."""
        self.factor = min(1.0, self.factor * (_SESSION_HIT_FACTOR if right else _SESSION_MISS_FACTOR))


def near(said: float, true: float, smallest: float = 1.0) -> bool:
    """Whether two amounts agree within a factor of three; both below `smallest` always do."""
    said, true = max(said, smallest), max(true, smallest)
    return said <= true * _WITHIN_FACTOR and true <= said * _WITHIN_FACTOR


def near_gap(said_s: float, true_s: float) -> bool:
    """Whether two gaps (seconds) agree within a factor of three; those below 50 ms always do."""
    return near(said_s, true_s, _SMALLEST_GAP_S)


def near_steps(said: int, true: int) -> bool:
    """Whether two session lengths agree within two steps or a factor of 1.5."""
    wide = max(float(_STEPS_SLACK), (_STEPS_FACTOR - 1.0) * true)
    return abs(said - true) <= wide


def declared_edges(kind: str, edges: Iterable[object]) -> list[tuple[str, str, float]]:
    """Check a declared graph: [{"from": node, "to": node or "end", "weight": pseudo-count}, ...].

    weight defaults to 5 and is at least 1. Raises UsageError naming the kind, the place, the field and the value.
    """
    return [_declared_edge(f"workflow {kind!r}, edge {place}", edge) for place, edge in enumerate(edges)]


def _declared_edge(where: str, edge: object) -> tuple[str, str, float]:
    if not isinstance(edge, Mapping):
        msg = f"{where}: {edge!r} is no edge; write {{'from': 'Edit', 'to': 'Bash', 'weight': 5}}"
        raise UsageError(msg)
    unknown = sorted(set(edge) - {"from", "to", "weight"})
    if unknown:
        msg = f"{where}: unknown field {unknown[0]!r}; known: from, to, weight"
        raise UsageError(msg)
    ends = [edge.get("from"), edge.get("to")]
    for name, value in zip(("from", "to"), ends, strict=True):
        if not isinstance(value, str) or not value:
            msg = f"{where}: {name} = {value!r} must be the name of a node"
            raise UsageError(msg)
    weight = edge.get("weight", 5.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 1.0 <= weight <= 1e6:
        msg = f"{where}: weight = {weight!r} must be a number from 1 to 1000000"
        raise UsageError(msg)
    return str(ends[0]), str(ends[1]), float(weight)
