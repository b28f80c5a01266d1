"""`saga replay`: figures on the screen and in a file, and one line for what cannot be replayed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saga.engine.hardware import HARDWARE
from saga.engine.server import ServerSettings

from .servers import engine

SETTINGS = ServerSettings(hardware=HARDWARE["llama3-8b-h100"], speed=1_000.0)
SMALL = ("--agents", 3, "--tasks", 3, "--speed", 2_000, "--scale-tokens", 0.1, "--max-calls", 20)


def test_two_servers_side_by_side(saga: Callable[..., Any], tmp_path: Path) -> None:
    """The table has a column for each and the speed-up; the file says what was measured, and no key."""
    keys, out = tmp_path / "keys.toml", tmp_path / "out.json"
    keys.write_text('"*" = "very-secret"\n')
    with engine(SETTINGS) as url:
        urls = (f"plain={url}", f"again={url}/v1")
        answer = saga("replay", *urls, "--workload", "web_arena", *SMALL, "--tenant-keys", keys, "--json", out)
    assert answer.code == 0, answer.err
    assert "speed-up" in answer.out
    assert "plain" in answer.out
    document = json.loads(out.read_text())
    assert (document["schema"], document["kind"], document["partial"]) == (1, "measured", False)
    assert [run["preset"] for run in document["runs"]] == ["plain", "again"]
    assert [run["tasks_completed"] for run in document["runs"]] == [3, 3]
    assert document["summary"][1]["speedup"] > 0
    assert "very-secret" not in out.read_text()


def test_a_peer_that_does_not_answer_is_one_line_and_exit_code_1(saga: Callable[..., Any]) -> None:
    """It is not the caller's fault."""
    answer = saga("replay", "http://127.0.0.1:1", *SMALL)
    assert answer.code == 1
    assert answer.err == "saga: http://127.0.0.1:1/v1: no answer: Connection refused\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("127.0.0.1:1",), "is no URL"),
        (("http://h:1", "--workload", "swe_bensh"), "did you mean 'swe_bench'"),
        (("http://h:1", "--agents", 0), "agents must be at least 1"),
        (("http://h:1", "http://h:1"), "same name"),
        (("http://h:1", "--json", "/nowhere/out.json"), "there is no folder"),
        (("http://h:1", "--tenant-keys", "/nowhere.json"), "/nowhere.json"),
        (("http://h:1", "--tenant-keys", __file__), "right is"),
        ((), "Missing argument"),
    ],
)
def test_bad_arguments_are_one_line(saga: Callable[..., Any], arguments: tuple[object, ...], says: str) -> None:
    """Exit code 2, before anything is sent."""
    assert says in saga("replay", *arguments).complaint
