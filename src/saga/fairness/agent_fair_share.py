"""Shares between tenants, and the paper's AFS urgency between tasks.

`WeightedService` is the plain rule (`start_time_fair` is the one with a bound); `AgentUrgency` is the paper's, to
compare. They refuse to know queues: they rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from saga.views import SessionView, TenantView


class TenantShare(Protocol):
    """Ranks tenants that have work waiting: the lowest rank is served next.

    advance_s: device seconds that a session is charged when it gets a place, and given back as far as unused.
    """

    @property
    def advance_s(self) -> float:
        """0 where service is charged only when it is known."""
        ...

    def rank(self, tenant: TenantView) -> float:
        """Lower is served next. O(1)."""
        ...

    def stands_back(self, mine: float, waiting: float) -> bool:
        """Whether a tenant of rank `mine` gets no step dispatched while one of rank `waiting` waits for any worker."""
        ...

    def gives_way(self, mine: float, waiting: float) -> bool:
        """Whether a session that is away, of a tenant of rank `mine`, loses its place to one of rank `waiting`."""
        ...


@dataclass(frozen=True)
class NoShares:
    """Tenants are not told apart."""

    advance_s: float = 0.0

    def rank(self, tenant: TenantView) -> float:
        """The same for all."""
        return 0.0

    def stands_back(self, mine: float, waiting: float) -> bool:
        """Nobody does."""
        return False

    def gives_way(self, mine: float, waiting: float) -> bool:
        """Nobody does."""
        return False


@dataclass(frozen=True)
class WeightedService:
    """Least attained device seconds per weight first; who has a place keeps it, whoever waits."""

    advance_s: float = 0.0

    def rank(self, tenant: TenantView) -> float:
        """Attained device seconds / weight."""
        return tenant.attained_s / tenant.weight

    def stands_back(self, mine: float, waiting: float) -> bool:
        """Nobody does: only who gets the next free place is decided."""
        return False

    def gives_way(self, mine: float, waiting: float) -> bool:
        """Nobody does."""
        return False


@dataclass(frozen=True)
class AgentUrgency:
    """AFS: urgency = (W - S) / (deadline - t), most urgent first (paper section on Agent Fair Share).

    W - S is read as the forecast remaining device seconds of the task (remaining steps x its mean step so far), the
    deadline as `stretch` times the expected task time from its arrival unless the client named one: all its steps at
    the pace of those so far, less what they waited, so that who is kept waiting does not look as if it had time. A task
    past its deadline is as urgent as one that has `floor_s` left; one of which nothing is forecast counts as half done.
    """

    stretch: float = 1.5
    floor_s: float = 1.0
    step_s: float = 10.0
    static: bool = False

    def rank(self, session: SessionView, at_s: float) -> float:
        """Minus the urgency (device seconds per second)."""
        done = session.steps_done
        remaining = session.remaining_steps or max(1, done)
        paced_s = session.step_arrival_s - session.task_arrival_s - session.waited_s
        step_s = max(0.0, paced_s) / done if done else self.step_s
        remaining_work_s = remaining * (session.attained_s / done if done else self.step_s)
        deadline_s = session.deadline_s
        if deadline_s is None:
            deadline_s = session.task_arrival_s + self.stretch * step_s * (done + remaining)
        return -remaining_work_s / max(deadline_s - at_s, self.floor_s)
