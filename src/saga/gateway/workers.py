"""The workers that the gateway knows: where they are, what they serve, how they are.

A worker is `starting` until a first check passed, then `up`; `down` while its circuit is open; `draining` when it takes
nothing new; `removed` at last. The circuit opens after `failures_to_open` failures in a row, or at once where nobody
listens; it stays open for `open_s`, twice as long after each time that it opens again, then a passed check makes it
half-open: the worker is up, and one failure before the first success opens it again.

The registry keeps these states and tells its watcher. It refuses to know how a check is made (`health`), where workers
are written down (`config`) and what is sent to them (`scheduling`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from typing import Final, Protocol

from saga.errors import UsageError
from saga.gateway.worker_config import Capacity, CircuitRules, WorkerConfig

_MAX_OPEN_DOUBLINGS: Final = 4


class WorkerState(StrEnum):
    """How a worker is."""

    STARTING = "starting"
    UP = "up"
    DOWN = "down"
    DRAINING = "draining"
    REMOVED = "removed"


class Worker:
    """A worker's record.

    models: ids it serves, None while it has not said (then any). kv_tokens, extensions: as found out. num_calls: sent
    and not answered, by this gateway. running, waiting, kv_usage: its own figures, None where it reports none;
    measured_prefill_tokens_per_s: 0 where it reports none.
    """

    __slots__ = (
        "address",
        "capacity",
        "config",
        "extensions",
        "failures",
        "kv_tokens",
        "kv_usage",
        "max_model_len",
        "measured_prefill_tokens_per_s",
        "model_cards",
        "models",
        "name",
        "num_calls",
        "num_failed",
        "num_opened",
        "num_served",
        "on_trial",
        "open_until_s",
        "running",
        "since_s",
        "state",
        "waiting",
        "why",
    )

    def __init__(self, config: WorkerConfig, at_s: float) -> None:
        self.config = config
        self.name = config.name
        self.address = config.address()
        self.state = WorkerState.STARTING
        self.since_s = at_s
        self.why = "not checked yet"
        self.models: frozenset[str] | None = frozenset(config.models) or None
        self.model_cards: dict[str, dict[str, object]] = {}
        self.max_model_len: int | None = None
        self.extensions = bool(config.extensions)
        self.capacity = config.capacity()
        self.kv_tokens = self.capacity.kv_tokens
        self.measured_prefill_tokens_per_s = 0.0
        self.num_calls = 0
        self.num_served = 0
        self.num_failed = 0
        self.num_opened = 0
        self.failures = 0
        self.on_trial = False
        self.open_until_s = 0.0
        self.running: int | None = None
        self.waiting: int | None = None
        self.kv_usage: float | None = None

    @property
    def prefill_tokens_per_s(self) -> float:
        """As measured, else as its engine or its operator says."""
        return self.measured_prefill_tokens_per_s or self.capacity.prefill_tokens_per_s

    @property
    def is_up(self) -> bool:
        """Whether it may get new calls."""
        return self.state is WorkerState.UP

    def serves(self, model: str) -> bool:
        """Whether it serves `model`, as far as it is known."""
        return not model or self.models is None or model in self.models


class Watcher(Protocol):
    """Who is told what becomes of workers."""

    def worker_up(self, worker: Worker) -> None:
        """It may get calls; also said again when what it serves or holds has changed."""
        ...

    def worker_leaving(self, worker: Worker) -> None:
        """It gets nothing new: down, draining or removed. What it has it may finish."""
        ...

    def worker_reported(self, worker: Worker) -> None:
        """Its figures are new."""
        ...


class Workers:
    """All workers by name. Raises UsageError for a name or url that is there twice, or nowhere. O(1) each."""

    def __init__(self, rules: CircuitRules | None = None) -> None:
        self.rules = rules or CircuitRules()
        self._workers: dict[str, Worker] = {}
        self._watchers: list[Watcher] = []

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._workers.values()))

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher` from now on."""
        self._watchers.append(watcher)

    def get(self, name: str) -> Worker | None:
        """The worker of that name."""
        return self._workers.get(name)

    @property
    def num_up(self) -> int:
        """Workers that may get calls. O(workers)."""
        return sum(worker.is_up for worker in self._workers.values())

    # ------------------------------------------------------------------ who there is

    def add(self, config: WorkerConfig, at_s: float) -> Worker:
        """A new worker, not checked yet."""
        config = config.named()
        if config.name in self._workers:
            raise UsageError(f"worker {config.name!r} is there already; remove it first, or give another name")
        worker = self._workers[config.name] = Worker(config, at_s)
        return worker

    def drain(self, name: str, at_s: float) -> Worker:
        """It finishes what it has and gets nothing new."""
        worker = self._known(name)
        self._leave(worker, WorkerState.DRAINING, "drained by its operator", at_s)
        return worker

    def remove(self, name: str, at_s: float) -> Worker:
        """It is gone from the list; calls that run there may finish."""
        worker = self._known(name)
        del self._workers[name]
        self._leave(worker, WorkerState.REMOVED, "removed by its operator", at_s)
        return worker

    def resume(self, name: str, at_s: float) -> Worker:
        """A drained worker may get calls again, after its next check."""
        worker = self._known(name)
        if worker.state is WorkerState.DRAINING:
            self._enter(worker, WorkerState.STARTING, "resumed by its operator", at_s)
        return worker

    def _known(self, name: str) -> Worker:
        worker = self._workers.get(name)
        if worker is None:
            raise UsageError(f"no worker {name!r}. Known: {', '.join(sorted(self._workers)) or 'none'}")
        return worker

    # ------------------------------------------------------------------ how they are

    def passed(self, worker: Worker, at_s: float) -> None:
        """A check passed: a starting worker is up, and one whose circuit has been open for long enough."""
        if worker.is_up:
            worker.failures = 0
        elif worker.state is WorkerState.STARTING:
            self._rise(worker, "passed its first check", at_s)
        elif worker.state is WorkerState.DOWN and at_s >= worker.open_until_s:
            worker.on_trial = True
            self._rise(worker, "passed a check, on trial", at_s)

    def failed(self, worker: Worker, why: str, at_s: float, *, unreachable: bool = False) -> None:
        """A call or a check failed. unreachable: nobody listens there, no need to ask again."""
        worker.num_failed += 1
        worker.failures += 1
        if not worker.is_up:
            worker.why = why
        elif unreachable or worker.on_trial or worker.failures >= self.rules.failures_to_open:
            self._open(worker, why, at_s)

    def succeeded(self, worker: Worker) -> None:
        """A call was answered."""
        worker.num_served += 1
        worker.failures = 0
        if worker.on_trial:
            worker.on_trial = False
            worker.num_opened = 0

    def changed(self, worker: Worker) -> None:
        """What it serves or holds is not what it was: it comes up anew."""
        if worker.is_up:
            for watcher in self._watchers:
                watcher.worker_leaving(worker)
                watcher.worker_up(worker)

    def told(self, worker: Worker, capacity: Capacity) -> None:
        """Its engine said what it can; a `kv_tokens` that was written down holds, and rates that it does not know."""
        written = worker.config
        capacity = replace(
            capacity,
            kv_tokens=written.kv_tokens or capacity.kv_tokens,
            prefill_tokens_per_s=capacity.prefill_tokens_per_s or written.prefill_tokens_per_s,
        )
        if written.extensions is None:
            worker.extensions = True
        if capacity != worker.capacity:
            worker.capacity, worker.kv_tokens = capacity, capacity.kv_tokens
            self.changed(worker)

    def reported(self, worker: Worker) -> None:
        """Its own figures were read."""
        for watcher in self._watchers:
            watcher.worker_reported(worker)

    def _open(self, worker: Worker, why: str, at_s: float) -> None:
        worker.open_until_s = at_s + self.rules.open_s * 2.0 ** min(worker.num_opened, _MAX_OPEN_DOUBLINGS)
        worker.num_opened += 1
        worker.on_trial = False
        self._leave(worker, WorkerState.DOWN, why, at_s)

    def _rise(self, worker: Worker, why: str, at_s: float) -> None:
        worker.failures = 0
        self._enter(worker, WorkerState.UP, why, at_s)
        for watcher in self._watchers:
            watcher.worker_up(worker)

    def _leave(self, worker: Worker, state: WorkerState, why: str, at_s: float) -> None:
        was_up = worker.is_up
        self._enter(worker, state, why, at_s)
        if was_up:
            for watcher in self._watchers:
                watcher.worker_leaving(worker)

    def _enter(self, worker: Worker, state: WorkerState, why: str, at_s: float) -> None:
        worker.state, worker.why, worker.since_s = state, why, at_s
