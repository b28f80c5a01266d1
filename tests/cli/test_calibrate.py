"""`saga calibrate`: a table that `saga sim` takes, residuals on the screen, one line for what cannot be measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from saga.engine.hardware import HARDWARE, as_toml, load_hardware
from saga.engine.latency import LatencyModel
from saga.engine.server import ServerSettings

from .servers import engine

MACHINE = HARDWARE["llama3-8b-h100"]
SETTINGS = ServerSettings(hardware=MACHINE, model="served", step_s=0.002)


@pytest.mark.slow
def test_a_server_becomes_a_table_that_the_simulator_takes(saga: Callable[..., Any], tmp_path: Path) -> None:
    """Sizes, provenance, all probes; other tables stay; decode is half to one and a half of the truth."""
    out, figures = tmp_path / "mine.toml", tmp_path / "figures.json"
    out.write_text(as_toml(MACHINE))
    with engine(replace(SETTINGS, max_model_len=3_000, kv_tokens=20_000)) as url:
        answer = saga("calibrate", "--url", url, "--repeats", 1, "--out", out, "--json", figures)
    assert answer.code == 0, answer.err
    assert "held out" in answer.out
    tables = load_hardware(out)
    assert tables[MACHINE.name] == MACHINE
    found = tables["served"]
    assert found.kv_tokens == 20_000
    assert "served on engine saga-" in found.provenance
    document = json.loads(figures.read_text())
    assert (document["schema"], document["kind"], document["engine"][:5]) == (1, "calibrated", "saga-")
    assert {probe["kind"] for probe in document["probes"]} == {"prefill", "chunked", "cached", "decode", "mixed"}
    decode_s = LatencyModel(found).decode_run_s(4, 4_000, 32)
    assert decode_s == pytest.approx(LatencyModel(MACHINE).decode_run_s(4, 4_000, 32), rel=0.5)
    load = ("--workload", "web_arena", "--preset", "vllm_apc", "--agents-per-worker", 2, "--tasks", 3, "--seeds", 1)
    assert saga("sim", *load, "--workers", 1, "--hardware", f"{out}:served", "--max-context", 8_000).code == 0


def test_what_the_server_says_no_to(saga: Callable[..., Any], tmp_path: Path) -> None:
    """A model that is not served, a context that is too short: before any probe, one line."""
    with engine(replace(SETTINGS, max_model_len=200)) as url:
        wanted = ("calibrate", "--url", url, "--out", tmp_path / "x.toml")
        assert "does not serve model 'other' but served" in saga(*wanted, "--model", "other").complaint
        assert "takes 200 tokens of context" in saga(*wanted).complaint


def test_an_engine_that_is_down_is_one_line_and_exit_code_1(saga: Callable[..., Any]) -> None:
    """It is not the caller's fault."""
    answer = saga("calibrate", "--url", "http://127.0.0.1:1")
    assert (answer.code, answer.err) == (1, "saga: http://127.0.0.1:1/v1: no answer: Connection refused\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "exactly one of --url URL and --engine in-process MODEL"),
        (("--url", "http://h:1", "--engine", "in-process"), "exactly one of"),
        (("--url", "h:1"), "is no URL"),
        (("--url", "http://h:1", "model"), "the model is given with --model"),
        (("--engine", "elsewhere", "m"), "must be in-process"),
        (("--engine", "in-process"), "needs a model"),
        (("--engine", "in-process", "m", "--key-env", "K"), "--key-env is of a server"),
        (("--engine", "in-process", "m", "--clock", "sun"), "--clock 'sun'"),
        (("--url", "http://h:1", "--clock", "cpu"), "cpu with --engine in-process"),
        (("--url", "http://h:1", "--key-env", "NO_SUCH_VARIABLE"), "no such environment variable"),
        (("--url", "http://h:1", "--name", "a b"), "--name 'a b'"),
        (("--url", "http://h:1", "--out", "/nowhere/out.toml"), "there is no folder"),
        (("--url", "http://h:1", "--out", __file__), "not TOML"),
        (("--url", "http://h:1", "--repeats", 0), "greater than or equal to 1"),
    ],
)
def test_bad_arguments_are_one_line(saga: Callable[..., Any], arguments: tuple[object, ...], says: str) -> None:
    """Exit code 2, before anything is sent."""
    assert says in saga("calibrate", *arguments).complaint


def test_no_vllm_is_said(saga: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without vLLM beside it, the engine in this process is refused with what would do."""
    monkeypatch.setattr(
        "saga.vllm_plugin.in_process.find_spec", lambda name: None if name == "vllm" else find_spec(name)
    )
    assert "vllm is not installed" in saga("calibrate", "--engine", "in-process", "model").complaint
