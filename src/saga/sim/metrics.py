"""What a simulated run measured: per task and per call, then as one dictionary with units in its names.

Refuses to know how the run was made. Quantiles are linear between order statistics (numpy's default).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

_STRETCHES = (("within_1_5x_share", 1.5), ("within_2x_share", 2.0), ("within_2_5x_share", 2.5))


@dataclass(slots=True)
class TaskResult:
    """One measured task. Times in seconds; isolated_s: the same task alone on a worker, gaps included."""

    task: str
    tenant: str
    start_s: float
    end_s: float
    isolated_s: float

    @property
    def tct_s(self) -> float:
        """First arrival to last token, waiting for admission included."""
        return self.end_s - self.start_s


@dataclass(slots=True)
class Tally:
    """Sums over calls of measured tasks. Tokens, unless named otherwise.

    cached: from the device at the first look-up; host: loaded from host memory or another worker; regenerated:
    prefilled although an infinite cache would have had it. service_s: device seconds, an iteration's shared by its
    calls in proportion to their tokens; regenerated_s: of full chunks of as many tokens as were regenerated, where they
    stood. holds: gaps at whose begin a place was promised, holds_kept: those that ended before the promise.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    host_tokens: int = 0
    prefilled_tokens: int = 0
    regenerated_tokens: int = 0
    preemptions: int = 0
    holds: int = 0
    holds_kept: int = 0
    service_s: float = 0.0
    regenerated_s: float = 0.0


@dataclass(slots=True)
class RunDetail:
    """What the report draws. occupancy: (at_s, share of KV used by running calls, share resident), fleet mean.

    timeline: (worker, session, task, kind, start_s, end_s) of the first worker, kind one of queued, prefill,
    decode, gap, paused; bounded.
    """

    tct_s: list[float] = field(default_factory=list)
    occupancy: list[tuple[float, float, float]] = field(default_factory=list)
    timeline: list[tuple[str, str, str, str, float, float]] = field(default_factory=list)


@dataclass(slots=True)
class Run:
    """One finished run: `metrics` is the run's object in the JSON."""

    preset: str
    seed: int
    metrics: dict[str, object]
    detail: RunDetail | None = None


def times(results: Iterable[TaskResult]) -> dict[str, float]:
    """tct_* in seconds and the shares of tasks within a multiple of their isolated time."""
    results = list(results)
    if not results:
        return {}
    tct_s = np.array([result.tct_s for result in results])
    stretch = tct_s / np.array([max(result.isolated_s, 1e-9) for result in results])
    p50, p95, p99 = np.percentile(tct_s, [50, 95, 99])
    out = {"tct_mean_s": float(tct_s.mean()), "tct_p50_s": float(p50), "tct_p95_s": float(p95), "tct_p99_s": float(p99)}
    out.update({name: float((stretch <= most).mean()) for name, most in _STRETCHES})
    return out


def shares(tally: Tally) -> dict[str, float]:
    """Tokens and their shares of the input; what left the device as a share of what could have been hit there."""
    input_tokens = max(1, tally.input_tokens)
    left_tokens = tally.host_tokens + tally.regenerated_tokens
    found: dict[str, float] = {} if not tally.holds else {"holds_kept_share": tally.holds_kept / tally.holds}
    return found | {
        "calls": tally.calls,
        "input_tokens": tally.input_tokens,
        "output_tokens": tally.output_tokens,
        "prefilled_tokens": tally.prefilled_tokens,
        "regenerated_tokens": tally.regenerated_tokens,
        "regenerated_share": tally.regenerated_tokens / input_tokens,
        "prefix_hit_share": tally.cached_tokens / input_tokens,
        "host_hit_share": tally.host_tokens / input_tokens,
        "evicted_share": left_tokens / max(1, left_tokens + tally.cached_tokens),
        "regenerated_time_share": tally.regenerated_s / tally.service_s if tally.service_s > 0.0 else 0.0,
        "preemptions": tally.preemptions,
    }
