"""Which tasks of a workload are used: the one place that decides what fits, and says why not.

It knows tokens, calls and seconds; it refuses to know where a task comes from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from saga.errors import UsageError


@dataclass(frozen=True, slots=True)
class Limits:
    """What of a workload is used. A session outside them is skipped and counted, never cut, except gaps."""

    max_context_tokens: int | None = None
    min_calls: int = 1
    max_calls: int | None = None
    gap_cap_s: float | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """Limits of the user and the KV capacity of one worker, in tokens (None: any context fits).

    Raises UsageError where a limit makes no sense.
    """

    limits: Limits
    kv_tokens: int | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        limits = self.limits
        _at_least("max_context_tokens", limits.max_context_tokens, 1)
        _at_least("min_calls", limits.min_calls, 1)
        _at_least("max_calls", limits.max_calls, 1)
        _at_least("gap_cap_s", limits.gap_cap_s, 0)
        _at_least("kv_tokens", self.kv_tokens, 1)
        if limits.max_calls is not None and limits.max_calls < limits.min_calls:
            raise UsageError(f"max_calls must be at least min_calls ({limits.min_calls}): {limits.max_calls}")

    @property
    def gap_cap_s(self) -> float:
        """Longest gap in seconds; infinity where there is no limit."""
        return math.inf if self.limits.gap_cap_s is None else self.limits.gap_cap_s

    def reason_against(self, num_calls: int, longest_tokens: int) -> str | None:
        """Why a task may not be used, None where it may.

        num_calls: of its root session. longest_tokens: its longest context, output included, over all sessions.
        """
        limits = self.limits
        if num_calls < limits.min_calls:
            return f"fewer than {limits.min_calls} calls"
        if limits.max_calls is not None and num_calls > limits.max_calls:
            return f"more than {limits.max_calls} calls"
        if limits.max_context_tokens is not None and longest_tokens > limits.max_context_tokens:
            return f"context over {limits.max_context_tokens} tokens"
        if self.kv_tokens is not None and longest_tokens > self.kv_tokens:
            return f"context over the {self.kv_tokens} KV tokens of a worker"
        return None


def _at_least(name: str, value: float | None, least: float) -> None:
    if value is not None and not (math.isfinite(value) and value >= least):
        raise UsageError(f"{name} must be a finite number of at least {least}: {value}")
