"""Systems by name, each a short composition of policies with the source of the mechanism that it models.

A preset named after another system models that system's *published mechanism* in our engine model; it is not that
system. Adding one is adding an entry to `_ALL`. This module refuses to hold any logic.
"""

from __future__ import annotations

from dataclasses import replace

from saga.cache.next_use import NextUse
from saga.cache.prefetch import BeforeReturn
from saga.cache.tiers import PausedLast, WriteBack
from saga.cache.ttl import Forever, P95Ttl, SkiRental
from saga.cache.workflow_lru import WorkflowLru
from saga.errors import UnknownName
from saga.fairness.admission import SessionCap, WorkingSet
from saga.fairness.agent_fair_share import AgentUrgency, WeightedService
from saga.ordering.fcfs import TaskFcfs
from saga.routing.profile import Profile
from saga.routing.scorers import FewestLive, LeastLoaded, SessionAffinity
from saga.routing.stealing import IdleSteals
from saga.scheduler.composition import Composition, EngineRules

LEAST_LOADED = Profile("least loaded", ((LeastLoaded(), 1.0),), balance="calls")
STICKY = Profile("sticky, else fewest live sessions", ((SessionAffinity(), 10.0), (FewestLive(), 1.0)))
HOME_OR_QUIETEST = Profile(
    "home, else fewest calls and live sessions",
    ((SessionAffinity(), 10.0), (LeastLoaded(), 1.0), (FewestLive(), 1.0)),
    balance="calls",
)
PAPER_AFFINITY = Profile(
    "home below theta, else least loaded", ((SessionAffinity(theta=0.8), 10.0), (LeastLoaded(), 1.0)), balance="calls"
)

_VLLM = Composition(
    name="vllm",
    description="vLLM without prefix caching behind a least-loaded balancer: every call alone",
    source="vLLM 0.6 defaults (enable_prefix_caching off)",
    routing=LEAST_LOADED,
    engine=EngineRules(prefix_caching=False),
)

_VLLM_APC = Composition(
    name="vllm_apc",
    description="vLLM with automatic prefix caching, sticky sessions, first come first served: the baseline",
    source="vLLM v1 (0.32): FreeKVCacheBlockQueue, FCFS scheduler",
    routing=STICKY,
)

_VLLM_LEAST_LOADED = replace(
    _VLLM_APC,
    name="least_loaded",
    description="vllm_apc behind a balancer without affinity: each call goes where fewest are at work",
    source="vLLM v1 (0.32) behind a plain HTTP load balancer (least connections)",
    routing=LEAST_LOADED,
)

_VLLM_APC_DRAM = replace(
    _VLLM_APC,
    name="vllm_apc_dram",
    description="vllm_apc with stock offloading of KV blocks to host memory",
    source="vLLM v1 (0.32): OffloadingConnector, LRU",
    host_tier=WriteBack(),
)

_VLLM_PRIORITY = replace(
    _VLLM_APC,
    name="vllm_priority",
    description="vllm_apc with priority scheduling by arrival of the task",
    source="vLLM v1 (0.32): --scheduling-policy priority",
    ordering=TaskFcfs(),
    engine=EngineRules(queue="priority"),
)

_SAGA = Composition(
    name="saga",
    description=(
        "sessions admitted by working set, places held across tool gaps by ski rental, task age order, "
        "weighted tenant service, eviction by next use, host tier"
    ),
    source="POLICY study of this project; paper sections on workflow-atomic scheduling",
    routing=HOME_OR_QUIETEST,
    admission=WorkingSet(),
    retention=SkiRental(),
    ordering=TaskFcfs(),
    tenants=WeightedService(),
    host_tier=WriteBack(eviction=PausedLast()),
    engine=EngineRules(eviction=NextUse(), queue="priority"),
    migrate=True,
    forecasts=True,
)

_SAGA_PAPER = Composition(
    name="saga_paper",
    description=(
        "the paper's rules literally: WA-LRU, p95 TTL, affinity below theta 0.8, work stealing, AFS urgency, "
        "host tier with prefetch; everything is let in. Load is read as live contexts / KV memory, pressure likewise, "
        "W - S as forecast remaining device seconds of the task"
    ),
    source="arXiv 2605.00528",
    routing=PAPER_AFFINITY,
    retention=P95Ttl(),
    ordering=AgentUrgency(),
    stealing=IdleSteals(),
    host_tier=WriteBack(),
    prefetching=BeforeReturn(),
    engine=EngineRules(eviction=WorkflowLru(), queue="priority"),
    migrate=True,
    forecasts=True,
)

_SESSION_CAP = replace(
    _VLLM_APC,
    name="session_cap",
    description="vllm_apc behind a gate that lets a fixed number of sessions per worker in, each until its end",
    source="POLICY item 7: what a careful operator does by hand",
    admission=SessionCap(),
    retention=Forever(),
    ordering=TaskFcfs(),
)

_INFINITE_KV = replace(
    _VLLM_APC,
    name="infinite_kv",
    description="vllm_apc with KV memory without end: the bound that no policy passes",
    source="bound",
    engine=EngineRules(infinite_kv=True),
)

_ALL = (
    _VLLM,
    _VLLM_LEAST_LOADED,
    _VLLM_APC,
    _VLLM_APC_DRAM,
    _VLLM_PRIORITY,
    _SAGA,
    _SAGA_PAPER,
    _SESSION_CAP,
    _INFINITE_KV,
)

PRESETS: dict[str, Composition] = {composition.name: composition for composition in _ALL}


def preset(name: str) -> Composition:
    """The composition of that name; UnknownName where there is none."""
    if name not in PRESETS:
        raise UnknownName("preset", name, PRESETS)
    return PRESETS[name]
