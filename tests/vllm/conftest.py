"""A real vLLM for these tests: the tiny model, one engine in this process at a time, or a server beside it.

vLLM is imported when the first test wants an engine, never at collection. Where it is not installed the tests are
skipped; with CI set that is an error. All run on one worker of pytest-xdist (`--dist loadgroup`).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_model import ENVIRONMENT, make_tiny_model

from .engines import Engines, Server, clean_shared_memory

HERE = Path(__file__).resolve().parent
INSTALLED = importlib.util.find_spec("vllm") is not None
MISSING = "no vLLM here: `make test` installs it where pip finds the wheels of constraints-vllm.txt"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, before `-m` selects."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.real_engine)
            item.add_marker(pytest.mark.xdist_group("real_engine"))
            if not INSTALLED and not os.environ.get("CI"):
                item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture(scope="session", autouse=True)
def _installed() -> None:
    assert INSTALLED, f"{MISSING}; with CI set they are required"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """The folder of the tiny model (benchmarks/tiny_model.py), made once per run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        return make_tiny_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture(scope="session")
def engines(tiny_model) -> Iterator[Engines]:
    """Engines in this process, one at a time; `engines.get(**settings)` builds one or gives that of before."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_CONFIGURE_LOGGING", "0")
        engines = Engines(tiny_model)
        yield engines
        engines.close()
    clean_shared_memory()


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory) -> Iterator[Server]:
    """A server of vLLM; `server.start(*flags)` starts it, once per module."""
    server = Server(tiny_model, tmp_path_factory.mktemp("server"))
    yield server
    server.stop()
    clean_shared_memory()
