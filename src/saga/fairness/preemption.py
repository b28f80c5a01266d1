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

    def yields(self, running: SessionView, blocked: SessionView, at_s: float) -> bool:
        """Whether `running` gives way to `blocked`."""
        ...


@dataclass(frozen=True)
class NoPreemption:
    """What runs, runs."""

    blocked_s: float | None = None

    def yields(self, running: SessionView, blocked: SessionView, at_s: float) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class UrgentFirst:
    """After 500 ms of blocking a call takes the place of one that is much less urgent (paper section on AFS).

    ratio: how many times as urgent it must be (ours: two, so that two calls do not preempt each other in turn).
    """

    blocked_s: float | None = 0.5
    ratio: float = 2.0
    urgency: AgentUrgency = field(default=AgentUrgency())

    def yields(self, running: SessionView, blocked: SessionView, at_s: float) -> bool:
        """The blocked one's urgency is more than `ratio` times the running one's."""
        return -self.urgency.rank(blocked, at_s) > self.ratio * -self.urgency.rank(running, at_s)
