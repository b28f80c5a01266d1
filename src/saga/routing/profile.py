"""Routing: which worker serves a step. A profile is filter -> score -> pick, composed of small policies with weights.

A routing looks at the candidates it is given. With few workers these are all; in a large fleet the scheduler gives it
a short list (home and the least loaded by `balance`), which keeps a decision O(1) in the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from saga.routing.filters import Filter, PromptFits, Serving
from saga.routing.pickers import Best, Picker
from saga.routing.scorers import Scorer
from saga.views import SessionView, WorkerView

Balance = Literal["calls", "sessions", "reserved"]


class Routing(Protocol):
    """A frozen dataclass that picks a worker. balance: what the short list of a large fleet is ordered by."""

    @property
    def name(self) -> str:
        """In a few words, for the reason of a decision."""
        ...

    @property
    def balance(self) -> Balance:
        """Calls at work, live sessions or reserved memory."""
        ...

    def pick(self, session: SessionView, candidates: Iterable[WorkerView]) -> WorkerView | None:
        """One of the candidates, None if none of them will do. O(candidates)."""
        ...


@dataclass(frozen=True)
class Profile:
    """scorers: (policy, weight) pairs, summed. balance: what the short list of a large fleet is ordered by."""

    name: str
    scorers: tuple[tuple[Scorer, float], ...]
    balance: Balance = "sessions"
    filters: tuple[Filter, ...] = field(default=(Serving(), PromptFits()))
    picker: Picker = field(default=Best())

    def pick(self, session: SessionView, candidates: Iterable[WorkerView]) -> WorkerView | None:
        """The best candidate, None if the filters leave nobody. O(candidates x scorers)."""
        scored: list[tuple[float, WorkerView]] = []
        for worker in candidates:
            for rule in self.filters:
                if not rule.keep(session, worker):
                    break
            else:
                total = 0.0
                for scorer, weight in self.scorers:
                    total += weight * scorer.score(session, worker)
                scored.append((total, worker))
        return self.picker.pick(scored) if scored else None
