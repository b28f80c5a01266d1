"""Workers and their ledgers: who runs, who holds a place, who lives where, what they share counted once.

The ledger only counts. Whether the count allows another session is the admission policy's question.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from saga.events import WorkerJoined
from saga.scheduler.sessions import Session
from saga.views import WorkerView


class Shared:
    """Reference counts of shared prefixes; their tokens count once however many sessions hold them.

    A prefix counts for the longest that any holder has named since it was first held.
    """

    __slots__ = ("_count", "_tokens")

    def __init__(self) -> None:
        self._count: dict[str, int] = {}
        self._tokens: dict[str, int] = {}

    def missing(self, prefix: str, tokens: int) -> int:
        """Tokens that one more holder would add. O(1)."""
        return max(0, tokens - self._tokens.get(prefix, 0))

    def add(self, prefix: str, tokens: int) -> int:
        """Count a holder in; returns the tokens added."""
        added = self.missing(prefix, tokens)
        self._count[prefix] = self._count.get(prefix, 0) + 1
        self._tokens[prefix] = self._tokens.get(prefix, 0) + added
        return added

    def remove(self, prefix: str) -> int:
        """Count a holder out; returns the tokens freed: all with the last holder, else none."""
        self._count[prefix] -= 1
        if self._count[prefix]:
            return 0
        del self._count[prefix]
        return self._tokens.pop(prefix)

    @property
    def tokens(self) -> int:
        """What all held prefixes count for together. O(prefixes)."""
        return sum(self._tokens.values())

    def __len__(self) -> int:
        return len(self._count)


def _own(session: Session, context_tokens: int) -> int:
    """The part of a context that is not shared; without a named prefix nothing is."""
    return max(0, context_tokens - session.prefix_tokens) if session.prefix else context_tokens


class Worker(WorkerView):
    """A worker's record: the view that policies see, and the ledger behind it."""

    __slots__ = (
        "active",
        "active_shared",
        "last_epoch_s",
        "live_shared",
        "lost",
        "preempt_at_s",
        "residents",
        "steal_at_s",
        "unstarted",
        "wait_s",
    )

    def __init__(self, event: WorkerJoined, index: int) -> None:
        super().__init__(event.worker, index, event.kv_tokens)
        self.host_kv_tokens = event.host_kv_tokens
        self.block_tokens = event.block_tokens
        self.max_running = event.max_running
        self.prefill_tokens_per_s = event.prefill_tokens_per_s
        self.load_tokens_per_s = event.load_tokens_per_s
        self.move_tokens_per_s = event.move_tokens_per_s
        self.active: dict[str, Session] = {}
        self.residents: dict[str, Session] = {}
        self.unstarted: dict[str, Session] = {}
        self.active_shared = Shared()
        self.live_shared = Shared()
        self.steal_at_s = inf
        self.preempt_at_s = inf
        self.wait_s = 0.0
        self.last_epoch_s = event.at_s
        self.lost = False

    def need(self, session: Session, context_tokens: int, growth_tokens: float) -> float:
        """Tokens that reserving the session would add, the shared prefix only if nobody holds it yet."""
        own_tokens = _own(session, context_tokens)
        if session.prefix:
            return own_tokens + growth_tokens + self.active_shared.missing(session.prefix, session.prefix_tokens)
        return own_tokens + growth_tokens

    def reserve(self, session: Session, context_tokens: int, growth_tokens: float) -> None:
        """Count the session as active with this context, or change what it counts for. O(1)."""
        own_tokens = _own(session, context_tokens)
        if session.reserved:
            self.active_tokens += own_tokens - session.own_tokens
            self.reserved_tokens += own_tokens - session.own_tokens + growth_tokens - session.growth_tokens
        else:
            session.reserved = True
            self.active[session.session] = session
            self.num_active += 1
            tokens = own_tokens
            if session.prefix:
                tokens += self.active_shared.add(session.prefix, session.prefix_tokens)
            self.active_tokens += tokens
            self.reserved_tokens += tokens + growth_tokens
        session.own_tokens = own_tokens
        session.growth_tokens = growth_tokens

    def unreserve(self, session: Session) -> None:
        """Give the session's place back. O(1)."""
        session.reserved = False
        del self.active[session.session]
        self.num_active -= 1
        tokens = session.own_tokens + (self.active_shared.remove(session.prefix) if session.prefix else 0)
        self.active_tokens -= tokens
        self.reserved_tokens -= tokens + session.growth_tokens
        if not self.num_active:
            self.reserved_tokens = 0.0  # no drift of floats
        session.own_tokens = 0
        session.growth_tokens = 0.0

    def settle(self, session: Session) -> None:
        """The session lives here from now on; its context counts. O(1)."""
        session.lives_at = self.worker
        self.residents[session.session] = session
        self._count(session)

    def grow(self, session: Session, context_tokens: int) -> None:
        """Its context is now this long, and counts where it was overlooked. O(1)."""
        if session.overdue:
            session.context_tokens = context_tokens
            self._count(session)
            return
        self.live_tokens += _own(session, context_tokens) - _own(session, session.context_tokens)
        session.context_tokens = context_tokens

    def overlook(self, session: Session) -> None:
        """The session lives here still, but is not expected back: it counts no longer. O(1)."""
        self._uncount(session)
        session.overdue = True

    def leave(self, session: Session) -> None:
        """The session lives here no longer. O(1)."""
        session.lives_at = ""
        del self.residents[session.session]
        if not session.overdue:
            self._uncount(session)

    def _count(self, session: Session) -> None:
        session.overdue = False
        self.num_live += 1
        if session.prefix:
            self.live_tokens += self.live_shared.add(session.prefix, session.prefix_tokens)
        self.live_tokens += _own(session, session.context_tokens)

    def _uncount(self, session: Session) -> None:
        self.num_live -= 1
        if session.prefix:
            self.live_tokens -= self.live_shared.remove(session.prefix)
        self.live_tokens -= _own(session, session.context_tokens)


class Fleet:
    """All workers by name, in the order in which they joined.

    largest_kv_tokens: memory of the largest worker that takes new sessions, 0 without one.
    """

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._next_index = 0
        self.largest_kv_tokens = 0

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def get(self, worker: str) -> Worker | None:
        """The worker, None where it is unknown."""
        return self._workers.get(worker)

    def join(self, event: WorkerJoined) -> Worker:
        """A new worker."""
        worker = self._workers[event.worker] = Worker(event, self._next_index)
        self._next_index += 1
        self.measure()
        return worker

    def lose(self, worker: Worker) -> None:
        """Forget it."""
        worker.lost = True
        del self._workers[worker.worker]
        self.measure()

    def measure(self) -> None:
        """Find the largest again: a worker came, went or drains. O(workers)."""
        serving = (worker.kv_tokens for worker in self._workers.values() if not worker.draining)
        self.largest_kv_tokens = max(serving, default=0)
