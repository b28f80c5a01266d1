"""When a session is taken for gone."""

from __future__ import annotations

from math import inf

import hypothesis.strategies as st
from hypothesis import given

from saga.cache.overdue import LongOverdue, NeverOverdue
from saga.workflow.gaps import GapModel


@given(st.lists(st.floats(0.0, 1e4), max_size=40), st.floats(1.0, 100.0))
def test_nobody_is_gone_before_nearly_all_gaps_have_ended(gaps_s: list[float], times: float) -> None:
    """At least `least_s`, and so many times as long as 99 of 100 gaps; longer gaps never make it shorter."""
    gap, longer = GapModel(), GapModel()
    for gap_s in gaps_s:
        gap.observe(gap_s)
        longer.observe(2.0 * gap_s)
    rule = LongOverdue(times=times, least_s=30.0)
    assert rule.after_s(gap) >= max(30.0, times * gap.quantile(0.99))
    assert rule.after_s(longer) >= rule.after_s(gap) * (1.0 - 1e-9)
    assert gap.survival(rule.after_s(gap)) <= 0.01 + 1e-9


def test_the_rule_that_trusts_everybody() -> None:
    """Never."""
    assert NeverOverdue().after_s(GapModel.around(1.0)) == inf
