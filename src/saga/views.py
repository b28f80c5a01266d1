"""Read-only shapes that policies see: what a policy may know, and nothing else.

Policies never see the scheduler's tables. The scheduler fills these views; they refuse to know how.
"""

from __future__ import annotations

from math import inf
from typing import TypeAlias

PromptPath: TypeAlias = tuple[tuple[int, int], ...]
"""A prompt as content: ((stream, num_tokens), ...).

A *stream* is a sequence of tokens with an identity; it always follows the same content, so equal
(stream, n) at equal place means equal prompts up to there. An append-only session is one growing stream
behind the streams it shares; rewriting history from token t on keeps the streams up to t and begins a
new one. This is a prefix tree with one name per branch.
"""


class CacheOwner:
    """What an eviction policy may know about the session that owns a cached prefix.

    standing: "active", "paused", "ended" or "unknown" (never directed); times in seconds; tokens of context;
    steps_to_use: calls of its task until its own next one, that one included; capacity_tokens: of the cache it lies in.
    """

    __slots__ = (
        "capacity_tokens",
        "context_tokens",
        "expected_use_s",
        "last_use_s",
        "reuse_probability",
        "session",
        "standing",
        "steps_to_use",
        "task_arrival_s",
    )

    def __init__(self, session: str, *, capacity_tokens: int = 1, task_arrival_s: float = 0.0) -> None:
        self.session = session
        self.standing = "unknown"
        self.last_use_s = 0.0
        self.expected_use_s = inf
        self.reuse_probability = 1.0
        self.steps_to_use = 1.0
        self.context_tokens = 0
        self.capacity_tokens = capacity_tokens
        self.task_arrival_s = task_arrival_s

    def stand_for_rewritten(self, owner: CacheOwner) -> None:
        """Be nobody, who has what `owner` had and has rewritten: as old and as large, and never asked for again."""
        self.last_use_s = owner.last_use_s
        self.context_tokens = owner.context_tokens
        self.reuse_probability = 0.0
        self.steps_to_use = inf


class SessionView:
    """What a routing, ordering or admission policy may know about a session with a step at hand.

    Times in seconds, amounts in tokens. `home` is the worker that holds its prefix ("" for none), of which
    `home_tokens` are on the device and `home_host_tokens` more in its host tier. attained_s: device seconds
    its *task* has received; waited_s: how long its steps were kept waiting, where engines say when answers begin.
    remaining_steps, remaining_tokens: forecasts. `preempted`: its last attempt was lost.
    """

    __slots__ = (
        "attained_s",
        "context_tokens",
        "deadline_s",
        "home",
        "home_host_tokens",
        "home_tokens",
        "preempted",
        "prompt_tokens",
        "remaining_steps",
        "remaining_tokens",
        "session",
        "step_arrival_s",
        "steps_done",
        "task",
        "task_arrival_s",
        "tenant",
        "waited_s",
    )

    def __init__(self, session: str, task: str, tenant: str, task_arrival_s: float) -> None:
        self.session = session
        self.task = task
        self.tenant = tenant
        self.task_arrival_s = task_arrival_s
        self.step_arrival_s = task_arrival_s
        self.steps_done = 0
        self.prompt_tokens = 0
        self.context_tokens = 0
        self.home = ""
        self.home_tokens = 0
        self.home_host_tokens = 0
        self.attained_s = 0.0
        self.waited_s = 0.0
        self.remaining_steps = 0.0
        self.remaining_tokens = 0.0
        self.deadline_s: float | None = None
        self.preempted = False


class WorkerView:
    """What a routing or admission policy may know about a worker.

    kv_tokens, host_kv_tokens: capacities. active_tokens: contexts of sessions that hold a reservation, what they
    share counted once; reserved_tokens: the same plus their expected growth; live_tokens: contexts of all sessions
    at home here that have not ended; num_live, num_active: their numbers; num_running: steps dispatched and not
    finished, running_tokens: of their prompts; kv_used_tokens: what the worker itself reported last.
    """

    __slots__ = (
        "active_tokens",
        "block_tokens",
        "draining",
        "host_kv_tokens",
        "index",
        "kv_tokens",
        "kv_used_tokens",
        "live_tokens",
        "load_tokens_per_s",
        "max_running",
        "move_tokens_per_s",
        "num_active",
        "num_live",
        "num_running",
        "prefill_tokens_per_s",
        "reserved_tokens",
        "running_tokens",
        "worker",
    )

    def __init__(self, worker: str, index: int, kv_tokens: int) -> None:
        self.worker = worker
        self.index = index
        self.kv_tokens = kv_tokens
        self.host_kv_tokens = 0
        self.block_tokens = 16
        self.max_running = 256
        self.prefill_tokens_per_s = 5_000.0
        self.load_tokens_per_s = 0.0
        self.move_tokens_per_s = 0.0
        self.active_tokens = 0
        self.reserved_tokens = 0.0
        self.live_tokens = 0
        self.kv_used_tokens = 0
        self.num_live = 0
        self.num_active = 0
        self.num_running = 0
        self.running_tokens = 0
        self.draining = False


class TenantView:
    """What a fairness policy may know about a tenant: device seconds attained, its weight, open sessions.

    advanced_s: device seconds charged in advance for places that it holds now; num_waiting: sessions at the gate.
    """

    __slots__ = ("advanced_s", "attained_s", "num_sessions", "num_waiting", "tenant", "weight")

    def __init__(self, tenant: str, weight: float = 1.0) -> None:
        self.tenant = tenant
        self.weight = weight
        self.attained_s = 0.0
        self.advanced_s = 0.0
        self.num_sessions = 0
        self.num_waiting = 0
