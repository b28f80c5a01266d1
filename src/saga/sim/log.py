"""A run's log: every event and every command as JSON lines, so that a run explains itself and replays.

First line: {"schema": 1, "kind": "log", ...}; then {"event": {...}} and, for each of its commands,
{"command": {...}, "at_s": t}. The file appears under its name only when the run is complete.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec

from saga import commands as do
from saga import events as ev
from saga.sim.config import SimConfig

_ENCODER = msgspec.json.Encoder()


class NoLog:
    """Nothing is written."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def event(self, event: ev.Event) -> None:
        """Nothing."""

    def command(self, command: do.Command, at_s: float) -> None:
        """Nothing."""


class RunLog:
    """Writes beside `log_path` and renames at the end; an interrupted run leaves nothing behind."""

    def __init__(self, config: SimConfig) -> None:
        assert config.log_path is not None
        self._path = Path(config.log_path)
        self._part = self._path.with_name(self._path.name + ".part")
        self._config = config
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self._file = self._part.open("wb")
        header = {"schema": 1, "kind": "log", **self._config.as_dict()}
        self._write(header)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        assert self._file is not None
        self._file.close()
        if kind is None:
            self._part.replace(self._path)
        else:
            self._part.unlink(missing_ok=True)

    def event(self, event: ev.Event) -> None:
        """One line."""
        self._write({"event": event})

    def command(self, command: do.Command, at_s: float) -> None:
        """One line."""
        self._write({"command": command, "at_s": at_s})

    def _write(self, line: object) -> None:
        assert self._file is not None
        self._file.write(_ENCODER.encode(line) + b"\n")
