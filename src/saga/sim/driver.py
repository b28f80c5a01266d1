"""The simulator's driver: a heap, a virtual clock, and the production scheduler between agents and modelled engines.

It plays both sides that the scheduler talks to: the agents (a plan's calls, each after the gap that follows the end of
the one before) and the engines. It refuses to decide anything: what a step's fate is, the scheduler says.

A closed loop keeps a fixed number of agents busy: each takes the next task when it has finished one; they start
staggered over one isolated task time, the first wave is not measured (unless there are no other tasks), and fillers
keep the load up until the last measured task is done, so that no run ends in an empty fleet. An open loop starts tasks
at their arrival times and measures all of them.
"""

from __future__ import annotations

import gc
import heapq
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from math import inf
from typing import Final

import numpy as np

from saga import commands as do
from saga import events as ev
from saga.engine.batching import EngineRequest
from saga.engine.hardware import hardware
from saga.errors import InvariantViolated, UsageError
from saga.presets import preset
from saga.scheduler.composition import Composition
from saga.scheduler.invariants import check
from saga.scheduler.scheduler import Scheduler
from saga.sim.config import SimConfig
from saga.sim.fleet import ModelledFleet
from saga.sim.log import NoLog, RunLog
from saga.sim.metrics import Run, RunDetail, Tally, TaskResult, shares, times
from saga.views import PromptPath
from saga.workloads.plan import Call, SessionPlan, Task, Workload

_ARRIVE, _ENGINE, _TICK, _START, _SAMPLE = range(5)
_SAMPLE_S = 5.0
_MAX_TIMELINE = 20_000
_FILLERS = 4
_NEVER_S: Final = inf


def simulate(
    config: SimConfig,
    workload: Workload,
    on_progress: Callable[[int], None] | None = None,
    *,
    composition: Composition | None = None,
) -> Run:
    """Run it. on_progress gets the number of measured tasks finished so far. Deterministic but for `wall_s`.

    composition: a system of one's own in place of the preset that config names.
    """
    return Simulation(config, workload, on_progress, composition=composition).run()


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let Python look for cyclic garbage rarely: a run leaves next to none, and looking took 8 % of its time."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _Thread:
    """A session at work: which call is next, how many children it waits for."""

    __slots__ = (
        "blocked",
        "call",
        "children",
        "ended_s",
        "held",
        "index",
        "job",
        "path",
        "paused_s",
        "plan",
        "prefix",
    )

    def __init__(self, plan: SessionPlan, job: _Job) -> None:
        self.plan = plan
        self.job = job
        self.index = 0
        self.call: Call = plan.calls[0]
        self.children = 0
        self.blocked = False
        self.ended_s = -1.0
        self.paused_s = -1.0
        self.held = False
        self.path: PromptPath = ()
        self.prefix = _shared_prefix(plan.calls[0])


class _Job:
    """A task at work."""

    __slots__ = ("index", "num_open", "start_s", "task", "threads")

    def __init__(self, task: Task, index: int, start_s: float) -> None:
        self.task = task
        self.index = index
        self.start_s = start_s
        self.num_open = 0
        self.threads: dict[int, _Thread] = {}


def _shared_prefix(call: Call) -> str:
    """Name of the last content stream within the tokens that other sessions share."""
    left, name = call.shared_tokens, ""
    for stream, tokens in call.path:
        if left <= 0:
            break
        left -= tokens
        name = f"p{stream}"
    return name


class Simulation:
    """One run, from the first arrival to the last measured task."""

    def __init__(
        self,
        config: SimConfig,
        workload: Workload,
        on_progress: Callable[[int], None] | None = None,
        *,
        composition: Composition | None = None,
    ) -> None:
        self.config = config
        self.workload = workload
        self.composition = composition or preset(config.preset)
        self.machine = hardware(config.hardware)
        self.fleet = ModelledFleet(config, self.composition, self.machine)
        self.scheduler = Scheduler(self.composition)
        self.detail = RunDetail() if config.detail else None
        self._on_progress = on_progress
        self._heap: list[tuple[float, int, int, object]] = []
        self._sequence = 0
        self._tick_s = _NEVER_S
        self._told = False
        self._due = dict.fromkeys(self.fleet.names, _NEVER_S)
        self._live: dict[str, tuple[_Thread, int]] = {}
        self._threads: dict[str, _Thread] = {}
        self._seen: dict[int, int] = {}
        self._results: list[TaskResult] = []
        self._tally = Tally()
        self._used: list[tuple[float, float, float]] = []
        self._completions: list[float] = []
        self._first_measured_s = 0.0
        self._last_started_s = 0.0
        self._num_started = 0
        self._num_events = 0
        self._num_calls = 0
        self._num_agents = self._agents()
        self._num_first_wave = 0 if self._num_agents is None else self._num_agents
        if self._num_first_wave >= config.tasks:
            self._num_first_wave = 0
        self._num_measured = config.tasks - self._num_first_wave
        self._tasks: Iterator[Task] = iter(())
        self._log: NoLog | RunLog = NoLog()

    def _agents(self) -> int | None:
        """Number of agents in a closed loop over the whole fleet, None in an open one."""
        config = self.config
        if config.agents_per_worker is not None:
            return max(1, round(config.agents_per_worker * config.workers))
        if config.oversubscription is not None:
            per_worker = config.oversubscription * self.fleet.settings.kv_tokens / self.workload.mean_context_tokens
            return max(1, round(per_worker * config.workers))
        return None

    @property
    def results(self) -> list[TaskResult]:
        """The measured tasks that are finished, in the order in which they ended."""
        return self._results

    # ------------------------------------------------------------------ the loop

    def run(self) -> Run:
        """Everything; raises InvariantViolated if the run stalls."""
        began_s = time.perf_counter()
        with _rare_collections(), RunLog(self.config) if self.config.log_path else NoLog() as self._log:
            self._begin()
            while len(self._results) < self._num_measured:
                at_s, _, kind, what = heapq.heappop(self._heap)
                self._happen(at_s, kind, what)
                if self._told:
                    self._watch_deadline()
        return self._finish(time.perf_counter() - began_s)

    def _happen(self, at_s: float, kind: int, what: object) -> None:
        if kind == _ENGINE:
            self._advance(str(what), at_s)
        elif kind == _ARRIVE:
            assert isinstance(what, _Thread)
            self._arrive(what, at_s)
        elif kind == _TICK:
            if at_s >= self._tick_s:
                self._tick_s = _NEVER_S
                self._tell(ev.Tick(at_s))
        elif kind == _START:
            self._start_task(at_s, what if isinstance(what, Task) else None)
        else:
            self._sample(at_s)

    def _push(self, at_s: float, kind: int, what: object) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (at_s, self._sequence, kind, what))

    def _watch_deadline(self) -> None:
        """Only what the scheduler is told moves its deadlines."""
        self._told = False
        due_s = self.scheduler.next_deadline_s()
        if due_s is not None and due_s < self._tick_s:
            self._tick_s = due_s
            self._push(due_s, _TICK, None)

    def _tell(self, event: ev.Event) -> None:
        """Report a fact to the scheduler and carry out what it orders."""
        self._told = True
        commands = self.scheduler.handle(event)
        self._log.event(event)
        for command in commands:
            self._log.command(command, event.at_s)
            self._carry_out(command, event.at_s)
        self._num_events += 1
        if self.config.check_every and self._num_events % self.config.check_every == 0:
            check(self.scheduler)
            for engine in self.fleet.engines.values():
                engine.check()

    def _carry_out(self, command: do.Command, at_s: float) -> None:
        if isinstance(command, do.Dispatch):
            self._submit(command, at_s)
            return
        if isinstance(command, do.Hold):
            return
        if isinstance(command, do.Reject):
            raise InvariantViolated(f"step {command.step!r} was rejected: {command.reason}")
        thread = self._threads.get(getattr(command, "session", ""))
        if thread is not None:
            if isinstance(command, do.Release) and command.standing is not do.Standing.ENDED:
                thread.paused_s = at_s
            elif isinstance(command, do.Retain):
                thread.held = True
        touched = self.fleet.direct(command, thread.path if thread else (), at_s)
        if touched is not None:
            self._reschedule(touched, at_s)

    # ------------------------------------------------------------------ agents

    def _begin(self) -> None:
        for joined in self.fleet.joined(0.0):
            self._tell(joined)
        if self._num_agents is None:
            self._begin_open()
        else:
            self._tasks = self.workload.tasks(_FILLERS * (self.config.tasks + self._num_agents), self.config.seed)
            self._begin_closed(self._num_agents)
        self._push(_SAMPLE_S, _SAMPLE, None)

    def _begin_closed(self, num_agents: int) -> None:
        wave = list(islice(self._tasks, num_agents))
        spread_s = float(np.mean([self._isolated_s(task) for task in wave[:64]]))
        for index, task in enumerate(wave):
            self._push(spread_s * index / num_agents, _START, task)

    def _begin_open(self) -> None:
        tasks = list(self.workload.tasks(self.config.tasks, self.config.seed))
        for task, at_s in zip(tasks, self._arrival_times(tasks), strict=True):
            self._push(at_s, _START, task)

    def _arrival_times(self, tasks: list[Task]) -> list[float]:
        """As recorded, or at rate_per_s: the recorded pattern scaled to it, Poisson where there is none."""
        recorded = [task.arrival_s for task in tasks if task.arrival_s is not None]
        if self.config.as_recorded:
            if len(recorded) < len(tasks):
                raise UsageError(
                    f"as_recorded: workload {self.workload.name!r} has no arrival times; use a rate or a closed loop"
                )
            return recorded
        rate_per_s = self.config.rate_per_s
        assert rate_per_s is not None
        if len(recorded) == len(tasks) and max(recorded) > 0:
            stretch = len(tasks) / max(recorded) / rate_per_s
            return [at_s * stretch for at_s in recorded]
        rng = np.random.Generator(np.random.PCG64([self.config.seed, 1]))
        return [float(at_s) for at_s in np.cumsum(rng.exponential(1.0 / rate_per_s, len(tasks)))]

    def _start_task(self, at_s: float, task: Task | None) -> None:
        task = next(self._tasks, None) if task is None else task
        if task is None:
            return  # the fillers are used up: a measured task that starves is let to drain
        job = _Job(task, self._num_started, at_s)
        self._num_started += 1
        if job.index == self._num_first_wave:
            self._first_measured_s = at_s
        if job.index < self.config.tasks:
            self._last_started_s = at_s
        self._start_thread(job, 0, at_s)

    def _start_thread(self, job: _Job, index: int, at_s: float) -> None:
        thread = _Thread(job.task.sessions[index], job)
        job.threads[index] = thread
        job.num_open += 1
        self._threads[thread.plan.session] = thread
        self._push(at_s + thread.call.gap_s, _ARRIVE, thread)

    def _arrive(self, thread: _Thread, at_s: float) -> None:
        if thread.children:
            thread.blocked = True
            return
        call, job, plan = thread.call, thread.job, thread.plan
        self._num_calls += 1
        step = f"{plan.session}/{thread.index}"
        self._live[step] = (thread, self._infinite_hit(call))
        self._note_gap(thread, at_s)
        self._count_hold(thread)
        thread.path = call.path
        parent = None if plan.parent is None else job.task.sessions[plan.parent].session
        self._tell(
            ev.StepArrived(
                at_s,
                step,
                plan.session,
                job.task.task,
                call.prompt_tokens,
                job.task.tenant,
                job.task.workflow,
                parent,
                call.common_tokens if thread.index else None,
                thread.prefix,
                plan.calls[0].shared_tokens,
                call.gap_kind,
            )
        )

    def _infinite_hit(self, call: Call) -> int:
        """Prompt tokens that a fleet-wide cache without end would serve now."""
        hit_tokens = 0
        for stream, tokens in call.path:
            seen = self._seen.get(stream, 0)
            if seen < tokens:
                hit_tokens += seen
                break
            hit_tokens += tokens
        block_tokens = self.config.block_tokens
        return min(hit_tokens, call.prompt_tokens - 1) // block_tokens * block_tokens

    # ------------------------------------------------------------------ engines

    def _submit(self, command: do.Dispatch, at_s: float) -> None:
        thread, _ = self._live[command.step]
        call = thread.call
        request = EngineRequest(
            command.step,
            command.session,
            call.path,
            call.prompt_tokens,
            call.output_tokens,
            priority=command.priority,
            task_arrival_s=thread.job.start_s,
        )
        self.fleet.submit(command.worker, request, at_s)
        self._reschedule(command.worker, at_s)

    def _reschedule(self, worker: str, at_s: float) -> None:
        due_s = self.fleet.engines[worker].next_event_s()
        if due_s != self._due[worker]:
            self._due[worker] = due_s
            if due_s < _NEVER_S:
                self._push(max(due_s, at_s), _ENGINE, worker)

    def _advance(self, worker: str, at_s: float) -> None:
        if at_s < self._due[worker]:
            return  # what was due then has been put off
        self._due[worker] = _NEVER_S
        for outcome in self.fleet.engines[worker].advance(at_s):
            if outcome.kind == "finished":
                assert outcome.request is not None
                self._finished(worker, outcome.request, outcome.at_s)
            elif outcome.kind == "first_token":
                self._tell(ev.FirstToken(at_s, outcome.step, worker))
            else:
                self._tell(ev.BlocksRemoved(at_s, worker, outcome.session, outcome.device_tokens, outcome.host_tokens))
        self._reschedule(worker, at_s)

    def _finished(self, worker: str, request: EngineRequest, at_s: float) -> None:
        thread, infinite_hit = self._live.pop(request.step)
        call = thread.call
        for stream, tokens in call.path:
            if self._seen.get(stream, 0) < tokens:
                self._seen[stream] = tokens
        stream, tokens = call.path[-1]
        # the last token of an answer is never fed back, so no cache can hold it
        self._seen[stream] = max(self._seen[stream], tokens + call.output_tokens - 1)
        thread.path = (*call.path[:-1], (stream, tokens + call.output_tokens))
        self._count(thread, request, infinite_hit)
        self._draw_step(worker, thread, request)
        thread.ended_s = at_s
        thread.paused_s = -1.0
        self._tell(
            ev.StepFinished(
                at_s,
                request.step,
                worker,
                call.prompt_tokens,
                call.output_tokens,
                request.cached_tokens,
                request.host_tokens + request.moved_tokens,
                call.tools,
                request.service_s,
            )
        )
        self._next_call(thread, call, at_s)

    def _next_call(self, thread: _Thread, call: Call, at_s: float) -> None:
        thread.index += 1
        for child in call.spawns:
            thread.children += 1
            self._start_thread(thread.job, child, at_s)
        if thread.index < len(thread.plan.calls):
            thread.call = thread.plan.calls[thread.index]
            self._push(at_s + thread.call.gap_s, _ARRIVE, thread)
        else:
            self._end_thread(thread, at_s)

    def _end_thread(self, thread: _Thread, at_s: float) -> None:
        job = thread.job
        self._tell(ev.SessionEnded(at_s, thread.plan.session))
        del self._threads[thread.plan.session]
        job.num_open -= 1
        if thread.plan.parent is not None:
            parent = job.threads[thread.plan.parent]
            parent.children -= 1
            if parent.blocked and not parent.children:
                parent.blocked = False
                self._arrive(parent, at_s)
        if job.num_open == 0:
            self._end_task(job, at_s)

    def _end_task(self, job: _Job, at_s: float) -> None:
        job.threads.clear()  # they know their job: a cycle
        self._completions.append(at_s)
        if self._measured(job):
            task = job.task
            self._results.append(TaskResult(task.task, task.tenant, job.start_s, at_s, self._isolated_s(task)))
            if self._on_progress is not None:
                self._on_progress(len(self._results))
        if self._num_agents is not None:
            self._push(at_s, _START, None)

    # ------------------------------------------------------------------ figures

    def _measured(self, job: _Job) -> bool:
        return self._num_first_wave <= job.index < self.config.tasks

    def _isolated_s(self, task: Task) -> float:
        """The task alone on an idle worker, gaps included; children run while their parent waits."""
        return self._isolated_session_s(task, 0)

    def _isolated_session_s(self, task: Task, index: int) -> float:
        latency, block_tokens = self.fleet.latency, self.config.block_tokens
        total_s = children_s = 0.0
        for number, call in enumerate(task.sessions[index].calls):
            cached = (
                0 if number == 0 else min(call.common_tokens, call.prompt_tokens - 1) // block_tokens * block_tokens
            )
            total_s += max(call.gap_s, children_s)
            total_s += latency.isolated_s(cached, call.prompt_tokens, call.output_tokens, self.config.chunk_tokens)
            children_s = max((self._isolated_session_s(task, child) for child in call.spawns), default=0.0)
        return total_s + children_s

    def _count(self, thread: _Thread, request: EngineRequest, infinite_hit: int) -> None:
        if not self._measured(thread.job):
            return
        tally = self._tally
        tally.calls += 1
        tally.input_tokens += request.prompt_tokens
        tally.output_tokens += request.output_tokens
        tally.cached_tokens += request.cached_tokens
        tally.host_tokens += request.host_tokens + request.moved_tokens
        tally.prefilled_tokens += request.prefilled_tokens
        tally.regenerated_tokens += max(0, request.prefilled_tokens - (request.prompt_tokens - infinite_hit))
        tally.preemptions += request.num_preemptions
        tally.service_s += request.service_s
        again_tokens = request.prefilled_tokens - (request.prompt_tokens - infinite_hit)
        if again_tokens > 0:
            tally.regenerated_s += again_tokens * self._prefill_s(infinite_hit - again_tokens / 2)

    def _prefill_s(self, context_tokens: float) -> float:
        """Device seconds of one token in a full chunk behind this much context."""
        latency, chunk_tokens = self.fleet.latency, self.config.chunk_tokens
        work = chunk_tokens * (max(0.0, context_tokens) + latency.own_share * chunk_tokens)
        return latency.iteration_s(chunk_tokens, work, 0, 0) / chunk_tokens

    def _count_hold(self, thread: _Thread) -> None:
        """Whether a place that was to be held across the gap still was when the session came back."""
        if thread.held and self._measured(thread.job):
            self._tally.holds += 1
            self._tally.holds_kept += thread.paused_s < 0.0
        thread.held = False

    def _sample(self, at_s: float) -> None:
        if not self._heap:
            raise InvariantViolated(f"stalled: {len(self._live)} steps are live and nothing is due")
        used, resident = self.fleet.used_and_resident_share()
        self._used.append((at_s, used, resident))
        self._push(at_s + _SAMPLE_S, _SAMPLE, None)

    def _note_gap(self, thread: _Thread, at_s: float) -> None:
        if self.detail is None or thread.ended_s < 0.0:
            return
        paused_s = thread.paused_s if thread.paused_s >= 0.0 else at_s
        self._draw(thread, "gap", thread.ended_s, paused_s)
        self._draw(thread, "paused", paused_s, at_s)

    def _draw_step(self, worker: str, thread: _Thread, request: EngineRequest) -> None:
        if self.detail is None or worker != self.fleet.names[0]:
            return
        came_s = max(request.arrival_s, 0.0)
        self._draw(thread, "queued", came_s, request.started_s)
        self._draw(thread, "prefill", request.started_s, request.first_token_s)
        self._draw(thread, "decode", request.first_token_s, request.finished_s)

    def _draw(self, thread: _Thread, kind: str, start_s: float, end_s: float) -> None:
        assert self.detail is not None
        if end_s > start_s and len(self.detail.timeline) < _MAX_TIMELINE:
            name = thread.plan.session
            self.detail.timeline.append((self.fleet.names[0], name, thread.job.task.task, kind, start_s, end_s))

    def _finish(self, wall_s: float) -> Run:
        metrics: dict[str, object] = {"preset": self.config.preset, "seed": self.config.seed}
        metrics |= times(self._results)
        metrics |= {"tasks_completed": len(self._results), "tasks_per_min": self._tasks_per_min()}
        metrics |= shares(self._tally)
        window = [used for at_s, used, _ in self._used if at_s >= self._first_measured_s]
        metrics["kv_used_mean_share"] = float(np.mean(window)) if window else 0.0
        metrics["moves"] = self.fleet.moves
        if self.fleet.moves:
            metrics["move_mean_s"], metrics["move_p95_s"] = self.fleet.move_times_s()
        metrics["calls_simulated"] = self._num_calls
        metrics["workers"], metrics["agents"] = self.config.workers, self._num_agents
        metrics["first_wave_measured"] = self._num_agents is not None and not self._num_first_wave
        tenants = sorted({result.tenant for result in self._results})
        metrics["tenants"] = {
            name: {"tasks_completed": len(mine), **times(mine)}
            for name in tenants
            if (mine := [result for result in self._results if result.tenant == name])
        }
        metrics["wall_s"] = wall_s
        if self.detail is not None:
            self.detail.tct_s = [result.tct_s for result in self._results]
            self.detail.occupancy = self._used
        return Run(self.config.preset, self.config.seed, metrics, self.detail)

    def _tasks_per_min(self) -> float:
        """Completions of any task while the load was steady: from the first measured start to the last."""
        begin_s, end_s = self._first_measured_s, self._last_started_s
        if self._num_agents is None or end_s <= begin_s:
            begin_s, end_s = 0.0, max(self._completions, default=0.0)
        done = sum(1 for at_s in self._completions if begin_s < at_s <= end_s)
        return 60.0 * done / (end_s - begin_s) if end_s > begin_s else 0.0
