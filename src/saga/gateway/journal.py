"""What was decided and why: JSON lines for the operator, and the last decisions of each recent session for `explain`.

Never a prompt, never an answer, never a key. It refuses to know what the decisions are about.
"""

from __future__ import annotations

import logging
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

log = logging.getLogger("saga.gateway")
_encode = msgspec.json.Encoder().encode


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, event, and the fields that it was logged with."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, Mapping):
            line.update(fields)
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return _encode(line).decode()


def log_to_stderr(level: str) -> None:
    """Write the gateway's log to standard error, JSON lines, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    log.handlers[:] = [handler]
    log.setLevel(level.upper())
    log.propagate = False


def say(level: int, event: str, **fields: object) -> None:
    """Log an event with its fields. Free where the level is off."""
    if log.isEnabledFor(level):
        log.log(level, event, extra={"fields": fields})


class Journal:
    """The last `per_session` decisions of the last `max_sessions` sessions. Adding is O(1)."""

    def __init__(self, clock: Callable[[], float], *, per_session: int = 32, max_sessions: int = 2_000) -> None:
        self._clock = clock
        self._per_session = per_session
        self._max_sessions = max_sessions
        self._sessions: OrderedDict[str, deque[tuple[float, str, str, str, str]]] = OrderedDict()

    def add(self, session: str, step: str, what: str, worker: str, reason: str) -> None:
        """Remember a decision, and log it at `info`."""
        entries = self._sessions.get(session)
        if entries is None:
            if len(self._sessions) >= self._max_sessions:
                self._sessions.popitem(last=False)
            entries = self._sessions[session] = deque(maxlen=self._per_session)
        else:
            self._sessions.move_to_end(session)
        entries.append((self._clock(), step, what, worker, reason))
        if log.isEnabledFor(logging.INFO):
            say(logging.INFO, what, session=session, step=step, worker=worker, reason=reason)

    def of(self, session: str) -> list[dict[str, object]]:
        """The session's decisions, oldest first; [] for one that is not remembered."""
        fields = ("at", "step", "what", "worker", "reason")
        return [dict(zip(fields, entry, strict=True)) for entry in self._sessions.get(session, ())]
