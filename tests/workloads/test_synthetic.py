"""Synthetic workloads: the same seed gives the same tasks, and what does not fit is left out and counted."""

from __future__ import annotations

from itertools import pairwise

import pytest

from saga.errors import UsageError
from saga.workloads.catalogue import BUILT_IN, workload
from saga.workloads.limits import Limits
from saga.workloads.synthetic import FIRST_PRIVATE_STREAM


@pytest.mark.parametrize("name", BUILT_IN)
def test_same_seed_same_tasks_and_fewer_are_a_prefix_of_more(name: str) -> None:
    """Tasks depend on the seed alone, not on how many are asked for or what was drawn before."""
    source = workload(name, Limits())
    many = list(source.tasks(12, 5))
    assert list(source.tasks(7, 5)) == many[:7]
    assert list(workload(name, Limits()).tasks(12, 5)) == many
    assert list(source.tasks(12, 6)) != many


@pytest.mark.parametrize("name", BUILT_IN)
def test_tasks_never_share_private_streams(name: str) -> None:
    """A stream above the shared ones belongs to one task; ids of tasks and sessions are unique."""
    owner: dict[int, str] = {}
    tasks = list(workload(name, Limits()).tasks(40, 1))
    for task in tasks:
        for call in task.sessions[0].calls:
            for stream, _ in call.path:
                if stream >= FIRST_PRIVATE_STREAM:
                    assert owner.setdefault(stream, task.task) == task.task
    assert len({task.task for task in tasks}) == len({task.sessions[0].session for task in tasks}) == len(tasks)


def test_limits_hold_and_skipped_tasks_are_counted() -> None:
    """Nothing outside the limits comes out, and every task left out has a reason."""
    limits = Limits(max_context_tokens=30_000, min_calls=20, max_calls=40, gap_cap_s=1.0)
    source = workload("swe_bench", limits)
    for task in source.tasks(30, 2):
        calls = task.sessions[0].calls
        assert 20 <= len(calls) <= 40
        assert all(call.prompt_tokens + call.output_tokens <= 30_000 and call.gap_s <= 1.0 for call in calls)
    assert source.skipped.reasons["context over 30000 tokens"] > 0
    assert set(source.skipped.reasons) <= {"context over 30000 tokens", "fewer than 20 calls", "more than 40 calls"}


def test_a_cap_on_gaps_changes_nothing_else() -> None:
    """Tasks under a cap are the same tasks with the same gaps, cut."""
    free = list(workload("swe_bench", Limits()).tasks(10, 2))
    capped = list(workload("swe_bench", Limits(gap_cap_s=0.5)).tasks(10, 2))
    for one, other in zip(free, capped, strict=True):
        for call, cut in zip(one.sessions[0].calls, other.sessions[0].calls, strict=True):
            assert cut.gap_s == min(call.gap_s, 0.5)
            assert (cut.path, cut.tools) == (call.path, call.tools)


@pytest.mark.parametrize(
    ("limits", "kv_tokens"), [(Limits(max_context_tokens=100), None), (Limits(), 100), (Limits(min_calls=5_000), None)]
)
def test_a_workload_of_which_nothing_fits_is_refused(limits: Limits, kv_tokens: int | None) -> None:
    """An endless search for a task that fits ends in an error that names the limit."""
    with pytest.raises(UsageError, match="no task of swe_bench fits"):
        workload("swe_bench", limits, kv_tokens=kv_tokens)


def test_a_negative_number_of_tasks_is_refused() -> None:
    """Asking for fewer than no tasks is the caller's fault."""
    with pytest.raises(UsageError, match="num_tasks"):
        workload("swe_bench", Limits()).tasks(-1, 0)


def test_means_are_those_of_the_tasks() -> None:
    """The announced mean context is that of tasks drawn with another seed."""
    source = workload("swe_bench", Limits())
    calls = [call for task in source.tasks(300, 77) for call in task.sessions[0].calls]
    mean = sum(call.prompt_tokens + call.output_tokens for call in calls) / len(calls)
    assert source.mean_context_tokens == pytest.approx(mean, rel=0.1)


def test_gaps_are_of_the_kind_they_follow() -> None:
    """A gap after an answer to a person is a person's, any other a tool's."""
    for task in workload("tool_service", Limits()).tasks(30, 1):
        for before, after in pairwise(task.sessions[0].calls):
            assert after.gap_kind == ("tool" if before.tools else "user")
