"""What a workload is like, in the numbers that decide how much scheduling can do: lengths, gaps, growth and reuse.

It sees plans only: nothing about engines, and nothing about how the tasks came to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from saga.errors import UsageError
from saga.views import PromptPath
from saga.workloads.plan import Task, Workload

_MAX_TOOLS = 8


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution in four numbers; `count` values."""

    count: int
    mean: float
    p50: float
    p95: float
    max: float


@dataclass(frozen=True, slots=True)
class Reuse:
    """Share of all prompt tokens that an infinite cache holds: in all, from the same session, from other sessions."""

    all: float
    own_session: float
    other_sessions: float


@dataclass(frozen=True, slots=True)
class Description:
    """`num_tasks` tasks of a workload in numbers. Tokens and seconds; `gaps_s` by kind; `growth_tokens` per step.

    mean_context_tokens: mean over calls of prompt + answer. shrinking: share of the steps whose prompt is shorter than
    the one before. reuse counts tokens, answers included. skipped: recorded sessions left out, by reason.
    """

    name: str
    provenance: str
    num_tasks: int
    num_sessions: int
    num_calls: int
    calls_per_session: Spread
    input_tokens: Spread
    output_tokens: Spread
    gaps_s: dict[str, Spread]
    growth_tokens: Spread | None
    shrinking: float
    mean_context_tokens: float
    reuse: Reuse
    tools: dict[str, int]
    tenants: dict[str, int]
    skipped: dict[str, int]


def describe(workload: Workload, num_tasks: int, seed: int = 0) -> Description:
    """Describe the first `num_tasks` tasks (at least one) of that seed. O(calls x streams)."""
    if num_tasks < 1:
        raise UsageError(f"tasks must be at least 1: {num_tasks}")
    tasks = list(workload.tasks(num_tasks, seed))
    sessions = [session for task in tasks for session in task.sessions]
    calls = [call for session in sessions for call in session.calls]
    gaps: dict[str, list[float]] = {}
    growth: list[float] = []
    for session in sessions:
        for before, call in pairwise(session.calls):
            gaps.setdefault(call.gap_kind, []).append(call.gap_s)
            growth.append(call.prompt_tokens - before.prompt_tokens)
    tools = Counter("+".join(call.tools) or "(none)" for call in calls)
    return Description(
        name=workload.name,
        provenance=workload.provenance,
        num_tasks=len(tasks),
        num_sessions=len(sessions),
        num_calls=len(calls),
        calls_per_session=_spread([len(session.calls) for session in sessions]),
        input_tokens=_spread([call.prompt_tokens for call in calls]),
        output_tokens=_spread([call.output_tokens for call in calls]),
        gaps_s={kind: _spread(seconds) for kind, seconds in sorted(gaps.items())},
        growth_tokens=_spread(growth) if growth else None,
        shrinking=sum(more < 0 for more in growth) / len(growth) if growth else 0.0,
        mean_context_tokens=sum(call.prompt_tokens + call.output_tokens for call in calls) / len(calls),
        reuse=infinite_cache_reuse(tasks),
        tools=dict(tools.most_common(_MAX_TOOLS)),
        tenants=dict(sorted(Counter(task.tenant for task in tasks).items())),
        skipped=dict(workload.skipped.reasons),
    )


def infinite_cache_reuse(tasks: Iterable[Task], *, block_tokens: int = 1) -> Reuse:
    """What a cache that forgets nothing would serve, in whole blocks, session after session. O(calls x streams)."""
    everybody: dict[int, int] = {}
    prompt_tokens = hit = own_hit = 0
    for task in tasks:
        for session in task.sessions:
            own: dict[int, int] = {}
            for call in session.calls:
                prompt_tokens += call.prompt_tokens
                hit += _held(everybody, call.path) // block_tokens * block_tokens
                own_hit += _held(own, call.path) // block_tokens * block_tokens
                for cache in (everybody, own):
                    _hold(cache, call.path, call.output_tokens)
    total = max(prompt_tokens, 1)
    return Reuse(hit / total, own_hit / total, (hit - own_hit) / total)


def _held(cache: dict[int, int], path: PromptPath) -> int:
    """How many leading tokens of `path` lie in `cache`: longest known length by stream."""
    held = 0
    for stream, tokens in path:
        known = cache.get(stream, 0)
        if known < tokens:
            return held + known
        held += tokens
    return held


def _hold(cache: dict[int, int], path: PromptPath, output_tokens: int) -> None:
    """Add `path` and its answer to `cache`."""
    for stream, tokens in path:
        if cache.get(stream, 0) < tokens:
            cache[stream] = tokens
    stream, tokens = path[-1]
    cache[stream] = max(cache[stream], tokens + output_tokens)


def _spread(values: Sequence[float]) -> Spread:
    array = np.asarray(values, dtype=np.float64)
    p50, p95 = (float(value) for value in np.quantile(array, (0.5, 0.95)))
    return Spread(len(array), float(array.mean()), p50, p95, float(array.max()))
