"""The modelled engine against the real one: the same small workload, the same scheduler before three engines.

    python benchmarks/model_check.py [--presets vllm_apc,vllm_priority,session_cap,saga] [--tasks 27] [--clock cpu]

    scheduler   vLLM's own scheduler with a runner that computes nothing; an iteration takes what the cost model says
    engine      vLLM's own engine on a CPU, in this process, a tiny random model; an iteration takes what it takes
    modelled    the engine of `saga sim`, with the cost model

The cost model is the engine's own: `saga calibrate`'s probes and fit, in this process, before the runs and after them
(what has changed between the two is printed). Agents, gaps and SAGA's scheduler are the simulator's in all three, so
only what is below a dispatched call differs; each preset's queue (fcfs or priority) is the engine's, retention and
tiers are nobody's here. Time is virtual: it passes with the iterations. `--clock cpu` counts an iteration as the CPU
seconds of this process, which on an idle machine are those of the wall; `--clock wall` counts the wall's.

Needs vLLM for CPUs beside SAGA (`make test` puts it there). It refuses to know how a scheduling decision is made.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from random import Random
from typing import Any

from tiny_model import ENVIRONMENT, VOCABULARY, make_tiny_model

os.environ |= ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

from real_vllm import VLLM_VERSION, Call, RealScheduler, Settings
from small_agents import WORKLOADS, Agents
from vllm import SamplingParams
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue
from vllm.v1.core.sched.scheduler import Scheduler

from saga.cache.prefix_lru import PrefixLru
from saga.cache.tiers import NoHostTier
from saga.engine.calibration import Fit, Sizes, fit
from saga.engine.calls import EngineRequest, Outcome
from saga.engine.hardware import as_toml
from saga.engine.latency import Latency, LatencyModel
from saga.engine.probes import probe
from saga.fairness.admission import SessionCap
from saga.presets import preset
from saga.scheduler.composition import Composition
from saga.sim.config import SimConfig
from saga.sim.driver import Simulation
from saga.vllm_plugin.in_process import InProcessEngine, start_vllm

BLOCK_TOKENS, NUM_BLOCKS, CHUNK_TOKENS = 32, 512, 2_048
CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}


# ---------------------------------------------------------------------- engines in the simulator's fleet


class Stepped:
    """Speaks to the simulator as the modelled engine does, and runs one iteration of a real scheduler after another.

    Directives about caches are not carried out: stock vLLM knows none.
    """

    def __init__(self, *, report_first_tokens: bool) -> None:
        self.num_iterations = 0
        self.busy_s = self.modelled_s = self.taking_in_s = 0.0
        self._report_first_tokens = report_first_tokens
        self._now_s = 0.0
        self._end_s = inf
        self._outcomes: list[Outcome] = []
        self._requests: dict[str, EngineRequest] = {}

    def submit(self, request: EngineRequest, at_s: float) -> None:
        """A call arrives."""
        if self._end_s == inf:
            self._now_s = max(self._now_s, at_s)
        request.arrival_s = at_s
        self._requests[request.step] = request
        self._add(request, at_s)

    def next_event_s(self) -> float:
        """The end of the iteration in progress; begins one where there is something to do."""
        if self._end_s == inf and self._requests:
            seconds = self._iterate()
            self._end_s = self._now_s + seconds
            self.busy_s += seconds
            self.num_iterations += 1
            for request in self._share(seconds):
                request.started_s = self._now_s
        return self._end_s

    def advance(self, to_s: float) -> list[Outcome]:
        """What is visible by then."""
        if self.next_event_s() > to_s:
            return []
        self._now_s, self._end_s = self._end_s, inf
        self._outcomes = []
        self._end_iteration(self._now_s)
        return self._outcomes

    def reprioritize(self, step: str, priority: int, at_s: float | None = None) -> None:
        """Only a call that waits: none of the presets here asks for more."""
        raise NotImplementedError(f"{step}: priorities are final here")

    def report(self) -> tuple[int, int, int, int]:
        """(running, waiting, KV held, KV resident): the simulator samples them, nobody reads them."""
        return len(self._requests), 0, 0, 0

    def set_standing(self, *_: Any, **__: Any) -> None:
        """Not carried out."""

    offload = prefetch = check = set_standing

    def close(self) -> None:
        """No more calls come."""

    def _add(self, request: EngineRequest, at_s: float) -> None:
        raise NotImplementedError

    def _iterate(self) -> float:
        raise NotImplementedError

    def _share(self, seconds: float) -> list[EngineRequest]:
        """Share the iteration's seconds among its calls by tokens; those that are in their first one."""
        tokens = self._scheduled()
        total = sum(tokens.values())
        for step, count in tokens.items():
            self._requests[step].service_s += seconds * count / total
        return [
            self._requests[step] for step in tokens if self._requests[step].started_s != self._requests[step].started_s
        ]

    def _scheduled(self) -> dict[str, int]:
        raise NotImplementedError

    def _end_iteration(self, now_s: float) -> None:
        raise NotImplementedError

    def _first_token(self, request: EngineRequest, now_s: float) -> None:
        if request.first_token_s != request.first_token_s:  # nan
            request.first_token_s = now_s
            if self._report_first_tokens:
                self._outcomes.append(Outcome("first_token", now_s, request.step, request))

    def _finish(self, request: EngineRequest, now_s: float) -> None:
        request.finished_s = now_s
        del self._requests[request.step]
        self._outcomes.append(Outcome("finished", now_s, request.step, request))


class SchedulerOnly(Stepped):
    """vLLM's scheduler, stock or of another class; seconds by the cost model."""

    def __init__(self, scheduler: RealScheduler, latency: Latency, *, report_first_tokens: bool) -> None:
        super().__init__(report_first_tokens=report_first_tokens)
        self._vllm = scheduler
        self._latency = latency
        self._decision: Any = None

    def _add(self, request: EngineRequest, at_s: float) -> None:
        call = Call(request.step, request.path, request.output_tokens, request.priority, session=request.session)
        self._vllm.submit(call, at_s)

    def _iterate(self) -> float:
        self._decision = self._vllm.schedule(self._now_s)
        seconds = self._latency.iteration_s(*self._vllm.work(self._decision, self._latency.own_share))
        self.modelled_s += seconds
        return seconds

    def _scheduled(self) -> dict[str, int]:
        return dict(self._decision.num_scheduled_tokens)

    def _end_iteration(self, now_s: float) -> None:
        self._vllm.finish(self._decision, now_s)
        for step in self._decision.num_scheduled_tokens:
            call, request = self._vllm.calls[step], self._requests[step]
            if call.first_token is not None:
                self._first_token(request, now_s)
            if call.finished is not None:
                request.cached_tokens, request.prefilled_tokens = call.cached_tokens, call.prefilled_tokens
                request.num_preemptions = len(call.preempted)
                del self._vllm.calls[step]
                self._finish(request, now_s)


class Noting(Scheduler):
    """vLLM's scheduler, whose decisions can be read afterwards."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.noted: deque[tuple[Any, dict[str, int], list[str]]] = deque()

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """The decision; noted with the tokens that each of its calls had before, and who was preempted."""
        running = {request.request_id: request.num_preemptions for request in self.running}
        decision = super().schedule(*args, **kwargs)
        before = {
            step: self.requests[step].num_computed_tokens - new for step, new in decision.num_scheduled_tokens.items()
        }
        lost = [step for step, times in running.items() if self.requests[step].num_preemptions > times]
        self.noted.append((decision, before, lost))
        return decision

    def use_queue(self, name: str) -> None:
        """First come first served, or by priority; while nobody waits."""
        self.policy = SchedulingPolicy(name)
        self.waiting = create_request_queue(self.policy)
        self.skipped_waiting = create_request_queue(self.policy)


class WholeEngine(Stepped):
    """vLLM's engine in this process; seconds by the clock. The next prompt holds what it really answered."""

    def __init__(
        self, engine: Any, queue: str, clock: Callable[[], float], latency: Latency, *, report_first_tokens: bool
    ) -> None:
        super().__init__(report_first_tokens=report_first_tokens)
        self._engine = engine
        self._scheduler: Noting = engine.engine_core.engine_core.scheduler
        self._scheduler.use_queue(queue)
        engine.reset_prefix_cache()
        self._scheduler.noted.clear()
        self._clock, self._latency = clock, latency
        self._owed_s = 0.0
        self._salt = time.time_ns()
        self._contents: dict[int, list[int]] = {}
        self._steps: dict[str, str] = {}
        self._prefilling: set[str] = set()
        self._now_scheduled: dict[str, int] = {}
        self._outputs: list[Any] = []

    def close(self) -> None:
        """Give up the calls that are still here: the simulator stops when its measured tasks are done."""
        names = {step: name for name, step in self._steps.items()}
        self._engine.abort_request([names[step] for step in self._requests])
        while self._engine.has_unfinished_requests():
            self._engine.step()

    def _content(self, stream: int, tokens: int) -> list[int]:
        known = self._contents.setdefault(stream, [])
        if len(known) < tokens:
            dice = Random(f"{self._salt}/{stream}/{len(known)}")
            known += dice.choices(range(10, VOCABULARY), k=tokens - len(known))
        return known[:tokens]

    def _add(self, request: EngineRequest, at_s: float) -> None:
        prompt = [token for stream, tokens in request.path for token in self._content(stream, tokens)]
        name = f"r{len(self._steps)}"
        self._steps[name] = request.step
        wanted = SamplingParams(max_tokens=request.output_tokens, ignore_eos=True, temperature=0.0)
        began_s = self._clock()
        self._engine.add_request(name, {"prompt_token_ids": prompt}, wanted, priority=request.priority)
        self._owed_s += self._clock() - began_s

    def _iterate(self) -> float:
        seconds, self._owed_s = self._owed_s, 0.0
        self.taking_in_s += seconds
        self._now_scheduled = {}
        while not self._now_scheduled:  # a round in which vLLM schedules nothing is not an iteration
            began_s = self._clock()
            self._outputs = self._engine.step()
            seconds += self._clock() - began_s
            self._note(*self._scheduler.noted.popleft())
        return seconds

    def _note(self, decision: Any, before: dict[str, int], lost: list[str]) -> None:
        """What went through the model, and what the cost model says of it."""
        steps = {name: self._steps[name.split("-")[0]] for name in {*before, *lost}}
        for name in lost:
            self._requests[steps[name]].num_preemptions += 1
            self._prefilling.discard(steps[name])
        for new in decision.scheduled_new_reqs:
            self._requests[steps[new.req_id]].cached_tokens = new.num_computed_tokens
            self._prefilling.add(steps[new.req_id])
        self._prefilling |= {steps[name] for name in decision.scheduled_cached_reqs.resumed_req_ids}
        prefill_tokens, work, num_decodes, context = 0, 0.0, 0, 0
        for name, new in decision.num_scheduled_tokens.items():
            step = steps[name]
            self._now_scheduled[step] = new
            if step in self._prefilling:
                self._requests[step].prefilled_tokens += new
                prefill_tokens += new
                work += new * (before[name] + self._latency.own_share * new)
            else:
                num_decodes += 1
                context += before[name] + new
        if self._now_scheduled:
            self.modelled_s += self._latency.iteration_s(prefill_tokens, work, num_decodes, context)

    def _scheduled(self) -> dict[str, int]:
        return self._now_scheduled

    def _end_iteration(self, now_s: float) -> None:
        for output in self._outputs:
            request = self._requests[self._steps[output.request_id]]
            answer = list(output.outputs[0].token_ids)
            if answer:
                self._prefilling.discard(request.step)
                self._first_token(request, now_s)
            if output.finished:
                stream, tokens = request.path[-1]
                self._contents[stream] = self._contents[stream][:tokens] + answer
                self._finish(request, now_s)


# ---------------------------------------------------------------------- the comparison


def at_engine(name: str, workload: Agents) -> Composition:
    """The preset as far as stock vLLM can carry it out: its gate, order and queue. A fixed cap is what just fits."""
    composition = preset(name)
    if isinstance(composition.admission, SessionCap):
        fitting = int(NUM_BLOCKS * BLOCK_TOKENS / workload.mean_context_tokens)
        composition = replace(composition, admission=SessionCap(fitting))
    rules = replace(composition.engine, eviction=PrefixLru())
    return replace(composition, engine=rules, host_tier=NoHostTier(), migrate=False)


def calibrated(engine: InProcessEngine, repeats: int, name: str) -> Fit:
    """Probes and fit, as `saga calibrate --engine in-process` makes them."""
    probed = asyncio.run(probe(engine, repeats=repeats, seed=time.time_ns() >> 20))
    return fit(probed.observations, name=name, provenance="model_check.py", sizes=Sizes(engine.kv_tokens))


def run(
    name: str, workload: Agents, given: argparse.Namespace, hardware: str, engine: Callable[..., Stepped] | None
) -> dict[str, Any]:
    """One run of the simulator over this engine (None: its own). Figures of the run, and how busy the engine was."""
    config = SimConfig(
        preset=name,
        workload=workload.name,
        hardware=hardware,
        workers=1,
        agents_per_worker=workload.agents,
        tasks=given.tasks,
        seed=given.seed,
        block_tokens=BLOCK_TOKENS,
        chunk_tokens=CHUNK_TOKENS,
    )
    simulation = Simulation(config, workload, composition=at_engine(name, workload))
    stepped = None
    if engine is not None:
        settings = simulation.fleet.settings
        stepped = engine(settings.queue, report_first_tokens=settings.report_first_tokens)
        simulation.fleet.engines = dict.fromkeys(simulation.fleet.names, stepped)
    began_s = time.perf_counter()
    figures = dict(simulation.run().metrics)
    figures["took_s"] = time.perf_counter() - began_s
    if stepped is not None:
        stepped.close()
        figures["modelled_over_measured"] = stepped.modelled_s / stepped.busy_s
        figures["taking_in_share"] = stepped.taking_in_s / stepped.busy_s
    return figures


def show_fit(fits: list[Fit]) -> None:
    """Residuals of all fits, and how far the last is from the first."""
    for title, found in zip(("before", "after"), fits, strict=False):
        for residual in found.residuals:
            held_out = "held out" if residual.held_out else "fitted"
            print(
                f"calibrated {title}: {residual.kind:8} {held_out:8} {residual.num_observations:3} probes, "
                f"median error {residual.median_error:.1%}, p95 {residual.p95_error:.1%}, bias {residual.bias:+.1%}"
            )
    works = {"prefill of 2,000": (2_000, 2_000_000, 0, 0), "100 after 2,000": (100, 205_000, 0, 0)}
    works["decode of 6 with 2,400 each"] = (0, 0, 6, 14_400)
    for name, work in works.items():
        seconds = [LatencyModel(found.hardware).iteration_s(*work) * 1e3 for found in fits]
        print(f"{name}: " + ", then ".join(f"{ms:.1f} ms" for ms in seconds))


def main() -> None:
    """Calibrate, run every preset on the three engines in turn, calibrate again, print."""
    flags = argparse.ArgumentParser(description="The modelled engine against the real scheduler and the real engine.")
    flags.add_argument("--presets", default="vllm_apc,vllm_priority,session_cap,saga")
    flags.add_argument("--workload", default="B", choices=sorted(WORKLOADS))
    flags.add_argument("--tasks", type=int, default=27, help="the first wave of agents included, which is not measured")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--repeats", type=int, default=3, help="of each probe")
    flags.add_argument("--rounds", type=int, default=1, help="of all presets on the real engine")
    flags.add_argument("--clock", default="cpu", choices=sorted(CLOCKS))
    given = flags.parse_args()
    workload, names = WORKLOADS[given.workload], given.presets.split(",")
    load = workload.agents * workload.mean_context_tokens / (NUM_BLOCKS * BLOCK_TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        llm = start_vllm(
            str(make_tiny_model(Path(folder, "tiny"))),
            max_context_tokens=4_096,
            kv_tokens=NUM_BLOCKS * BLOCK_TOKENS,
            block_tokens=BLOCK_TOKENS,
            chunk_tokens=CHUNK_TOKENS,
            enforce_eager=True,
            scheduler_cls=Noting,
            async_scheduling=False,
        )
        clock = CLOCKS[given.clock]
        engine = InProcessEngine(llm, clock=clock)
        print(
            f"vllm {VLLM_VERSION}, workload {workload.name}: {workload.agents} agents, oversubscription {load:.2f}, "
            f"{given.tasks} tasks; {given.clock} clock, load average {os.getloadavg()[0]:.1f}"
        )
        fits = [calibrated(engine, given.repeats, "before")]
        latency = LatencyModel(fits[0].hardware)

        def whole(queue: str, **more: Any) -> Stepped:
            return WholeEngine(llm.llm_engine, queue, clock, latency, **more)

        table = Path(folder, "before.toml")
        table.write_text(as_toml(fits[0].hardware))
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for each in range(given.rounds):
            for name in names if each % 2 == 0 else reversed(names):
                found[name].append(run(name, workload, given, f"{table}:before", whole))
                print(f"{name} on the real engine: {found[name][-1]['took_s']:.0f} s", flush=True)
        fits.append(calibrated(engine, given.repeats, "after"))
        show_fit(fits)
        print(f"load average {os.getloadavg()[0]:.1f}")
        compare(found, workload, given, folder, fits)


def compare(
    found: dict[str, list[dict[str, Any]]],
    workload: Agents,
    given: argparse.Namespace,
    folder: str,
    fits: list[Fit],
) -> None:
    """One line per preset: the engine's figures, and the others' over them, with the mean of the two fits."""
    first, last = fits[0].hardware, fits[1].hardware

    def mean(one: Any, other: Any) -> Any:
        return tuple((a + b) / 2 for a, b in zip(one, other, strict=True))

    hardware = replace(
        first,
        name="mean",
        linear_ms=mean(first.linear_ms, last.linear_ms),
        prefill_attention_ms=mean(first.prefill_attention_ms, last.prefill_attention_ms),
        decode_attention_ms=mean(first.decode_attention_ms, last.decode_attention_ms),
        prefill_own_share=(first.prefill_own_share + last.prefill_own_share) / 2,
    )
    table = Path(folder, "mean.toml")
    table.write_text(as_toml(hardware))

    def scheduler(queue: str, **more: Any) -> Stepped:
        vllm = RealScheduler(Settings(NUM_BLOCKS, BLOCK_TOKENS, CHUNK_TOKENS, queue=queue))
        return SchedulerOnly(vllm, LatencyModel(hardware), **more)

    print("| preset | mean TCT engine s | scheduler | modelled | ratio to engine | p95 ratio", end=" ")
    print("| regenerated engine | scheduler | modelled | ratio", end=" ")
    print("| iterations, model / engine | taking calls in |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for name, runs in found.items():
        real = run(name, workload, given, f"{table}:mean", scheduler)
        modelled = run(name, workload, given, f"{table}:mean", None)
        tct_s = sum(one["tct_mean_s"] for one in runs) / len(runs)
        p95_s = sum(one["tct_p95_s"] for one in runs) / len(runs)
        tokens = "/".join(f"{one['regenerated_tokens']:,}" for one in runs)
        taking_in = sum(one["taking_in_share"] for one in runs) / len(runs)
        spread = "/".join(f"{one['tct_mean_s']:.2f}" for one in runs)
        iterations = sum(one["modelled_over_measured"] for one in runs) / len(runs)
        print(
            f"| {name} | {spread} | {real['tct_mean_s']:.2f} | {modelled['tct_mean_s']:.2f} "
            f"| {modelled['tct_mean_s'] / tct_s:.3f} | {modelled['tct_p95_s'] / p95_s:.3f} | {tokens} "
            f"| {real['regenerated_tokens']:,} | {modelled['regenerated_tokens']:,} "
            f"| {modelled['regenerated_tokens'] / max(1, real['regenerated_tokens']):.3f} | {iterations:.3f} "
            f"| {taking_in:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
