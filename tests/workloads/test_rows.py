"""Readers of trace files: three formats, plain or gzip, and one clear message for every way to be wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from saga.errors import TraceError
from saga.workloads.rows import DynamoRow, MooncakeRow, SagaRow, read_rows

SAGA: dict[str, Any] = {"session_id": "a", "step": 0, "input_tokens": 10, "output_tokens": 5}
MOONCAKE: dict[str, Any] = {"timestamp": 0, "input_length": 10, "output_length": 5, "hash_ids": [1]}
DYNAMO: dict[str, Any] = {"request_id": "r", "input_length": 10, "output_length": 5, "wait_for": []}


def _write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("row", "kind"), [(SAGA, SagaRow), (MOONCAKE, MooncakeRow), (DYNAMO, DynamoRow)])
def test_the_first_row_tells_the_format(tmp_path: Path, row: dict[str, Any], kind: type) -> None:
    """Each format is recognised by its fields; unknown fields are ignored; blank lines count as lines."""
    path = tmp_path / "t.jsonl"
    path.write_text("\n" + json.dumps({**row, "surprise": 1}) + "\n\n" + json.dumps(row) + "\n")
    rows = list(read_rows(path))
    assert [(line, type(found)) for line, found in rows] == [(2, kind), (4, kind)]


def test_gzip_is_seen_by_its_first_bytes(tmp_path: Path) -> None:
    """A compressed trace reads the same whatever its name."""
    plain = _write(tmp_path / "t.jsonl", SAGA, {**SAGA, "step": 1})
    packed = tmp_path / "packed.jsonl"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [row for _, row in read_rows(packed)] == [row for _, row in read_rows(plain)]


def test_a_header_that_names_the_schema_is_passed_over(tmp_path: Path) -> None:
    """Agentic traces may begin with a line about the schema."""
    path = _write(tmp_path / "t.jsonl", {"schema": "agentic", "version": 1}, DYNAMO)
    assert [line for line, _ in read_rows(path)] == [2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["holds no row"]),
        (b"\n \n", ["holds no row"]),
        (b"\x00\xff\xfe\x80binary", [":1:", "binary"]),
        (b"hello\n", [":1:", "not JSON", "hello"]),
        (b"[1, 2]\n", [":1:", "not an object", "[1, 2]"]),
        (b"7\n", [":1:", "not an object"]),
        (b'{"a": 1}\n', [":1:", "missing", "input_length"]),
        (b'{"session_id": "a", "step": 0, "input_tokens": 3}\n', [":1:", "'output_tokens' is missing"]),
        (gzip.compress((json.dumps(SAGA) + "\n").encode() * 500)[:-20], ["gzip", "cut off"]),
        (gzip.compress(b"x")[:4] + b"garbage that is long enough", ["gzip"]),
    ],
)
def test_files_that_are_no_trace_are_refused(tmp_path: Path, content: bytes, words: list[str]) -> None:
    """Whatever the file holds, the error names the file and says what is wrong."""
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(TraceError) as error:
        list(read_rows(path))
    for word in ["bad.jsonl", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("row", "change", "words"),
    [
        (SAGA, {"input_tokens": "many"}, ["'input_tokens'", '"many"', "expected int"]),
        (SAGA, {"input_tokens": -3}, ["'input_tokens'", "-3", ">= 1"]),
        (SAGA, {"input_tokens": 0}, ["'input_tokens'", "0", ">= 1"]),
        (SAGA, {"input_tokens": 10_000_001}, ["'input_tokens'", "10000001", "<= 10000000"]),
        (SAGA, {"input_tokens": 1.5}, ["'input_tokens'", "1.5", "expected int"]),
        (SAGA, {"output_tokens": -1}, ["'output_tokens'", "-1", ">= 0"]),
        (SAGA, {"output_tokens": None}, ["'output_tokens'", "null", "expected int"]),
        (SAGA, {"step": -1}, ["'step'", "-1"]),
        (SAGA, {"session_id": 5}, ["'session_id'", "5", "expected str"]),
        (SAGA, {"session_id": ""}, ["'session_id'", "length >= 1"]),
        (SAGA, {"gap_s": -0.5}, ["'gap_s'", "-0.5", ">= 0"]),
        (SAGA, {"gap_s": float("nan")}, ["'gap_s'", "nan", "finite"]),
        (SAGA, {"arrival_s": float("inf")}, ["'arrival_s'", "inf", "finite"]),
        (SAGA, {"hash_ids": [float("nan")]}, ["'hash_ids'", "nan", "finite"]),
        (SAGA, {"hash_ids": "1,2"}, ["'hash_ids'", "expected array"]),
        (SAGA, {"hash_ids": [1, "x"]}, ["'hash_ids'", "expected int"]),
        (SAGA, {"block_size": 0}, ["'block_size'", "0", ">= 1"]),
        (MOONCAKE, {"input_length": -1}, ["'input_length'", "-1"]),
        (MOONCAKE, {"timestamp": "now"}, ["'timestamp'", '"now"']),
        (DYNAMO, {"wait_for": "r0"}, ["'wait_for'", '"r0"', "expected array"]),
        (DYNAMO, {"delay": -1}, ["'delay'", "-1"]),
        (DYNAMO, {"request_id": None}, ["'request_id'", "null"]),
    ],
)
def test_a_bad_field_is_named_with_line_and_value(
    tmp_path: Path, row: dict[str, Any], change: dict[str, Any], words: list[str]
) -> None:
    """A wrong value in line 2 is reported with line, field, value and what would be right."""
    path = _write(tmp_path / "bad.jsonl", row, {**row, **change})
    with pytest.raises(TraceError) as error:
        list(read_rows(path))
    for word in ["bad.jsonl:2:", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize("field", ["session_id", "step", "input_tokens", "output_tokens"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    """A row without a field that every row has is reported with its line."""
    path = _write(tmp_path / "bad.jsonl", SAGA, {key: value for key, value in SAGA.items() if key != field})
    with pytest.raises(TraceError, match=f"bad.jsonl:2: field '{field}' is missing"):
        list(read_rows(path))


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    """Files from editors that mark UTF-8 are read."""
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(SAGA).encode())
    assert len(list(read_rows(path))) == 1


def test_json_too_deep_to_read_is_refused(tmp_path: Path) -> None:
    """Nesting without end is a mistake in the file, not in the program."""
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(SAGA) + '\n{"x": ' + "[" * 100_000 + "\n")
    with pytest.raises(TraceError, match=r"bad\.jsonl:2: not JSON"):
        list(read_rows(path))


def test_a_row_that_is_no_object_is_refused_in_any_line(tmp_path: Path) -> None:
    """Not only the first line is checked."""
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(SAGA) + "\n[]\n")
    with pytest.raises(TraceError, match=r"bad\.jsonl:2: not an object"):
        list(read_rows(path))


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    """A folder is no trace."""
    with pytest.raises(TraceError, match="cannot be read"):
        list(read_rows(tmp_path))
