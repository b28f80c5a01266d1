"""The demo runs with and without recorded traces and says which it did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saga.sim.config import SimConfig
from saga.sim.metrics import Run, RunDetail
from saga.workloads.plan import Workload

Saga = Callable[..., Any]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[SimConfig]:
    """Runs that take no time."""
    asked: list[SimConfig] = []

    def simulate(config: SimConfig, workload: Workload, on_progress: object = None) -> Run:
        asked.append(config)
        return Run(config.preset, config.seed, {"tct_mean_s": 1.0}, RunDetail(tct_s=[1.0]) if config.detail else None)

    monkeypatch.setattr("saga.sim.driver.simulate", simulate)
    monkeypatch.delenv("SAGA_SHARED", raising=False)
    return asked


def test_without_recordings_the_built_in_workloads_are_shown(saga: Saga, fake: list[SimConfig], tmp_path: Path) -> None:
    """Says that there are none; makes the folder of the report."""
    answer = saga("demo", "--jobs", 1, "--out", tmp_path / "new" / "demo.html")
    assert answer.code == 0, answer.err
    assert {config.workload for config in fake} == {"swe_bench", "claude_code"}
    assert "built-in workloads only" in answer.err
    assert (tmp_path / "new" / "demo.html").read_text().count("<h2") == 2


@pytest.mark.slow
def test_with_recordings_two_of_them_join(saga: Saga, fake: list[SimConfig], tmp_path: Path, shared_dir: Path) -> None:
    """--shared adds the real traces, all under the same presets and seeds."""
    answer = saga("demo", "--jobs", 1, "--shared", shared_dir, "--out", tmp_path / "demo.html")
    assert answer.code == 0, answer.err
    per_workload = {name: sum(config.workload == name for config in fake) for name in (c.workload for c in fake)}
    assert len(per_workload) == 4
    assert len(set(per_workload.values())) == 1


def test_a_recording_that_is_not_there_is_left_out_with_a_word(
    saga: Saga, fake: list[SimConfig], tmp_path: Path
) -> None:
    """A folder without the traces is no failure."""
    answer = saga("demo", "--jobs", 1, "--shared", tmp_path, "--out", tmp_path / "demo.html")
    assert answer.code == 0
    assert answer.err.count("not there, left out") == 2


def test_bad_choices_are_one_line(saga: Saga, fake: list[SimConfig], tmp_path: Path) -> None:
    """No processes, no tasks, no place for the report."""
    (tmp_path / "file").touch()
    assert "--jobs 0" in saga("demo", "--jobs", 0, "--out", tmp_path / "d.html").complaint
    assert "tasks = 0" in saga("demo", "--tasks", 0, "--out", tmp_path / "d.html").complaint
    assert "--out" in saga("demo", "--out", tmp_path / "file" / "d.html").complaint
    assert fake == []
