"""What a call says of itself: whose it is, and what is expected of its session.

A hint is advice from outside. What is nonsense is left out and counted by reason (`Ignored`); the call runs as if it
had not been said. The names are those that `saga serve` sends in `vllm_xargs`, flat values only. It refuses to know
requests, sessions and what becomes of a hint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from math import isfinite, nan
from typing import NamedTuple

MAX_NAME_LENGTH = 256
_MAX_GAP_S = 30 * 24 * 3_600.0
_KNOWN = frozenset(
    {
        "saga_continue_probability",
        "saga_expected_gap_s",
        "saga_session",
        "saga_step",
        "saga_task",
        "saga_tenant",
        "saga_wake",
    }
)
_NUMBERS = (int, float, str)
_LOG = logging.getLogger(__name__)


class Ignored:
    """What was left out since the start, by reason; logged at most once per reason and `log_every_s`."""

    def __init__(self, now_s: Callable[[], float], log_every_s: float = 60.0) -> None:
        self.counts: dict[str, int] = {}
        self._logged_s: dict[str, float] = {}
        self._now_s = now_s
        self._log_every_s = log_every_s

    def add(self, reason: str, detail: object = "") -> None:
        """One more. reason: one of a few fixed phrases; detail: what it was, for the log."""
        count = self.counts[reason] = self.counts.get(reason, 0) + 1
        at_s = self._now_s()
        if at_s - self._logged_s.get(reason, -self._log_every_s) >= self._log_every_s:
            self._logged_s[reason] = at_s
            _LOG.warning("ignored: %s: %.200r (%d since the start)", reason, detail, count)


class Hints(NamedTuple):
    """What was said and makes sense; "" and None where nothing was. wake: the call only wakes the engine."""

    session: str = ""
    tenant: str = ""
    task: str = ""
    step: str = ""
    continue_probability: float | None = None
    expected_gap_s: float | None = None
    wake: bool = False


NO_HINTS = Hints()


def read_hints(session_id: object, extra_args: object, ignored: Ignored) -> Hints:
    """The hints of a call. session_id: as vLLM read it; it goes before `saga_session`. O(fields)."""
    if not isinstance(extra_args, Mapping):
        return Hints(session=_name("session_id", session_id, ignored)) if session_id else NO_HINTS
    if not _KNOWN.issuperset(extra_args):
        for name in extra_args.keys() - _KNOWN:
            if isinstance(name, str) and name.startswith("saga_"):
                ignored.add("unknown hint", name)
    session = session_id or extra_args.get("saga_session") or extra_args.get("session_id")
    return Hints(
        _name("session", session, ignored),
        _name("saga_tenant", extra_args.get("saga_tenant"), ignored),
        _name("saga_task", extra_args.get("saga_task"), ignored),
        _name("saga_step", extra_args.get("saga_step"), ignored),
        _number("saga_continue_probability", extra_args, 1.0, ignored),
        _number("saga_expected_gap_s", extra_args, _MAX_GAP_S, ignored),
        bool(extra_args.get("saga_wake")),
    )


def _name(field: str, value: object, ignored: Ignored) -> str:
    """A name; "" where there is none."""
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or len(value) > MAX_NAME_LENGTH:
        ignored.add(f"{field} is no name of at most {MAX_NAME_LENGTH} characters", value)
        return ""
    return value


def _number(field: str, extra_args: Mapping[object, object], largest: float, ignored: Ignored) -> float | None:
    """A number from 0 to `largest`; None where there is none. vLLM passes numbers and text alike."""
    value = extra_args.get(field)
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, _NUMBERS) and not isinstance(value, bool) else nan
    except (ValueError, OverflowError):
        number = nan
    if not isfinite(number) or not 0.0 <= number <= largest:
        ignored.add(f"{field} is no number from 0 to {largest:g}", value)
        return None
    return number
