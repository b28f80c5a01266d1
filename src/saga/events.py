"""Facts that drivers report to the scheduler: the whole input vocabulary.

An event says what happened, when (`at_s`, seconds on the driver's clock, never running back) and to
whom. It refuses to know what anybody decides about it. Events are msgspec structs, so a recorded run
is a JSON-lines log that replays to the same commands.

Ids are opaque strings. `tenant`, `task`, `session`, `step` nest in this order; a session name is only
meaningful inside its tenant, drivers make it unique before it comes here.
"""

from __future__ import annotations

import msgspec


class Event(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Base of all events; `at_s` in seconds on the driver's clock."""

    at_s: float


class Hints(msgspec.Struct, frozen=True, gc=False):
    """What a client says about its own future; every field optional, wrong hints are unlearned.

    next_tools: tools the answer of this step will call; gap_s: expected seconds to the next step;
    remaining_steps: steps after this one; output_tokens: of this step; final: no step follows.
    """

    next_tools: tuple[str, ...] | None = None
    gap_s: float | None = None
    remaining_steps: int | None = None
    output_tokens: int | None = None
    final: bool | None = None


class StepArrived(Event, frozen=True, tag=True, gc=False):
    """One LLM call wants to run.

    prompt_tokens: whole prompt, tokens. common_tokens: how many leading tokens it shares with the context
    (prompt + output) of the session's previous step; None where the driver cannot tell.
    prefix / prefix_tokens: identity and length of the leading part shared with *other* sessions
    (system prompt, tools); counted once per worker. workflow: the kind of agent, "" where unknown.
    parent: session that spawned this one. deadline_s: absolute, on the driver's clock, for the task.
    home, home_tokens: where the driver knows the prefix of a session that is new here to lie (after a restart).
    """

    step: str
    session: str
    task: str
    prompt_tokens: int
    tenant: str = "default"
    workflow: str = ""
    parent: str | None = None
    common_tokens: int | None = None
    prefix: str = ""
    prefix_tokens: int = 0
    gap_kind: str = "tool"
    deadline_s: float | None = None
    hints: Hints | None = None
    home: str = ""
    home_tokens: int = 0


class FirstToken(Event, frozen=True, tag=True, gc=False):
    """The worker began to answer `step`; it can no longer be moved for free."""

    step: str
    worker: str


class StepFinished(Event, frozen=True, tag=True, gc=False):
    """The answer is complete.

    cached_tokens: prompt tokens served from device memory; host_tokens: loaded from the host tier or
    another worker; tool_calls: names of the tools the answer called, () for a final answer or a
    user turn. service_s: device seconds by the cost model, None where nobody measured.
    """

    step: str
    worker: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    host_tokens: int = 0
    tool_calls: tuple[str, ...] = ()
    service_s: float | None = None


class StepFailed(Event, frozen=True, tag=True, gc=False):
    """The live attempt of `step` is lost. retry: whether the driver may run it again."""

    step: str
    worker: str
    why: str
    retry: bool = True


class StepCancelled(Event, frozen=True, tag=True, gc=False):
    """The client went away before the answer was complete."""

    step: str


class SessionEnded(Event, frozen=True, tag=True, gc=False):
    """No further step of `session` will come (hint, end of task, or idle for too long)."""

    session: str


class WorkerJoined(Event, frozen=True, tag=True, gc=False):
    """An engine is ready.

    kv_tokens: device KV capacity, tokens. host_kv_tokens: of its host tier, 0 for none.
    prefill_tokens_per_s, load_tokens_per_s (host -> device) and move_tokens_per_s (from another worker):
    rates at which a lost prefix comes back.
    """

    worker: str
    kv_tokens: int
    block_tokens: int = 16
    host_kv_tokens: int = 0
    prefill_tokens_per_s: float = 5_000.0
    load_tokens_per_s: float = 0.0
    move_tokens_per_s: float = 0.0
    max_running: int = 256


class WorkerReported(Event, frozen=True, tag=True, gc=False):
    """A worker's own figures: calls running and waiting, KV tokens in use by running calls.

    prefill_tokens_per_s: as it measured it itself; 0 where it has not.
    """

    worker: str
    running: int
    waiting: int
    kv_used_tokens: int
    prefill_tokens_per_s: float = 0.0


class WorkerDraining(Event, frozen=True, tag=True, gc=False):
    """The worker finishes what it has and takes nothing new."""

    worker: str


class WorkerLost(Event, frozen=True, tag=True, gc=False):
    """The worker is gone with everything it held."""

    worker: str


class BlocksStored(Event, frozen=True, tag=True, gc=False):
    """`worker` now holds the first `device_tokens` / `host_tokens` tokens of the session's context."""

    worker: str
    session: str
    device_tokens: int
    host_tokens: int = 0


class BlocksRemoved(Event, frozen=True, tag=True, gc=False):
    """`worker` evicted part of an idle session: what is left of it, tokens from the front, per tier."""

    worker: str
    session: str
    device_tokens: int
    host_tokens: int = 0


class Tick(Event, frozen=True, tag=True, gc=False):
    """Time passed; sent at or after `next_deadline_s()`."""


AnyEvent = (
    StepArrived
    | FirstToken
    | StepFinished
    | StepFailed
    | StepCancelled
    | SessionEnded
    | WorkerJoined
    | WorkerReported
    | WorkerDraining
    | WorkerLost
    | BlocksStored
    | BlocksRemoved
    | Tick
)
