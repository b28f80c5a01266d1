"""Exit codes, one-line errors, and a start that loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from saga import __version__
from saga.errors import InvariantViolated, PeerError, UnknownName

Saga = Callable[..., Any]


@pytest.mark.parametrize("arguments", [(), ("--help",), ("sim", "--help"), ("presets", "show", "--help")])
def test_help_is_not_an_error(saga: Saga, arguments: tuple[str, ...]) -> None:
    """Help goes to standard output with exit code 0, also when nothing was asked."""
    answer = saga(*arguments)
    assert answer.code == 0
    assert "Usage: saga" in answer.out


def test_version(saga: Saga) -> None:
    """--version names the version and does nothing else."""
    assert saga("--version").out == f"saga {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bogus",), "bogus"),
        (("sim",), "--workload"),
        (("sim", "--workload"), "--workload"),
        (("sim", "--workload", "swe_bench", "--workers", "many"), "--workers"),
        (("explain",), "LOG"),
        (("--bogus",), "--bogus"),
    ],
)
def test_wrong_flags_are_one_line(saga: Saga, arguments: tuple[str, ...], words: str) -> None:
    """A flag that is unknown, missing or mistyped: exit code 2, one line that names it."""
    assert words.lower() in saga(*arguments).complaint.lower()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UnknownName("preset", "sagaa", ["saga"]), 2, "did you mean 'saga'?"),
        (PeerError("engine w0 went away"), 1, "engine w0 went away"),
        (InvariantViolated("law 3"), 1, "law 3"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_each_kind_of_error_has_its_exit_code(
    saga: Saga, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    """The caller's fault is 2, everything else of the tree 1, an interrupt 130; never a traceback."""

    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr("saga.presets.preset", fail)
    answer = saga("presets", "show", "saga")
    assert answer.code == code
    assert words in answer.err
    assert "Traceback" not in answer.err


def test_the_start_loads_nothing_heavy() -> None:
    """`saga --help` imports neither numpy nor the simulator: what makes it instant."""
    check = (
        "import sys, saga.cli.main; "
        "heavy = {'numpy', 'matplotlib', 'jinja2', 'saga.sim', 'saga.engine', 'saga.presets', 'multiprocessing'}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
