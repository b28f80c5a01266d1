"""Workers that serve the same models, and the scheduler that decides for them.

A scheduler takes any of its workers for any of its steps, so each *pool* of workers with equal sets of models has a
scheduler of its own; all of them learn into one workflow model. A call goes to a pool that serves its model: to the one
that has its session, else to the least busy.

A worker sits in its pool on a *seat*. The scheduler knows seats, not workers: one that comes back after a failure, or
serves other models than before, gets a new seat, while its old one empties; nothing that ran there is confused with
what runs there now. This module refuses to know calls, waiting and time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from saga.gateway.workers import Worker
from saga.scheduler.composition import Caps, Composition
from saga.scheduler.forecasts import Forecaster
from saga.scheduler.scheduler import Scheduler

Models: TypeAlias = frozenset[str] | None
"""Ids of models; None for a worker that does not say, which may get any."""

_MAX_MODELS: Final = 1_024
_HOMES_AT_A_TIME: Final = 2_000


class Seat:
    """A worker's place in a pool, from when it came up to when it went. num_steps: running there."""

    __slots__ = ("leaving", "name", "num_steps", "pool", "worker")

    def __init__(self, name: str, worker: Worker, pool: Pool) -> None:
        self.name = name
        self.worker = worker
        self.pool = pool
        self.num_steps = 0
        self.leaving = False


class Pool:
    """A scheduler and the seats of its workers.

    num_waiting: steps that have no worker yet. largest_kv_tokens: KV capacity of its largest worker, 0 without workers.
    """

    def __init__(self, models: Models, scheduler: Scheduler) -> None:
        self.models = models
        self.scheduler = scheduler
        self.seats: dict[str, Seat] = {}
        self.num_waiting = 0
        self.largest_kv_tokens = 0

    @property
    def num_up(self) -> int:
        """Workers that may get steps. O(seats)."""
        return sum(not seat.leaving for seat in self.seats.values())

    @property
    def busyness(self) -> float:
        """Steps per worker; infinite without workers. O(seats)."""
        num_up = self.num_up
        running = sum(seat.num_steps for seat in self.seats.values())
        return (running + self.num_waiting) / num_up if num_up else float("inf")

    def measure(self) -> None:
        """Workers came or went: find the largest. O(seats)."""
        self.largest_kv_tokens = max(
            (seat.worker.kv_tokens for seat in self.seats.values() if not seat.leaving), default=0
        )


class Pools:
    """All pools, by what their workers serve."""

    def __init__(self, composition: Composition, caps: Caps, weights: dict[str, float]) -> None:
        self._composition = composition
        self._caps = caps
        self._weights = {"": 1.0, **weights}  # never empty: schedulers share this very dict
        self._pools: dict[Models, Pool] = {}
        self._by_model: dict[str, list[Pool]] = {}
        self._seats: dict[str, Seat] = {}
        self._num_seats = 0
        self._homes: dict[str, tuple[str, int]] = {}
        self.model: Forecaster = self._new_scheduler(None).model

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._pools.values())

    def serving(self, model: str) -> list[Pool]:
        """Pools whose workers serve `model`; all of them for "". O(1) but for the first call of a model."""
        found = self._by_model.get(model)
        if found is None:
            found = [p for p in self._pools.values() if not model or p.models is None or model in p.models]
            if len(self._by_model) >= _MAX_MODELS:
                self._by_model.clear()
            if found:
                self._by_model[model] = found
        return found

    def choose(self, model: str, session: str) -> Pool | None:
        """Where a step of `session` goes; None where nobody serves its model."""
        pools = self.serving(model)
        if len(pools) == 1:
            return pools[0]
        at_home = [pool for pool in pools if pool.num_up and pool.scheduler.sessions.get(session) is not None]
        return min(at_home or pools, key=lambda pool: pool.busyness, default=None)

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Tenants' weights from now on. O(tenants x pools)."""
        self._weights.update(weights)
        for pool in self._pools.values():
            pool.scheduler.accounts.reweigh(weights)

    def seat_of(self, worker: Worker) -> Seat | None:
        """The seat on which the worker takes new steps."""
        return self._seats.get(worker.name)

    def sit(self, worker: Worker) -> Seat:
        """A new seat for a worker that came up."""
        pool = self._pools.get(worker.models)
        if pool is None:
            pool = self._pools[worker.models] = Pool(worker.models, self._new_scheduler(self.model))
            self._by_model.clear()
        self._num_seats += 1
        name = worker.name if worker.name not in pool.seats else f"{worker.name}~{self._num_seats}"
        seat = Seat(name, worker, pool)
        pool.seats[name] = self._seats[worker.name] = seat
        pool.measure()
        return seat

    def rise(self, worker: Worker) -> Seat | None:
        """Take the worker's seat from it: nothing new goes there."""
        seat = self._seats.pop(worker.name, None)
        if seat is not None:
            seat.leaving = True
            seat.pool.measure()
        return seat

    def clear(self, seat: Seat) -> None:
        """The seat is empty and gone."""
        del seat.pool.seats[seat.name]

    def drop(self, pool: Pool) -> None:
        """Forget a pool without workers."""
        del self._pools[pool.models]
        self._by_model.clear()

    # ------------------------------------------------------------------ restarts

    def homes(self, most: int) -> Iterator[list[tuple[str, str, int]]]:
        """(session, worker, tokens at home) of about `most` sessions, those seen last, some at a time."""
        names = {name: seat.worker.name for pool in self._pools.values() for name, seat in pool.seats.items()}
        yield [(session, worker, tokens) for session, (worker, tokens) in self._homes.items()][-most:]
        for pool in list(self._pools.values()):
            sessions = list(pool.scheduler.sessions)[-most:]
            for start in range(0, len(sessions), _HOMES_AT_A_TIME):
                yield [
                    (session.session, names[session.home], session.home_tokens)
                    for session in sessions[start : start + _HOMES_AT_A_TIME]
                    if session.home_tokens and session.home in names
                ]

    def remember(self, homes: list[tuple[str, str, int]]) -> None:
        """Where sessions lived before a restart: they return there, if the worker is there."""
        self._homes.update((session, (worker, tokens)) for session, worker, tokens in homes)

    def home_of(self, session: str, pool: Pool) -> tuple[str, int]:
        """(seat, tokens) of a session that has not been here since the restart; ("", 0) of any other. O(1)."""
        if not self._homes:
            return "", 0
        worker, tokens = self._homes.pop(session, ("", 0))
        seat = self._seats.get(worker)
        return (seat.name, tokens) if seat is not None and seat.pool is pool else ("", 0)

    def _new_scheduler(self, model: Forecaster | None) -> Scheduler:
        scheduler = Scheduler(self._composition, caps=self._caps, weights=self._weights)
        if model is not None:
            scheduler.model = model
        return scheduler
