"""The gate: sessions that wait for a place, in lanes.

A lane belongs to one worker (sessions that return to it) or to nobody (new sessions, and those that lost patience).
Inside a lane each tenant has a heap; whose turn it is among tenants is the share policy's question, asked when a place
is free. There is no global head of line: a lane whose head does not fit blocks only itself. Entries are removed lazily.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from typing import TypeAlias

from saga.scheduler.sessions import Session, State
from saga.views import TenantView

Entry: TypeAlias = tuple[bool, float, int, Session]
"""(not preempted, rank, place, session): within a tenant preempted first, then rank, then arrival."""

ANYWHERE = ""
"""The lane of sessions that any worker may take."""


class Gate:
    """Waiting sessions by lane and tenant. Adding O(log n), the head of a lane O(tenants in it)."""

    def __init__(self, share: Callable[[TenantView], float], tenants: Mapping[str, TenantView]) -> None:
        self._share = share
        self._tenants = tenants
        self._lanes: dict[str, dict[str, list[Entry]]] = {}
        self._next_place = 0
        self._num_tenants = 0
        self.num_waiting = 0

    def add(self, lane: str, session: Session, rank: float) -> None:
        """Let the session wait; ranks are lowest first."""
        self._next_place += 1
        session.place = self._next_place
        self._count(session, 1)
        self._push(lane, (not session.preempted, rank, session.place, session))

    def also(self, lane: str, session: Session, rank: float) -> None:
        """Let a session that waits already be taken from another lane too (it keeps its place)."""
        self._push(lane, (not session.preempted, rank, session.place, session))

    def remove(self, session: Session) -> None:
        """The session waits no longer; its entries die where they lie."""
        session.place = 0
        self._count(session, -1)

    def is_full_for(self, name: str, most: int) -> bool:
        """Whether `most` wait and the tenant has its part of them, so that a flood keeps no others out. O(1)."""
        return is_full(most, self.num_waiting, self._tenants[name].num_waiting, self._num_tenants)

    def in_the_open(self) -> list[TenantView]:
        """Tenants with a session that any worker may take. O(tenants)."""
        heaps = self._lanes.get(ANYWHERE)
        return [self._tenants[name] for name in list(heaps) if self._top(heaps, name)] if heaps else []

    def head(self, lane: str) -> tuple[float, Entry] | None:
        """(tenant's rank, entry) of the lane's next session, None for an empty lane."""
        heaps = self._lanes.get(lane)
        if not heaps:
            return None
        best: tuple[float, Entry] | None = None
        for tenant in list(heaps):
            entry = self._top(heaps, tenant)
            if entry is None:
                continue
            candidate = (self._share(self._tenants[tenant]), entry)
            if best is None or precedes(candidate, best):
                best = candidate
        if not heaps:
            del self._lanes[lane]
        return best

    def turn(self, session: Session, rank: float) -> tuple[float, Entry]:
        """What `head` would say of this session if it waited: to compare with those that do."""
        entry = (not session.preempted, rank, self._next_place + 1, session)
        return self._share(self._tenants[session.tenant]), entry

    def rerank(self, rank: Callable[[Session], float]) -> None:
        """Ask all ranks again (orderings that move with time). O(n)."""
        for heaps in self._lanes.values():
            for tenant, heap in heaps.items():
                alive = [(e[0], rank(e[3]), e[2], e[3]) for e in heap if _alive(e)]
                heapq.heapify(alive)
                heaps[tenant] = alive

    def waiting(self) -> set[str]:
        """All who wait, by session. O(n), for checks."""
        lanes = self._lanes.values()
        return {e[3].session for heaps in lanes for heap in heaps.values() for e in heap if _alive(e)}

    def drop_lane(self, lane: str) -> None:
        """A worker is gone: its lane too (its sessions were added to another one before)."""
        self._lanes.pop(lane, None)

    def _count(self, session: Session, more: int) -> None:
        tenant = self._tenants[session.tenant]
        self.num_waiting += more
        self._num_tenants -= tenant.num_waiting > 0
        tenant.num_waiting += more
        self._num_tenants += tenant.num_waiting > 0

    def _push(self, lane: str, entry: Entry) -> None:
        heaps = self._lanes.setdefault(lane, {})
        heapq.heappush(heaps.setdefault(entry[3].tenant, []), entry)

    def _top(self, heaps: dict[str, list[Entry]], tenant: str) -> Entry | None:
        heap = heaps[tenant]
        while heap and not _alive(heap[0]):
            heapq.heappop(heap)
        if heap:
            return heap[0]
        del heaps[tenant]
        return None


def is_full(most: int, num_waiting: int, num_own: int, num_tenants: int) -> bool:
    """Whether one more of a tenant that has `num_own` waiting, of `num_tenants` that wait, is too many.

    Above `most` all are but those of tenants that have less than their part of it; above twice `most` all are.
    """
    return num_waiting >= most and (num_own * num_tenants >= most or num_waiting >= 2 * most)


def precedes(one: tuple[float, Entry], other: tuple[float, Entry]) -> bool:
    """The tenant with the lower rank first; among equals preempted sessions, then rank and arrival."""
    return (one[0], *one[1][:3]) < (other[0], *other[1][:3])


def _alive(entry: Entry) -> bool:
    return entry[3].place == entry[2] and entry[3].state is State.WAITING
