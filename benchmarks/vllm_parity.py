"""The modelled engine against the real vLLM scheduler: one worker, a closed loop, the same costs, virtual time.

The recordings of record_vllm.py show that single decisions are the same; this shows what the differences that
remain add up to over thousands of calls: mean task completion time (TCT) and regenerated tokens, in and beyond the
collapse. Every agent is let in (no gate); first come first served, and stock `--scheduling-policy
priority` with the arrival of the task as priority.

    python benchmarks/vllm_parity.py --tasks 60 --oversubscription 0.7 1.0 1.5
    python benchmarks/vllm_parity.py --tasks 60 --dram-tokens 300000 1200000 --queue fcfs

with a Python that has vLLM and SAGA (see real_vllm.py). With `--dram-tokens` both have a host tier: vLLM's own
`OffloadingConnector` there, copies in virtual time; answers are offloaded too unless `--prompt-only`. In a collapse a
difference in the last bit of a time grows until whole tasks change places. `--exact` rounds latencies and gaps to
2^-20 s, so that sums of times are the same in every order: then what is left between the engines is decisions that
differ (one block among millions of tokens). The real scheduler takes about 1,300 steps per second, fewer with a host
tier, the modelled engine thousands of calls. This file refuses to know SAGA's policies: it is about the engine below
them.
"""

from __future__ import annotations

import argparse
import heapq
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, product
from math import inf
from typing import Any, Protocol

from real_vllm import VLLM_VERSION, Call, RealScheduler, Settings

from saga.engine import HARDWARE, EngineRequest, EngineSettings, Latency, LatencyModel, ModelledEngine, hardware
from saga.workloads import plan
from saga.workloads.catalogue import BUILT_IN, workload


class Engine(Protocol):
    """What the closed loop asks of either engine. Times in seconds, never running back."""

    def submit(self, step: str, session: str, call: plan.Call, priority: int, at_s: float) -> None:
        """A call arrives."""
        ...

    def next_event_s(self) -> float | None:
        """When something next happens if nothing arrives before."""
        ...

    def advance(self, to_s: float) -> list[tuple[str, float]]:
        """Let time pass; (step, finished_s) of the calls that are done."""
        ...

    def prefilled_tokens(self) -> int:
        """Tokens of prompts and recomputations that went through the model so far."""
        ...

    def loaded_tokens(self) -> int:
        """Tokens that calls loaded from the host tier so far."""
        ...


class Real:
    """vLLM's scheduler with the modelled engine's latencies."""

    def __init__(self, settings: Settings, latency: Latency) -> None:
        self._scheduler = RealScheduler(settings)
        self._latency = latency
        self._now_s = 0.0
        self._in_flight: Any = None
        self.num_iterations = 0

    def submit(self, step: str, session: str, call: plan.Call, priority: int, at_s: float) -> None:
        """See Engine."""
        if self._in_flight is None:
            self._now_s = max(self._now_s, at_s)
        self._scheduler.submit(Call(step, call.path, call.output_tokens, priority), at_s)

    def next_event_s(self) -> float | None:
        """See Engine; begins the next iteration with what has arrived by now."""
        if self._in_flight is None and self._scheduler.busy:
            self._in_flight = self._scheduler.schedule(self._now_s)
            if self._in_flight is None:
                return self._copied_s()
            seconds = self._latency.iteration_s(*self._scheduler.work(self._in_flight, self._latency.own_share))
            self._now_s = self._scheduler.forward_start + seconds
            self.num_iterations += 1
        return None if self._in_flight is None else self._now_s

    def _copied_s(self) -> float | None:
        copies = self._scheduler.copies
        end_s = inf if copies is None else copies.next_end()
        return None if end_s == inf else end_s

    def advance(self, to_s: float) -> list[tuple[str, float]]:
        """See Engine."""
        end_s = self.next_event_s()
        if end_s is None or end_s > to_s:
            return []
        if self._in_flight is None:
            self._now_s = end_s
            return []
        decision, self._in_flight = self._in_flight, None
        return [(call.step, end_s) for call in self._scheduler.finish(decision, end_s)]

    def prefilled_tokens(self) -> int:
        """See Engine."""
        return sum(call.prefilled_tokens for call in self._scheduler.calls.values())

    def loaded_tokens(self) -> int:
        """See Engine."""
        return sum(call.host_tokens for call in self._scheduler.calls.values())


class Modelled:
    """The engine that `saga sim` runs."""

    def __init__(self, settings: Settings, latency: Latency) -> None:
        self._engine = ModelledEngine(
            EngineSettings(
                kv_tokens=settings.num_blocks * settings.block_tokens,
                block_tokens=settings.block_tokens,
                max_running=settings.max_running,
                chunk_tokens=settings.chunk_tokens,
                queue=settings.queue,
                host_kv_tokens=settings.host_blocks * settings.block_tokens,
                load_tokens_per_s=settings.load_tokens_per_s,
            ),
            latency,
        )
        self._requests: list[EngineRequest] = []

    def submit(self, step: str, session: str, call: plan.Call, priority: int, at_s: float) -> None:
        """See Engine."""
        request = EngineRequest(step, session, call.path, call.prompt_tokens, call.output_tokens, priority)
        self._requests.append(request)
        self._engine.submit(request, at_s)

    def next_event_s(self) -> float | None:
        """See Engine."""
        event_s = self._engine.next_event_s()
        return None if event_s == inf else event_s

    def advance(self, to_s: float) -> list[tuple[str, float]]:
        """See Engine."""
        outcomes = self._engine.advance(to_s)
        return [(outcome.request.step, outcome.at_s) for outcome in outcomes if outcome.kind == "finished"]

    def prefilled_tokens(self) -> int:
        """See Engine."""
        return sum(request.prefilled_tokens for request in self._requests)

    def loaded_tokens(self) -> int:
        """See Engine."""
        return sum(request.host_tokens for request in self._requests)


@dataclass(frozen=True)
class Exact:
    """A latency model whose seconds are whole multiples of 2^-20, the closed forms replaced by sums. O(iterations)."""

    model: Latency

    @property
    def own_share(self) -> float:
        """See Latency."""
        return self.model.own_share

    def iteration_s(
        self, prefill_tokens: int, prefill_work: float, num_decodes: int, decode_context_tokens: int
    ) -> float:
        """See Latency."""
        return _rounded(self.model.iteration_s(prefill_tokens, prefill_work, num_decodes, decode_context_tokens))

    def decode_run_s(self, num_decodes: int, context_tokens: int, num_iterations: int) -> float:
        """See Latency."""
        return sum(self._run(num_decodes, context_tokens, num_iterations))

    def decode_iterations_within(
        self, num_decodes: int, context_tokens: int, num_iterations: int, seconds: float
    ) -> int:
        """See Latency."""
        if seconds <= 0:
            return 0
        past = accumulate(self._run(num_decodes, context_tokens, num_iterations))
        return next((count for count, end_s in enumerate(past, start=1) if end_s >= seconds), num_iterations)

    def isolated_s(self, cached_tokens: int, prompt_tokens: int, output_tokens: int, chunk_tokens: int) -> float:
        """See Latency."""
        return self.model.isolated_s(cached_tokens, prompt_tokens, output_tokens, chunk_tokens)

    @property
    def prefill_tokens_per_s(self) -> float:
        """See Latency."""
        return self.model.prefill_tokens_per_s

    def _run(self, num_decodes: int, context_tokens: int, num_iterations: int) -> Iterator[float]:
        for i in range(num_iterations):
            yield self.iteration_s(0, 0, num_decodes, context_tokens + i * num_decodes)


def _rounded(seconds: float) -> float:
    return round(seconds * 2**20) / 2**20


def _with_rounded_gaps(task: plan.Task) -> plan.Task:
    root = task.sessions[0]
    calls = tuple(replace(call, gap_s=_rounded(call.gap_s)) for call in root.calls)
    return replace(task, sessions=(replace(root, calls=calls),))


@dataclass(frozen=True)
class Result:
    """What one run came to.

    regenerated_tokens: prefilled beyond what an endless cache would have needed; loaded_tokens: from the host tier.
    """

    mean_tct_s: float
    regenerated_tokens: int
    loaded_tokens: int
    num_calls: int
    took_s: float


def closed_loop(engine: Engine, tasks: list[plan.Task], num_agents: int, stagger_s: float, *, by_task: bool) -> Result:
    """Run the tasks on `num_agents` agents, each starting its next task when one is done.

    by_task: a call's priority is the rank of its task's arrival. The first tasks begin stagger_s apart.
    """
    began = time.perf_counter()
    waiting: Iterator[tuple[int, plan.Task]] = iter(enumerate(tasks))
    arrivals: list[tuple[float, int, int]] = []
    started_s: dict[int, float] = {}
    tct_s: list[float] = []

    def start(at_s: float) -> None:
        rank, _ = next(waiting, (None, None))
        if rank is not None:
            started_s[rank] = at_s
            heapq.heappush(arrivals, (at_s, rank, 0))

    for agent in range(num_agents):
        start(agent * stagger_s)
    while True:
        event_s = engine.next_event_s()
        if event_s is None and not arrivals:
            break
        if event_s is None or (arrivals and arrivals[0][0] < event_s):
            at_s, rank, number = heapq.heappop(arrivals)
            call = tasks[rank].sessions[0].calls[number]
            engine.advance(at_s)
            engine.submit(f"{rank}.{number}", tasks[rank].task, call, rank if by_task else 0, at_s)
            continue
        for step, finished_s in engine.advance(event_s):
            rank, number = map(int, step.split("."))
            calls = tasks[rank].sessions[0].calls
            if number + 1 < len(calls):
                heapq.heappush(arrivals, (finished_s + calls[number + 1].gap_s, rank, number + 1))
            else:
                tct_s.append(finished_s - started_s[rank])
                start(finished_s)
    calls = [call for task in tasks for call in task.sessions[0].calls]
    new_tokens = sum(call.prompt_tokens - max(call.common_tokens, call.shared_tokens) for call in calls)
    if len(tct_s) != len(tasks):
        raise AssertionError(f"{len(tasks) - len(tct_s)} tasks were never finished")
    return Result(
        sum(tct_s) / len(tct_s),
        engine.prefilled_tokens() - new_tokens,
        engine.loaded_tokens(),
        len(calls),
        time.perf_counter() - began,
    )


def compare(given: argparse.Namespace) -> None:
    """Print one line per oversubscription, host tier and queue: real, modelled, modelled / real."""
    machine = hardware(given.hardware)
    latency: Latency = LatencyModel(machine)
    source = workload(given.workload, plan.Limits(), kv_tokens=given.kv_tokens)
    tasks = list(source.tasks(given.tasks, given.seed))
    if given.exact:
        latency = Exact(latency)
        tasks = [_with_rounded_gaps(task) for task in tasks]
    print(f"vllm {VLLM_VERSION}, {given.workload}, {len(tasks)} tasks, {given.kv_tokens} KV tokens, {given.hardware}")
    print("| os | DRAM | queue | TCT real s | modelled s | ratio | regenerated real | modelled | ratio", end=" ")
    print("| loaded real | modelled | ratio | took s |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    rate = machine.load_tokens_per_s
    for times, dram_tokens, queue in product(given.oversubscription, given.dram_tokens, given.queue):
        num_agents = max(1, round(times * given.kv_tokens / source.mean_context_tokens))
        settings = Settings(given.kv_tokens // 16, 16, given.chunk_tokens, given.max_running, queue)
        settings = replace(
            settings,
            host_blocks=dram_tokens // 16,
            load_tokens_per_s=rate,
            store_tokens_per_s=given.store_speed * rate,
            prompt_only=given.prompt_only,
        )
        real, modelled = (
            closed_loop(kind(settings, latency), tasks, num_agents, given.stagger_s, by_task=queue == "priority")
            for kind in (Real, Modelled)
        )
        print(f"| {times} | {dram_tokens} | {queue} | {_row(real, modelled)}", flush=True)


def _row(real: Result, modelled: Result) -> str:
    pairs = (
        (round(real.mean_tct_s, 1), round(modelled.mean_tct_s, 1)),
        (real.regenerated_tokens, modelled.regenerated_tokens),
        (real.loaded_tokens, modelled.loaded_tokens),
    )
    cells = [f"{one} | {other} | {other / max(1, one):.3f}" for one, other in pairs]
    return " | ".join([*cells, f"{real.took_s:.0f} / {modelled.took_s:.1f} |"])


def main() -> None:
    """Parse the sizes and compare."""
    flags = argparse.ArgumentParser(description="Modelled engine against the real vLLM scheduler, in virtual time.")
    flags.add_argument("--workload", default="swe_bench", choices=sorted(BUILT_IN))
    flags.add_argument("--hardware", default="llama3-70b-a100x4", choices=sorted(HARDWARE))
    flags.add_argument("--tasks", type=int, default=160)
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--kv-tokens", type=int, default=450_000)
    flags.add_argument("--chunk-tokens", type=int, default=2_048)
    flags.add_argument("--max-running", type=int, default=256)
    flags.add_argument("--stagger-s", type=float, default=2.0, help="seconds between the starts of the first tasks")
    flags.add_argument("--oversubscription", type=float, nargs="+", default=[0.7, 1.0, 1.5])
    flags.add_argument("--queue", nargs="+", default=["fcfs", "priority"], choices=["fcfs", "priority"])
    flags.add_argument("--dram-tokens", type=int, nargs="+", default=[0], help="host tiers, 0 for none")
    flags.add_argument("--store-speed", type=float, default=1.0, help="rate of the real one's stores over its loads")
    flags.add_argument("--prompt-only", action="store_true", help="the real one does not store answers (its default)")
    flags.add_argument("--exact", action="store_true", help="times in multiples of 2^-20 s: no rounding errors")
    compare(flags.parse_args())


if __name__ == "__main__":
    main()
