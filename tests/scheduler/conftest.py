"""A small stage for the scheduler: workers, agents' steps and time, no engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from saga import commands as do
from saga import events as ev
from saga.presets import preset
from saga.scheduler.composition import Caps, Composition
from saga.scheduler.invariants import check
from saga.scheduler.scheduler import Scheduler


class Stage:
    """Drives a scheduler by hand; every event is followed by the check of all laws."""

    def __init__(
        self, composition: Composition, *, workers: int = 1, kv_tokens: int = 10_000, caps: Caps | None = None
    ) -> None:
        self.scheduler = Scheduler(composition, caps=caps)
        self.at_s = 0.0
        for index in range(workers):
            self.tell(
                ev.WorkerJoined(0.0, f"w{index}", kv_tokens, prefill_tokens_per_s=5_000.0, move_tokens_per_s=50_000.0)
            )

    def tell(self, event: ev.Event) -> list[do.Command]:
        """One event, its commands, and the laws."""
        commands = self.scheduler.handle(event)
        check(self.scheduler)
        return commands

    def arrive(self, session: str, step: int, prompt_tokens: int, **facts: object) -> list[do.Command]:
        """The session's step arrives now."""
        facts.setdefault("task", session)
        return self.tell(
            ev.StepArrived(self.at_s, f"{session}/{step}", session, prompt_tokens=prompt_tokens, **facts)  # type: ignore[arg-type]
        )

    def finish(
        self, session: str, step: int, worker: str, prompt_tokens: int, output_tokens: int = 10, tool: str = "Bash"
    ) -> list[do.Command]:
        """The session's step is answered now."""
        return self.tell(
            ev.StepFinished(
                self.at_s, f"{session}/{step}", worker, prompt_tokens, output_tokens, tool_calls=(tool,) if tool else ()
            )
        )

    def end(self, session: str) -> list[do.Command]:
        """The session ends now."""
        return self.tell(ev.SessionEnded(self.at_s, session))

    def wait(self, seconds: float) -> list[do.Command]:
        """Time passes; ticks come when they are due."""
        commands: list[do.Command] = []
        until_s = self.at_s + seconds
        while (due_s := self.scheduler.next_deadline_s()) is not None and due_s <= until_s:
            self.at_s = max(self.at_s, due_s)
            commands += self.tell(ev.Tick(self.at_s))
        self.at_s = until_s
        return commands


@pytest.fixture
def stage() -> Callable[..., Stage]:
    """Build a stage for a preset, by name, or for a composition of one's own."""

    def build(composition: str | Composition = "saga", **settings: object) -> Stage:
        chosen = preset(composition) if isinstance(composition, str) else composition
        return Stage(chosen, **settings)  # type: ignore[arg-type]

    return build


def dispatched(commands: list[do.Command]) -> list[tuple[str, str]]:
    """(step, worker) of each Dispatch."""
    return [(c.step, c.worker) for c in commands if isinstance(c, do.Dispatch)]


def of(kind: type, commands: list[do.Command]) -> list[do.Command]:
    """The commands of one kind."""
    return [c for c in commands if isinstance(c, kind)]
