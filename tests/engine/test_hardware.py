"""The built-in hardware, and what is refused in a user's own table."""

from __future__ import annotations

from pathlib import Path

import pytest

from saga.engine.hardware import HARDWARE, as_toml, hardware, load_hardware
from saga.errors import UnknownName, UsageError

TABLE = """
[[hardware]]
name = "toy"
provenance = "made up"
kv_tokens = 1000
host_kv_tokens = 0
kv_bytes_per_token = 10
load_tokens_per_s = 5.0
move_tokens_per_s = 5
lm_head_ms = 1.0
prefill_attention_ms = [0.0, 0.1, 0.0]
decode_attention_ms = [0.0, 0.1, 0.0]
tokens = [1, 10]
linear_ms = [1.0, 2.0]
allreduce_ms = [0.0, 0.0]
"""


def test_every_built_in_says_where_it_comes_from() -> None:
    """Name, provenance and capacity of all built-in workers are there, and costs never fall with tokens."""
    assert {"llama3-8b-a100", "llama3-8b-h100", "llama3-70b-a100x4", "llama3-70b-h100x4"} <= HARDWARE.keys()
    for name, worker in HARDWARE.items():
        assert worker.name == name
        assert "vidur" in worker.provenance
        assert list(worker.linear_ms) == sorted(worker.linear_ms)
        assert list(worker.allreduce_ms) == sorted(worker.allreduce_ms)


def test_the_study_s_worker_has_its_capacity() -> None:
    """Llama-3-70B on four A100 holds 450k tokens and loads 76k tokens per second."""
    worker = hardware("llama3-70b-a100x4")
    assert worker.kv_tokens == 450_000
    assert worker.load_tokens_per_s == pytest.approx(25e9 / worker.kv_bytes_per_token, rel=1e-4)


def test_an_unknown_name_is_told_the_known_ones() -> None:
    """The error names what would be right."""
    with pytest.raises(UnknownName, match="llama3-70b-a100x4"):
        hardware("llama3-70b-a100")


def test_a_table_of_one_s_own_is_read(tmp_path: Path) -> None:
    """A file of the same form gives the same kind of object."""
    path = tmp_path / "mine.toml"
    path.write_text(TABLE)
    assert load_hardware(path)["toy"].linear_ms == (1.0, 2.0)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("kv_tokens = 1000", "kv_tokens = 0", "'toy': kv_tokens = 0 must be at least 1"),
        ("kv_tokens = 1000", "kv_tokens = 1.5", "kv_tokens = 1.5 must be a whole number"),
        ("lm_head_ms = 1.0", "lm_head_ms = -1.0", "lm_head_ms = -1.0 must be a number, 0 or more"),
        ("tokens = [1, 10]", "tokens = [10, 1]", "must ascend"),
        ("tokens = [1, 10]", "tokens = [1]", "two or more whole numbers"),
        ("linear_ms = [1.0, 2.0]", "linear_ms = [1.0]", "linear_ms = .* must be a list of 2 numbers"),
        ('provenance = "made up"', "", "lacks provenance"),
        ('provenance = "made up"', 'provenance = ""', "provenance = '' must be text"),
        ('provenance = "made up"', 'provenance = "x"\ncolour = "red"', "has unknown colour"),
        ("[[hardware]]", "[hardware]", "no \\[\\[hardware\\]\\] table"),
        ("[[hardware]]", "[[hardware", "not TOML"),
        ("\n[[hardware]]", TABLE + "\n[[hardware]]", "appears twice"),
    ],
)
def test_what_cannot_be_right_is_refused(tmp_path: Path, before: str, after: str, message: str) -> None:
    """The error names the file, the hardware, the field and the value."""
    path = tmp_path / "mine.toml"
    path.write_text(TABLE.replace(before, after, 1))
    with pytest.raises(UsageError, match=message) as caught:
        load_hardware(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_the_caller_s_fault(tmp_path: Path) -> None:
    """No traceback of the operating system."""
    with pytest.raises(UsageError, match="cannot be read"):
        load_hardware(tmp_path / "none.toml")


def test_a_worker_of_one_s_own_is_named_by_file_and_name(tmp_path: Path) -> None:
    """FILE.toml:NAME is found wherever a hardware's name is asked for; a wrong name is told those in the file."""
    path = tmp_path / "mine.toml"
    path.write_text(TABLE)
    assert hardware(f"{path}:toy").kv_tokens == 1_000
    with pytest.raises(UnknownName, match="did you mean 'toy'"):
        hardware(f"{path}:toi")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """Every built-in worker survives the way into a file and back."""
    path = tmp_path / "all.toml"
    path.write_text("\n".join(as_toml(worker) for worker in HARDWARE.values()))
    assert load_hardware(path) == HARDWARE


def test_a_chunk_s_own_share_is_its_field(tmp_path: Path) -> None:
    """One where left out, otherwise as given, never above 1."""
    path = tmp_path / "mine.toml"
    path.write_text(TABLE + "prefill_own_share = 0.5\n")
    assert load_hardware(path)["toy"].prefill_own_share == 0.5
    path.write_text(TABLE + "prefill_own_share = 1.5\n")
    with pytest.raises(UsageError, match=r"prefill_own_share = 1\.5 must be at most 1"):
        load_hardware(path)
