"""`saga paper` runs what it must and nothing twice, writes whole reports, and refuses bad input before any work."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saga.bench.evaluation.cells import QUICK
from saga.errors import InvariantViolated, PeerError, SagaError, UsageError
from saga.scheduler.composition import Composition
from saga.sim.config import SimConfig
from saga.sim.metrics import Run
from saga.workloads.plan import Workload

Saga = Callable[..., Any]
FILES = ["report.html", "report.json", "report.md", "runs"]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, SimConfig]]:
    """Runs that take no time: what was simulated, composition and configuration."""
    asked: list[tuple[str, SimConfig]] = []

    def simulate(config: SimConfig, workload: Workload, _count: object, *, composition: Composition) -> Run:
        asked.append((composition.name, config))
        tct_s = 50.0 if composition.name.startswith("saga") else 100.0
        figures = {"tct_mean_s": tct_s + config.seed, "tasks_per_min": 3.0, "evicted_share": 0.1}
        return Run(config.preset, config.seed, figures)

    monkeypatch.setattr("saga.sim.driver.simulate", simulate)
    return asked


def paper(saga: Saga, out: Path, *arguments: object) -> Any:
    """One run of the command."""
    return saga("paper", "--quick", "--jobs", 1, "--out", out, *arguments)


def test_a_report_is_written_in_three_forms(saga: Saga, fake: list[object], tmp_path: Path) -> None:
    """Page, text and data, and one file per run; the statement is printed."""
    answer = paper(saga, tmp_path / "o", "--only", "queue", "--seeds", 2, "--json", tmp_path / "copy.json")
    assert answer.code == 0, answer.err
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == FILES
    document = json.loads((tmp_path / "o" / "report.json").read_text())
    assert document["complete"] is True
    assert [table["id"] for table in document["tables"]] == ["queue"]
    assert len(document["results"]["runs"]) == len(list((tmp_path / "o" / "runs").iterdir())) == len(fake) == 12
    assert (tmp_path / "copy.json").read_text() == (tmp_path / "o" / "report.json").read_text()
    assert "Queue strategies: " in answer.out
    assert "Queue strategies" in (tmp_path / "o" / "report.html").read_text()


def test_a_second_start_computes_nothing_again(saga: Saga, fake: list[object], tmp_path: Path) -> None:
    """Same report; more seeds or other tables add only what they need; a lost file is made again."""
    paper(saga, tmp_path, "--only", "queue", "--seeds", 1)
    first, done = (tmp_path / "report.json").read_text(), len(fake)
    again = paper(saga, tmp_path, "--only", "queue", "--seeds", 1)
    assert len(fake) == done == 6
    assert (tmp_path / "report.json").read_text() == first
    assert "6 of 6 runs are kept from before" in again.err
    paper(saga, tmp_path, "--only", "queue", "--seeds", 2)
    assert len(fake) == 12
    next((tmp_path / "runs").iterdir()).unlink()
    paper(saga, tmp_path, "--only", "queue", "--seeds", 2)
    assert len(fake) == 13


def test_equal_cells_of_several_tables_are_run_once(saga: Saga, fake: list[object], tmp_path: Path) -> None:
    """The queue table's Hybrid is the ablation's whole."""
    paper(saga, tmp_path, "--only", "queue,ablation", "--seeds", 1)
    assert len(fake) == len(set(fake)) == 4 + 2 * 7 + 7


@pytest.mark.parametrize("error", [PeerError, InvariantViolated, UsageError])
def test_what_dies_half_way_leaves_a_report_of_what_is_there(
    saga: Saga, fake: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[SagaError]
) -> None:
    """The error is passed on, the finished runs are kept, and the report says how many are missing."""
    from saga.sim.driver import simulate

    def dies(config: SimConfig, workload: Workload, count: object, *, composition: Composition) -> Run:
        if len(fake) == 4:
            raise error("the machine is on fire")
        return simulate(config, workload, count, composition=composition)

    monkeypatch.setattr("saga.sim.driver.simulate", dies)
    answer = paper(saga, tmp_path, "--only", "queue", "--seeds", 1)
    assert answer.code == (2 if error is UsageError else 1)
    assert "on fire" in answer.err
    document = json.loads((tmp_path / "report.json").read_text())
    assert (document["complete"], document["runs_missing"], document["runs_wanted"]) == (False, 2, 6)
    assert "2 of 6 runs are missing" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--seeds", 0), "--seeds 0"),
        (("--jobs", 0), "--jobs 0"),
        (("--only", ""), "names no table"),
        (("--only", ","), "names no table"),
        (("--only", "mian"), "did you mean 'main'"),
        (("--json", "/nowhere/x.json"), "--json /nowhere/x.json"),
        (("--seeds", "many"), "--seeds"),
    ],
)
def test_what_cannot_be_is_refused_before_any_run(
    saga: Saga, fake: list[object], tmp_path: Path, arguments: tuple[object, ...], words: str
) -> None:
    """Exit code 2, one line that names flag and value, no run, no file."""
    assert words in paper(saga, tmp_path / "o", *arguments).complaint
    assert fake == []
    assert not (tmp_path / "o").exists()


def test_a_folder_that_cannot_be_made_is_refused(saga: Saga, fake: list[object], tmp_path: Path) -> None:
    """It is a file, say."""
    (tmp_path / "file").touch()
    assert "--out" in paper(saga, tmp_path / "file", "--only", "queue").complaint
    assert fake == []


def test_timed_runs_are_of_one_core_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured elsewhere, or with the other core, is another run; simulated figures do not depend on it."""
    from saga.bench.evaluation.cells import Cell
    from saga.cli import studies

    config = SimConfig(preset="saga", workload="swe_bench", workers=1, agents_per_worker=1, tasks=2)
    timed = studies.CellRun(Cell("swe_bench", "saga", kind="timed"), 0, 2, config)
    simulated = studies.CellRun(Cell("swe_bench", "saga"), 0, 2, config)
    assert {"core", "machine"} <= timed.described().keys()
    before = timed.key(), simulated.key()
    for changed in ({"core": "other"}, {"machine": "other"}):
        there = studies.timed_on() | changed
        monkeypatch.setattr(studies, "timed_on", lambda there=there: there)
        assert timed.key() != before[0]
        assert simulated.key() == before[1]


@pytest.mark.slow
def test_a_tiny_one_is_real(saga: Saga, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, timed and replayed runs, end to end, on one worker with few tasks."""
    tiny = dataclasses.replace(
        QUICK, cluster=1, fleet=1, cluster_waves=0.1, waves=0.1, least_tasks=2, variation_loads=(0.1, 0.2)
    )
    tiny = dataclasses.replace(tiny, loads=(0.1,), cache_pressures=(1.5,), cache_waves=0.5, slo_tasks=4)
    monkeypatch.setattr("saga.bench.evaluation.cells.SCALES", {"quick": tiny})
    answer = paper(saga, tmp_path, "--only", "competitive,slo,queue,sensitivity,overheads", "--seeds", 1)
    assert answer.code == 0, answer.err
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["complete"] is True
    verdicts = {table["id"]: table["verdict"] for table in document["tables"]}
    assert set(verdicts) == {"competitive", "slo", "queue", "sensitivity", "overheads"}
    rows = [row for table in document["tables"] for row in table["rows"] if table["id"] in {"queue", "sensitivity"}]
    assert all(row["result"]["value"] >= 0.0 for row in rows)


def _listen() -> None:
    """A shell's background jobs ignore interrupts; this one does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _started(out: Path, jobs: int) -> subprocess.Popen[str]:
    """The command in a process group of its own, after its first run is kept."""
    command = [sys.executable, "-m", "saga", "paper", "--quick", "--only", "queue", "--seeds", "30"]
    process = subprocess.Popen(
        [*command, "--jobs", str(jobs), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_listen,  # noqa: PLW1509 - this process has no threads
    )
    for _ in range(1_200):
        if list((out / "runs").glob("*.json")) or process.poll() is not None:
            break
        time.sleep(0.1)
    return process


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="an interrupt is a signal of POSIX")
@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupt_leaves_a_partial_report_and_the_rest_is_made_later(tmp_path: Path, jobs: int) -> None:
    """Ctrl-C: exit code 130, whole files only, a valid report that says what is missing."""
    process = _started(tmp_path, jobs)
    try:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "report: " in out
    assert "interrupted" in err
    assert "Traceback" not in err
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["complete"] is False
    kept = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")]
    assert len(kept) == len(document["results"]["runs"]) == 180 - document["runs_missing"] >= 1
    assert "Partial" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="process groups are of POSIX")
def test_a_command_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    """Its simulating processes end with it, in the middle of a run."""
    process = _started(tmp_path, 2)
    process.kill()
    process.communicate(timeout=120)
    for _ in range(600):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail("processes of a killed command were still there after a minute")
