"""Seeded agents made of distributions: the paper's three workloads.

`swe_bench`, `web_arena` and `ten_tenants` have the shapes of the paper's evaluation (arXiv 2605.00528, set-up of the
evaluation and table of tool latencies). What the paper leaves open is decided here and said in the docstrings.
Nothing here knows who serves the calls.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from saga.errors import UsageError
from saga.workloads.conversation import Conversation
from saga.workloads.plan import Call
from saga.workloads.quantiles import Quantiles, log_normal
from saga.workloads.synthetic import Arrival, Arrivals, Shape, Source
from saga.workloads.tool_latency import PAPER_LATENCY_S

_PAPER = "generator after SAGA, arXiv 2605.00528 (set-up of the evaluation, table of tool latencies)"


@dataclass(frozen=True, slots=True)
class AgentShape:
    """An agent that appends what its tools say to its history, and may cut the history when it grows too long.

    num_calls: (mean, standard deviation, least, most), rounded normal. first_tokens: (least, most) of the first prompt,
    system prompt included, uniform. appended: (median, sigma, most) tokens of what a tool says, log-normal. output:
    (least, most, skew), least + (most - least) * Beta(1.2, skew). tools: (class in the paper's latency table, share).
    system_tokens: leading tokens that all tasks of the kind share, in stream `system_stream`.
    max_prompt_tokens: where a prompt would pass it, everything after the first prompt is dropped.
    latency_s: seconds that a tool of a class takes.
    """

    num_calls: tuple[float, float, int, int]
    first_tokens: tuple[int, int]
    appended: tuple[float, float, int]
    output: tuple[int, int, float]
    tools: tuple[tuple[str, float], ...]
    system_tokens: int
    system_stream: int = 0
    max_prompt_tokens: int | None = None
    latency_s: Mapping[str, Quantiles] = field(default_factory=lambda: PAPER_LATENCY_S)

    def draw(self, rng: np.random.Generator, streams: Iterator[int]) -> list[Call]:
        """The calls of one session. O(calls)."""
        mean, deviation, least, most = self.num_calls
        num_calls = int(min(max(round(rng.normal(mean, deviation)), least), most))
        appended, outputs = self._lengths(rng, num_calls)
        tools, gaps = self._gaps(rng, num_calls)
        first = int(rng.integers(self.first_tokens[0], self.first_tokens[1] + 1))
        conversation = Conversation(streams, ((self.system_stream, self.system_tokens),))
        limit = self.max_prompt_tokens or 1 << 60
        calls: list[Call] = []
        prompt, kept = first, None
        for output, more, gap_s, called in zip(outputs, appended, gaps, tools, strict=True):
            path, common = conversation.ask(prompt, output, kept)
            calls.append(Call(path, prompt, output, gap_s, called, "tool", self.system_tokens, common if calls else 0))
            prompt, kept = prompt + output + more, None
            if prompt > limit:
                prompt, kept = first + more, first
        return calls

    def _lengths(self, rng: np.random.Generator, num_calls: int) -> tuple[list[int], list[int]]:
        """Tokens appended after each call, and tokens answered."""
        median, sigma, cap = self.appended
        appended = np.clip(median * np.exp(sigma * rng.standard_normal(num_calls)), 1, cap)
        low, high, skew = self.output
        outputs = low + (high - low) * rng.beta(1.2, skew, num_calls)
        return appended.astype(int).tolist(), outputs.astype(int).tolist()

    def _gaps(self, rng: np.random.Generator, num_calls: int) -> tuple[list[tuple[str, ...]], list[float]]:
        """The tools that each answer calls, and the seconds before each call (0 before the first)."""
        names = [name for name, _ in self.tools]
        which = rng.choice(len(names), num_calls, p=[share for _, share in self.tools])
        chance = rng.random(num_calls)
        seconds = np.zeros(num_calls)
        for k, name in enumerate(names):
            seconds[which == k] = self.latency_s[name].at(chance[which == k])
        called = [(name,) for name in names]
        tools: list[tuple[str, ...]] = [called[k] for k in which.tolist()]
        tools[-1] = ()
        return tools, [0.0, *seconds[:-1].tolist()]


_CODE_TOOLS = (("code", 0.50), ("file", 0.45), ("database", 0.05))


def _coder(num_calls: tuple[float, float, int, int], system_stream: int = 0) -> AgentShape:
    return AgentShape(
        num_calls=num_calls,
        first_tokens=(2_500, 4_500),
        appended=(430.0, 1.0, 6_000),
        output=(100, 500, 2.5),
        tools=_CODE_TOOLS,
        system_tokens=1_800,
        system_stream=system_stream,
    )


def swe_bench() -> Source:
    """Coding agents as in the paper's SWE-bench Verified run.

    About 36.5 calls per task (10..80). The first prompt has 2,500-4,500 tokens, of which all tasks share 1,800. The
    paper's "2-4K prompt tokens" are read as the first prompt: a tool appends 430 tokens in the median (log-normal,
    sigma 1, at most 6,000), nothing is dropped. 100-500 tokens answered, mostly few. Gaps: half code execution,
    45 % file operations, 5 % database.
    """
    return Source("swe_bench", _PAPER, {"default": _coder((36.5, 10.0, 10, 80))}, "swe_bench")


def swe_bench_with_tool_cv(cv: float) -> Source:
    """`swe_bench` with tools whose latency has this coefficient of variation (0.01..20), their mean as it was.

    Log-normal by class of tool, cut at P99.99. The paper varies the variation and leaves the distribution open.
    """
    if not 0.01 <= cv <= 20.0:
        raise UsageError(f"tool_cv must be a number from 0.01 to 20: {cv}")
    latency_s = {name: log_normal(table.mean(), cv) for name, table in PAPER_LATENCY_S.items()}
    shape = replace(_coder((36.5, 10.0, 10, 80)), latency_s=latency_s)
    return Source(f"swe_bench:tool_cv={cv:g}", _PAPER, {"default": shape}, "swe_bench")


def web_arena() -> Source:
    """Browser agents as in the paper's WebArena run.

    About 18 calls per task (4..40). Every prompt has 4,000-8,000 tokens: it starts at 4,000-5,000, of which all tasks
    share 1,500, each page observation appends 120 tokens in the median (a diff of the accessibility tree), and where
    the next prompt would pass 8,000 the agent drops all but its first prompt. So a task mostly extends its prompt and
    rewrites it about once. 50-200 tokens answered; gaps are the paper's web and API calls.
    """
    shape = AgentShape(
        num_calls=(18.0, 6.0, 4, 40),
        first_tokens=(4_000, 5_000),
        appended=(120.0, 0.8, 2_000),
        output=(50, 200, 2.0),
        tools=(("web", 1.0),),
        system_tokens=1_500,
        max_prompt_tokens=8_000,
    )
    return Source("web_arena", _PAPER, {"default": shape}, "web_arena")


TENANT_RATES_PER_MIN: dict[str, float] = {
    **{f"heavy-{k}": 16.0 for k in range(3)},
    **{f"medium-{k}": 8.0 for k in range(4)},
    **{f"light-{k}": 4.0 for k in range(3)},
}
"""Tasks per minute of each tenant in the paper's mix."""

_TENANT_CALLS = {"heavy": (100.0, 10.0, 60, 140), "medium": (30.0, 5.0, 15, 50), "light": (10.0, 2.0, 4, 18)}


def ten_tenants() -> Source:
    """The paper's mix: 3 heavy, 4 medium and 3 light tenants (100-, 30- and 10-call agents), bursty arrivals.

    Each tenant runs the agents of `swe_bench` with its own shared system prompt of 1,800 tokens and its own number of
    calls. `Task.arrival_s` follows the paper's rates (16, 8 and 4 tasks/min per tenant); a driver scales the clock to
    the load it wants. Inter-arrival times are Gamma with a coefficient of variation of 2, a burstiness as BurstGPT
    reports it. Tasks come in order of arrival.
    """
    shapes: dict[str, Shape] = {
        tenant: _coder(_TENANT_CALLS[tenant.split("-")[0]], stream)
        for stream, tenant in enumerate(TENANT_RATES_PER_MIN)
    }
    provenance = _PAPER + "; bursts after BurstGPT"
    return Source("ten_tenants", provenance, shapes, "swe_bench", BurstyArrivals(), TENANT_RATES_PER_MIN)


@dataclass(frozen=True, slots=True)
class BurstyArrivals(Arrivals):
    """Gamma renewal processes, one per tenant, at the paper's rates or others; `cv`: variation of the intervals."""

    cv: float = 2.0
    rates_per_min: Mapping[str, float] = field(default_factory=lambda: TENANT_RATES_PER_MIN)

    def arrivals(self, seed: np.random.SeedSequence) -> Iterator[Arrival]:
        """Endless (arrival_s, tenant) in order of time; ties by tenant. O(log tenants) each."""
        streams = zip(self.rates_per_min.items(), seed.spawn(len(self.rates_per_min)), strict=True)
        return heapq.merge(*(self._tenant(tenant, rate, child) for (tenant, rate), child in streams))

    def _tenant(self, tenant: str, rate_per_min: float, seed: np.random.SeedSequence) -> Iterator[Arrival]:
        rng = np.random.Generator(np.random.PCG64(seed))
        shape = 1.0 / self.cv**2
        at_s = 0.0
        while True:
            at_s += float(rng.gamma(shape, 60.0 / rate_per_min / shape))
            yield at_s, tenant
