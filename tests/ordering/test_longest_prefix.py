"""Longest cached prefix first."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from saga.ordering.longest_prefix import LongestPrefix
from saga.views import SessionView

TOKENS = st.integers(0, 10_000)


def session(home_tokens: int, prompt_tokens: int = 10_000) -> SessionView:
    """A session with so much of its prompt on the device."""
    made = SessionView("s", "task", "tenant", 0.0)
    made.home_tokens, made.prompt_tokens = home_tokens, prompt_tokens
    return made


@given(TOKENS, TOKENS)
def test_more_cached_tokens_run_first(one: int, other: int) -> None:
    """The order is that of the match, longest first, however long either has waited."""
    ranks = [LongestPrefix().rank(session(tokens), at_s) for tokens, at_s in ((one, 0.0), (other, 1e6))]
    assert (ranks[0] < ranks[1]) == (one > other)


@given(TOKENS, st.integers(1, 10_000))
def test_no_more_than_the_prompt_can_match(tokens: int, prompt_tokens: int) -> None:
    """A context longer than the prompt that came (history was cut) counts as the prompt."""
    assert -LongestPrefix().rank(session(tokens, prompt_tokens), 0.0) <= prompt_tokens
