"""Scorers: how good a worker is for a step, 0 (worst) to 1 (best). Weights belong to the profile."""

from __future__ import annotations

from dataclasses import dataclass

from saga.views import SessionView, WorkerView


class Scorer:
    """A frozen dataclass that scores one worker for one session."""

    def score(self, session: SessionView, worker: WorkerView) -> float:
        """0..1, higher is better. O(1)."""
        raise NotImplementedError


@dataclass(frozen=True)
class LeastLoaded(Scorer):
    """Fewest calls at work."""

    def score(self, session: SessionView, worker: WorkerView) -> float:
        """1 for an idle worker."""
        return 1.0 / (1.0 + worker.num_running)


@dataclass(frozen=True)
class FewestLive(Scorer):
    """Fewest live sessions: calls at work flicker with tool gaps, sessions do not."""

    def score(self, session: SessionView, worker: WorkerView) -> float:
        """1 for a worker without sessions."""
        return 1.0 / (1.0 + worker.num_live)


@dataclass(frozen=True)
class LeastReserved(Scorer):
    """Least reserved memory: where a new session fits best."""

    def score(self, session: SessionView, worker: WorkerView) -> float:
        """1 for a worker without reservations."""
        return 1.0 / (1.0 + worker.reserved_tokens / worker.kv_tokens)


@dataclass(frozen=True)
class SessionAffinity(Scorer):
    """1 for the session's home; with `theta`, only while its load (live contexts / KV) is below (the paper's rule)."""

    theta: float | None = None

    def score(self, session: SessionView, worker: WorkerView) -> float:
        """1 at home, else 0."""
        if session.home != worker.worker:
            return 0.0
        return 1.0 if self.theta is None or worker.live_tokens < self.theta * worker.kv_tokens else 0.0


@dataclass(frozen=True)
class PrefixAffinity(Scorer):
    """Share of the prompt that is already there, device or host (SGLang, vllm-router cache-aware)."""

    min_share: float = 0.0

    def score(self, session: SessionView, worker: WorkerView) -> float:
        """0..1; below `min_share` it counts as nothing."""
        if session.home != worker.worker or session.prompt_tokens == 0:
            return 0.0
        share = min(1.0, (session.home_tokens + session.home_host_tokens) / session.prompt_tokens)
        return share if share >= self.min_share else 0.0


@dataclass(frozen=True)
class Freest(Scorer):
    """Most freeness: free memory per call at work, less than none where calls wait for more than there is (Llumnix)."""

    def score(self, session: SessionView, worker: WorkerView) -> float:
        """1 / (2 - freeness / capacity): 1 for an idle worker."""
        return 1.0 / (2.0 - freeness_tokens(worker) / worker.kv_tokens)


def freeness_tokens(worker: WorkerView) -> float:
    """(capacity - tokens of calls at work or waiting there) per call; Llumnix' virtual usage without priorities."""
    return (worker.kv_tokens - worker.running_tokens) / max(1, worker.num_running)


@dataclass(frozen=True)
class LMetric(Scorer):
    """Tokens to prefill x calls at work, smallest first (LMetric: one multiplication)."""

    def score(self, session: SessionView, worker: WorkerView) -> float:
        """1 / (1 + new tokens x (1 + calls at work))."""
        cached = session.home_tokens if session.home == worker.worker else 0
        new_tokens = max(1, session.prompt_tokens - cached)
        return 1.0 / (1.0 + new_tokens * (1 + worker.num_running))
