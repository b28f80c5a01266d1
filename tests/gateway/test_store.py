"""Tests of what survives a restart."""

from __future__ import annotations

import sqlite3

import pytest

from saga.errors import UsageError
from saga.gateway.store import Store


def test_what_was_saved_is_there_again(tmp_path):
    """The last of each part, whole."""
    path = tmp_path / "saga.db"
    store = Store(path)
    store.save("a", {"n": 1})
    store.save("a", {"n": 2, "list": [[1, "x", 2.5]]})
    store.save("b", b"\x00\xff")
    store.close()
    again = Store(path)
    assert again.load("a") == {"n": 2, "list": [[1, "x", 2.5]]}
    assert again.load("b") == b"\x00\xff"
    assert again.load("c") is None
    again.close()


def test_what_was_flushed_survives_a_crash(tmp_path):
    """No close: another process finds it."""
    store = Store(tmp_path / "saga.db")
    store.save("a", [1])
    assert store.flush()
    assert Store(tmp_path / "saga.db").load("a") == [1]


@pytest.mark.parametrize("rubbish", [b"", b"not a database, " * 100, b"SQLite format 3\x00" + b"\x07" * 5_000])
def test_a_corrupt_file_is_set_aside_with_a_warning(tmp_path, rubbish, caplog):
    """The gateway starts without it, and its owner may look at it."""
    path = tmp_path / "saga.db"
    path.write_bytes(rubbish)
    store = Store(path)
    assert store.load("a") is None
    store.save("a", 1)
    assert store.flush()
    store.close()
    aside = list(tmp_path.glob("saga.db.corrupt-*"))
    if rubbish:
        assert [file.read_bytes() for file in aside] == [rubbish]
        assert "set aside" in caplog.text
    assert Store(path).load("a") == 1


def test_a_file_of_another_version_is_set_aside(tmp_path):
    """What cannot be understood is not written over."""
    path = tmp_path / "saga.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    Store(path).close()
    assert len(list(tmp_path.glob("saga.db.corrupt-*"))) == 1


def test_a_part_that_cannot_be_read_is_as_if_it_were_not_there(tmp_path):
    """Others are."""
    path = tmp_path / "saga.db"
    store = Store(path)
    store.save("good", 1)
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO part VALUES ('bad', 0, x'00')")
    connection.close()
    again = Store(path)
    assert (again.load("bad"), again.load("good")) == (None, 1)
    again.close()


def test_a_part_that_is_too_large_or_no_data_is_not_written(tmp_path):
    """The last good one stays; the gateway goes on."""
    store = Store(tmp_path / "saga.db", max_part_bytes=1_000)
    store.save("a", 1)
    store.flush()
    store.save("a", list(range(100_000)))
    store.flush()
    store.save("a", {"no": object()})
    store.flush()
    assert store.num_failed == 2
    store.close()
    assert Store(tmp_path / "saga.db").load("a") == 1


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    """Before anything is served."""
    with pytest.raises(UsageError, match="there is no folder"):
        Store(tmp_path / "nowhere" / "saga.db")
