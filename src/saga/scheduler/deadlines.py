"""Pending deadlines of the scheduler, earliest first. Cancelled ones are skipped when their time comes."""

from __future__ import annotations

import heapq
from enum import IntEnum
from typing import TypeAlias

from saga.scheduler.sessions import Session, State
from saga.scheduler.workers import Worker


class Due(IntEnum):
    """What a deadline is for."""

    HOLD = 0  # a reservation across a gap expires
    ROAM = 1  # a returning session loses patience with its home
    PREFETCH = 2  # its prefix is to come back
    STEAL = 3  # a worker has been idle for long enough
    PREEMPT = 4  # a call may have been kept waiting on a worker for too long
    OVERDUE = 5  # a session may be gone without a word


Subject: TypeAlias = "Session | Worker"


class Deadlines:
    """A heap of (time, sequence, what, whom); push O(log n), dead entries are pruned when they outnumber the rest."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Due, Subject]] = []
        self._sequence = 0
        self._prune_at = 1024

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, at_s: float, what: Due, whom: Subject) -> None:
        """Remember a deadline. It counts only while `whom` still says the same time."""
        self._sequence += 1
        heapq.heappush(self._heap, (at_s, self._sequence, what, whom))
        if len(self._heap) > self._prune_at:
            self._heap = [entry for entry in self._heap if _valid(entry)]
            heapq.heapify(self._heap)
            self._prune_at = 1024 + 2 * len(self._heap)

    def next_s(self) -> float | None:
        """Time of the earliest valid deadline."""
        heap = self._heap
        while heap:
            first = heap[0]
            if _valid(first):
                return first[0]
            heapq.heappop(heap)
        return None

    def pop_due(self, at_s: float) -> tuple[Due, Subject] | None:
        """The earliest valid deadline that is not after `at_s`."""
        due_s = self.next_s()
        if due_s is None or due_s > at_s:
            return None
        entry = heapq.heappop(self._heap)
        return entry[2], entry[3]


def _valid(entry: tuple[float, int, Due, Subject]) -> bool:
    at_s, _, what, whom = entry
    if isinstance(whom, Worker):
        return (whom.steal_at_s if what is Due.STEAL else whom.preempt_at_s) == at_s and not whom.lost
    if what is Due.HOLD:
        return whom.hold_until_s == at_s and whom.state is State.HELD
    if what is Due.ROAM:
        return whom.roam_at_s == at_s and whom.state is State.WAITING
    if what is Due.OVERDUE:
        return whom.look_at_s == at_s and whom.state is not State.ENDED
    return whom.prefetch_at_s == at_s and whom.state in (State.HELD, State.AWAY)
