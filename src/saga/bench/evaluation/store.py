"""A folder of finished runs: one file each, written whole, found again by what was run.

The key is a hash of everything that a run's figures depend on: its configuration, its composition, the recorded trace
if there is one, and the project's own code below the command line. A file that cannot be read, or is of another key,
counts as missing. Refuses to know what the figures mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import msgspec

import saga
from saga.bench.files import write_whole
from saga.errors import UsageError

SCHEMA = 1
_CODE = (
    "engine",
    "scheduler",
    "cache",
    "routing",
    "ordering",
    "fairness",
    "workflow",
    "workloads",
    "sim",
    "events.py",
    "commands.py",
    "views.py",
)
"""Where the figures of a run come from; presets are not among them, since the composition itself is in the key."""


class RunStore:
    """Runs under `folder`/runs; UsageError where that cannot be made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "runs"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {folder}: cannot make the folder {self.folder}: {error.strerror}") from error

    def load(self, key: str) -> Mapping[str, object] | None:
        """The metrics kept under this key, None where there are none that can be read."""
        try:
            document = msgspec.json.decode(self._path(key).read_bytes(), type=dict[str, object])
        except (OSError, msgspec.DecodeError):
            return None
        metrics = document.get("metrics")
        if document.get("schema") != SCHEMA or document.get("key") != key or not isinstance(metrics, dict):
            return None
        return metrics

    def save(self, key: str, kind: str, what: Mapping[str, object], metrics: Mapping[str, object]) -> None:
        """Keep a finished run. kind: simulated or measured; what: the description that people read."""
        document = {"schema": SCHEMA, "kind": kind, "key": key, "run": what, "metrics": metrics}
        write_whole(self._path(key), msgspec.json.format(msgspec.json.encode(document), indent=1).decode() + "\n")

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def key_of(what: Mapping[str, object]) -> str:
    """The key of a run described by plain data, under the code as it is now: 32 hexadecimal digits."""
    described = msgspec.json.encode({"what": what, "code": code_version()}, order="deterministic")
    return hashlib.sha256(described).hexdigest()[:32]


@cache
def code_version() -> str:
    """A hash of every source and data file that a simulated figure depends on."""
    digest = hashlib.sha256()
    root = Path(saga.__file__).parent
    for name in _CODE:
        place = root / name
        found = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
        for path in found:
            if path.suffix in {".py", ".toml", ".json"}:
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@cache
def file_version(path: Path) -> str:
    """A hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
