"""Pickers: one worker out of those scored. Ties are ordered, never random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saga.views import WorkerView


class Picker:
    """A frozen dataclass that picks one of the scored workers."""

    def pick(self, scored: Sequence[tuple[float, WorkerView]]) -> WorkerView:
        """One of them; `scored` is not empty."""
        raise NotImplementedError


@dataclass(frozen=True)
class Best(Picker):
    """The highest score; ties go to the worker that joined first."""

    def pick(self, scored: Sequence[tuple[float, WorkerView]]) -> WorkerView:
        """O(len(scored))."""
        best_score, best = scored[0]
        for score, worker in scored:
            if score > best_score or (score == best_score and worker.index < best.index):
                best_score, best = score, worker
        return best
