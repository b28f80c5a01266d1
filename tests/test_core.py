"""One choice, made openly: the Python core or the same sources compiled, with the same answers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import pytest

import saga
from saga.core import choose

SOURCE = Path(saga.__file__).parent
RUN = """
import sys
from saga.engine import batching
from saga.sim.config import SimConfig
from saga.sim.driver import simulate
from saga.workloads.catalogue import workload
from saga.workloads.limits import Limits
load = {"workload": "ten_tenants", "workers": 2, "tasks": 60, "oversubscription": 1.3}
config = SimConfig(preset=sys.argv[1], log_path=sys.argv[2], **load)
simulate(config, workload(config.workload, Limits(), kv_tokens=config.kv_tokens))
print(batching.__file__)
"""


def built(monkeypatch: pytest.MonkeyPatch, folder: Path, **digests: str) -> None:
    """As if `native/build.py` had compiled these modules into the folder."""
    made = ModuleType("saga_native")
    made.__file__ = str(folder / "__init__.py")
    made.SOURCES = {name.replace("_", "."): digest for name, digest in digests.items()}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "saga_native", made)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))


def test_a_core_that_nobody_knows_is_refused() -> None:
    """The message names the variable, what it says and what would be right."""
    with pytest.raises(ImportError, match="SAGA_CORE='fast': expected one of python, native"):
        choose("fast", SOURCE)


def test_a_core_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for the compiled core never gets the other one."""
    monkeypatch.setitem(sys.modules, "saga_native", None)
    with pytest.raises(ImportError, match="SAGA_CORE=native: the compiled core is not there; `make native` builds it"):
        choose("native", SOURCE)


def test_a_core_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was compiled before a source changed, or went, does not run in its place."""
    for name in ("saga_views", "saga_gone"):
        built(monkeypatch, tmp_path, **{name: "0"})
        with pytest.raises(ImportError, match=f"{name.replace('_', '.')} has changed since it was compiled"):
            choose("native", SOURCE)


def test_compiled_modules_are_found_before_their_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those that were compiled, and no others."""
    built(monkeypatch, tmp_path, saga_views=hashlib.sha256((SOURCE / "views.py").read_bytes()).hexdigest())
    choose("native", SOURCE)
    finder = sys.meta_path[0]
    spec = finder.find_spec("saga.views", None)
    assert spec is not None
    assert spec.origin == str(tmp_path / "saga" / f"views{EXTENSION_SUFFIXES[0]}")
    assert finder.find_spec("saga.events", None) is None


def test_the_python_core_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked for, and imports stay as they are."""
    monkeypatch.setitem(sys.modules, "saga_native", None)
    before = list(sys.meta_path)
    choose("python", SOURCE)
    assert sys.meta_path == before


def with_core(core: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, with that core."""
    environment = os.environ | {"SAGA_CORE": core}
    return subprocess.run(
        [sys.executable, "-c", *arguments], env=environment, check=False, capture_output=True, text=True
    )


@pytest.mark.slow
def test_runs_of_the_compiled_core_cross_processes(tmp_path: Path) -> None:
    """What a pool of simulating processes is sent, and sends back, is not among what was compiled."""
    asked = with_core("native", "import saga")
    if asked.returncode:
        pytest.skip(asked.stderr.splitlines()[-1])
    run = "saga sim --workload swe_bench --preset vllm_apc,saga --oversubscription 1 --tasks 20 --seeds 1 --workers 1"
    code = "import sys; from saga.cli.main import main; sys.argv = sys.argv[1:]; main()"
    done = with_core("native", code, *run.split(), "--jobs", "2", "--json", str(tmp_path / "runs.json"))
    assert done.returncode == 0, done.stderr
    assert [each["preset"] for each in json.loads((tmp_path / "runs.json").read_text())["runs"]] == ["vllm_apc", "saga"]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["vllm_apc", "saga", "saga_paper", "infinite_kv"])
def test_both_cores_decide_the_same(preset: str, tmp_path: Path) -> None:
    """Every event and every command of a run is the same to the last bit of its times."""
    asked = with_core("native", "import saga")
    if asked.returncode:
        pytest.skip(asked.stderr.splitlines()[-1])
    logs = []
    for core, suffix in (("python", ".py"), ("native", EXTENSION_SUFFIXES[0])):
        log = tmp_path / "run.jsonl"
        done = with_core(core, RUN, preset, str(log))
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith(suffix)
        logs.append(log.read_bytes())
    assert logs[0] == logs[1]
