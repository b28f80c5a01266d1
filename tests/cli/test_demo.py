"""The demo runs with and without recorded traces, simulated and live, and says which it did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saga.cli.live import LiveScene
from saga.sim.config import SimConfig
from saga.sim.metrics import Run, RunDetail
from saga.workloads.plan import Workload

Saga = Callable[..., Any]
TINY: dict[str, Any] = {"workload": "web_arena", "tasks": 4, "max_calls": 12, "repeats": 2, "scale": 0.1, "speed": 1e3}


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
    answer = saga("demo", "--no-live", "--jobs", 1, "--out", tmp_path / "new" / "demo.html")
    assert answer.code == 0, answer.err
    assert {config.workload for config in fake} == {"swe_bench", "claude_code"}
    assert "built-in workloads only" in answer.err
    assert (tmp_path / "new" / "demo.html").read_text().count("<h2") == 2


@pytest.mark.slow
def test_with_recordings_two_of_them_join(saga: Saga, fake: list[SimConfig], tmp_path: Path, shared_dir: Path) -> None:
    """--shared adds the real traces, all under the same presets and seeds."""
    answer = saga("demo", "--no-live", "--jobs", 1, "--shared", shared_dir, "--out", tmp_path / "demo.html")
    assert answer.code == 0, answer.err
    per_workload = {name: sum(config.workload == name for config in fake) for name in (c.workload for c in fake)}
    assert len(per_workload) == 4
    assert len(set(per_workload.values())) == 1


def test_a_recording_that_is_not_there_is_left_out_with_a_word(
    saga: Saga, fake: list[SimConfig], tmp_path: Path
) -> None:
    """A folder without the traces is no failure."""
    answer = saga("demo", "--no-live", "--jobs", 1, "--shared", tmp_path, "--out", tmp_path / "demo.html")
    assert answer.code == 0
    assert answer.err.count("not there, left out") == 2


def test_bad_choices_are_one_line(saga: Saga, fake: list[SimConfig], tmp_path: Path) -> None:
    """No processes, no tasks, no place for the report."""
    (tmp_path / "file").touch()
    assert "--jobs 0" in saga("demo", "--jobs", 0, "--out", tmp_path / "d.html").complaint
    assert "tasks = 0" in saga("demo", "--tasks", 0, "--out", tmp_path / "d.html").complaint
    assert "--out" in saga("demo", "--out", tmp_path / "file" / "d.html").complaint
    assert "--json" in saga("demo", "--out", tmp_path / "d.html", "--json", tmp_path / "file" / "d.json").complaint
    assert fake == []


@pytest.mark.slow
def test_the_live_part_joins_the_report(
    saga: Saga, fake: list[SimConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more tasks than asked for; table, page and file call measured what was measured."""
    monkeypatch.setattr("saga.cli.live.LiveScene", lambda: LiveScene(**TINY))
    out, figures = tmp_path / "demo.html", tmp_path / "demo.json"
    answer = saga("demo", "--jobs", 1, "--tasks", 2, "--out", out, "--json", figures)
    assert answer.code == 0, answer.err
    assert "measured (real gateways and real HTTP, modelled engines)" in answer.out
    assert out.read_text().count("<h2") == 3
    document = json.loads(figures.read_text())
    assert [part["kind"] for part in document["simulated"]] == ["simulated", "simulated"]
    measured = document["measured"]
    assert (measured["kind"], measured["engines"]) == ("measured", "modelled")
    assert [run["preset"] for run in measured["runs"]] == ["least_loaded", "saga", "saga", "least_loaded"]
    assert {run["tasks_completed"] for run in measured["runs"]} == {2}
