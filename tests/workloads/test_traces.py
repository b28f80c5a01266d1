"""Recorded traces as workloads: copies share what different recorded tasks share, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from saga.errors import UsageError
from saga.workloads.limits import Fit, Limits
from saga.workloads.plan import Task
from saga.workloads.traces import TraceWorkload


def _trace(folder: Path, rows: Iterable[dict[str, Any]], limits: Limits | None = None) -> TraceWorkload:
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TraceWorkload(path, Fit(limits or Limits()))


def _row(session: str, step: int, tokens: int, **more: Any) -> dict[str, Any]:
    return {"session_id": session, "step": step, "input_tokens": tokens, "output_tokens": 10, **more}


def _two_sharing(**more: Any) -> list[dict[str, Any]]:
    """Two sessions that share one block of 100 tokens and have a block each of their own."""
    shared = {"block_size": 100, **more}
    return [
        _row("a", 0, 150, hash_ids=[1], **shared),
        _row("a", 1, 250, hash_ids=[1, 2], gap_s=1.0, **shared),
        _row("b", 0, 230, hash_ids=[1, 3], **shared),
    ]


def _streams(task: Task) -> set[int]:
    return {stream for session in task.sessions for call in session.calls for stream, _ in call.path}


def test_copies_share_only_what_different_tasks_share(tmp_path: Path) -> None:
    """Any two tasks of a run, copies of the same source or not, have just the shared front in common."""
    tasks = list(_trace(tmp_path, _two_sharing()).tasks(9, 4))
    for k, one in enumerate(tasks):
        assert {task.source for task in tasks} == {"a", "b"}
        for other in tasks[k + 1 :]:
            assert _streams(one) & _streams(other) == {0}
    assert {call.shared_tokens for task in tasks for call in task.sessions[0].calls} == {100}


def test_names_are_unique_and_sources_come_equally_often(tmp_path: Path) -> None:
    """Every round uses each source once; ids of tasks and sessions are `source#round`."""
    tasks = list(_trace(tmp_path, _two_sharing()).tasks(6, 4))
    assert sorted(task.task for task in tasks) == ["a#0", "a#1", "a#2", "b#0", "b#1", "b#2"]
    assert all(task.sessions[0].session == task.task for task in tasks)


def test_same_seed_same_tasks_and_fewer_are_a_prefix_of_more(tmp_path: Path) -> None:
    """Tasks depend on the seed alone."""
    trace = _trace(tmp_path, [_row(f"s{k}", 0, 50) for k in range(20)])
    many = list(trace.tasks(50, 1))
    assert list(trace.tasks(30, 1)) == many[:30]
    assert [task.source for task in trace.tasks(20, 2)] != [task.source for task in many[:20]]


def test_without_ids_a_session_appends(tmp_path: Path) -> None:
    """Where a prompt is long enough for the whole context before, it extends it."""
    task = next(_trace(tmp_path, [_row("a", 0, 50), _row("a", 1, 80), _row("a", 2, 90)]).tasks(1, 0))
    assert [call.common_tokens for call in task.sessions[0].calls] == [0, 60, 90]
    assert [len(call.path) for call in task.sessions[0].calls] == [1, 1, 1]


@pytest.mark.parametrize(("more", "kept"), [({}, 39), ({"cached_tokens": 20}, 20), ({"reuse_tokens": 30}, 30)])
def test_without_ids_a_shorter_prompt_was_rewritten(tmp_path: Path, more: dict[str, int], kept: int) -> None:
    """It keeps what the source says it reused, else all but the token that any prompt has of its own."""
    task = next(_trace(tmp_path, [_row("a", 0, 50), _row("a", 1, 40, **more)]).tasks(1, 0))
    assert task.sessions[0].calls[1].common_tokens == kept


def _family() -> list[dict[str, Any]]:
    """A parent that delegates at its second call, and the child that ran meanwhile."""
    return [
        _row("p", 0, 100, t_s=0.0, llm_s=2.0, tool="Read"),
        _row("p", 1, 200, t_s=3.0, llm_s=2.0, gap_s=1.0, tool="Task"),
        _row("p", 2, 300, t_s=35.0, llm_s=2.0, gap_s=30.0),
        _row("p/c", 0, 50, t_s=6.0, llm_s=4.0, parent="p", tool="Grep"),
        _row("p/c", 1, 90, t_s=20.0, llm_s=5.0, gap_s=10.0, parent="p"),
    ]


def test_children_belong_to_the_task_of_their_parent(tmp_path: Path) -> None:
    """The child starts after the delegating call as late as recorded; the parent's gap loses the child's time."""
    trace = _trace(tmp_path, _family())
    (task,) = trace.tasks(1, 0)
    parent, child = task.sessions
    assert (parent.parent, child.parent) == (None, 0)
    assert [call.spawns for call in parent.calls] == [(), (1,), ()]
    assert child.calls[0].gap_s == pytest.approx(1.0)
    assert parent.calls[2].gap_s == pytest.approx(30.0 - (25.0 - 5.0))
    assert child.session == "p/c#0"


def test_tasks_outside_the_limits_are_skipped_and_counted(tmp_path: Path) -> None:
    """Sessions are counted by reason, a child goes with its parent, and gaps are cut."""
    rows = [*_family(), _row("long", 0, 5_000), _row("x", 0, 50), _row("x", 1, 70, gap_s=99.0), _row("short", 0, 9)]
    trace = _trace(tmp_path, rows, Limits(max_context_tokens=1_000, min_calls=2, gap_cap_s=5.0))
    assert {task.source for task in trace.tasks(4, 0)} == {"p", "x"}
    assert trace.skipped.reasons == {"fewer than 2 calls": 2}
    assert max(call.gap_s for task in trace.tasks(4, 0) for s in task.sessions for call in s.calls) == 5.0
    small = _trace(tmp_path, rows, Limits(max_context_tokens=205))
    assert small.skipped.reasons == {"context over 205 tokens": 3}


def test_a_trace_of_which_nothing_fits_is_refused(tmp_path: Path) -> None:
    """The error says how many sessions were left out and why."""
    with pytest.raises(UsageError, match=r"no session of .*trace\.jsonl fits: 2 context over 20 tokens"):
        _trace(tmp_path, _two_sharing(), Limits(max_context_tokens=20))


def test_missing_gaps_are_drawn_alike_every_time(tmp_path: Path) -> None:
    """Without times, gaps come from tables: the same for every reading, by kind of what came before."""
    rows = [_row("a", k, 50 + 20 * k, tool="python" if k % 2 else None) for k in range(8)]
    one, other = (list(_trace(tmp_path, rows).tasks(1, 0)) for _ in range(2))
    assert one == other
    calls = one[0].sessions[0].calls
    assert all(call.gap_s > 0 for call in calls[1:])
    assert [call.gap_kind for call in calls] == ["tool", *(("tool" if k % 2 else "user") for k in range(7))]


def test_a_gap_follows_from_start_and_end_where_both_are_known(tmp_path: Path) -> None:
    """A clock and service times are better than a table."""
    trace = _trace(tmp_path, [_row("a", 0, 50, t_s=1.0, llm_s=2.0), _row("a", 1, 70, t_s=7.5)])
    assert next(trace.tasks(1, 0)).sessions[0].calls[1].gap_s == pytest.approx(4.5)


def test_calls_know_how_long_they_took_where_the_trace_says(tmp_path: Path) -> None:
    """In every copy; None where it does not."""
    trace = _trace(tmp_path, [_row("a", 0, 100, llm_s=2.5), _row("a", 1, 200, gap_s=1.0)])
    for task in trace.tasks(3, 0):
        assert [call.service_s for call in task.sessions[0].calls] == [2.5, None]


def test_a_trace_with_a_clock_comes_in_order_of_time(tmp_path: Path) -> None:
    """Arrivals begin at 0, never fall, keep their intervals, and go on when the trace begins again."""
    times = [0.0, 4.0, 5.0, 11.0]
    trace = _trace(tmp_path, [_row(f"s{k}", 0, 50, arrival_s=at_s) for k, at_s in enumerate(times)])
    tasks = list(islice(trace.tasks(12, 3), 12))
    arrivals = [task.arrival_s for task in tasks if task.arrival_s is not None]
    assert arrivals[0] == 0.0
    assert len(arrivals) == 12
    intervals = [after - before for before, after in pairwise(arrivals)]
    assert intervals[:4] == intervals[4:8]
    assert sorted(intervals[:4]) == pytest.approx([1.0, 2.75, 4.0, 6.0])
    assert len({task.task for task in tasks}) == 12


def test_a_negative_number_of_tasks_is_refused(tmp_path: Path) -> None:
    """Asking for fewer than no tasks is the caller's fault."""
    with pytest.raises(UsageError, match="num_tasks"):
        _trace(tmp_path, _two_sharing()).tasks(-1, 0)


def test_real_children_wait_with_their_parents(shared_dir: Path) -> None:
    """In a trace with sub-agents each child is spawned once, by a call of its parent."""
    trace = TraceWorkload(shared_dir / "traces" / "agentcgroup_haiku.jsonl", Fit(Limits()))
    for task in trace.recorded:
        spawned = [child for session in task.sessions for call in session.calls for child in call.spawns]
        assert sorted(spawned) == list(range(1, len(task.sessions)))
        for session in task.sessions:
            for call in session.calls:
                assert all(task.sessions[child].parent is not None for child in call.spawns)
    assert sum(len(task.sessions) - 1 for task in trace.recorded) == 15
