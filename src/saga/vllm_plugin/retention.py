"""How each session stands, from what its calls say, what the coordinator orders and what the clock shows.

    no word of it      unknown   leaves as in stock vLLM, longest free first
    a call waits       active    due now: leaves last of all
    it left, hinted    active    expected after its gap, until its deadline; then paused
    Retain             active    expected when the coordinator says, until its deadline; then paused
    Release            paused, active or ended, as it says
    forgotten          ended     leaves first

Soft: this only moves blocks in the order in which they leave (`owners`), so it can starve nobody. A deadline never
lengthens by itself; one in the past is none. It refuses to know blocks and vLLM.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf

from saga.commands import Standing
from saga.vllm_plugin.contracts import Outcome, Release, Retain
from saga.vllm_plugin.hints import Hints, Ignored
from saga.vllm_plugin.sessions import Session

_UNKNOWN, _ACTIVE, _PAUSED, _ENDED = "unknown", Standing.ACTIVE.value, Standing.PAUSED.value, Standing.ENDED.value


class Retention:
    """Keeps standings and deadlines. changed: told of each session whose facts moved.

    factor: without directives a session is retained for so many times its expected gap; max_s: the longest retention.
    """

    def __init__(self, changed: Callable[[Session], None], ignored: Ignored, *, factor: float, max_s: float) -> None:
        self._changed = changed
        self._ignored = ignored
        self._factor = factor
        self._max_s = max_s
        self._deadlines: list[tuple[float, int, Session]] = []
        self._pushes = 0
        self._retained: dict[Session, None] = {}

    @property
    def retained(self) -> tuple[Session, ...]:
        """Idle sessions that are kept for their next call, the longest retained first."""
        return tuple(self._retained)

    def is_retained(self, session: Session) -> bool:
        """Whether it is. O(1)."""
        return session in self._retained

    def came(self, session: Session) -> None:
        """A call of it has come, or waits again: its prefix is due now."""
        self._drop(session)
        self._stand(session, _ACTIVE, -inf)

    def left(self, session: Session, hints: Hints, at_s: float) -> None:
        """Its last call in the engine ended; what that call said of the future is all there is."""
        probability = hints.continue_probability
        if probability == 0.0:
            self._stand(session, _ENDED, inf)
        elif hints.expected_gap_s is None:
            self._stand(session, _UNKNOWN, inf)
        else:
            gap_s = hints.expected_gap_s / (1.0 if probability is None else max(probability, 1e-3))
            session.reuse_probability = 1.0 if probability is None else probability
            self._stand(session, _ACTIVE, at_s + gap_s)
            self._keep(session, at_s + min(self._max_s, self._factor * hints.expected_gap_s))

    def retain(self, session: Session, order: Retain, at_s: float) -> tuple[Outcome, str]:
        """The coordinator wants it kept."""
        if order.for_s is not None and order.for_s <= 0:
            self._ignored.add("a deadline in the past", order)
            return Outcome.REFUSED, f"for_s = {order.for_s:g}: the deadline is in the past"
        if not session.idle:
            return Outcome.ACCEPTED, "a call of it is here"
        for_s = inf if order.for_s is None else order.for_s
        session.reuse_probability = order.reuse_probability
        expected_s = inf if order.expected_use_s is None else at_s + max(0.0, order.expected_use_s)
        self._stand(session, _ACTIVE, expected_s)
        self._keep(session, at_s + min(for_s, self._max_s))
        if self._max_s < for_s < inf:
            return Outcome.CLIPPED, f"for {self._max_s:g} s at most"
        return Outcome.ACCEPTED, ""

    def release(self, session: Session, order: Release, at_s: float) -> tuple[Outcome, str]:
        """The coordinator lets it go, more or less."""
        if not session.idle:
            return Outcome.ACCEPTED, "a call of it is here"
        self._drop(session)
        expected_s = inf if order.expected_use_s is None else at_s + max(0.0, order.expected_use_s)
        self._stand(session, order.standing.value, expected_s)
        return Outcome.ACCEPTED, ""

    def forget(self, session: Session) -> None:
        """Nobody knows it any more."""
        self._drop(session)
        self._stand(session, _ENDED, inf)

    def tick(self, at_s: float) -> None:
        """Let those go whose deadline has passed. O(log retained) each."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= at_s:
            until_s, _, session = heappop(deadlines)
            if session in self._retained and session.until_s == until_s:
                self._drop(session)
                self._stand(session, _PAUSED, session.expected_use_s)

    def _keep(self, session: Session, until_s: float) -> None:
        session.until_s = until_s
        self._retained[session] = None
        self._pushes += 1
        if len(self._deadlines) > 2 * len(self._retained) + 64:
            self._deadlines = sorted(
                entry for entry in self._deadlines if entry[2] in self._retained and entry[0] == entry[2].until_s
            )
        heappush(self._deadlines, (until_s, self._pushes, session))

    def _drop(self, session: Session) -> None:
        if self._retained.pop(session, self) is None:
            session.until_s = inf

    def _stand(self, session: Session, standing: str, expected_use_s: float) -> None:
        """Only of those who are known to come back does it matter how old their task is."""
        session.standing = standing
        session.expected_use_s = expected_use_s
        session.task_arrival_s = 0.0 if standing == _UNKNOWN else session.arrived_s
        self._changed(session)
