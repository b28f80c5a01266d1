"""Start-time fair shares: tags, ties and the window."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from saga.fairness.start_time_fair import StartTimeFair
from saga.views import TenantView

SECONDS = st.floats(0.0, 1e5)


def tenant(attained_s: float, *, advanced_s: float = 0.0, weight: float = 1.0) -> TenantView:
    """A tenant that was served so much."""
    made = TenantView("t", weight)
    made.attained_s, made.advanced_s = attained_s, advanced_s
    return made


def test_places_count_before_their_work_is_known() -> None:
    """Of two tenants served alike the one with fewer places in use is next, measured per weight."""
    rank = StartTimeFair().rank
    assert rank(tenant(10.0)) < rank(tenant(10.0, advanced_s=5.0))
    assert rank(tenant(20.0, advanced_s=10.0, weight=3.0)) == rank(tenant(10.0))


@given(SECONDS, SECONDS, st.floats(0.1, 100.0))
def test_a_tie_hides_less_than_its_width(one_s: float, other_s: float, tie_s: float) -> None:
    """Who ranks no later than another is less than tie_s ahead of it: orderings inside a tie cannot break the bound."""
    rank = StartTimeFair(tie_s=tie_s).rank
    if rank(tenant(one_s)) <= rank(tenant(other_s)):
        assert one_s <= other_s + tie_s + 1e-6


@given(SECONDS, SECONDS, st.floats(0.0, 100.0), st.floats(0.1, 10.0))
def test_who_does_not_stand_back_is_within_the_slack(
    one_s: float, other_s: float, window_s: float, tie_s: float
) -> None:
    """A tenant that may go on is at most window and tie ahead of one that waits; one that is behind always may."""
    shares = StartTimeFair(window_s=window_s, tie_s=tie_s)
    mine, theirs = shares.rank(tenant(one_s)), shares.rank(tenant(other_s))
    if not shares.stands_back(mine, theirs):
        assert one_s <= other_s + shares.slack_s + 1e-6
    if one_s <= other_s:
        assert not shares.stands_back(mine, theirs)
