"""What goes into the modelled engine and what comes out: settings, calls, outcomes.

Shapes only; what becomes of a call is decided in `batching.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from saga.cache.eviction import EvictionPolicy
from saga.cache.prefix_lru import PrefixLru
from saga.engine.host_tier import EndedFirst
from saga.engine.kv_pool import OPEN_END, Lease, Span
from saga.errors import UnknownName, UsageError
from saga.views import PromptPath

NO_LEASE = Lease("", (), 0)
NAN = float("nan")
WAITING, LOADING, PREFILL, DECODE, GONE = range(5)
"""Where a call is: in the queue, waiting for a transfer, running, nowhere."""


@dataclass(frozen=True)
class EngineSettings:
    """One worker. Tokens are tokens of KV or of prompt; queue is "fcfs" or "priority" (lower runs first).

    host_kv_tokens and load_tokens_per_s: DRAM tier, none where either is 0. move_tokens_per_s: network that prefixes
    from other workers arrive over. infinite_kv: nothing is ever evicted or refused for lack of blocks.
    report_residency: emit "removed" outcomes; report_first_tokens: "first_token" ones. max_jump_iterations: 1 steps
    through every iteration, same outcomes.
    """

    kv_tokens: int
    block_tokens: int = 16
    max_running: int = 256
    chunk_tokens: int = 2048
    prefix_caching: bool = True
    queue: str = "fcfs"
    eviction: EvictionPolicy = field(default_factory=PrefixLru)
    host_kv_tokens: int = 0
    host_eviction: EvictionPolicy = field(default_factory=EndedFirst)
    load_tokens_per_s: float = 0.0
    move_tokens_per_s: float = 0.0
    infinite_kv: bool = False
    report_residency: bool = False
    report_first_tokens: bool = True
    max_jump_iterations: int = 1 << 30

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises UsageError, UnknownName."""
        if self.queue not in ("fcfs", "priority"):
            raise UnknownName("engine queue", self.queue, ("fcfs", "priority"))
        for name in ("kv_tokens", "block_tokens", "max_running", "chunk_tokens", "max_jump_iterations"):
            if getattr(self, name) < 1:
                raise UsageError(f"engine {name} = {getattr(self, name)} must be at least 1")
        if self.kv_tokens < self.block_tokens:
            raise UsageError(f"engine kv_tokens = {self.kv_tokens} must hold at least one block of {self.block_tokens}")
        if self.chunk_tokens <= self.max_running:
            raise UsageError(
                f"engine chunk_tokens = {self.chunk_tokens} must be above max_running = {self.max_running}: "
                "every running call needs a token per iteration"
            )


class EngineRequest:
    """One call as the engine sees it: the first seven fields come in, the next ones are filled in.

    arrival_s, started_s (first scheduled), first_token_s, finished_s: seconds, nan until known. cached_tokens: prompt
    tokens found on the device, host_tokens: loaded from the host tier, moved_tokens: brought from another worker, each
    at the first admission. prefilled_tokens: all tokens prefilled, again after preemption too. service_s: share of
    device seconds. The fields after these are the engine's own notes.
    """

    __slots__ = (
        "admission",
        "arrival_s",
        "cached_tokens",
        "computed",
        "entry",
        "finished_s",
        "first_token_s",
        "generated",
        "host_tokens",
        "joined",
        "lease",
        "moved_tokens",
        "num_preemptions",
        "offered",
        "output_tokens",
        "path",
        "prefilled_tokens",
        "priority",
        "prompt_tokens",
        "seen",
        "sequence",
        "service_s",
        "session",
        "share",
        "spans",
        "started_s",
        "state",
        "step",
        "task_arrival_s",
    )

    def __init__(
        self,
        step: str,
        session: str,
        path: PromptPath,
        prompt_tokens: int,
        output_tokens: int,
        priority: int = 0,
        task_arrival_s: float = 0.0,
    ) -> None:
        self.step = step
        self.session = session
        self.path = path
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.priority = priority
        self.task_arrival_s = task_arrival_s
        self.renew()

    def renew(self) -> None:
        """As if never submitted: a call taken back from one engine may go to another."""
        self.arrival_s = self.started_s = self.first_token_s = self.finished_s = NAN
        self.cached_tokens = self.host_tokens = self.moved_tokens = self.prefilled_tokens = self.num_preemptions = 0
        self.service_s = self.share = 0.0
        self.state = GONE
        self.entry: list[Any] = []
        self.lease = NO_LEASE
        self.spans: tuple[Span, ...] = ()
        self.computed = self.generated = self.joined = self.admission = self.sequence = 0
        self.offered, self.seen = 0, OPEN_END  # blocks: the next one for the host tier, the first one seen in it


class Outcome(NamedTuple):
    """What became visible. kind: "first_token", "finished" (step, request) or "removed" (session, tokens left)."""

    kind: str
    at_s: float
    step: str = ""
    request: EngineRequest | None = None
    session: str = ""
    device_tokens: int = 0
    host_tokens: int = 0
