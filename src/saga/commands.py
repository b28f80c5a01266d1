"""Orders the scheduler gives its driver: the whole output vocabulary.

A command says what to do and why (`reason`, one short sentence for people). It refuses to know how the
driver carries it out: an HTTP call, a gRPC message, a modelled engine.
Priorities: **lower runs first**, as in vLLM.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Standing(StrEnum):
    """How an idle session's prefix is to be regarded by the cache that holds it."""

    ACTIVE = "active"  # holds a reservation: it will be back soon
    PAUSED = "paused"  # may come back, holds no reservation
    ENDED = "ended"  # will not come back


class Command(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Base of all commands."""


class Dispatch(Command, frozen=True, tag=True, gc=False):
    """Send `step` to `worker`."""

    step: str
    session: str
    worker: str
    priority: int
    reason: str


class Hold(Command, frozen=True, tag=True, gc=False):
    """Keep `step` waiting at the gate; a later Dispatch or Reject will follow."""

    step: str
    reason: str


class Reject(Command, frozen=True, tag=True, gc=False):
    """Refuse `step`; the client may try again after `retry_after_s` seconds."""

    step: str
    reason: str
    retry_after_s: float = 1.0


class Retain(Command, frozen=True, tag=True, gc=False):
    """Keep the session's prefix on `worker` until `until_s` (None: till it ends), expected back at `expected_use_s`.

    steps_to_use: calls of its task until its own next one, that one included.
    """

    session: str
    worker: str
    until_s: float | None
    expected_use_s: float | None
    reason: str
    reuse_probability: float = 1.0
    steps_to_use: float = 1.0


class Release(Command, frozen=True, tag=True, gc=False):
    """The session's prefix on `worker` may go; `standing` says how soon compared with others.

    expected_use_s: when it is expected back all the same, None where nobody knows; steps_to_use: as in `Retain`.
    """

    session: str
    worker: str
    standing: Standing
    reason: str
    expected_use_s: float | None = None
    reuse_probability: float = 1.0
    steps_to_use: float = 1.0


class Offload(Command, frozen=True, tag=True, gc=False):
    """Copy the session's prefix on `worker` to its host tier, so that the device copy may go at no cost."""

    session: str
    worker: str
    reason: str


class Prefetch(Command, frozen=True, tag=True, gc=False):
    """Bring the session's prefix on `worker` from the host tier to the device now."""

    session: str
    worker: str
    reason: str


class Migrate(Command, frozen=True, tag=True, gc=False):
    """Copy the session's prefix from worker `source` to worker `target`; the Dispatch to `target` follows."""

    session: str
    source: str
    target: str
    tokens: int
    reason: str


class Reprioritize(Command, frozen=True, tag=True, gc=False):
    """Change the priority of a step that waits or runs on `worker`."""

    step: str
    worker: str
    priority: int
    reason: str


class Preempt(Command, frozen=True, tag=True, gc=False):
    """Take `step` back from `worker`; a Dispatch elsewhere, or a Hold, follows."""

    step: str
    worker: str
    reason: str


AnyCommand = Dispatch | Hold | Reject | Retain | Release | Offload | Prefetch | Migrate | Reprioritize | Preempt
