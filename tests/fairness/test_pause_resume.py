"""Pause and resume with two marks: no flapping, shortest first, and an end to each pause."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from saga.fairness.pause_resume import PauseResume
from saga.views import SessionView, WorkerView

TOKENS = st.integers(0, 30_000)
RULE = PauseResume()


def worker(active_tokens: int, active: int = 1) -> WorkerView:
    """A worker of 10,000 tokens whose active programs hold so many."""
    made = WorkerView("w", 0, 10_000)
    made.active_tokens, made.num_active = active_tokens, active
    return made


@given(TOKENS)
def test_pausing_begins_above_the_upper_mark_and_ends_at_the_lower(active_tokens: int) -> None:
    """95 % starts it; what is asked for then leads down to 80 %."""
    excess = RULE.excess(worker(active_tokens))
    assert (excess > 0.0) == (active_tokens > 9_500)
    if excess > 0.0:
        assert active_tokens - excess == 8_000


@given(TOKENS, TOKENS)
def test_who_was_let_in_is_not_paused_at_once(active_tokens: int, extra: int) -> None:
    """What fits leaves headroom below the mark at which pausing begins."""
    if RULE.fits(worker(active_tokens), extra, new=True):
        assert active_tokens + extra <= 8_500
        assert RULE.excess(worker(active_tokens + extra)) == 0.0


@given(TOKENS)
def test_an_empty_worker_takes_anybody(extra: int) -> None:
    """A program larger than the mark still runs, alone."""
    assert RULE.fits(worker(0, active=0), extra, new=False)


@given(TOKENS, TOKENS)
def test_the_shortest_context_is_paused_first(one: int, other: int) -> None:
    """What is cheapest to compute again goes first."""
    ranks = []
    for tokens in (one, other):
        session = SessionView("s", "task", "tenant", 0.0)
        session.context_tokens = tokens
        ranks.append(RULE.pause_rank(session))
    assert (ranks[0] > ranks[1]) == (one < other)
