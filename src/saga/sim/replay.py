"""Replay a recorded log through a new scheduler: the same events must give the same commands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from saga import commands as do
from saga import events as ev
from saga.presets import preset
from saga.scheduler.scheduler import Scheduler


class Difference(NamedTuple):
    """Where a replay first departs from its log: the number of the event (1-based), what was ordered then and now."""

    event_number: int
    event: ev.Event
    recorded: list[do.Command]
    replayed: list[do.Command]


def replay(preset_name: str, lines: Iterable[tuple[ev.Event, list[do.Command]]]) -> Difference | None:
    """The first difference, None if there is none. `lines`: each event with the commands recorded for it."""
    scheduler = Scheduler(preset(preset_name))
    for number, (event, recorded) in enumerate(lines, start=1):
        replayed = scheduler.handle(event)
        if msgspec.json.encode(replayed) != msgspec.json.encode(recorded):
            return Difference(number, event, recorded, replayed)
    return None
