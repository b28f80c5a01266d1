"""When a session that is away is taken for gone: few clients say that a task is over.

A session that is gone without a word still counts: its context as live, its prefix as one that is needed again.
Policies refuse to know clocks, sessions and what is done with the answer: a forecast in, seconds out.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Protocol

from saga.workflow.gaps import GapModel


class Overdue(Protocol):
    """A frozen dataclass with this one question."""

    def after_s(self, gap: GapModel) -> float:
        """Seconds from the start of a gap after which the session is no longer expected; inf never."""
        ...


@dataclass(frozen=True)
class NeverOverdue:
    """Whoever has not said that it is over is expected back."""

    def after_s(self, gap: GapModel) -> float:
        """Always inf."""
        return inf


@dataclass(frozen=True)
class LongOverdue:
    """Away for many times as long as nearly all such gaps are, and for `least_s` in any case. Ours."""

    times: float = 3.0
    quantile: float = 0.99
    least_s: float = 30.0

    def after_s(self, gap: GapModel) -> float:
        """At least least_s. O(log bins)."""
        return max(self.least_s, self.times * gap.quantile(self.quantile))
