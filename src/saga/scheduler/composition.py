"""A composition of policies: everything that makes one system differ from another.

The scheduler reads the upper half, engines (modelled or real) the lower. It refuses to know names of systems: that is
`saga.presets`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from saga.cache.eviction import EvictionPolicy
from saga.cache.overdue import NeverOverdue, Overdue
from saga.cache.prefetch import NoPrefetch, Prefetching
from saga.cache.prefix_lru import PrefixLru
from saga.cache.tiers import HostTier, NoHostTier
from saga.cache.ttl import NoTtl, Retention
from saga.errors import UsageError
from saga.fairness.admission import Admission, OpenDoor
from saga.fairness.agent_fair_share import NoShares, TenantShare
from saga.fairness.preemption import NoPreemption, Preemption
from saga.fairness.virtual_token_counter import Billing, DeviceSeconds
from saga.ordering.fcfs import Fcfs
from saga.ordering.order import Ordering
from saga.routing.profile import Routing
from saga.routing.stealing import NoStealing, Stealing


@dataclass(frozen=True)
class EngineRules:
    """What the engine itself does: keep prefixes at all, in which order they leave, in which order calls are admitted.

    queue: "fcfs" or "priority" (vLLM's --scheduling-policy). infinite_kv: the bound that nothing reaches.
    """

    prefix_caching: bool = True
    eviction: EvictionPolicy = field(default=PrefixLru())
    queue: Literal["fcfs", "priority"] = "fcfs"
    infinite_kv: bool = False


@dataclass(frozen=True)
class Composition:
    """A system. name, description, source (paper, version) and left_out (what of it is not modelled) are for people.

    The rest are policies. forecasts: whether any of them looks at forecasts; without, nothing is learned or paid.
    min_confidence: a forecast below it counts as none (the paper's theta_conf): no policy sees it.
    residency: whether any policy looks at what is still cached, so that engines say what they evict (with forecasts
    they do in any case). first_tokens: likewise, when answers begin. follows_children: whether a session's steps to
    use are told anew as its sub-agents go on.
    migrate: whether a session that moves takes its prefix along where that is cheaper than prefilling.
    patience_s: how long a returning session waits for its home before it may go elsewhere.
    home_share: part of its prompt that must be at home for home to be worth waiting for.
    """

    name: str
    description: str
    source: str
    left_out: str = field(default="", kw_only=True)
    routing: Routing
    admission: Admission = field(default=OpenDoor())
    retention: Retention = field(default=NoTtl())
    overdue: Overdue = field(default=NeverOverdue())
    ordering: Ordering = field(default=Fcfs())
    tenants: TenantShare = field(default=NoShares())
    billing: Billing = field(default=DeviceSeconds())
    stealing: Stealing = field(default=NoStealing())
    preemption: Preemption = field(default=NoPreemption())
    host_tier: HostTier = field(default=NoHostTier())
    prefetching: Prefetching = field(default=NoPrefetch())
    engine: EngineRules = field(default=EngineRules())
    migrate: bool = False
    forecasts: bool = False
    min_confidence: float = 0.0
    residency: bool = False
    first_tokens: bool = False
    follows_children: bool = False
    patience_s: float = 20.0
    home_share: float = 0.5
    epoch_s: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what contradicts itself. Raises UsageError."""
        if self.admission.gates and self.stealing.idle_s is not None:
            raise UsageError(
                f"composition {self.name!r}: a session with a reserved place cannot be stolen; use NoStealing"
            )

    @property
    def reports_residency(self) -> bool:
        """Whether engines are to say what they evict."""
        return self.residency or self.forecasts

    @property
    def reports_first_tokens(self) -> bool:
        """Whether engines are to say when an answer begins."""
        moves = self.stealing.idle_s is not None or self.preemption.blocked_s is not None
        return self.first_tokens or moves or not self.ordering.static


@dataclass(frozen=True)
class Caps:
    """Bounds on what the scheduler remembers; beyond them the least recently seen idle session ends.

    max_waiting: sessions at the gate, max_backlog: steps behind a live one of their session; beyond them steps are
    rejected. max_tenants: accounts, beyond which those without a session are closed.
    """

    max_sessions: int = 250_000
    idle_s: float = 7_200.0
    max_waiting: int = 100_000
    max_backlog: int = 64
    max_tenants: int = 10_000
