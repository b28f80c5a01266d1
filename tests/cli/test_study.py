"""`saga study`: one's own trace under several presets, resumable like `saga paper`, bad input refused first."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saga.scheduler.composition import Composition
from saga.sim.config import SimConfig
from saga.sim.metrics import Run
from saga.workloads.plan import Workload

Saga = Callable[..., Any]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Twenty sessions of four calls each, of two tenants."""
    path = tmp_path / "mine.jsonl"
    rows = [
        {
            "session_id": f"s{session}",
            "step": step,
            "input_tokens": 4_000 + 500 * step,
            "output_tokens": 50,
            "gap_s": 1.0,
            "tenant": f"t{session % 2}",
        }
        for session in range(20)
        for step in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[SimConfig]:
    """Runs that take no time."""
    asked: list[SimConfig] = []

    def simulate(config: SimConfig, workload: Workload, _count: object, *, composition: Composition) -> Run:
        asked.append(config)
        tenants = {name: {"tasks_completed": 2, "tct_mean_s": 1.0, "within_2x_share": 1.0} for name in ("t0", "t1")}
        figures = {"tct_mean_s": 50.0 + config.seed, "regenerated_time_share": 0.1, "tenants": tenants}
        return Run(config.preset, config.seed, figures)

    monkeypatch.setattr("saga.sim.driver.simulate", simulate)
    return asked


def test_a_trace_is_studied(saga: Saga, fake: list[SimConfig], trace: Path, tmp_path: Path) -> None:
    """Presets times loads times seeds; a report without claims; a second start runs nothing."""
    arguments = ("study", "--workload", trace, "--preset", "vllm_apc,saga", "--loads", "0.8,1.5", "--seeds", 2)
    arguments += ("--only", "comparison,tenants", "--jobs", 1, "--out", tmp_path / "o")
    answer = saga(*arguments)
    assert answer.code == 0, answer.err
    assert sorted({(c.preset, c.oversubscription) for c in fake}) == [
        (name, load) for name in ("saga", "vllm_apc") for load in (0.8, 1.5)
    ]
    assert len(fake) == 8
    document = json.loads((tmp_path / "o" / "report.json").read_text())
    assert document["claims"] is None
    assert [table["verdict"] for table in document["tables"]] == [None, None]
    assert "the worst served tenant" in (tmp_path / "o" / "report.md").read_text()
    assert saga(*arguments).code == 0
    assert len(fake) == 8


def test_another_trace_of_the_same_name_is_run_anew(
    saga: Saga, fake: list[SimConfig], trace: Path, tmp_path: Path
) -> None:
    """What is in the file counts."""
    arguments = ("study", "--workload", trace, "--preset", "saga,vllm_apc", "--loads", "1", "--seeds", 1)
    arguments += ("--only", "comparison", "--jobs", 1, "--out", tmp_path / "o")
    saga(*arguments)
    trace.write_text(trace.read_text().replace('"output_tokens": 50', '"output_tokens": 60'))
    from saga.bench.evaluation.store import file_version

    file_version.cache_clear()  # as in a new process
    saga(*arguments)
    assert len(fake) == 4


def test_another_machine_of_the_same_name_is_run_anew(
    saga: Saga, fake: list[SimConfig], trace: Path, tmp_path: Path
) -> None:
    """What a user's file of hardware says of it counts."""
    from saga.engine.hardware import as_toml, hardware

    machine, path = hardware("llama3-70b-a100x4"), tmp_path / "mine.toml"
    arguments = ("study", "--workload", trace, "--preset", "saga,vllm_apc", "--loads", "1", "--seeds", 1)
    arguments += ("--only", "comparison", "--jobs", 1, "--out", tmp_path / "o", "--hardware", f"{path}:{machine.name}")
    for times in (1, 1, 2):
        path.write_text(as_toml(dataclasses.replace(machine, lm_head_ms=times * machine.lm_head_ms)))
        answer = saga(*arguments)
        assert answer.code == 0, answer.err
    assert len(fake) == 4


@pytest.mark.slow
def test_every_part_of_a_study_is_real(saga: Saga, trace: Path, tmp_path: Path) -> None:
    """All four tables from simulated runs and replays of a small trace on a small worker."""
    answer = saga(
        *("study", "--workload", trace, "--preset", "vllm_apc,saga,infinite_kv", "--loads", "1.5", "--seeds", 1),
        *("--kv-tokens", 40_000, "--dram-tokens", 40_000, "--jobs", 1, "--waves", 1, "--out", tmp_path / "o"),
    )
    assert answer.code == 0, answer.err
    document = json.loads((tmp_path / "o" / "report.json").read_text())
    assert [table["id"] for table in document["tables"]] == ["comparison", "ablation", "tenants", "cache"]
    assert document["complete"] is True
    assert "saga" in answer.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--loads", ""), "names no load"),
        (("--loads", "1,two"), "'two'"),
        (("--loads", "0"), "above 0"),
        (("--preset", "sagaa"), "did you mean 'saga'"),
        (("--preset", "saga,saga"), "twice"),
        (("--only", "tenant"), "tenants"),
        (("--only", "cache", "--loads", "0.5"), "nothing to run"),
        (("--seeds", 0), "--seeds 0"),
        (("--jobs", 0), "--jobs 0"),
        (("--workers", 0), "--workers 0"),
        (("--waves", 0), "--waves 0"),
        (("--waves", "nan"), "--waves nan"),
        (("--hardware", "abacus"), "abacus"),
        (("--kv-tokens", -5), "-5"),
        (("--max-context", 10), "10"),
        (("--workload", "no/such.jsonl"), "no/such.jsonl"),
        (("--json", "/nowhere/x.json"), "--json"),
    ],
)
def test_what_cannot_be_is_refused_before_any_run(
    saga: Saga, fake: list[SimConfig], trace: Path, tmp_path: Path, arguments: tuple[object, ...], words: str
) -> None:
    """Exit code 2, one line that names flag and value, no run, no folder."""
    workload = () if "--workload" in arguments else ("--workload", trace)
    assert words in saga("study", *workload, "--jobs", 1, "--out", tmp_path / "o", *arguments).complaint
    assert fake == []
    assert not (tmp_path / "o").exists()
