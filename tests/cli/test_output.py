"""Paths are checked before the work, and tables are cut where they do not fit."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from saga.bench.files import write_whole
from saga.bench.tables import Table
from saga.cli.output import check_writable, print_table
from saga.errors import UsageError


def test_a_good_path_is_left_as_it_was(tmp_path: Path) -> None:
    """The check makes nothing and changes nothing."""
    (tmp_path / "old.json").write_text("old")
    check_writable(tmp_path / "old.json", "--json")
    check_writable(tmp_path / "new.json", "--json")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old.json": "old"}


@pytest.mark.parametrize(
    ("path", "words"),
    [(".", "not a regular file"), ("nowhere/x.json", "there is no folder"), ("file/x.json", "there is no folder")],
)
def test_a_bad_path_is_named_with_its_flag(tmp_path: Path, path: str, words: str) -> None:
    """A folder, a missing folder, a file in the place of a folder."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=words) as error:
        check_writable(tmp_path / path, "--json")
    assert str(error.value).startswith("--json ")


def test_a_device_is_never_replaced() -> None:
    """Renaming onto /dev/null would remove it."""
    with pytest.raises(UsageError, match="not a regular file"):
        check_writable(Path("/dev/null"), "--json")


def test_a_folder_that_refuses_is_found_out_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No right to write: said at once."""

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(UsageError, match=r"cannot write in .*: Permission denied"):
        check_writable(tmp_path / "x.json", "--json")


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole or not at all."""
    path = tmp_path / "x.json"
    path.write_text("old")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UsageError, match="No space left"):
        write_whole(path, "new")
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("x.json", "old")]


def test_a_wide_table_is_cut_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a narrow terminal every preset and every row label still shows whole."""
    names = [f"a_preset_with_name_{index}" for index in range(9)]
    table = Table("simulated", ("", *names), (("TCT mean s", *(f"{index}.5" for index in range(9))),))
    shown = io.StringIO()
    shown.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdout", shown)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    print_table(table)
    lines = shown.getvalue().splitlines()
    assert all(any(name in line for line in lines) for name in names)
    assert sum("TCT mean s" in line for line in lines) > 1
