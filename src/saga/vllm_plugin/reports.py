"""What the coordinator is told: collected as it happens, put together when a report is due.

What is held per session is counted only for sessions that changed, at most `_MAX_SESSIONS` per report, by O(log blocks)
look-ups each: contexts lose their end first, so what is left is a front. It refuses to know who is told and how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from saga.vllm_plugin.contracts import Finished, Held
from saga.vllm_plugin.sessions import Session

_MAX_SESSIONS = 256
_MAX_FINISHED = 10_000


def leading_blocks(num_blocks: int, resident: Callable[[int], bool]) -> int:
    """How many of the first num_blocks blocks are resident, if what is resident is a front. O(log num_blocks)."""
    low, high = 0, num_blocks
    while low < high:
        middle = (low + high) // 2
        if resident(middle):
            low = middle + 1
        else:
            high = middle
    return low


class Reporter:
    """Changes since the last report. device_tokens, host_tokens: what is held of a session now."""

    def __init__(self, device_tokens: Callable[[Session], int], host_tokens: Callable[[Session], int]) -> None:
        self._device_tokens = device_tokens
        self._host_tokens = host_tokens
        self._changed: dict[Session, None] = {}
        self._finished: list[Finished] = []

    def changed(self, sessions: Iterable[Session]) -> None:
        """More or less may be held of these."""
        self._changed.update(dict.fromkeys(sessions))

    def finished(self, finished: Finished) -> None:
        """A step ended; the oldest are dropped where nobody takes them."""
        if len(self._finished) >= _MAX_FINISHED:
            del self._finished[: _MAX_FINISHED // 2]
        self._finished.append(finished)

    def clear(self) -> None:
        """Nobody will be told."""
        self._changed.clear()
        self._finished.clear()

    def take_finished(self) -> tuple[Finished, ...]:
        """Steps that ended since the last call."""
        finished, self._finished = tuple(self._finished), []
        return finished

    def take_held(self) -> tuple[Held, ...]:
        """Sessions of which another amount is held than was last told; those beyond the bound come next time.

        Nothing is said of a session that cannot be traced: what was told stands until its next call.
        """
        held: list[Held] = []
        for session in list(self._changed)[:_MAX_SESSIONS]:
            del self._changed[session]
            if session.untraceable:
                continue
            amounts = self._device_tokens(session), self._host_tokens(session)
            if amounts != session.reported:
                session.reported = amounts
                held.append(Held(session.session, *amounts))
        return tuple(held)
