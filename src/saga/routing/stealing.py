"""Moving calls that wait: a worker takes one from the most loaded worker (work stealing; Llumnix' rescheduling).

Policies refuse to know which call waits where; the scheduler asks whether a thief may take from a victim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from saga.routing.scorers import freeness_tokens
from saga.views import WorkerView


class Stealing(Protocol):
    """A frozen dataclass that allows or forbids a theft."""

    @property
    def idle_s(self) -> float | None:
        """How long a worker waits before it looks for something to steal, seconds; None: never."""
        ...

    @property
    def only_idle(self) -> bool:
        """Whether only an idle worker steals, once; else every worker looks every `idle_s` while somebody waits."""
        ...

    def load(self, worker: WorkerView) -> float:
        """By what the victim is the most loaded."""
        ...

    def allows(self, thief: WorkerView, victim: WorkerView) -> bool:
        """Whether `thief` may take one waiting call from `victim`."""
        ...


@dataclass(frozen=True)
class NoStealing:
    """Calls stay where they were sent."""

    idle_s: float | None = None
    only_idle: bool = True

    def load(self, worker: WorkerView) -> float:
        """Nobody is loaded."""
        return 0.0

    def allows(self, thief: WorkerView, victim: WorkerView) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class IdleSteals:
    """T_idle and R_max of the paper: after 100 ms idle, from a worker with more than twice the load."""

    idle_s: float | None = 0.1
    max_load_ratio: float = 2.0
    only_idle: bool = True

    def load(self, worker: WorkerView) -> float:
        """Calls at work."""
        return float(worker.num_running)

    def allows(self, thief: WorkerView, victim: WorkerView) -> bool:
        """The victim's load exceeds R_max times the thief's (an idle thief counts as one call)."""
        return victim.num_running > self.max_load_ratio * max(1, thief.num_running)


@dataclass(frozen=True)
class LevelFreeness:
    """From the least free worker, which has less memory than its calls want, to one that has some left (Llumnix).

    idle_s: how often a worker looks (ours: once a second).
    """

    idle_s: float | None = 1.0
    only_idle: bool = False

    def load(self, worker: WorkerView) -> float:
        """Minus the freeness, tokens per call."""
        return -freeness_tokens(worker)

    def allows(self, thief: WorkerView, victim: WorkerView) -> bool:
        """The victim is overcommitted, the thief is not."""
        return freeness_tokens(victim) < 0.0 < freeness_tokens(thief)
