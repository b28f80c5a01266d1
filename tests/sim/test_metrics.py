"""Figures of a run: laws of quantiles and shares."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from saga.sim.metrics import Tally, TaskResult, shares, times

RESULTS = st.lists(
    st.builds(
        lambda start_s, tct_s, isolated_s: TaskResult("t", "tenant", start_s, start_s + tct_s, isolated_s),
        st.integers(0, 1_000).map(float),
        st.integers(1, 10_000).map(float),
        st.integers(1, 1_000).map(float),
    ),
    min_size=1,
    max_size=40,
)
STRETCHES = {"within_1_5x_share": 1.5, "within_2x_share": 2.0, "within_2_5x_share": 2.5}
TALLIES = st.builds(
    Tally,
    calls=st.integers(1, 100),
    input_tokens=st.integers(1, 10**6),
    cached_tokens=st.integers(0, 10**6),
    host_tokens=st.integers(0, 10**6),
    prefilled_tokens=st.integers(0, 10**6),
    regenerated_tokens=st.integers(0, 10**6),
)


@given(RESULTS)
def test_quantiles_are_in_order_and_within_what_was_seen(results: list[TaskResult]) -> None:
    """p50 <= p95 <= p99, all between the fastest and the slowest task, and so is the mean."""
    found = times(results)
    tct_s = [result.tct_s for result in results]
    ordered = [min(tct_s), found["tct_p50_s"], found["tct_p95_s"], found["tct_p99_s"], max(tct_s)]
    assert ordered == sorted(ordered)
    assert min(tct_s) <= found["tct_mean_s"] <= max(tct_s) + 1e-9


@example([TaskResult("t", "tenant", 0.0, 15.0, 10.0), TaskResult("t", "tenant", 0.0, 20.0, 10.0)])
@given(RESULTS)
def test_a_wider_promise_is_kept_more_often(results: list[TaskResult]) -> None:
    """The share within a stretch counts exactly the tasks within it, and grows with the stretch."""
    found = times(results)
    for name, most in STRETCHES.items():
        kept = sum(1 for result in results if result.tct_s <= most * result.isolated_s)
        assert found[name] == pytest.approx(kept / len(results))
    assert 0.0 <= found["within_1_5x_share"] <= found["within_2x_share"] <= found["within_2_5x_share"] <= 1.0


@given(RESULTS, st.randoms(use_true_random=False))
def test_the_order_of_tasks_does_not_matter(results: list[TaskResult], shuffled: object) -> None:
    """Figures are about a set of tasks."""
    other = list(results)
    shuffled.shuffle(other)  # type: ignore[attr-defined]
    assert times(other) == pytest.approx(times(results))


@given(RESULTS)
def test_when_a_task_began_does_not_matter(results: list[TaskResult]) -> None:
    """A run that starts later has the same completion times."""
    later = [TaskResult(r.task, r.tenant, r.start_s + 64.0, r.end_s + 64.0, r.isolated_s) for r in results]
    assert times(later) == times(results)


def test_no_tasks_have_no_times() -> None:
    """Nothing is reported where nothing was measured, rather than a nan."""
    assert times([]) == {}


@given(TALLIES, st.integers(2, 9))
def test_shares_are_relative_to_the_input(tally: Tally, times_larger: int) -> None:
    """All tokens so many times larger give the same shares, and counts pass through as they are."""
    larger = Tally(**{name: getattr(tally, name) * times_larger for name in Tally.__slots__})
    one, other = shares(tally), shares(larger)
    for name, value in one.items():
        assert other[name] == pytest.approx(value if name.endswith("_share") else value * times_larger)


def test_every_sum_is_reported() -> None:
    """Whatever is tallied appears, itself or as a share of the input; an empty run divides by nothing."""
    tally = Tally(*range(1, 1 + len(Tally.__slots__)))
    found = shares(tally)
    assert {"calls", "input_tokens", "output_tokens", "prefilled_tokens", "regenerated_tokens"} <= found.keys()
    assert found["prefix_hit_share"] == tally.cached_tokens / tally.input_tokens
    assert found["host_hit_share"] == tally.host_tokens / tally.input_tokens
    assert not any(shares(Tally()).values())
