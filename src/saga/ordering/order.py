"""The ordering protocol: a rank per session with a step at hand; lowest first, ties by arrival.

A rank is computed when the step arrives (`static`) or again at each epoch (not `static`). It is also the priority
that travels to the engine, where lower runs first as in vLLM. Policies refuse to know queues and workers.
"""

from __future__ import annotations

from typing import Protocol

from saga.views import SessionView


class Ordering(Protocol):
    """A frozen dataclass with this one question; `static` says that ranks do not change while a step waits."""

    @property
    def static(self) -> bool:
        """True where the rank depends on nothing that moves while the step waits."""
        ...

    def rank(self, session: SessionView, at_s: float) -> float:
        """Lower runs first. O(1)."""
        ...
