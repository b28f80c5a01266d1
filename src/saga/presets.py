"""Systems by name, each a short composition of policies with the source of the mechanism that it models.

A preset named after another system models that system's *published mechanism* in our engine model; it is not that
system, and `left_out` says what of the mechanism is missing. Adding one is adding an entry to `_ALL`. An ablation is
its base with one policy replaced: the six of the paper are of `saga_paper`, those of our own design of `saga`. This
module refuses to hold any logic.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from saga.cache.next_use import NextUse
from saga.cache.overdue import LongOverdue
from saga.cache.pinned import EndedFirst, Pinned
from saga.cache.prefetch import BeforeReturn, NoPrefetch
from saga.cache.prefix_lru import PrefixLru
from saga.cache.steps_to_use import FarthestStep
from saga.cache.tiers import NoHostTier, PausedLast, WriteBack
from saga.cache.ttl import FixedTtl, Forever, NoTtl, P95Ttl, SkiRental, UtilityTtl
from saga.cache.workflow_lru import WorkflowLru
from saga.errors import UnknownName
from saga.fairness.admission import OpenDoor, SessionCap, WorkingSet
from saga.fairness.agent_fair_share import AgentUrgency, WeightedService
from saga.fairness.pause_resume import PauseResume
from saga.fairness.preemption import NoPreemption, UrgentFirst
from saga.fairness.start_time_fair import StartTimeFair
from saga.fairness.virtual_token_counter import TokenCosts
from saga.ordering.breadth_first import BreadthFirst
from saga.ordering.classes import UrgencyClasses
from saga.ordering.depth_first import DepthFirst
from saga.ordering.fcfs import Fcfs, TaskFcfs
from saga.ordering.hybrid import Hybrid
from saga.ordering.longest_prefix import LongestPrefix
from saga.ordering.order import Ordering
from saga.ordering.shortest_context import ShortestContext
from saga.routing.cache_aware import CacheAware
from saga.routing.profile import Profile
from saga.routing.scorers import FewestLive, Freest, LeastLoaded, LeastReserved, LMetric, SessionAffinity
from saga.routing.stealing import IdleSteals, LevelFreeness, NoStealing
from saga.scheduler.composition import Composition, EngineRules

LEAST_LOADED = Profile("least loaded", ((LeastLoaded(), 1.0),), balance="calls")
STICKY = Profile("sticky, else fewest live sessions", ((SessionAffinity(), 10.0), (FewestLive(), 1.0)))
HOME_OR_QUIETEST = Profile(
    "home, else fewest calls and live sessions",
    ((SessionAffinity(), 10.0), (LeastLoaded(), 1.0), (FewestLive(), 1.0)),
    balance="calls",
)
HOME_OR_LEAST_RESERVED = Profile(
    "home, else least reserved", ((SessionAffinity(), 10.0), (LeastReserved(), 1.0)), balance="reserved"
)
HYBRID = Hybrid()


def paper_affinity(theta: float = 0.8) -> Profile:
    """The paper's routing: home while its load (live contexts / KV memory) is below theta, else the least loaded."""
    scorers = ((SessionAffinity(theta=theta), 10.0), (LeastLoaded(), 1.0))
    return Profile(f"home below theta {theta:g}, else least loaded", scorers, balance="calls")


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
        "start-time fair shares between tenants, eviction by next use, host tier"
    ),
    source="study of this project (docs/policies.md); paper sections on workflow-atomic scheduling",
    routing=HOME_OR_QUIETEST,
    admission=WorkingSet(),
    retention=SkiRental(),
    overdue=LongOverdue(),
    ordering=TaskFcfs(),
    tenants=StartTimeFair(),
    host_tier=WriteBack(eviction=PausedLast()),
    engine=EngineRules(eviction=NextUse(), queue="priority"),
    migrate=True,
    forecasts=True,
)

_SAGA_NO_ADMISSION = replace(
    _SAGA,
    name="saga_no_admission",
    description="saga without the gate: every call is let in at once, held places are hints to the eviction only",
    source="ablation of saga",
    admission=OpenDoor(),
)

_SAGA_NO_DRAM = replace(
    _SAGA,
    name="saga_no_dram",
    description="saga without a host tier: what leaves the device is computed again",
    source="ablation of saga",
    host_tier=NoHostTier(),
)

_SAGA_NO_RETENTION = replace(
    _SAGA,
    name="saga_no_retention",
    description="saga that holds no place across a gap: a session asks for room again at every call",
    source="ablation of saga",
    retention=NoTtl(),
)

_SAGA_NO_ORDER = replace(
    _SAGA,
    name="saga_no_order",
    description="saga in the order of arrival of calls, not of tasks",
    source="ablation of saga",
    ordering=Fcfs(),
)

_SAGA_NO_NEXT_USE = replace(
    _SAGA,
    name="saga_no_next_use",
    description="saga over an engine that evicts as it always did, least recently used",
    source="ablation of saga",
    engine=EngineRules(queue="priority"),
)

_SAGA_NO_MOVES = replace(
    _SAGA,
    name="saga_no_moves",
    description="saga whose sessions leave their prefix behind when they go to another worker",
    source="ablation of saga",
    migrate=False,
)


def saga_paper(
    *,
    alpha: float = 0.3,
    beta: float = 0.5,
    gamma: float = 0.2,
    theta: float = 0.8,
    t_idle_s: float = 0.1,
    r_max: float = 2.0,
    ttl_max_s: float = 300.0,
    theta_conf: float = 0.7,
    queue: Ordering = HYBRID,
) -> Composition:
    """The paper's system with its constants by its names (table of mechanisms): its sensitivity study varies them."""
    return Composition(
        name="saga_paper",
        description=(
            "the paper's rules literally, everything let in: WA-LRU, p95 TTL, affinity below theta 0.8, work stealing, "
            "AFS, host tier with prefetch. Readings of what it leaves open. Load: live contexts / KV memory; for "
            "stealing, calls at work. Pressure: the same load, 0 below 0.7, 1 above 0.9. TTL: a pin, left only when "
            "nothing else is left. Hybrid: depth first among sessions with half of their prompt cached, then breadth "
            "first. Urgency: W - S is the forecast remaining device seconds of the task, W is S + that; its powers of "
            "two are classes, Hybrid decides within one. Preemption: once per call, by one blocked for 500 ms beyond "
            "its own prefill and twice as urgent. Below theta_conf a forecast counts as none: P_reuse 1, TTL of an "
            "unknown tool, a task half done, no prefetch"
        ),
        source="arXiv 2605.00528 (HPDC '26)",
        left_out=(
            "capacity in proportion to urgency (it is an order here); a call that gave way or was stolen generates its "
            "answer again; the coordinator's epoch of 100 ms delays new priorities only"
        ),
        routing=paper_affinity(theta),
        retention=P95Ttl(max_s=ttl_max_s),
        ordering=UrgencyClasses(by=AgentUrgency(), within=queue),
        stealing=IdleSteals(idle_s=t_idle_s, max_load_ratio=r_max),
        preemption=UrgentFirst(),
        host_tier=WriteBack(),
        prefetching=BeforeReturn(),
        engine=EngineRules(
            eviction=Pinned(WorkflowLru(alpha=alpha, beta=beta, gamma=gamma, horizon_s=ttl_max_s)), queue="priority"
        ),
        migrate=True,
        forecasts=True,
        min_confidence=theta_conf,
    )


_SAGA_PAPER = saga_paper()

_SAGA_PAPER_BFS = replace(
    saga_paper(queue=BreadthFirst()),
    name="saga_paper_bfs",
    description="saga_paper with breadth first in place of Hybrid: spread over sessions",
    source="arXiv 2605.00528, table of queue strategies",
)

_SAGA_PAPER_DFS = replace(
    saga_paper(queue=DepthFirst()),
    name="saga_paper_dfs",
    description="saga_paper with depth first in place of Hybrid: finish sessions",
    source="arXiv 2605.00528, table of queue strategies",
)

_SAGA_NO_WALRU = replace(
    _SAGA_PAPER,
    name="saga_no_walru",
    description="saga_paper with LRU in place of WA-LRU; pins stay",
    source="arXiv 2605.00528, ablation",
    engine=EngineRules(eviction=Pinned(PrefixLru()), queue="priority"),
)

_SAGA_NO_TTL = replace(
    _SAGA_PAPER,
    name="saga_no_ttl",
    description="saga_paper without tool-aware TTL: nothing is pinned across a gap",
    source="arXiv 2605.00528, ablation",
    retention=NoTtl(),
)

_SAGA_NO_PREFETCH = replace(
    _SAGA_PAPER,
    name="saga_no_prefetch",
    description="saga_paper without prefetch: prefixes come back from the host when they are asked for",
    source="arXiv 2605.00528, ablation",
    prefetching=NoPrefetch(),
)

_SAGA_NO_AFFINITY = replace(
    _SAGA_PAPER,
    name="saga_no_affinity",
    description="saga_paper without session affinity: a call goes where fewest are at work, and no prefix follows it",
    source="arXiv 2605.00528, ablation",
    routing=LEAST_LOADED,
    migrate=False,
)

_SAGA_NO_STEALING = replace(
    _SAGA_PAPER,
    name="saga_no_stealing",
    description="saga_paper without work stealing: calls stay where they were sent",
    source="arXiv 2605.00528, ablation",
    stealing=NoStealing(),
)

_SAGA_NO_AFS = replace(
    _SAGA_PAPER,
    name="saga_no_afs",
    description="saga_paper without Agent Fair Share: Hybrid alone orders, nobody is preempted",
    source="arXiv 2605.00528, ablation",
    ordering=Hybrid(),
    preemption=NoPreemption(),
)

_SGLANG = Composition(
    name="sglang",
    description=(
        "SGLang's mechanism: prefix tree with LRU, longest cached prefix first, behind its cache-aware balancer (home "
        "if 30 % of the prompt is there, shortest queue when calls are out of balance)"
    ),
    source="SGLang (NeurIPS '24; 0.5.8): RadixAttention, schedule policy lpm (the paper's), router policy cache_aware",
    left_out=(
        "strangers that share a system prompt are not drawn to one worker by it, as the router's tree does (in its "
        "favour); fall-back to FCFS above 128 waiting calls; in-batch prefix sharing"
    ),
    routing=CacheAware(),
    ordering=LongestPrefix(),
    engine=EngineRules(queue="priority"),
    residency=True,
)

_LLUMNIX = Composition(
    name="llumnix",
    description=(
        "Llumnix' mechanism: each call to the freest instance (free memory per call), calls moved from overcommitted "
        "instances to free ones; no prefix caching"
    ),
    source="Llumnix (OSDI '24; 1.2 over vLLM 0.6): freeness, virtual usage, rescheduling",
    left_out=(
        "live migration of calls that answer already, with their KV (only calls that have not begun are moved); "
        "priorities; auto-scaling"
    ),
    routing=Profile("freest", ((Freest(), 1.0),), balance="calls"),
    stealing=LevelFreeness(),
    engine=EngineRules(prefix_caching=False),
)

_TRT_LLM_SCAFFOLDING = replace(
    _VLLM_APC,
    name="trt_llm_scaffolding",
    description=(
        "TensorRT-LLM with Scaffolding: prefix reuse with sticky sessions, and the KV of agents and sub-agents that "
        "have finished is dropped first, because the application says so"
    ),
    source="TensorRT-LLM 1.x: KV cache reuse and retention; Scaffolding: proactive KV cache drop",
    left_out=(
        "the no-evict capacity scheduler, which reserves room for the longest answer; the share of batch slots between "
        "agents and chats; faster kernels"
    ),
    engine=EngineRules(eviction=EndedFirst(PrefixLru())),
)

_VLLM_KVFLOW = replace(
    _VLLM_APC,
    name="vllm_kvflow",
    description=(
        "KVFlow's mechanism over vllm_apc: evict by steps to execution, the farthest first, host tier, and prefetch of "
        "what runs next. A session between two calls is one step away, one that waits for sub-agents as many more as "
        "they still make"
    ),
    source="KVFlow (NeurIPS '25, arXiv 2507.07400)",
    left_out="the agent step graph is learned here, not declared by the client",
    host_tier=WriteBack(eviction=FarthestStep()),
    prefetching=BeforeReturn(),
    engine=EngineRules(eviction=FarthestStep()),
    forecasts=True,
    follows_children=True,
)

_CONTINUUM = replace(
    _VLLM_APC,
    name="continuum",
    description=(
        "Continuum's mechanism over vllm_apc: after a tool call the KV is pinned for the time that pays, by what "
        "reloading and queueing again would cost; pinned memory lets nobody in, the latest program is unpinned when "
        "those at work outgrow the rest; first come first served by program"
    ),
    source="Continuum / CacheTTL (arXiv 2511.02230)",
    left_out="its utility in all detail (see UtilityTtl); a program whose home is full for 20 s goes to another worker",
    admission=WorkingSet(alpha=1.0, growth_share=0.0),
    retention=UtilityTtl(),
    ordering=TaskFcfs(),
    engine=EngineRules(eviction=Pinned(PrefixLru()), queue="priority"),
    forecasts=True,
    first_tokens=True,
)

_THUNDERAGENT = replace(
    _VLLM_APC,
    name="thunderagent",
    description=(
        "ThunderAgent's mechanism: programs are let in, paused at tools and resumed by memory pressure; the shortest "
        "context is paused first and resumed first, on any worker, out of one queue"
    ),
    source="ThunderAgent (ICML '26, arXiv 2602.13692); marks of NVIDIA Dynamo's port (1.3)",
    left_out=(
        "pressure is looked at with every event, not every 5 s; the claim of a program at a tool ends after 300 s "
        "instead of decaying; packing of resumed programs is greedy; tool environments"
    ),
    routing=HOME_OR_LEAST_RESERVED,
    admission=PauseResume(),
    retention=FixedTtl(300.0),
    ordering=ShortestContext(),
    home_share=inf,
)

_LMETRIC = replace(
    _VLLM_APC,
    name="lmetric",
    description="LMetric's router: the least product of tokens to prefill there and calls at work there",
    source="LMetric (arXiv 2603.15202)",
    left_out="prefixes that other sessions left on a worker count as missing",
    routing=Profile("least product", ((LMetric(), 1.0),), balance="calls"),
    residency=True,
)

_VTC = replace(
    _VLLM_APC,
    name="vtc",
    description=(
        "VTC's mechanism: one queue, calls let in as far as they fit, the tenant with the least virtual counter next "
        "(an input token 1, an output token 2, lifted to the least at work when it comes)"
    ),
    source="VTC (OSDI '24): Fairness in Serving Large Language Models",
    left_out="output is counted when the call ends, not token by token",
    routing=HOME_OR_LEAST_RESERVED,
    admission=WorkingSet(alpha=1.0, growth_share=0.0),
    tenants=WeightedService(),
    billing=TokenCosts(),
    home_share=inf,
)

_SESSION_CAP = replace(
    _VLLM_APC,
    name="session_cap",
    description="vllm_apc behind a gate that lets a fixed number of sessions per worker in, each until its end",
    source="what a careful operator does by hand",
    admission=SessionCap(),
    retention=Forever(),
    ordering=TaskFcfs(),
)

_INFINITE_KV = replace(
    _VLLM_APC,
    name="infinite_kv",
    description="vllm_apc with KV memory without end: nothing ever leaves a worker, calls are served in the same order",
    source="bound",
    engine=EngineRules(infinite_kv=True),
)

_ALL = (
    _VLLM,
    _VLLM_LEAST_LOADED,
    _VLLM_APC,
    _VLLM_APC_DRAM,
    _VLLM_PRIORITY,
    _SGLANG,
    _LLUMNIX,
    _TRT_LLM_SCAFFOLDING,
    _VLLM_KVFLOW,
    _CONTINUUM,
    _THUNDERAGENT,
    _LMETRIC,
    _VTC,
    _SESSION_CAP,
    _SAGA,
    _SAGA_NO_ADMISSION,
    _SAGA_NO_DRAM,
    _SAGA_NO_RETENTION,
    _SAGA_NO_ORDER,
    _SAGA_NO_NEXT_USE,
    _SAGA_NO_MOVES,
    _SAGA_PAPER,
    _SAGA_PAPER_BFS,
    _SAGA_PAPER_DFS,
    _SAGA_NO_WALRU,
    _SAGA_NO_TTL,
    _SAGA_NO_PREFETCH,
    _SAGA_NO_AFFINITY,
    _SAGA_NO_STEALING,
    _SAGA_NO_AFS,
    _INFINITE_KV,
)

PRESETS: dict[str, Composition] = {composition.name: composition for composition in _ALL}


def preset(name: str) -> Composition:
    """The composition of that name; UnknownName where there is none."""
    if name not in PRESETS:
        raise UnknownName("preset", name, PRESETS)
    return PRESETS[name]
