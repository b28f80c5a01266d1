"""A run's log is whole or it is not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from saga import commands as do
from saga import events as ev
from saga.presets import PRESETS
from saga.sim.config import SimConfig
from saga.sim.driver import simulate
from saga.sim.log import NoLog, RunLog

from .conftest import Plan

Build = Callable[..., SimConfig]


def test_a_log_says_first_what_it_is(config: Build, tiny: Plan, tmp_path: Path) -> None:
    """Its header names schema and kind and holds the whole configuration, so that the run can be made again."""
    path = tmp_path / "run.jsonl"
    chosen = config(tasks=10, log_path=str(path))
    simulate(chosen, tiny)
    header = json.loads(path.read_text().splitlines()[0])
    assert (header.pop("schema"), header.pop("kind")) == (1, "log")
    assert header == chosen.as_dict()


@pytest.mark.parametrize("name", PRESETS)
def test_every_line_is_an_event_or_a_command_of_the_event_before_it(
    name: str, config: Build, tiny: Plan, tmp_path: Path
) -> None:
    """Events decode as they were and never run back; each command carries the time of the event that it answers."""
    path = tmp_path / "run.jsonl"
    simulate(config(name, tasks=10, log_path=str(path)), tiny)
    names = {kind.__name__ for kind in do.Command.__subclasses__()}
    last_s = 0.0
    for line in path.read_bytes().splitlines()[1:]:
        read = json.loads(line)
        if "event" in read:
            event = msgspec.convert(read["event"], type=ev.AnyEvent)
            assert event.at_s >= last_s
            last_s = event.at_s
        else:
            assert read.keys() == {"command", "at_s"}
            assert read["at_s"] == last_s
            assert read["command"]["type"] in names
            assert read["command"]["reason"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError], ids=["interrupted", "broken"])
def test_a_run_that_does_not_finish_leaves_nothing(
    error: type[BaseException], config: Build, tiny: Plan, tmp_path: Path
) -> None:
    """Neither half a log nor its beginnings lie about afterwards, and the error comes through."""

    def stop(num_finished: int) -> None:
        if num_finished == 3:
            raise error

    with pytest.raises(error):
        simulate(config(log_path=str(tmp_path / "run.jsonl")), tiny, stop)
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_was_there_stays_until_the_new_one_is_whole(config: Build, tiny: Plan, tmp_path: Path) -> None:
    """An interrupted run does not cost the log of the one before it; a finished one replaces it."""
    path = tmp_path / "run.jsonl"
    path.write_text("the log before\n")

    def stop(num_finished: int) -> None:
        assert path.read_text() == "the log before\n"
        if num_finished == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(config(log_path=str(path)), tiny, stop)
    assert path.read_text() == "the log before\n"
    simulate(config(tasks=10, log_path=str(path)), tiny)
    assert path.read_text().startswith('{"schema":1')
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_run_writes_the_same_log(config: Build, tiny: Plan, tmp_path: Path) -> None:
    """Byte for byte, but for the header that names the file."""
    logs = []
    for name in ("one", "two"):
        simulate(config(tasks=12, workers=2, log_path=str(tmp_path / name)), tiny)
        logs.append((tmp_path / name).read_bytes().splitlines()[1:])
    assert logs[0] == logs[1]


def test_without_a_log_nothing_is_written(
    config: Build, tiny: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin takes the same calls and touches no file."""
    monkeypatch.chdir(tmp_path)
    simulate(config(tasks=10), tiny)
    with NoLog() as log:
        log.event(ev.Tick(1.0))
        log.command(do.Hold("s/0", "why"), 1.0)
    assert list(tmp_path.iterdir()) == []


def test_lines_come_out_in_the_order_they_went_in(config: Build, tmp_path: Path) -> None:
    """One line per fact and order, readable while nothing is lost to a buffer at the end."""
    path = tmp_path / "run.jsonl"
    with RunLog(config(log_path=str(path))) as log:
        for index in range(100):
            log.event(ev.Tick(float(index)))
            log.command(do.Hold(f"s/{index}", "why"), float(index))
        assert not path.exists()
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert [line["event"]["at_s"] for line in lines[::2]] == [line["at_s"] for line in lines[1::2]] == list(range(100))
