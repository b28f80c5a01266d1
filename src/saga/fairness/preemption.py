"""Preemption: whether a call at work gives way to one that has been kept waiting.

The engine preempts by itself only for want of memory; this is the scheduler's own, for the sake of order. Policies
refuse to know which calls there are: the scheduler asks about a pair.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from saga.fairness.agent_fair_share import AgentUrgency
from saga.views import SessionView


class Preemption(Protocol):
    """A frozen dataclass that allows or forbids to take a call back for another one's sake."""

    @property
    def blocked_s(self) -> float | None:
        """How long a call must have been kept waiting on its worker, seconds; None: calls are never taken back."""
        ...

    def urgency(self, session: SessionView, at_s: float) -> float:
        """The highest of those that are blocked is compared with the lowest of those that answer. O(1)."""
        ...

    def yields(self, running: float, blocked: float) -> bool:
        """Whether a call of urgency `running` gives way to one of urgency `blocked`."""
        ...


@dataclass(frozen=True)
class NoPreemption:
    """What runs, runs."""

    blocked_s: float | None = None

    def urgency(self, session: SessionView, at_s: float) -> float:
        """All are alike."""
        return 0.0

    def yields(self, running: float, blocked: float) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class UrgentFirst:
    """After 500 ms of blocking a call takes the place of one that is much less urgent (paper section on AFS).

    ratio: how many times as urgent it must be (ours: two, so that two calls do not preempt each other in turn).
    """

    blocked_s: float | None = 0.5
    ratio: float = 2.0
    by: AgentUrgency = field(default=AgentUrgency())

    def urgency(self, session: SessionView, at_s: float) -> float:
        """Device seconds per second, as in AFS."""
        return -self.by.rank(session, at_s)

    def yields(self, running: float, blocked: float) -> bool:
        """The blocked one is more than `ratio` times as urgent."""
        return blocked > self.ratio * running
