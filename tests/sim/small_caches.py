"""Workloads and timelines small enough to try every way of evicting, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, count, islice

import hypothesis.strategies as st

from saga.engine.latency import ConstantLatency
from saga.sim.cache_timeline import FINISHED, STARTED, Timeline, Visit, lay_out
from saga.workloads.conversation import Conversation
from saga.workloads.plan import Call, SessionPlan, Skipped, Task

Block = tuple[int, int]
"""(stream, number of the block in its prompt)."""


class Small:
    """A workload of given tasks, once each. Satisfies `plan.Workload`."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        calls = [call for task in tasks for session in task.sessions for call in session.calls]
        self.name = "small"
        self.provenance = "made for a test"
        self.mean_context_tokens = sum(call.prompt_tokens + call.output_tokens for call in calls) / len(calls)
        self.first_context_tokens = self.mean_context_tokens
        self.tenants = {"default": 1.0}
        self.skipped = Skipped()
        self._tasks = tasks

    def tasks(self, num_tasks: int, seed: int) -> Iterator[Task]:
        return islice(iter(self._tasks), num_tasks)


def task(name: str, calls: Sequence[Call]) -> Task:
    """A task of one session."""
    return Task(name, "default", "small", name, (SessionPlan(name, tuple(calls)),))


@st.composite
def small_workloads(draw: st.DrawFn, *, max_calls: int = 3) -> Small:
    """Two or three sessions behind a shared beginning that grow, are cut, rewritten, repeated; up to 9 tokens each."""
    streams, shared = count(100), draw(st.integers(0, 2))
    tasks = []
    for index in range(draw(st.integers(2, 3))):
        conversation = Conversation(streams, ((0, shared),) if shared else ())
        calls: list[Call] = []
        prompt = shared + draw(st.integers(1, 2))
        kept: int | None = None
        for number in range(draw(st.integers(1, max_calls))):
            output = draw(st.integers(1, 2))
            path, common = conversation.ask(prompt, output, kept)
            service_s = draw(st.sampled_from((None, None, 0.0, 2.0)))
            gap_s = draw(st.sampled_from((0.0, 0.3, 1.0, 2.5, 9.0)))
            common = common if number else 0
            calls.append(Call(path, prompt, output, gap_s, ("tool",), "tool", shared, common, service_s=service_s))
            context = prompt + output
            kept = draw(st.none() | st.integers(shared, context))
            prompt = min((context if kept is None else kept) + draw(st.integers(1, 2)), 8)
        tasks.append(task(f"s{index}", calls))
    if draw(st.booleans()):  # the same calls from somebody else: answers that are in the cache already
        tasks[-1] = task("twin", tasks[0].sessions[0].calls)
    return Small(tasks)


def small_timeline(workload: Small, num_blocks: int, block_tokens: int = 1, *, recorded: bool = True) -> Timeline:
    """All of it, with as many agents as sessions; a call lasts as long as it has tokens to compute and to say."""
    return lay_out(
        workload,
        ConstantLatency(),
        num_agents=3,
        num_tasks=3,
        seed=0,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        chunk_tokens=1,
        recorded=recorded,
    )


def blocks_of(visit: Visit, up_to: int) -> frozenset[Block]:
    """The first `up_to` blocks of its path."""
    return frozenset(
        (stream, place)
        for stream, first, end in visit.spans
        for place in range(first, min(end, up_to))
        if place < up_to
    )


def all_ways(timeline: Timeline, *, pinned: bool) -> Iterator[tuple[Visit, frozenset[Block], frozenset[Block], int]]:
    """For each start: (visit, blocks of its prompt seen before, blocks in flight with it, room beside them)."""
    flying: dict[str, Visit] = {}
    seen: frozenset[Block] = frozenset()
    for _, kind, visit in timeline.events:
        if kind == FINISHED:
            flying.pop(visit.session)
        elif kind == STARTED:
            prompt = blocks_of(visit, visit.prompt_blocks)
            flying[visit.session] = visit
            held = list(flying.values()) if pinned else [visit]
            blocks = frozenset[Block]().union(*(blocks_of(other, other.full_blocks) for other in held))
            tails = sum(other.held_blocks - other.full_blocks for other in held)
            yield visit, prompt & seen, blocks, timeline.num_blocks - tails - len(blocks)
            seen |= blocks_of(visit, visit.full_blocks)


def answers_below_a_stay(timeline: Timeline) -> bool:
    """Whether some call leaves a block that it did not ask for, and behind it lies one that stays past that call.

    Both were there before; the one behind it, which the call does not leave, is asked for before it is answered again.
    """
    starts = list(timeline.starts())
    parents = parents_of(timeline)
    seen: frozenset[Block] = frozenset()
    for place, visit in enumerate(starts):
        left = blocks_of(visit, visit.full_blocks)
        again = (left - blocks_of(visit, visit.prompt_blocks)) & seen
        for block in (seen - left) if again else ():
            above = parents[block]
            while above is not None and above not in again:
                above = parents[above]
            if above is not None and _is_asked_for_next(block, starts[place + 1 :]):
                return True
        seen |= left
    return False


def _is_asked_for_next(block: Block, starts: Sequence[Visit]) -> bool:
    """Whether the first of these calls that leaves the block has it in its prompt."""
    for visit in starts:
        if block in blocks_of(visit, visit.full_blocks):
            return block in blocks_of(visit, visit.prompt_blocks)
    return False


def closed(kept: frozenset[Block], parents: dict[Block, Block | None]) -> bool:
    """Whether each block's predecessor is there too."""
    return all(parents[block] is None or parents[block] in kept for block in kept)


def parents_of(timeline: Timeline) -> dict[Block, Block | None]:
    """What each block builds upon."""
    parents: dict[Block, Block | None] = {}
    for visit in timeline.starts():
        before: Block | None = None
        for stream, first, end in visit.spans:
            for place in range(first, min(end, visit.full_blocks)):
                parents[stream, place] = before
                before = (stream, place)
    return parents


def least_cost(timeline: Timeline, *, pinned: bool, leaf_first: bool, cost_of: dict[int, float] | None = None) -> float:
    """The least cost of blocks computed again over every way of evicting; cost by depth, 1 each without `cost_of`."""
    parents = parents_of(timeline)
    states: dict[frozenset[Block], float] = {frozenset(): 0.0}
    for _, seen, held, room in all_ways(timeline, pinned=pinned):
        after: dict[frozenset[Block], float] = {}
        for state, cost in states.items():
            lost = sum(1.0 if cost_of is None else cost_of[block[1]] for block in seen - state)
            idle = state - held
            for kept in combinations(sorted(idle), min(room, len(idle))):
                then = held | frozenset(kept)
                if leaf_first and not closed(then, parents):
                    then = _without_orphans(then, parents)
                after[then] = min(after.get(then, float("inf")), cost + lost)
        states = after
    return min(states.values())


def _without_orphans(kept: frozenset[Block], parents: dict[Block, Block | None]) -> frozenset[Block]:
    """The largest closed part: evicting a block evicts what builds upon it."""
    while True:
        rest = frozenset(block for block in kept if parents[block] is None or parents[block] in kept)
        if rest == kept:
            return kept
        kept = rest
