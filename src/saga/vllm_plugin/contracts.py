"""The seam between the plug-in's scheduler and its link: plain data, no vLLM and no gRPC.

    scheduler class ── poll() ──▶ directives of the coordinator        scheduler class ── report(), answer() ──▶ link

The scheduler class asks and tells between engine steps and never waits; the link has a thread of its own and refuses
to know blocks. Times are seconds from now: the coordinator's clock is another. `coordinator.proto` says the same on the
wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeAlias

from saga.commands import Standing


class Outcome(StrEnum):
    """What became of a directive. clipped: done in part, a cap was reached or part is gone; missing: no such name."""

    ACCEPTED = "accepted"
    CLIPPED = "clipped"
    MISSING = "missing"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Retain:
    """Keep the session's prefix on the device. for_s, expected_use_s: None where unbounded or unknown."""

    session: str
    for_s: float | None = None
    expected_use_s: float | None = None
    reuse_probability: float = 1.0


@dataclass(frozen=True, slots=True)
class Release:
    """The session's prefix may go; `standing` says how soon compared with others."""

    session: str
    standing: Standing
    expected_use_s: float | None = None


@dataclass(frozen=True, slots=True)
class Offload:
    """Copy the session's prefix to the host tier."""

    session: str


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Bring the session's prefix from the host tier to the device."""

    session: str


@dataclass(frozen=True, slots=True)
class Prioritize:
    """New priorities by step, lower first."""

    priority_by_step: Mapping[str, int]


Directive: TypeAlias = Retain | Release | Offload | Prefetch | Prioritize


@dataclass(frozen=True, slots=True)
class Held:
    """Tokens from the front of a session's context that the engine holds, per tier."""

    session: str
    device_tokens: int
    host_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """A step that ended. cached_tokens: found on the device; host_tokens: loaded from the host tier."""

    step: str
    session: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    host_tokens: int = 0
    preemptions: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What is so now, and what changed since the last report. ignored: counts since the start, by reason.

    prefill_tokens_per_s: as measured, 0 where that cannot be said yet.
    """

    running: int = 0
    waiting: int = 0
    used_blocks: int = 0
    retained_blocks: int = 0
    used_host_blocks: int = 0
    sessions: tuple[Held, ...] = ()
    finished: tuple[Finished, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)
    prefill_tokens_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says of itself once; blocks of KV, rates in tokens per second (0: none or unknown)."""

    model: str
    block_tokens: int
    num_blocks: int
    num_host_blocks: int = 0
    max_running: int = 256
    prefill_tokens_per_s: float = 0.0
    load_tokens_per_s: float = 0.0
    move_tokens_per_s: float = 0.0
    engine_version: str = ""


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """Where the coordinator is. coordinator: HOST:PORT, "" for none. worker: this engine's name. url: of its routes."""

    coordinator: str = ""
    worker: str = ""
    url: str = ""
    key: str = ""


class Link(Protocol):
    """The engine's end of the link. Every method returns at once, whatever state the coordinator is in."""

    @property
    def report_every_s(self) -> float:
        """How often a report is wanted; infinity while nobody listens."""
        ...

    def poll(self) -> list[tuple[int, Directive]]:
        """Directives that came since the last call, oldest first, bounded; the rest follows."""
        ...

    def answer(self, directive: int, outcome: Outcome, why: str = "") -> None:
        """What became of a directive."""
        ...

    def report(self, report: Report) -> None:
        """Tell what is so; dropped where nobody listens, merged where the coordinator is slow."""
        ...

    def close(self) -> None:
        """End the thread."""
        ...


class NoLink:
    """An engine without a coordinator: decides by what comes with the calls."""

    @property
    def report_every_s(self) -> float:
        """Nobody listens."""
        return float("inf")

    def poll(self) -> list[tuple[int, Directive]]:
        """Nothing."""
        return []

    def answer(self, directive: int, outcome: Outcome, why: str = "") -> None:
        """Nothing."""

    def report(self, report: Report) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
