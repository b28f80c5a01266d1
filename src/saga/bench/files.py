"""Files that are whole or not there. Refuses to know what is in them."""

from __future__ import annotations

import os
from pathlib import Path

from saga.errors import UsageError


def write_whole(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step: a reader sees the old file or the new one, never half of it."""
    draft = beside(path)
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def beside(path: Path) -> Path:
    """A name for a draft in the same folder, so that renaming is one step."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")
