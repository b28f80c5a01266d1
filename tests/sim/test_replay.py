"""A recorded run replays to the same commands, and a departure is found where it happens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from saga import commands as do
from saga import events as ev
from saga.errors import UnknownName
from saga.presets import PRESETS, preset
from saga.scheduler.scheduler import Scheduler
from saga.sim.config import SimConfig
from saga.sim.driver import simulate
from saga.sim.replay import replay

from .conftest import Plan

Build = Callable[..., SimConfig]
Recorded = list[tuple[ev.Event, list[do.Command]]]


class _Line(msgspec.Struct):
    """A line of a log, its command as it stands there."""

    event: ev.AnyEvent | None = None
    command: msgspec.Raw = msgspec.Raw()
    at_s: float = 0.0


def read(path: Path) -> Recorded:
    """Each event with the commands recorded for it."""
    found: Recorded = []
    for line in path.read_bytes().splitlines()[1:]:
        decoded = msgspec.json.decode(line, type=_Line)
        if decoded.event is not None:
            found.append((decoded.event, []))
        else:
            found[-1][1].append(decoded.command)  # type: ignore[arg-type]
    return found


def scene() -> Recorded:
    """Two agents on one worker, and what the preset saga orders."""
    scheduler = Scheduler(preset("saga"))
    facts = [
        ev.WorkerJoined(0.0, "w0", 10_000),
        ev.StepArrived(1.0, "a/0", "a", "a", 6_000),
        ev.StepArrived(2.0, "b/0", "b", "b", 6_000),
        ev.StepFinished(3.0, "a/0", "w0", 6_000, 10),
        ev.SessionEnded(4.0, "a"),
    ]
    return [(event, scheduler.handle(event)) for event in facts]


@pytest.mark.parametrize("name", PRESETS)
def test_a_log_replays_to_the_same_commands(name: str, config: Build, tiny: Plan, tmp_path: Path) -> None:
    """Same events, same commands, for every system, from the file that a crowded run wrote."""
    path = tmp_path / "run.jsonl"
    simulate(config(name, workers=2, agents_per_worker=6.0, log_path=str(path)), tiny)
    lines = read(path)
    assert sum(len(commands) for _, commands in lines) > 100
    assert replay(name, lines) is None


def test_a_scene_replays() -> None:
    """Events and commands that never were a file replay as well; nothing at all replays too."""
    assert replay("saga", scene()) is None
    assert replay("saga", []) is None


def test_the_first_departure_is_found() -> None:
    """A log that was altered differs at its line, with what was ordered then and what is ordered now."""
    lines = scene()
    event, commands = lines[3]
    lines[3] = (event, [*commands, do.Hold("c/0", "never said")])
    found = replay("saga", lines)
    assert found is not None
    assert (found.event_number, found.event) == (4, event)
    assert found.replayed == commands
    assert found.recorded == lines[3][1]


def test_a_changed_reason_is_a_departure() -> None:
    """Commands are compared whole: a decision for another reason is another decision."""
    lines = scene()
    event, (first, *rest) = lines[1]
    lines[1] = (event, [msgspec.structs.replace(first, reason="because"), *rest])
    found = replay("saga", lines)
    assert found is not None
    assert found.event_number == 2


def test_another_system_departs() -> None:
    """The replay runs the preset that it is told, so that a log shows what another would have done."""
    found = replay("vllm_apc", scene())
    assert found is not None
    assert isinstance(found.event, ev.StepArrived)


def test_a_log_of_an_unknown_system_is_refused() -> None:
    """Nothing is replayed in the name of a preset that is not there."""
    with pytest.raises(UnknownName, match="sagaa"):
        replay("sagaa", scene())


def test_a_replay_begins_from_nothing() -> None:
    """Twice the same log, twice the same answer: no state is left from the first."""
    lines = scene()
    altered = [(replace_time(event, 10.0), commands) for event, commands in lines]
    assert replay("saga", altered) == replay("saga", altered)
    assert replay("saga", lines) is None


def replace_time(event: ev.Event, by_s: float) -> ev.Event:
    """The event, so much later."""
    return msgspec.structs.replace(event, at_s=event.at_s + by_s)
