"""Limits: what fits, and limits that make no sense."""

from __future__ import annotations

import math

import pytest

from saga.errors import UsageError
from saga.workloads.limits import Fit, Limits


@pytest.mark.parametrize(
    ("limits", "kv_tokens", "word"),
    [
        (Limits(max_context_tokens=0), None, "max_context_tokens"),
        (Limits(max_context_tokens=-5), None, "max_context_tokens"),
        (Limits(min_calls=0), None, "min_calls"),
        (Limits(max_calls=0), None, "max_calls"),
        (Limits(min_calls=5, max_calls=4), None, "at least min_calls"),
        (Limits(gap_cap_s=-1.0), None, "gap_cap_s"),
        (Limits(gap_cap_s=math.nan), None, "gap_cap_s"),
        (Limits(gap_cap_s=math.inf), None, "gap_cap_s"),
        (Limits(), 0, "kv_tokens"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: Limits, kv_tokens: int | None, word: str) -> None:
    """Each bad limit is the caller's fault and is named."""
    with pytest.raises(UsageError, match=word):
        Fit(limits, kv_tokens)


@pytest.mark.parametrize(
    ("num_calls", "longest", "reason"),
    [
        (5, 1_000, None),
        (1, 1_000, "fewer than 2 calls"),
        (9, 1_000, "more than 8 calls"),
        (5, 2_001, "context over 2000 tokens"),
        (5, 1_501, "context over the 1500 KV tokens of a worker"),
    ],
)
def test_a_task_that_does_not_fit_has_a_reason(num_calls: int, longest: int, reason: str | None) -> None:
    """Exactly what is outside the limits is refused, and the reason names the limit."""
    kv_tokens = 1_500 if longest <= 2_000 else None
    fit = Fit(Limits(max_context_tokens=2_000, min_calls=2, max_calls=8), kv_tokens)
    assert fit.reason_against(num_calls, longest) == reason


def test_no_cap_is_infinite() -> None:
    """Without a cap no gap is cut."""
    assert Fit(Limits()).gap_cap_s == math.inf
    assert Fit(Limits(gap_cap_s=3.0)).gap_cap_s == 3.0
