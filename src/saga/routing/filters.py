"""Filters: which workers may serve a step at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from saga.views import SessionView, WorkerView


class Filter(Protocol):
    """A frozen dataclass that keeps or drops one worker."""

    def keep(self, session: SessionView, worker: WorkerView) -> bool:
        """Whether `worker` may serve the session's step. O(1)."""
        ...


@dataclass(frozen=True)
class Serving:
    """Drops workers that drain."""

    def keep(self, session: SessionView, worker: WorkerView) -> bool:
        """Not draining."""
        return not worker.draining


@dataclass(frozen=True)
class PromptFits:
    """Drops workers whose whole KV memory is smaller than the prompt."""

    def keep(self, session: SessionView, worker: WorkerView) -> bool:
        """The prompt and one token fit."""
        return session.prompt_tokens < worker.kv_tokens
