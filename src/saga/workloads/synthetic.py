"""A workload whose tasks are drawn, never recorded: turns shapes of agents into seeded tasks.

It refuses to know what the shapes are (paper generators or fitted profiles) and who serves the calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Protocol, TypeAlias

import numpy as np

from saga.errors import UsageError
from saga.workloads.limits import Fit
from saga.workloads.plan import Call, SessionPlan, Skipped, Task

_SAMPLE_TASKS = 200  # tasks drawn once, with a seed of their own, to estimate mean contexts
_SAMPLE_SEED = 20_260_528
_MAX_MISSES = 500  # tasks in a row that do not fit before the workload counts as one that never does
FIRST_PRIVATE_STREAM = 1_000  # lower streams are shared by tasks

Arrival: TypeAlias = tuple[float, str]


class Shape(Protocol):
    """How one session of a kind of agent is drawn."""

    def draw(self, rng: np.random.Generator, streams: Iterator[int]) -> list[Call]:
        """The calls of one session; `streams` gives new names for the streams of its own."""
        ...


class Arrivals(Protocol):
    """When the tasks of which tenant arrive in an open-loop run."""

    def arrivals(self, seed: np.random.SeedSequence) -> Iterator[Arrival]:
        """Endless (seconds from the start, tenant) in order of time, the same for the same seed."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """What a synthetic workload is made of.

    shapes: by tenant. arrivals: when tasks come, None in a closed loop. rates: relative, by tenant; empty for equal.
    """

    name: str
    provenance: str
    shapes: dict[str, Shape]
    workflow: str
    arrivals: Arrivals | None = None
    rates: dict[str, float] = field(default_factory=dict)


class SyntheticWorkload:
    """Tasks drawn from the shapes of `source`. Satisfies `plan.Workload`.

    tenants: share of the tasks by tenant. Costs O(calls); about 5 us per call. `skipped` counts the tasks left out by
    the latest iteration. Raises UsageError where no task fits.
    """

    def __init__(self, source: Source, fit: Fit) -> None:
        self._source = source
        self._fit = fit
        self.name = source.name
        self.provenance = source.provenance
        self.skipped = Skipped()
        sample = list(self.tasks(_SAMPLE_TASKS, _SAMPLE_SEED))
        self.skipped = Skipped()
        calls = [call for task in sample for call in task.sessions[0].calls]
        firsts = [task.sessions[0].calls[0] for task in sample]
        self.mean_context_tokens = _mean_context(calls)
        self.first_context_tokens = _mean_context(firsts)
        rates = source.rates or dict.fromkeys(source.shapes, 1.0)
        self.tenants = {tenant: rate / sum(rates.values()) for tenant, rate in rates.items()}

    def tasks(self, num_tasks: int, seed: int) -> Iterator[Task]:
        """`num_tasks` tasks, the same for the same seed; fewer tasks are a prefix of more."""
        if num_tasks < 0:
            raise UsageError(f"num_tasks must not be negative: {num_tasks}")
        return islice(self._draw(seed), num_tasks)

    def _draw(self, seed: int) -> Iterator[Task]:
        self.skipped.reasons.clear()
        task_seed, arrival_seed = np.random.SeedSequence(seed).spawn(2)
        rng = np.random.Generator(np.random.PCG64(task_seed))
        source, fit, cap_s = self._source, self._fit, self._fit.gap_cap_s
        streams, misses, number = count(FIRST_PRIVATE_STREAM), 0, 0
        for arrival_s, tenant in self._arrivals(arrival_seed):
            calls = source.shapes[tenant].draw(rng, streams)
            longest = max(call.prompt_tokens + call.output_tokens for call in calls)
            reason = fit.reason_against(len(calls), longest)
            if reason is not None:
                misses += 1
                self.skipped.reasons[reason] = self.skipped.reasons.get(reason, 0) + 1
                if misses > _MAX_MISSES:
                    raise UsageError(f"no task of {self.name} fits: {reason}; raise that limit")
                continue
            misses = 0
            name = f"{self.name}-{number}"
            plan = SessionPlan(name, tuple(_capped(call, cap_s) for call in calls))
            yield Task(name, tenant, source.workflow, name, (plan,), arrival_s)
            number += 1

    def _arrivals(self, seed: np.random.SeedSequence) -> Iterator[tuple[float | None, str]]:
        if self._source.arrivals is not None:
            yield from self._source.arrivals.arrivals(seed)
        tenants = list(self._source.shapes)
        while True:
            yield from ((None, tenant) for tenant in tenants)


def _capped(call: Call, cap_s: float) -> Call:
    if call.gap_s <= cap_s:
        return call
    return Call(
        call.path,
        call.prompt_tokens,
        call.output_tokens,
        cap_s,
        call.tools,
        call.gap_kind,
        call.shared_tokens,
        call.common_tokens,
        call.spawns,
    )


def _mean_context(calls: list[Call]) -> float:
    return sum(call.prompt_tokens + call.output_tokens for call in calls) / len(calls)
