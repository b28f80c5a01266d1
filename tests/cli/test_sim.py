"""`saga sim` compares what it is told to compare, refuses what cannot be, and writes files that are whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saga.sim.config import SimConfig
from saga.sim.metrics import Run, RunDetail
from saga.workloads.plan import Workload

Saga = Callable[..., Any]
BASE = ("sim", "--workload", "swe_bench", "--jobs", 1)
SLOWNESS = {"vllm_apc": 3.0, "saga": 1.5}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[SimConfig]:
    """Runs that take no time, with figures that follow from preset and seed; the configurations that were asked for."""
    asked: list[SimConfig] = []

    def simulate(config: SimConfig, workload: Workload, on_progress: Callable[[int], None] | None = None) -> Run:
        asked.append(config)
        assert on_progress is not None
        on_progress(config.tasks)
        tct_s = SLOWNESS.get(config.preset, 1.0) * (100 + config.seed)
        detail = RunDetail(tct_s=[tct_s], occupancy=[(0.0, 0.5, 0.9)]) if config.detail else None
        return Run(config.preset, config.seed, {"tct_mean_s": tct_s, "tenants": {}, "wall_s": 0.0}, detail)

    monkeypatch.setattr("saga.sim.driver.simulate", simulate)
    return asked


def test_every_preset_meets_every_seed_once(saga: Saga, fake: list[SimConfig], tmp_path: Path) -> None:
    """Presets times seeds, in a stable order, all other choices equal."""
    out = tmp_path / "out.json"
    answer = saga(*BASE, "--preset", "vllm_apc,saga", "--seeds", 2, "--oversubscription", 1.5, "--json", out)
    assert answer.code == 0, answer.err
    assert [(config.preset, config.seed) for config in fake] == [
        ("vllm_apc", 0),
        ("saga", 0),
        ("vllm_apc", 1),
        ("saga", 1),
    ]
    document = json.loads(out.read_text())
    assert (document["schema"], document["kind"], document["workload"]) == (1, "simulated", "swe_bench")
    assert [(run["preset"], run["seed"]) for run in document["runs"]] == [(c.preset, c.seed) for c in fake]
    assert document["config"]["oversubscription"] == 1.5
    assert document["caveats"] == []
    assert [row["speedup"] for row in document["summary"]] == pytest.approx([1.0, 2.0])
    assert "2.00x" in answer.out
    assert "simulated" in answer.out


def test_one_seed_has_no_interval_and_says_so(saga: Saga, fake: list[SimConfig], tmp_path: Path) -> None:
    """Low and high are null, and the table is headed accordingly."""
    out = tmp_path / "out.json"
    answer = saga(*BASE, "--rate", 1, "--seeds", 1, "--json", out)
    saga_row = json.loads(out.read_text())["summary"][1]
    assert (saga_row["speedup_low"], saga_row["speedup_high"]) == (None, None)
    assert "one seed: no interval" in answer.out


def test_report_is_written_and_detail_is_kept_for_the_first_seed_only(
    saga: Saga, fake: list[SimConfig], tmp_path: Path
) -> None:
    """A page with drawings; the other seeds do not carry what nobody draws."""
    answer = saga(*BASE, "--agents-per-worker", 3, "--seeds", 2, "--report", tmp_path / "r.html")
    assert answer.code == 0, answer.err
    assert [config.detail for config in fake] == [True, True, False, False]
    assert "<svg" in (tmp_path / "r.html").read_text()


def test_infinite_share_is_null_and_not_a_crash(saga: Saga, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run that completed nothing is reported with dashes."""
    monkeypatch.setattr("saga.sim.driver.simulate", lambda config, *_: Run(config.preset, config.seed, {"moves": 0}))
    answer = saga(*BASE, "--rate", 1, "--seeds", 2, "--json", tmp_path / "o.json")
    assert answer.code == 0
    assert json.loads((tmp_path / "o.json").read_text())["summary"][1]["speedup"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no load given"),
        (("--rate", 1, "--oversubscription", 1), "2 loads given"),
        (("--rate", 1, "--as-recorded"), "2 loads given"),
        (("--rate", "nan"), "nan"),
        (("--rate", -1), "-1"),
        (("--oversubscription", 0), "0"),
        (("--rate", 1, "--workers", 0), "workers = 0"),
        (("--rate", 1, "--tasks", 0), "tasks = 0"),
        (("--rate", 1, "--seeds", 0), "--seeds 0"),
        (("--rate", 1, "--jobs", -2), "--jobs -2"),
        (("--rate", 1, "--kv-tokens", -5), "-5"),
        (("--rate", 1, "--preset", "vllm_apc,sagaa"), "did you mean 'saga'"),
        (("--rate", 1, "--preset", "saga,saga"), "twice"),
        (("--rate", 1, "--preset", ""), "--preset '' names no preset"),
        (("--rate", 1, "--preset", " , "), "names no preset"),
        (("--rate", 1, "--preset", "saga,,vllm"), "--preset 'saga,,vllm': a name is empty"),
        (("--rate", 1, "--preset", "saga, "), "a name is empty"),
        (("--rate", 1, "--hardware", "abacus"), "abacus"),
        (("--rate", 1, "--workload", "swe_bunch"), "did you mean 'swe_bench'"),
        (("--rate", 1, "--min-calls", 5, "--max-calls", 2), "max_calls"),
        (("--rate", 1, "--gap-cap-s", "nan"), "gap_cap_s"),
        (("--rate", 1, "--json", "/nowhere/x.json"), "--json /nowhere/x.json"),
        (("--rate", 1, "--report", "/"), "--report /"),
        (("--rate", 1, "--log", "run.jsonl"), "--log records one run, not 6"),
        (("--rate", 1, "--json", "x", "--report", "x"), "same file"),
    ],
)
def test_what_cannot_be_is_refused_before_any_run(
    saga: Saga,
    fake: list[SimConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    words: str,
) -> None:
    """Exit code 2, one line that names flag and value, no run started, no file left."""
    monkeypatch.chdir(tmp_path)
    assert words in saga(*BASE, *arguments).complaint
    assert fake == []
    assert list(tmp_path.iterdir()) == []
