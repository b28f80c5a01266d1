"""Finished runs are found again by what was run, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from saga.bench.evaluation import store
from saga.bench.evaluation.store import RunStore, code_version, file_version, key_of
from saga.errors import UsageError


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    """Under its key, and not under another; no draft is left."""
    runs = RunStore(tmp_path)
    runs.save("k1", "simulated", {"system": "saga"}, {"tct_mean_s": 1.5})
    assert runs.load("k1") == {"tct_mean_s": 1.5}
    assert runs.load("k2") is None
    assert [path.name for path in runs.folder.iterdir()] == ["k1.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 2, "key": "k", "metrics": {}}', '{"schema": 1, "key": "x"}']
)
def test_a_file_that_cannot_be_used_is_missing(tmp_path: Path, text: str) -> None:
    """Half a file, another schema, another key: the run is made again rather than believed."""
    runs = RunStore(tmp_path)
    (runs.folder / "k.json").write_text(text)
    assert runs.load("k") is None


def test_the_key_is_of_everything_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of its fields is not; a value, or the code, is."""
    one = key_of({"seed": 1, "system": "saga"})
    assert one == key_of({"system": "saga", "seed": 1})
    assert one != key_of({"system": "saga", "seed": 2})
    monkeypatch.setattr(store, "code_version", lambda: "other code")
    assert one != key_of({"seed": 1, "system": "saga"})


def test_the_code_that_counts_is_there() -> None:
    """Every place that the version is made of exists, so that a renamed package cannot fall out of it."""
    root = Path(store.__file__).parents[2]
    assert all((root / name).exists() for name in store._CODE)
    assert len(code_version()) == 64


def test_a_trace_is_known_by_its_content(tmp_path: Path) -> None:
    """Two files of one content are the same trace, wherever they lie."""
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).write_text(text)
    versions = [file_version(tmp_path / name) for name in "abc"]
    assert versions[0] == versions[1] != versions[2]


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """Before any run."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--out"):
        RunStore(tmp_path / "file")
