"""What identity and scheduling are told: from saga.toml and the tenants' file, or from the coordinator to its fronts.

A file of its own because msgspec makes these objects, which it cannot of compiled classes (`native/build.py`). It
refuses to know where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from saga.fairness.preemption import NoPreemption
from saga.presets import preset
from saga.routing.stealing import NoStealing
from saga.scheduler.composition import Caps, Composition


@dataclass(frozen=True, slots=True)
class IdentitySettings:
    """How names are made.

    ask_usage: ask engines for token counts on streams whose client did not. trust_tenant_header: believe a tenant
    named by the client, where no keys are asked for. infer_workflow: calls with the same system prompt and tools are of
    one kind where none is named. max_response_ids, max_pending, max_named_tenants: caps. secret: seeds salts and
    hashes; give every process of a fleet the same.
    """

    ask_usage: bool = True
    trust_tenant_header: bool = True
    infer_workflow: bool = True
    max_response_ids: int = 200_000
    max_pending: int = 100_000
    max_named_tenants: int = 1_000
    secret: bytes = b""


@dataclass(frozen=True, slots=True)
class SchedulingSettings:
    """How calls are scheduled.

    preset: name of a composition. max_queue: calls that may wait. max_wait_s, no_worker_wait_s: how long, seconds.
    max_move_s: how long a step waits for its prefix to be on its way. max_attempts: of one call. session_idle_s: after
    which a session has ended. check_every: events between samples of the invariants, 0 for none. housekeeping_s: how
    often idle sessions are looked for.
    """

    preset: str = "saga"
    max_queue: int = 1_000
    max_wait_s: float = 120.0
    no_worker_wait_s: float = 10.0
    max_move_s: float = 0.5
    max_attempts: int = 2
    max_sessions: int = 250_000
    session_idle_s: float = 3_600.0
    check_every: int = 0
    housekeeping_s: float = 5.0

    def composition(self) -> Composition:
        """The preset, without what a gateway cannot do. Raises UnknownName."""
        return replace(preset(self.preset), stealing=NoStealing(), preemption=NoPreemption())

    def caps(self) -> Caps:
        """Bounds on what a scheduler remembers."""
        return Caps(max_sessions=self.max_sessions, idle_s=self.session_idle_s, max_waiting=self.max_queue + 1)


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant. Limits of None are no limits; keys are SHA-256 digests; cache_salt keeps its caches apart.

    may_go_first: its calls may ask for a priority that puts them before those of others at an engine.
    """

    name: str
    keys: tuple[bytes, ...] = ()
    weight: float = 1.0
    max_calls_in_flight: int | None = None
    max_tokens_per_min: int | None = None
    cache_salt: bool = False
    may_go_first: bool = False


DEFAULT_TENANT: Final = Tenant("default")
