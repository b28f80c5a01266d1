"""One door to all workloads: a name, else a path, else a clear error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saga.errors import UnknownName, UsageError
from saga.workloads.catalogue import BUILT_IN, workload
from saga.workloads.limits import Limits


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_name_gives_its_workload(name: str) -> None:
    """Names of the list are names of the workloads, each with a provenance and tasks."""
    found = workload(name, Limits())
    assert found.name == name
    assert found.provenance
    assert found.mean_context_tokens > 0
    assert len(list(found.tasks(3, 0))) == 3


def test_tool_latency_can_be_given_another_variation() -> None:
    """Same agents, same mean gap within what the draw allows, another spread; the name says which."""
    gaps = {}
    for cv in (0.5, 3.0):
        found = workload(f"swe_bench:tool_cv={cv:g}", Limits())
        assert found.name == f"swe_bench:tool_cv={cv:g}"
        calls = [call for task in found.tasks(400, 0) for call in task.sessions[0].calls[1:]]
        gaps[cv] = [call.gap_s for call in calls if call.gap_s > 0.0]
    small, large = (sum(values) / len(values) for values in gaps.values())
    assert small == pytest.approx(large, rel=0.15)
    assert max(gaps[3.0]) > 3 * max(gaps[0.5])


@pytest.mark.parametrize("cv", ["", "x", "0", "-1", "nan", "1e9"])
def test_a_variation_that_cannot_be_is_refused(cv: str) -> None:
    """Not a number, or none that a latency can have."""
    with pytest.raises(UsageError, match="tool_cv"):
        workload(f"swe_bench:tool_cv={cv}", Limits())


def test_a_path_gives_the_trace(tmp_path: Path) -> None:
    """Whatever is not a name is a file."""
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"session_id": "a", "step": 0, "input_tokens": 9, "output_tokens": 1}) + "\n")
    assert workload(str(path), Limits()).name == "mine"


@pytest.mark.parametrize("name", ["swe_bensh", "no/such/trace.jsonl", ""])
def test_neither_name_nor_file_is_refused(name: str) -> None:
    """The error lists the names, and a near miss is suggested."""
    with pytest.raises(UnknownName, match="swe_bench"):
        workload(name, Limits())


def test_a_bad_limit_is_refused_before_anything_is_read() -> None:
    """Limits are checked first, whatever the workload."""
    with pytest.raises(UsageError, match="gap_cap_s"):
        workload("no/such/trace.jsonl", Limits(gap_cap_s=float("nan")))
