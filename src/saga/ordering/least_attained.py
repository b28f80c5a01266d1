"""Least attained service first: short tasks overtake long ones without knowing lengths (LAS; llm-d, Agentix)."""

from __future__ import annotations

from dataclasses import dataclass

from saga.views import SessionView


@dataclass(frozen=True)
class LeastAttained:
    """By device seconds that the task has received."""

    static: bool = True

    def rank(self, session: SessionView, at_s: float) -> float:
        """Attained service of the task, device seconds."""
        return session.attained_s


@dataclass(frozen=True)
class ShortestRemaining:
    """By forecast remaining steps: better means, ruined tails: an option, not a default."""

    static: bool = True

    def rank(self, session: SessionView, at_s: float) -> float:
        """Expected remaining steps."""
        return session.remaining_steps
