"""Hybrid: depth first among sessions whose prefix is at hand, breadth first among the rest.

The paper names the strategy and leaves the rule open; this is our reading: a session whose prefix is still cached
costs little now and much later, so it is finished; the others share what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

from saga.views import SessionView

_AFTER_ALL_CACHED = 1e9


@dataclass(frozen=True)
class Hybrid:
    """cached_share: part of the prompt that must be resident to count as cached (ours: one half)."""

    cached_share: float = 0.5
    static: bool = True

    def rank(self, session: SessionView, at_s: float) -> float:
        """Cached sessions by steps done, most first; then the others, fewest first."""
        if session.home_tokens >= self.cached_share * session.prompt_tokens:
            return -float(session.steps_done)
        return _AFTER_ALL_CACHED + session.steps_done
