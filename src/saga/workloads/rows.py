"""Rows of trace files as they are written: three formats, checked field by field while they stream.

The first row tells the format. Every bad row raises TraceError naming file, line, field, value and what would be right.
This module knows the spelling of the formats and their units; it refuses to know what a session makes of its rows.

Sources: the JSON lines of SAGA's own traces (one line per call, seconds); Mooncake (FAST'25) rows, milliseconds, with
the `session_id` and `delay` of multi-turn extensions; Dynamo's agentic rows, where a row becomes eligible when every
request in `wait_for` is complete and starts `delay + tool_wait_ms` milliseconds later.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from saga.errors import TraceError

MAX_TOKENS = 10_000_000  # a longer prompt or answer is a mistake in the file
MOONCAKE_BLOCK_TOKENS = 512

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_Prompt = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
_Tokens = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]
_Time = Annotated[float, Meta(ge=0, le=1e12)]
_Name = Annotated[str, Meta(min_length=1)]
_Count = Annotated[int, Meta(ge=0)]


class SagaRow(msgspec.Struct, gc=False):
    """One call in SAGA's own JSON lines; times in seconds."""

    session_id: _Name
    step: _Count
    input_tokens: _Prompt
    output_tokens: _Tokens
    arrival_s: _Time | None = None
    gap_s: _Time | None = None
    gap_kind: str | None = None
    tool: str | None = None
    tool_cmd: str | None = None
    block_size: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    hash_ids: list[int] | None = None
    tenant: str | None = None
    parent: str | None = None
    t_s: _Time | None = None
    llm_s: _Time | None = None
    reuse_tokens: _Tokens | None = None
    cached_tokens: _Tokens | None = None


class MooncakeRow(msgspec.Struct, gc=False):
    """One request in Mooncake's format; times in milliseconds."""

    input_length: _Prompt
    output_length: _Tokens
    timestamp: _Time | None = None
    hash_ids: list[int] | None = None
    session_id: _Name | int | None = None
    delay: _Time | None = None


class DynamoRow(msgspec.Struct, gc=False):
    """One request in Dynamo's agentic format; times in milliseconds."""

    request_id: _Name
    input_length: _Prompt
    output_length: _Tokens
    session_id: _Name | None = None
    timestamp: _Time | None = None
    delay: _Time | None = None
    tool_wait_ms: _Time | None = None
    wait_for: list[str] = []
    prefix_reset: bool | None = None
    tool_events: list[dict[str, Any]] = []
    hash_ids: list[int] | None = None


Row: TypeAlias = SagaRow | MooncakeRow | DynamoRow

_FORMATS: tuple[tuple[type[Row], frozenset[str]], ...] = (
    (SagaRow, frozenset({"session_id", "step", "input_tokens", "output_tokens"})),
    (DynamoRow, frozenset({"request_id", "input_length", "output_length"})),
    (MooncakeRow, frozenset({"input_length", "output_length"})),
)


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number, row) for every row of the file, plain or gzip by its first bytes. Blank lines are skipped.

    Raises TraceError. Streams: memory is one line, time is about 1 us plus 10 ns per hash id a row.
    """
    decoder: msgspec.json.Decoder[Row] | None = None
    for number, line in _lines(path):
        if decoder is None:
            first = _object(path, number, line)
            if "schema" in first and "request_id" not in first:
                continue  # a header that names the schema
            decoder = msgspec.json.Decoder(_row_type(path, number, first))
        try:
            row = decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise _explained(path, number, line, error) from None
        yield number, row
    if decoder is None:
        raise TraceError(path, "holds no row; a trace has one JSON object per line")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of all lines that are not blank."""
    try:
        with path.open("rb") as plain:
            packed = plain.peek(2)[:2] == _GZIP_MAGIC
            lines = gzip.GzipFile(fileobj=plain) if packed else plain
            for number, line in enumerate(lines, start=1):
                text = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                if text and not text.isspace():
                    yield number, text
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(path, f"the gzip stream is damaged or cut off ({error}); write the file again") from None
    except OSError as error:
        raise TraceError(path, f"cannot be read: {error.strerror or error}") from None


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """The JSON object in `line`, whatever its fields."""
    try:
        value = json.loads(line)
    except UnicodeDecodeError:
        raise TraceError(path, "is binary, not text; a trace has one JSON object per line", line=number) from None
    except (ValueError, RecursionError) as error:
        shown = line.strip()[:60].decode(errors="replace")
        problem = f"not JSON ({error}): {shown!r}; a trace has one JSON object per line"
        raise TraceError(path, problem, line=number) from None
    if not isinstance(value, dict):
        raise TraceError(path, f"not an object but {_shown(value)}; a row is {{...}}", line=number)
    return value


def _row_type(path: Path, number: int, first: dict[str, Any]) -> type[Row]:
    """The format that the first row is written in: most specific first."""
    for kind, fields in _FORMATS:
        if fields <= first.keys():
            return kind
    _, missing = min((len(fields - first.keys()), sorted(fields - first.keys())) for _, fields in _FORMATS)
    problem = (
        f"field {missing[0]!r} is missing; a row has session_id, step, input_tokens, output_tokens (SAGA), "
        "or input_length, output_length with timestamp (Mooncake) or request_id (Dynamo)"
    )
    raise TraceError(path, problem, line=number)


def _explained(path: Path, number: int, line: bytes, error: Exception) -> TraceError:
    """What is wrong with `line`, in one sentence with field and value."""
    value = _object(path, number, line)
    for field, found in value.items():
        for one in found if isinstance(found, list) else [found]:
            if isinstance(one, float) and not math.isfinite(one):
                problem = f"field {field!r} is {one}; a finite number is right"
                return TraceError(path, problem, line=number)
    missing = re.search(r"missing required field `(\w+)`", str(error))
    if missing:
        return TraceError(path, f"field {missing[1]!r} is missing", line=number)
    place = re.search(r"\$\.(\w+)", str(error))
    if place is None:
        return TraceError(path, f"not JSON that can be read ({error})", line=number)
    expected = re.sub(r" - at `.*", "", str(error)).replace("`", "")
    shown = _shown(value.get(place[1]))
    return TraceError(path, f"field {place[1]!r} is {shown}: {expected[0].lower()}{expected[1:]}", line=number)


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
