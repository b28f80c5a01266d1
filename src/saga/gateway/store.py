"""What survives a restart: learned graphs, tool latencies and the index of sessions, in an embedded SQLite file.

Snapshots are taken on the event loop (plain data) and written by one thread, the newest only: a slow disk makes
snapshots rarer, never calls slower. A file holds one row per part, so its size is that of one snapshot and the
journal's. A file that cannot be read is set aside under another name, with a warning; a gateway starts without it.
It refuses to know what the parts mean.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import msgspec

from saga.errors import UsageError
from saga.gateway.journal import say

_FORMAT = 1
_SCHEMA = "CREATE TABLE IF NOT EXISTS part (name TEXT PRIMARY KEY, saved_at REAL NOT NULL, data BLOB NOT NULL)"


class Store:
    """Parts by name. Methods may be called from any thread. Raises UsageError where nothing can be written."""

    def __init__(self, path: Path, *, max_part_bytes: int = 256 * 2**20) -> None:
        self.path = path
        self._max_part_bytes = max_part_bytes
        self._pending: dict[str, Any] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._busy = False
        self.num_saved = 0
        self.num_failed = 0
        if not path.parent.is_dir():
            raise UsageError(f"db {path}: there is no folder {path.parent}")
        self._found = self._open_and_read()
        self._thread = threading.Thread(target=self._write_on, name="saga-store", daemon=True)
        self._thread.start()

    def load(self, part: str) -> Any | None:  # noqa: ANN401 - plain data of whatever shape was saved
        """What was saved last, None where nothing was or it cannot be read."""
        packed = self._found.pop(part, None)
        if packed is None:
            return None
        try:
            return msgspec.msgpack.decode(zlib.decompress(packed), strict=False)
        except (zlib.error, msgspec.MsgspecError) as error:
            say(logging.WARNING, "saved part cannot be read", part=part, why=str(error))
            return None

    def save(self, part: str, data: Any) -> None:  # noqa: ANN401 - plain data
        """Write it soon; what was not written yet of the same part is replaced."""
        with self._wake:
            self._pending[part] = data
            self._wake.notify_all()

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until all is written; whether it was in time."""
        deadline_s = time.monotonic() + timeout_s
        with self._wake:
            while (self._pending or self._busy) and self._thread.is_alive():
                if not self._wake.wait(max(0.0, deadline_s - time.monotonic())):
                    return False
        return True

    def close(self) -> None:
        """Write what is pending, and stop."""
        self.flush()
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join(timeout=10.0)

    # ------------------------------------------------------------------ the file

    def _open_and_read(self) -> dict[str, bytes]:
        try:
            return self._read_all()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "unable to open" in str(error):
                raise UsageError(f"db {self.path}: {error}") from error
            self._set_aside(str(error))
            try:
                return self._read_all()
            except sqlite3.DatabaseError as again:
                raise UsageError(f"db {self.path}: {again}") from again

    def _set_aside(self, why: str) -> None:
        aside = self.path.with_name(f"{self.path.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}")
        self.path.rename(aside)
        for tail in ("-wal", "-shm"):
            self.path.with_name(self.path.name + tail).unlink(missing_ok=True)
        say(logging.WARNING, "database set aside", file=str(self.path), aside=str(aside), why=why)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=5.0)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA journal_size_limit=16777216")
        return connection

    def _read_all(self) -> dict[str, bytes]:
        with contextlib.closing(self._connect()) as connection, connection:
            if connection.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("quick_check failed")
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            if found not in (0, _FORMAT):
                raise sqlite3.DatabaseError(f"user_version {found}; this version writes {_FORMAT}")
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA user_version={_FORMAT}")
            return {name: bytes(data) for name, data in connection.execute("SELECT name, data FROM part")}

    # ------------------------------------------------------------------ the thread

    def _write_on(self) -> None:
        with contextlib.closing(self._connect()) as connection:
            while (parts := self._take()) is not None:
                try:
                    self._write(connection, parts)
                    self.num_saved += 1
                except (sqlite3.Error, msgspec.MsgspecError, TypeError, ValueError) as error:
                    self.num_failed += 1
                    say(logging.ERROR, "could not save", file=str(self.path), why=str(error))
                with self._wake:
                    self._busy = False
                    self._wake.notify_all()

    def _take(self) -> dict[str, Any] | None:
        with self._wake:
            while not self._pending and not self._closing:
                self._wake.wait()
            if not self._pending:
                return None
            parts, self._pending = self._pending, {}
            self._busy = True
            return parts

    def _write(self, connection: sqlite3.Connection, parts: dict[str, Any]) -> None:
        now = time.time()
        with connection:
            for name, data in parts.items():
                packed = zlib.compress(msgspec.msgpack.encode(data), 1)
                if len(packed) > self._max_part_bytes:
                    raise ValueError(f"{name} takes {len(packed)} bytes, more than {self._max_part_bytes}")
                connection.execute("INSERT OR REPLACE INTO part VALUES (?, ?, ?)", (name, now, packed))
