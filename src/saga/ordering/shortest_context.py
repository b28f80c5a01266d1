"""Shortest context first: what is cheapest to bring back is brought back first (ThunderAgent)."""

from __future__ import annotations

from dataclasses import dataclass

from saga.views import SessionView


@dataclass(frozen=True)
class ShortestContext:
    """By length of the prompt, until a step has waited for `timeout_s`: then by arrival, before all others.

    timeout_s: bounds how long a long context can be overtaken (Dynamo's port of ThunderAgent: 1,800 s).
    """

    timeout_s: float = 1_800.0
    static: bool = False

    def rank(self, session: SessionView, at_s: float) -> float:
        """Tokens of the prompt; below all of them, minus the seconds waited, once the time is out."""
        waited_s = at_s - session.step_arrival_s
        return -waited_s if waited_s >= self.timeout_s else float(session.prompt_tokens)
