"""Breadth first: spread over sessions, so that all progress at one pace (paper section on queue strategies)."""

from __future__ import annotations

from dataclasses import dataclass

from saga.views import SessionView


@dataclass(frozen=True)
class BreadthFirst:
    """Fewest steps done first."""

    static: bool = True

    def rank(self, session: SessionView, at_s: float) -> float:
        """Steps done."""
        return float(session.steps_done)
