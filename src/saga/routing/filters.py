"""Filters: which workers may serve a step at all."""

from __future__ import annotations

from dataclasses import dataclass

from saga.views import SessionView, WorkerView


class Filter:
    """A frozen dataclass that keeps or drops one worker; its base, so that compiled code calls it without a look-up."""

    def keep(self, session: SessionView, worker: WorkerView) -> bool:
        """Whether `worker` may serve the session's step. O(1)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Serving(Filter):
    """Drops workers that drain."""

    def keep(self, session: SessionView, worker: WorkerView) -> bool:
        """Not draining."""
        return not worker.draining


@dataclass(frozen=True)
class PromptFits(Filter):
    """Drops workers whose whole KV memory is smaller than the prompt."""

    def keep(self, session: SessionView, worker: WorkerView) -> bool:
        """The prompt and one token fit."""
        return session.prompt_tokens < worker.kv_tokens
