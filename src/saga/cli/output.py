"""How results reach people: tables that fit the terminal, and paths that are known to work before the work begins.

Refuses to know what is in them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saga.bench.files import beside
from saga.errors import UsageError

if TYPE_CHECKING:
    from saga.bench.tables import Table

_LABEL_WIDTH, _COLUMN_WIDTH = 23, 22
_WIDTH_OF_A_FILE = 160


def check_writable(path: Path, flag: str) -> None:
    """UsageError where a file could not be written at `path`: asked before the work, not after it."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{flag} {path}: is not a regular file; give the name of a file")
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {path}: there is no folder {path.parent}; make it or choose another")
    probe = beside(path)
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"{flag} {path}: cannot write in {path.parent}: {error.strerror}") from error


def as_json(document: object) -> str:
    """A document for other programs, in lines that people can read too."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def print_table(table: Table) -> None:
    """Print to standard output, in several pieces where the columns do not fit side by side."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH_OF_A_FILE)
    for piece in _pieces(table, max(1, (console.width - _LABEL_WIDTH) // _COLUMN_WIDTH)):
        shown = RichTable(box=SIMPLE_HEAD, pad_edge=False)
        for index, name in enumerate(piece.columns):
            shown.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
        for row in piece.rows:
            shown.add_row(*row)
        console.print(piece.title, style="dim", soft_wrap=True)
        console.print(shown)


def _pieces(table: Table, num_columns: int) -> list[Table]:
    """The table cut into tables of at most `num_columns` columns beside the first; a table of words stays whole."""
    from saga.bench.tables import Table as Piece

    if table.columns[0]:
        return [table]
    starts = range(1, len(table.columns), num_columns)
    slices = [slice(start, start + num_columns) for start in starts]
    return [
        Piece(table.title, ("", *table.columns[cut]), tuple((row[0], *row[cut]) for row in table.rows))
        for cut in slices
    ]
