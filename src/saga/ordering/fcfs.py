"""First come, first served: by call (what engines do) or by task (what agents need)."""

from __future__ import annotations

from dataclasses import dataclass

from saga.views import SessionView


@dataclass(frozen=True)
class Fcfs:
    """By arrival of the call: stock vLLM."""

    static: bool = True

    def rank(self, session: SessionView, at_s: float) -> float:
        """Arrival of the step, seconds."""
        return session.step_arrival_s


@dataclass(frozen=True)
class TaskFcfs:
    """By arrival of the task: an agent that began earlier goes first at every call."""

    static: bool = True

    def rank(self, session: SessionView, at_s: float) -> float:
        """Arrival of the task, seconds."""
        return session.task_arrival_s
