"""How the tests of the command line run it: as `saga ...` in this process, with what it printed and its exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from saga.cli.main import main


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line of a usage error; fails where there is more or less, or where the exit code is another."""
        assert self.code == 2, self
        assert self.err.startswith("saga: "), self
        assert self.err.count("\n") == 1, self
        assert "Traceback" not in self.err
        return self.err


@pytest.fixture
def saga(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """`saga("sim", "--help")` runs the command and returns its answer."""

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["saga", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        shown = capsys.readouterr()
        code = left.value.code
        assert isinstance(code, int)
        return Answer(code, shown.out, shown.err)

    return run
