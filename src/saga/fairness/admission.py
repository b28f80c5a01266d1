"""Session-level admission: how many sessions may be at work on a worker.

The unit is the session, not the call: a session that was let in keeps its place across tool gaps (its *reservation*,
held as long as `cache.ttl` says), so that its prefix is there when it returns. Of all rules this one matters most
(docs/policies.md). Policies refuse to know queues and time; `saga.scheduler` keeps the ledger they look at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from saga.views import SessionView, WorkerView


class Admission(Protocol):
    """A frozen dataclass that says whether a session may enter a worker's working set."""

    @property
    def gates(self) -> bool:
        """False where everything is let in at once and no reservation is ever needed."""
        ...

    def growth(self, context_tokens: float, forecast_tokens: float) -> float:
        """Head-room to reserve on top of a session's context, tokens."""
        ...

    def fits(self, worker: WorkerView, extra_tokens: float, *, new: bool) -> bool:
        """Whether `extra_tokens` more (growth included) may be at work; `new`: not seen on this worker before."""
        ...

    def excess(self, worker: WorkerView) -> float:
        """Tokens of active contexts that are to be paused now; 0 or less: none."""
        ...

    def pause_rank(self, session: SessionView) -> float:
        """Among the sessions that are away, the highest is paused first; ties by name."""
        ...


@dataclass(frozen=True)
class OpenDoor:
    """Everybody is let in at once: every system without a gate."""

    gates: bool = False

    def growth(self, context_tokens: float, forecast_tokens: float) -> float:
        """Nothing is reserved."""
        return 0.0

    def fits(self, worker: WorkerView, extra_tokens: float, *, new: bool) -> bool:
        """Always."""
        return True

    def excess(self, worker: WorkerView) -> float:
        """Never."""
        return 0.0

    def pause_rank(self, session: SessionView) -> float:
        """Nobody is."""
        return 0.0


@dataclass(frozen=True)
class SessionCap:
    """A fixed number of sessions per worker, tuned by hand; 18 suits `swe_bench` (a baseline)."""

    max_sessions: int = 18
    gates: bool = True

    def growth(self, context_tokens: float, forecast_tokens: float) -> float:
        """Tokens do not matter here."""
        return 0.0

    def fits(self, worker: WorkerView, extra_tokens: float, *, new: bool) -> bool:
        """Fewer active sessions than the cap."""
        return worker.num_active < self.max_sessions

    def excess(self, worker: WorkerView) -> float:
        """Never: a cap does not look at tokens."""
        return 0.0

    def pause_rank(self, session: SessionView) -> float:
        """Nobody is."""
        return 0.0


@dataclass(frozen=True)
class WorkingSet:
    """Only as many sessions as their working sets fit on the device.

    alpha: share of the device that reservations may fill, `alpha_host` where a host tier stands behind it.
    growth_share: head-room per session as a share of its context (ours: the forecast of the next step where larger is
    not needed). New sessions are also held while all live contexts would overflow device and host together.
    """

    alpha: float = 0.95
    alpha_host: float = 1.0
    growth_share: float = 0.04
    gates: bool = True

    def growth(self, context_tokens: float, forecast_tokens: float) -> float:
        """A share of the context."""
        return self.growth_share * context_tokens

    def fits(self, worker: WorkerView, extra_tokens: float, *, new: bool) -> bool:
        """Reservations stay within alpha of the device, live contexts within both tiers."""
        host_tokens = worker.host_kv_tokens
        room = (self.alpha_host if host_tokens else self.alpha) * worker.kv_tokens
        if worker.num_active == 0:
            return True
        if worker.reserved_tokens + extra_tokens > room:
            return False
        return not (new and host_tokens) or worker.live_tokens + extra_tokens <= worker.kv_tokens + host_tokens

    def excess(self, worker: WorkerView) -> float:
        """Active contexts beyond the device."""
        return worker.active_tokens - worker.kv_tokens

    def pause_rank(self, session: SessionView) -> float:
        """The youngest task."""
        return session.task_arrival_s
