"""Scores lie between 0 and 1, and each falls with what its scorer is against."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.routing.scorers import (
    FewestLive,
    Freest,
    LeastLoaded,
    LeastReserved,
    LMetric,
    PrefixAffinity,
    Scorer,
    SessionAffinity,
    freeness_tokens,
)
from saga.views import SessionView, WorkerView

SCORERS = (
    LeastLoaded(),
    FewestLive(),
    LeastReserved(),
    SessionAffinity(),
    SessionAffinity(theta=0.8),
    PrefixAffinity(),
    PrefixAffinity(min_share=0.5),
    Freest(),
    LMetric(),
)
TOKENS = st.integers(0, 10**6)
SESSIONS = st.fixed_dictionaries(
    {
        "home": st.sampled_from(["", "w", "x"]),
        "prompt_tokens": TOKENS,
        "home_tokens": TOKENS,
        "home_host_tokens": TOKENS,
    }
)
WORKERS = st.fixed_dictionaries(
    {
        "num_running": st.integers(0, 1_000),
        "num_live": st.integers(0, 1_000),
        "reserved_tokens": st.floats(0.0, 1e7),
        "live_tokens": st.integers(0, 10**7),
        "running_tokens": st.integers(0, 10**7),
    }
)


def session(**facts: object) -> SessionView:
    """A session of which these facts are known."""
    made = SessionView("s", "task", "tenant", 0.0)
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def worker(name: str = "w", **facts: float) -> WorkerView:
    """A worker of 1,000 tokens of which these facts are known."""
    made = WorkerView(name, 0, 1_000)
    for fact, value in facts.items():
        setattr(made, fact, value)
    return made


@pytest.mark.parametrize("scorer", SCORERS, ids=repr)
@given(asks=SESSIONS, has=WORKERS)
def test_every_score_lies_between_0_and_1(scorer: Scorer, asks: dict, has: dict) -> None:
    """Weights compare scorers only if all use one scale."""
    assert 0.0 <= scorer.score(session(**asks), worker(**has)) <= 1.0


@pytest.mark.parametrize(
    ("scorer", "fact"),
    [
        (LeastLoaded(), "num_running"),
        (FewestLive(), "num_live"),
        (LeastReserved(), "reserved_tokens"),
        (LMetric(), "num_running"),
    ],
    ids=repr,
)
@given(one=st.integers(0, 10_000), other=st.integers(0, 10_000))
def test_a_fuller_worker_scores_lower(scorer: Scorer, fact: str, one: int, other: int) -> None:
    """Each balancer falls strictly with the load that it is named after; an idle worker of a cheap step is best."""
    asks = session(prompt_tokens=1)
    mine, theirs = scorer.score(asks, worker(**{fact: one})), scorer.score(asks, worker(**{fact: other}))
    assert (mine > theirs) == (one < other)


@given(st.integers(1, 1_000), st.floats(0.0, 1e4))
def test_reserved_memory_counts_relative_to_capacity(times: int, reserved: float) -> None:
    """A worker so many times larger with so many times more reserved is as good."""
    large = WorkerView("w", 0, 1_000 * times)
    large.reserved_tokens = reserved * times
    small = worker(reserved_tokens=reserved)
    assert LeastReserved().score(session(), large) == pytest.approx(LeastReserved().score(session(), small))


@given(st.integers(0, 2_000))
def test_affinity_is_for_home_only_and_theta_takes_it_from_a_full_home(live_tokens: int) -> None:
    """Without theta home is home; with it only while live contexts are below that share of the memory."""
    at_home, elsewhere = worker("w", live_tokens=live_tokens), worker("x", live_tokens=live_tokens)
    lives = session(home="w")
    assert SessionAffinity().score(lives, at_home) == 1.0
    assert SessionAffinity().score(lives, elsewhere) == SessionAffinity(theta=0.8).score(lives, elsewhere) == 0.0
    assert SessionAffinity(theta=0.8).score(lives, at_home) == (1.0 if live_tokens < 800 else 0.0)


def test_a_session_without_a_home_is_drawn_nowhere() -> None:
    """The empty home is no worker's name."""
    assert SessionAffinity().score(session(), worker()) == PrefixAffinity().score(session(), worker()) == 0.0


@given(st.integers(1, 1_000), st.integers(0, 1_000), st.integers(0, 1_000), st.floats(0.0, 1.0))
def test_prefix_affinity_is_the_share_that_is_there(prompt: int, device: int, host: int, least: float) -> None:
    """Both tiers count, no more than the prompt does, and what is below min_share counts as nothing."""
    asks = session(home="w", prompt_tokens=prompt, home_tokens=device, home_host_tokens=host)
    share = min(prompt, device + host) / prompt
    assert PrefixAffinity().score(asks, worker()) == pytest.approx(share)
    assert PrefixAffinity(min_share=least).score(asks, worker()) == (pytest.approx(share) if share >= least else 0.0)


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(0, 100), st.integers(0, 100))
def test_lmetric_orders_by_the_product(one: int, other: int, one_load: int, other_load: int) -> None:
    """Tokens to prefill times calls at work, the smallest first."""
    mine = LMetric().score(session(prompt_tokens=one), worker(num_running=one_load))
    theirs = LMetric().score(session(prompt_tokens=other), worker(num_running=other_load))
    assert (mine > theirs) == (one * (1 + one_load) < other * (1 + other_load))


def test_lmetric_counts_only_what_is_cached_on_this_worker() -> None:
    """A prefix at home makes home cheaper and nowhere else."""
    asks = session(home="w", prompt_tokens=1_000, home_tokens=900)
    assert LMetric().score(asks, worker("w")) > LMetric().score(asks, worker("x"))


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 5_000), st.integers(0, 5_000))
def test_freest_orders_by_freeness(one: int, other: int, one_tokens: int, other_tokens: int) -> None:
    """Free memory per call at work, the most first, also where it is less than none."""
    mine = worker(num_running=one, running_tokens=one_tokens)
    theirs = worker(num_running=other, running_tokens=other_tokens)
    gap = freeness_tokens(mine) - freeness_tokens(theirs)
    scores = Freest().score(session(), mine) - Freest().score(session(), theirs)
    assert abs(gap) < 1e-6 or (scores > 0) == (gap > 0)
