"""Depth first: finish sessions before new ones begin (paper section on queue strategies)."""

from __future__ import annotations

from dataclasses import dataclass

from saga.views import SessionView


@dataclass(frozen=True)
class DepthFirst:
    """Most steps done first."""

    static: bool = True

    def rank(self, session: SessionView, at_s: float) -> float:
        """Minus the steps done."""
        return -float(session.steps_done)
