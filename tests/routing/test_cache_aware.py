"""The cache-aware balancer: affinity while calls are balanced, the shortest queue while they are not."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from saga.routing.cache_aware import CacheAware
from saga.views import SessionView, WorkerView

RULE = CacheAware()
CALLS = st.lists(st.integers(0, 300), min_size=2, max_size=6)


def fleet(calls: list[int], live: list[int] | None = None) -> list[WorkerView]:
    """Workers with so many calls at work and so much in their caches."""
    made = [WorkerView(f"w{index}", index, 10_000) for index in range(len(calls))]
    for worker, running, tokens in zip(made, calls, live or [0] * len(calls), strict=True):
        worker.num_running, worker.live_tokens = running, tokens
    return made


def asking(home: str = "", home_tokens: int = 0) -> SessionView:
    """A session with a prompt of 1,000 tokens, so many of them cached at home."""
    made = SessionView("s", "task", "tenant", 0.0)
    made.prompt_tokens, made.home, made.home_tokens = 1_000, home, home_tokens
    return made


@given(CALLS, st.integers(0, 5), st.integers(0, 1_000))
def test_out_of_balance_the_shortest_queue_wins_over_any_match(calls: list[int], home: int, tokens: int) -> None:
    """More than 64 calls and 1.5 times apart, home does not count; else a match of 30 % does."""
    workers = fleet(calls)
    session = asking(f"w{home % len(calls)}", tokens)
    picked = RULE.pick(session, workers)
    assert picked is not None
    if max(calls) - min(calls) > 64 and max(calls) > 1.5 * min(calls):
        assert picked.num_running == min(calls)
    elif tokens >= 300:
        assert picked.worker == session.home


def test_without_a_match_the_emptiest_cache_takes_it() -> None:
    """A new session goes where least is cached, however many calls are at work there."""
    picked = RULE.pick(asking(), fleet([9, 1], live=[10, 20]))
    assert picked is not None
    assert picked.worker == "w0"


def test_a_worker_that_may_not_serve_is_not_picked() -> None:
    """Draining workers and those that are too small are left out; nobody left is None."""
    workers = fleet([0, 5])
    workers[0].draining = True
    picked = RULE.pick(asking("w0", 1_000), workers)
    assert picked is not None
    assert picked.worker == "w1"
    workers[1].kv_tokens = 500
    assert RULE.pick(asking("w0", 1_000), workers) is None
