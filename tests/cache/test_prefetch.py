"""When a prefix is brought back: not before it may be, and early enough for most."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.cache.prefetch import BeforeReturn, NoPrefetch
from saga.workflow.gaps import GapModel

MEDIANS = st.floats(0.1, 1e3)
WAITS = st.floats(0.0, 1e3)
SHARES = st.floats(0.01, 0.99)


@given(MEDIANS, WAITS, SHARES)
def test_nothing_is_brought_back_for_a_session_of_which_nothing_is_known(
    median_s: float, waited_s: float, confidence: float
) -> None:
    """Any forecast begins something, none (confidence 0) does not."""
    gap = GapModel.around(median_s)
    assert BeforeReturn().begin_s(gap, waited_s, confidence) is not None
    assert BeforeReturn().begin_s(gap, waited_s, 0.0) is None


@given(MEDIANS, WAITS, SHARES, SHARES)
def test_it_begins_after_now_and_a_higher_quantile_later(
    median_s: float, waited_s: float, one: float, other: float
) -> None:
    """A prefetch never lies in the past, and patience delays it."""
    gap = GapModel.around(median_s)
    early_s, late_s = (BeforeReturn(q).begin_s(gap, waited_s, 1.0) for q in sorted((one, other)))
    assert early_s is not None
    assert late_s is not None
    assert waited_s <= early_s <= late_s


@given(MEDIANS, SHARES)
def test_the_quantile_is_the_share_that_returns_before_it(median_s: float, quantile: float) -> None:
    """Of the sessions that are still away, that share is back when the prefetch begins."""
    gap = GapModel.around(median_s)
    begin_s = BeforeReturn(quantile).begin_s(gap, median_s, 1.0)
    assert begin_s is not None
    assert gap.survival(begin_s, median_s) == pytest.approx(1.0 - quantile, abs=1e-6)


@given(MEDIANS, WAITS, SHARES)
def test_without_prefetch_nothing_ever_begins(median_s: float, waited_s: float, confidence: float) -> None:
    """The ablation answers None to everything."""
    assert NoPrefetch().begin_s(GapModel.around(median_s), waited_s, confidence) is None
