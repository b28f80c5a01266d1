"""The least loaded workers of a large fleet, without looking at all of them."""

from __future__ import annotations

import heapq

from saga.routing.profile import Balance
from saga.scheduler.workers import Worker


class LeastLoadedIndex:
    """A heap with one valid entry per worker; update O(log W), the k least O(k log W) amortised."""

    def __init__(self, balance: Balance) -> None:
        self._balance = balance
        self._heap: list[tuple[float, int, int, Worker]] = []
        self._version: dict[str, int] = {}
        self._last: dict[str, float] = {}
        self._next_version = 0

    def __len__(self) -> int:
        return len(self._version)

    def update(self, worker: Worker) -> None:
        """The worker's load may have changed."""
        if worker.lost or worker.draining:
            return
        load = self._load(worker)
        if self._last.get(worker.worker) == load:
            return
        self._last[worker.worker] = load
        self._next_version += 1
        self._version[worker.worker] = self._next_version
        heapq.heappush(self._heap, (load, worker.index, self._next_version, worker))
        if len(self._heap) > 64 + 4 * len(self._version):
            self._heap = [entry for entry in self._heap if self._current(entry)]
            heapq.heapify(self._heap)

    def remove(self, worker: Worker) -> None:
        """The worker takes no more."""
        self._version.pop(worker.worker, None)
        self._last.pop(worker.worker, None)

    def least(self, count: int) -> list[Worker]:
        """Up to `count` workers, least loaded first; ties by order of joining."""
        taken: list[tuple[float, int, int, Worker]] = []
        while self._heap and len(taken) < count:
            entry = heapq.heappop(self._heap)
            if self._current(entry):
                taken.append(entry)
        for entry in taken:
            heapq.heappush(self._heap, entry)
        return [entry[3] for entry in taken]

    def _current(self, entry: tuple[float, int, int, Worker]) -> bool:
        return self._version.get(entry[3].worker) == entry[2]

    def _load(self, worker: Worker) -> float:
        if self._balance == "reserved":
            return worker.reserved_tokens / worker.kv_tokens
        return float(worker.num_live if self._balance == "sessions" else worker.num_running)
