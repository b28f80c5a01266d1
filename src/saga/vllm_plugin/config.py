"""What can be set of the plug-in: `--additional-config '{"saga": {...}}'` of vLLM, read once at the start.

It refuses to know vLLM; it is given what was under "saga".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import isfinite
from types import MappingProxyType

from saga.cache.eviction import EvictionPolicy
from saga.cache.lru import Lru
from saga.cache.next_use import NextUse
from saga.cache.pinned import Pinned
from saga.cache.prefix_lru import PrefixLru
from saga.cache.workflow_lru import WorkflowLru
from saga.errors import UnknownName, UsageError
from saga.fairness.agent_fair_share import NoShares, TenantShare, WeightedService
from saga.fairness.start_time_fair import StartTimeFair
from saga.vllm_plugin.contracts import LinkConfig

EVICTION: Mapping[str, EvictionPolicy] = MappingProxyType(
    {"next_use": NextUse(), "workflow_lru": Pinned(WorkflowLru()), "lru": Lru(), "stock": PrefixLru()}
)
TENANTS: Mapping[str, TenantShare] = MappingProxyType(
    {"start_time_fair": StartTimeFair(), "weighted_service": WeightedService(), "none": NoShares()}
)
RATES = ("prefill_tokens_per_s", "load_tokens_per_s", "move_tokens_per_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginConfig:
    """Of one engine. Times in seconds.

    eviction: order in which free blocks leave, a name of `EVICTION`; "stock" takes no notice of sessions.
    tenants, weights: how waiting calls of different tenants are ordered, a name of `TENANTS`.
    epoch_s: how often directives are heard, deadlines kept and calls ordered anew.
    preempt_after_s: how long a call waits before one that it goes before gives way; max_preemptions: of one call.
    retain_factor: without directives a session is retained for so many times its expected gap, at most max_retain_s.
    pin_share: part (0..1) of the blocks that retained sessions may hold against calls that need room; a call that
    cannot run gets them all the same.
    max_sessions, session_idle_s: what is remembered; of contexts of sessions keep_tokens, for prefetch, and the hashes
    of keep_blocks, by which it is known what of them is held.
    prefill_tokens_per_s, load_tokens_per_s (from the host tier), move_tokens_per_s (from a tier that it shares with
    other workers): what the coordinator is told that this engine does; 0 for unknown, or none.
    coordinator (HOST:PORT), worker, url, key: of the link, none where coordinator is ""; key is $SAGA_COORDINATOR_KEY
    by default.
    """

    eviction: str = "next_use"
    tenants: str = "start_time_fair"
    weights: Mapping[str, float] = field(default_factory=dict)
    epoch_s: float = 0.1
    preempt_after_s: float = 0.5
    max_preemptions: int = 2
    retain_factor: float = 4.0
    max_retain_s: float = 600.0
    pin_share: float = 0.0
    max_sessions: int = 20_000
    session_idle_s: float = 3_600.0
    keep_tokens: int = 4_000_000
    keep_blocks: int = 1_000_000
    prefill_tokens_per_s: float = 0.0
    load_tokens_per_s: float = 0.0
    move_tokens_per_s: float = 0.0
    coordinator: str = ""
    worker: str = ""
    url: str = ""
    key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        """Raises UsageError or UnknownName for what cannot be."""
        for name, table in (("eviction", EVICTION), ("tenants", TENANTS)):
            if getattr(self, name) not in table:
                raise UnknownName(f"saga.{name}", getattr(self, name), table)
        for name in ("epoch_s", "retain_factor", "max_retain_s", "session_idle_s", "max_sessions"):
            if getattr(self, name) <= 0:
                raise _wrong(name, getattr(self, name), "a number above 0")
        for name in ("preempt_after_s", "max_preemptions", "keep_tokens", "keep_blocks", *RATES):
            if getattr(self, name) < 0:
                raise _wrong(name, getattr(self, name), "a number of at least 0")
        if not 0.0 <= self.pin_share <= 0.9:
            raise _wrong("pin_share", self.pin_share, "a share from 0 to 0.9")
        wrong = [tenant for tenant, weight in self.weights.items() if not _is_number(weight) or weight <= 0]
        if wrong:
            raise _wrong(f"weights.{wrong[0]}", self.weights[wrong[0]], "a number above 0")

    @classmethod
    def read(cls, settings: object) -> PluginConfig:
        """From what vLLM was given; None for nothing. Raises UsageError naming the field, UnknownName."""
        if settings is None:
            settings = {}
        if not isinstance(settings, Mapping):
            raise UsageError(f"additional_config.saga = {settings!r}: should be an object with the plug-in's settings")
        kinds = {each.name: str(each.type) for each in fields(cls)}
        for name, value in settings.items():
            if name not in kinds:
                raise UnknownName("field of additional_config.saga", str(name), kinds)
            _check_kind(name, value, kinds[name])
        return cls(**settings)

    def link(self) -> LinkConfig:
        """Where the coordinator is."""
        return LinkConfig(
            self.coordinator, self.worker, self.url, self.key or os.environ.get("SAGA_COORDINATOR_KEY", "")
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _check_kind(name: str, value: object, kind: str) -> None:
    """Raise UsageError where the value is not of the field's kind."""
    if kind == "str" and not isinstance(value, str):
        raise _wrong(name, value, "text")
    if kind == "float" and not _is_number(value):
        raise _wrong(name, value, "a number")
    if kind == "int" and (not isinstance(value, int) or isinstance(value, bool)):
        raise _wrong(name, value, "a whole number")
    if kind.startswith("Mapping") and not isinstance(value, Mapping):
        raise _wrong(name, value, "an object of numbers by tenant")


def _wrong(name: str, value: object, right: str) -> UsageError:
    return UsageError(f"additional_config.saga.{name} = {value!r}: should be {right}")
