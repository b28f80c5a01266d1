"""When calls start and end if nobody looks at caches: the one order that all policies of a replay are asked in.

A closed loop of agents, as in `saga.sim.driver`: each plays its task, takes the next one when it has finished, and
they begin staggered over one isolated task time. A call arrives its gap after the end of the session's call before it
(and of the children that this one spawned). It starts when its whole context, answer included, fits beside the
contexts of the calls in flight, strictly first come first served, as a real engine queues for memory; it lasts as
long as it did where it was recorded, or (where nobody says, or on request) as long as it would alone on an idle worker
with its prefix at hand. So the order depends on the workload, the agents and
the memory, never on what a policy keeps, and what calls in flight hold always fits.

The replay ends when the supply of tasks does, so that the load is steady to the end. Refuses to know caches and
policies.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from saga.engine.kv_pool import Span, spans_of
from saga.engine.latency import Latency
from saga.workloads.plan import Call, SessionPlan, Task, Workload

ARRIVED, STARTED, FINISHED, OVER = range(4)
_STAGGER_TASKS = 64


class Visit:
    """One call as the cache sees it. Times in seconds, amounts in blocks unless named otherwise.

    spans: its path. prompt_blocks: leading blocks that it could find in a cache (an engine computes at least the last
    token of a prompt). full_blocks: what it leaves behind that others can find; held_blocks: what it holds in flight,
    a partial tail included. parent: session that spawned its session. began_s: start of its task.
    """

    __slots__ = (
        "arrival_s",
        "began_s",
        "call",
        "context_tokens",
        "full_blocks",
        "held_blocks",
        "number",
        "parent",
        "prompt_blocks",
        "session",
        "spans",
        "workflow",
    )

    def __init__(self, number: int, thread: _Thread, block_tokens: int, arrival_s: float) -> None:
        call = self.call = thread.plan.calls[number]
        self.number = number
        self.session = thread.plan.session
        self.parent = thread.parent
        self.workflow = thread.job.task.workflow
        self.began_s = thread.job.began_s
        self.arrival_s = arrival_s
        self.spans: tuple[Span, ...] = spans_of(call.path, block_tokens)
        self.context_tokens = call.prompt_tokens + call.output_tokens - 1  # the last answered token is never fed back
        self.prompt_blocks = (call.prompt_tokens - 1) // block_tokens
        self.full_blocks = self.context_tokens // block_tokens
        self.held_blocks = -(-self.context_tokens // block_tokens)


@dataclass(frozen=True)
class Timeline:
    """What happened: `events` are (seconds, ARRIVED | STARTED | FINISHED | OVER, visit) in order of time.

    OVER follows the last call of a session. steady: whether it ended with the supply of tasks (else tasks were too
    few and the first wave itself is all there is).
    """

    events: list[tuple[float, int, Visit]]
    num_blocks: int
    block_tokens: int
    num_agents: int
    steady: bool

    def starts(self) -> Iterator[Visit]:
        """Visits in the order of their starts."""
        return (visit for _, kind, visit in self.events if kind == STARTED)


def lay_out(
    workload: Workload,
    latency: Latency,
    *,
    num_agents: int,
    num_tasks: int,
    seed: int,
    num_blocks: int,
    block_tokens: int,
    chunk_tokens: int,
    recorded: bool = True,
    on_progress: Callable[[int], None] | None = None,
) -> Timeline:
    """Play `num_tasks` tasks with `num_agents` agents over num_blocks x block_tokens tokens of memory.

    recorded: whether calls last as long as their source says, where it does. Every context must fit into the memory.
    on_progress gets the number of tasks begun. O(calls log agents), about 15 us per call.
    """
    loop = _Loop(
        workload, latency, num_agents, num_tasks, seed, num_blocks, block_tokens, chunk_tokens, recorded=recorded
    )
    return loop.run(on_progress)


class _Job:
    """A task at work."""

    __slots__ = ("began_s", "num_open", "task", "threads")

    def __init__(self, task: Task, began_s: float) -> None:
        self.task = task
        self.began_s = began_s
        self.num_open = 0
        self.threads: dict[int, _Thread] = {}


class _Thread:
    """A session at work: its next call, and how many children it waits for."""

    __slots__ = ("blocked", "children", "job", "next", "parent", "plan")

    def __init__(self, plan: SessionPlan, job: _Job) -> None:
        self.plan = plan
        self.job = job
        self.parent = None if plan.parent is None else job.task.sessions[plan.parent].session
        self.next = 0
        self.children = 0
        self.blocked = False


class _Loop:
    """The closed loop; see the module."""

    def __init__(
        self,
        workload: Workload,
        latency: Latency,
        num_agents: int,
        num_tasks: int,
        seed: int,
        num_blocks: int,
        block_tokens: int,
        chunk_tokens: int,
        *,
        recorded: bool,
    ) -> None:
        self._latency, self._recorded = latency, recorded
        self._tasks = workload.tasks(num_tasks, seed)
        self._num_agents = min(num_agents, num_tasks)
        self._steady = num_tasks > num_agents
        self._num_blocks, self._block_tokens, self._chunk_tokens = num_blocks, block_tokens, chunk_tokens
        self._free = num_blocks
        self._waiting: deque[tuple[Visit, _Thread]] = deque()
        self._heap: list[tuple[float, int, Visit | None, _Thread | Task]] = []
        self._sequence = 0
        self._num_begun = 0
        self._events: list[tuple[float, int, Visit]] = []

    def run(self, on_progress: Callable[[int], None] | None) -> Timeline:
        wave = list(islice(self._tasks, self._num_agents))
        spread_s = float(np.mean([self._task_s(task, 0) for task in wave[:_STAGGER_TASKS]]))
        for index, task in enumerate(wave):
            self._push(spread_s * index / len(wave), None, task)
        while self._heap:
            at_s, _, visit, what = heapq.heappop(self._heap)
            if isinstance(what, Task):
                self._begin(what, at_s)
                if on_progress is not None:
                    on_progress(self._num_begun)
            elif visit is None:
                self._arrive(what, at_s)
            elif not self._finish(visit, what, at_s):
                break
        return Timeline(self._events, self._num_blocks, self._block_tokens, self._num_agents, self._steady)

    def _push(self, at_s: float, visit: Visit | None, what: _Thread | Task) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (at_s, self._sequence, visit, what))

    def _begin(self, task: Task, at_s: float) -> None:
        self._num_begun += 1
        self._open(_Job(task, at_s), 0, at_s)

    def _open(self, job: _Job, index: int, at_s: float) -> None:
        thread = _Thread(job.task.sessions[index], job)
        job.threads[index] = thread
        job.num_open += 1
        self._push(at_s + thread.plan.calls[0].gap_s, None, thread)

    def _arrive(self, thread: _Thread, at_s: float) -> None:
        if thread.children:
            thread.blocked = True
            return
        visit = Visit(thread.next, thread, self._block_tokens, at_s)
        self._events.append((at_s, ARRIVED, visit))
        self._waiting.append((visit, thread))
        self._start(at_s)

    def _start(self, at_s: float) -> None:
        """Those at the head of the queue that fit."""
        while self._waiting and self._waiting[0][0].held_blocks <= self._free:
            visit, thread = self._waiting.popleft()
            self._free -= visit.held_blocks
            self._events.append((at_s, STARTED, visit))
            self._push(at_s + self._call_s(visit.call, visit.number), visit, thread)

    def _finish(self, visit: Visit, thread: _Thread, at_s: float) -> bool:
        """A call was answered; False where its agent finds no further task."""
        self._events.append((at_s, FINISHED, visit))
        self._free += visit.held_blocks
        thread.next += 1
        for child in visit.call.spawns:
            thread.children += 1
            self._open(thread.job, child, at_s)
        if thread.next < len(thread.plan.calls):
            self._push(at_s + thread.plan.calls[thread.next].gap_s, None, thread)
        else:
            self._events.append((at_s, OVER, visit))
            if not self._end(thread, at_s):
                return False
        self._start(at_s)
        return True

    def _end(self, thread: _Thread, at_s: float) -> bool:
        job, parent_index = thread.job, thread.plan.parent
        job.num_open -= 1
        if parent_index is not None:
            parent = job.threads[parent_index]
            parent.children -= 1
            if parent.blocked and not parent.children:
                parent.blocked = False
                self._push(at_s, None, parent)
        if job.num_open:
            return True
        task = next(self._tasks, None)
        if task is None:
            return not self._steady
        self._push(at_s, None, task)
        return True

    def _call_s(self, call: Call, number: int) -> float:
        """As recorded, or the call alone on an idle worker that holds its prefix."""
        if self._recorded and call.service_s is not None:
            return call.service_s
        reused = min(call.common_tokens, call.prompt_tokens - 1) if number else 0
        cached = reused // self._block_tokens * self._block_tokens
        return self._latency.isolated_s(cached, call.prompt_tokens, call.output_tokens, self._chunk_tokens)

    def _task_s(self, task: Task, index: int) -> float:
        """A session of a task alone, gaps included; children run while their parent waits."""
        total_s = children_s = 0.0
        for number, call in enumerate(task.sessions[index].calls):
            total_s += max(call.gap_s, children_s) + self._call_s(call, number)
            children_s = max((self._task_s(task, child) for child in call.spawns), default=0.0)
        return total_s + children_s
