"""Descriptions agree with sums done by hand, and with what is published about the recorded traces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from saga.errors import UsageError
from saga.workloads.catalogue import workload
from saga.workloads.describe import describe, infinite_cache_reuse
from saga.workloads.limits import Fit, Limits
from saga.workloads.plan import Call, SessionPlan, Task
from saga.workloads.traces import TraceWorkload


def _task(name: str, *calls: Call) -> Task:
    return Task(name, "default", "kind", name, (SessionPlan(name, calls),))


def test_reuse_is_counted_by_owner() -> None:
    """The second session finds the shared front with the first; the answer counts as cached."""
    one = _task("a", Call(((0, 10), (1, 10)), 20, 5), Call(((0, 10), (1, 20)), 30, 5))
    two = _task("b", Call(((0, 10), (2, 30)), 40, 5))
    reuse = infinite_cache_reuse([one, two])
    assert reuse.own_session == pytest.approx(25 / 90)
    assert reuse.other_sessions == pytest.approx(10 / 90)
    assert reuse.all == pytest.approx(35 / 90)


def test_reuse_in_blocks_rounds_down() -> None:
    """Only whole blocks are found again."""
    task = _task("a", Call(((1, 20),), 20, 5), Call(((1, 30),), 30, 5))
    assert infinite_cache_reuse([task], block_tokens=16).all == pytest.approx(16 / 50)


def test_a_description_counts_what_is_there() -> None:
    """Sessions, calls, gaps and growth are those of the tasks described."""
    source = workload("tool_service", Limits())
    description = describe(source, 25, 3)
    tasks = list(source.tasks(25, 3))
    calls = [call for task in tasks for call in task.sessions[0].calls]
    assert description.num_calls == len(calls)
    assert description.input_tokens.max == max(call.prompt_tokens for call in calls)
    assert sum(gap.count for gap in description.gaps_s.values()) == len(calls) - len(tasks)
    assert description.reuse.all == pytest.approx(description.reuse.own_session + description.reuse.other_sessions)
    assert description.tenants == {"default": 25}


def test_no_task_describes_nothing() -> None:
    """At least one task is needed."""
    with pytest.raises(UsageError, match="at least 1"):
        describe(workload("chat", Limits()), 0)


class Published(NamedTuple):
    """The overview of a trace as published beside it; hit: prefix hit of an infinite cache, all / own / others."""

    sessions: int
    calls: int
    calls_p50: int
    input_p50: int
    input_p95: int
    output_p50: int
    output_p95: int
    block: int = 0
    hit: tuple[float, float, float] = (0.0, 0.0, 0.0)


PUBLISHED = {
    "agentcgroup_batch18.jsonl": Published(23, 1296, 58, 43563, 78447, 65, 663),
    "agentcgroup_haiku.jsonl": Published(70, 1064, 14, 29293, 65751, 87, 515),
    "azure2023_code.jsonl": Published(8819, 8819, 1, 1469, 7315, 13, 90),
    "mooncake_conversation.jsonl.gz": Published(8132, 12031, 1, 6909, 39552, 350, 698, 512, (0.374, 0.317, 0.057)),
    "sweagent_gpt4.jsonl": Published(275, 2955, 10, 4596, 12358, 127, 360, 64, (0.858, 0.840, 0.018)),
    "taubench_airline.jsonl": Published(200, 2454, 11, 2349, 5779, 41, 177, 64, (0.921, 0.886, 0.036)),
    "webvoyager_browseruse.jsonl": Published(218, 1668, 6, 4233, 6452, 79, 136, 64, (0.391, 0.356, 0.035)),
    "webvoyager_convergence.jsonl": Published(229, 3492, 20, 4563, 6985, 144, 248, 64, (0.267, 0.258, 0.009)),
    "weka_cc_a.jsonl.gz": Published(393, 23861, 33, 97342, 234501, 218, 1451, 512, (0.959, 0.959, 0.000)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_trace_is_as_published(shared_dir: Path, name: str) -> None:
    """Counts are exact, quantiles within 1 % or one token, prefix hits in whole blocks of prompts within 0.002."""
    published = PUBLISHED[name]
    trace = TraceWorkload(shared_dir / "traces" / name, Fit(Limits()))
    description = describe(trace, len(trace.recorded))
    assert (description.num_sessions, description.num_calls) == (published.sessions, published.calls)
    found = (
        description.calls_per_session.p50,
        description.input_tokens.p50,
        description.input_tokens.p95,
        description.output_tokens.p50,
        description.output_tokens.p95,
    )
    for value, expected in zip(found, published[2:7], strict=True):
        assert value == pytest.approx(expected, rel=0.01, abs=1.0)
    if published.block:
        hit = infinite_cache_reuse([_silent(task) for task in trace.recorded], block_tokens=published.block)
        assert (hit.all, hit.own_session, hit.other_sessions) == pytest.approx(published.hit, abs=0.002)


def _silent(task: Task) -> Task:
    """The task with answers that leave nothing in a cache, as the published figures count."""
    sessions = tuple(
        replace(session, calls=tuple(replace(call, output_tokens=0) for call in session.calls))
        for session in task.sessions
    )
    return replace(task, sessions=sessions)
