"""Cache-aware balancing: follow the cached prefix while calls are balanced, else the shortest queue (SGLang).

It refuses to know where prefixes come from: what lies at a session's home is all that it is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from saga.routing.filters import Filter, PromptFits, Serving
from saga.routing.profile import Balance
from saga.views import SessionView, WorkerView


@dataclass(frozen=True)
class CacheAware:
    """SGLang router's rule, with its constants.

    Calls are out of balance where the busiest worker has more than `balance_abs` calls more than the least busy and
    more than `balance_rel` times as many: then the least busy is taken. Else home, if at least `min_share` of the
    prompt is cached there; else the worker with the least in its cache.
    """

    min_share: float = 0.3
    balance_abs: int = 64
    balance_rel: float = 1.5
    name: str = "cache-aware, shortest queue when out of balance"
    balance: Balance = "calls"
    filters: tuple[Filter, ...] = field(default=(Serving(), PromptFits()))

    def pick(self, session: SessionView, candidates: Iterable[WorkerView]) -> WorkerView | None:
        """O(candidates)."""
        able = [worker for worker in candidates if all(rule.keep(session, worker) for rule in self.filters)]
        if not able:
            return None
        least_busy = min(able, key=lambda worker: (worker.num_running, worker.index))
        most = max(worker.num_running for worker in able)
        least = least_busy.num_running
        if most - least > self.balance_abs and most > self.balance_rel * least:
            return least_busy
        home = next((worker for worker in able if worker.worker == session.home), None)
        cached_tokens = session.home_tokens + session.home_host_tokens
        if home is not None and cached_tokens >= self.min_share * session.prompt_tokens:
            return home
        return min(able, key=lambda worker: (worker.live_tokens, worker.index))
