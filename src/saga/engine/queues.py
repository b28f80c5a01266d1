"""The waiting queue of the modelled engine: first come first served, or by priority, as in vLLM v1.

Both leave removed entries in place and skip them later. They refuse to know why a request waits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from heapq import heappop, heappush
from typing import Any, cast

from saga.engine.calls import EngineRequest


class WaitingQueue(ABC):
    """len() is the number of live requests; head() may only be asked where there is one."""

    @abstractmethod
    def __len__(self) -> int:
        """Live requests."""

    @abstractmethod
    def push(self, request: EngineRequest) -> None:
        """A new request. O(log n) at most."""

    @abstractmethod
    def push_front(self, request: EngineRequest) -> None:
        """A request that comes back: preempted, or its transfer has landed."""

    @abstractmethod
    def head(self) -> EngineRequest:
        """The next to run."""

    @abstractmethod
    def discard(self, request: EngineRequest) -> None:
        """Take a waiting request out, wherever it is. O(1)."""


class FcfsQueue(WaitingQueue):
    """Order of arrival; what comes back goes to the front."""

    def __init__(self) -> None:
        self._entries: deque[list[Any]] = deque()
        self._live = 0

    def __len__(self) -> int:
        """Live requests."""
        return self._live

    def push(self, request: EngineRequest) -> None:
        """See WaitingQueue."""
        request.entry = [request]
        self._entries.append(request.entry)
        self._live += 1

    def push_front(self, request: EngineRequest) -> None:
        """See WaitingQueue."""
        request.entry = [request]
        self._entries.appendleft(request.entry)
        self._live += 1

    def head(self) -> EngineRequest:
        """See WaitingQueue."""
        entries = self._entries
        while (request := entries[0][-1]) is None:
            entries.popleft()
        return cast("EngineRequest", request)

    def discard(self, request: EngineRequest) -> None:
        """See WaitingQueue."""
        request.entry[-1] = None
        request.entry = []
        self._live -= 1


class PriorityQueue(WaitingQueue):
    """Order of (priority, arrival), lower first; what comes back takes its old place."""

    def __init__(self) -> None:
        self._entries: list[list[Any]] = []
        self._live = 0
        self._pushes = 0

    def __len__(self) -> int:
        """Live requests."""
        return self._live

    def push(self, request: EngineRequest) -> None:
        """See WaitingQueue."""
        self._pushes += 1
        request.entry = [request.priority, request.arrival_s, request.sequence, self._pushes, request]
        heappush(self._entries, request.entry)
        self._live += 1

    def push_front(self, request: EngineRequest) -> None:
        """See WaitingQueue."""
        self.push(request)

    def head(self) -> EngineRequest:
        """See WaitingQueue."""
        entries = self._entries
        while (request := entries[0][-1]) is None:
            heappop(entries)
        return cast("EngineRequest", request)

    def discard(self, request: EngineRequest) -> None:
        """See WaitingQueue."""
        request.entry[-1] = None
        request.entry = []
        self._live -= 1
