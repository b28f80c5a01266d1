"""Work stealing: an idle worker takes a waiting call from the most loaded one (paper section on work stealing).

Policies refuse to know which call waits where; the scheduler asks whether a thief may take from a victim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from saga.views import WorkerView


class Stealing(Protocol):
    """A frozen dataclass that allows or forbids a theft."""

    @property
    def idle_s(self) -> float | None:
        """How long a worker must have been idle before it steals, seconds; None: never."""
        ...

    def allows(self, thief: WorkerView, victim: WorkerView) -> bool:
        """Whether `thief`, idle, may take one waiting call from `victim`."""
        ...


@dataclass(frozen=True)
class NoStealing:
    """Calls stay where they were sent."""

    idle_s: float | None = None

    def allows(self, thief: WorkerView, victim: WorkerView) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class IdleSteals:
    """T_idle and R_max of the paper: after 100 ms idle, from a worker with more than twice the load."""

    idle_s: float | None = 0.1
    max_load_ratio: float = 2.0

    def allows(self, thief: WorkerView, victim: WorkerView) -> bool:
        """The victim's load exceeds R_max times the thief's (an idle thief counts as one call)."""
        return victim.num_running > self.max_load_ratio * max(1, thief.num_running)
