"""The shape of a workload: tasks made of sessions made of calls.

A plan says what will be asked, never when it will be answered: gaps start when the previous call of the
session ends (closed loop), whoever serves it. Everything here is immutable and deterministic by seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from saga.views import PromptPath


@dataclass(frozen=True, slots=True)
class Call:
    """One LLM call of a session.

    path: the prompt as content streams; its tokens sum to prompt_tokens. The answer's output_tokens (>= 1)
    extend the path's last stream. gap_s: from the end of the session's previous call to this arrival (for the first
    call: from the start of the task, or from the end of the call that spawned it). tools: what this call's answer
    calls, () for an answer to the user.
    shared_tokens: leading tokens of the prompt in streams that other source sessions use too.
    common_tokens: leading tokens shared with the previous call's prompt + output of the session.
    spawns: indexes into Task.sessions of children that start when this call ends; the session's next call
    waits for them as well as for its own gap. service_s: how long it took where it was recorded, None: unknown.
    """

    path: PromptPath
    prompt_tokens: int
    output_tokens: int
    gap_s: float = 0.0
    tools: tuple[str, ...] = ()
    gap_kind: str = "tool"
    shared_tokens: int = 0
    common_tokens: int = 0
    spawns: tuple[int, ...] = ()
    service_s: float | None = None


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """One conversation. `parent` is the index in Task.sessions of the session that spawned it, None for the root."""

    session: str
    calls: tuple[Call, ...]
    parent: int | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """One agent run; sessions[0] is its root. source: id of the recorded task that this is a copy of.

    arrival_s: when it arrives in an open-loop run, seconds from the start; None in a closed loop.
    """

    task: str
    tenant: str
    workflow: str
    source: str
    sessions: tuple[SessionPlan, ...]
    arrival_s: float | None = None

    @property
    def num_calls(self) -> int:
        """Calls over all sessions."""
        return sum(len(session.calls) for session in self.sessions)


@dataclass(slots=True)
class Skipped:
    """How many source sessions were left out, by reason, for the report."""

    reasons: dict[str, int] = field(default_factory=dict)


class Workload(Protocol):
    """A named source of tasks.

    mean_context_tokens: mean over calls of input + output tokens (the "oversubscription" unit);
    first_context_tokens: mean of the first calls'. tenants: weight by tenant name.
    """

    name: str
    provenance: str
    mean_context_tokens: float
    first_context_tokens: float
    tenants: dict[str, float]
    skipped: Skipped

    def tasks(self, num_tasks: int, seed: int) -> Iterator[Task]:
        """`num_tasks` tasks, the same for the same seed; sources are resampled where there are too few."""
        ...
