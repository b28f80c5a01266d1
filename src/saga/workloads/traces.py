"""A workload made of a recorded trace: its tasks as they were, resampled by seed.

Every task of the trace is laid out once as a template; copies rename the streams that are the task's own, so that two
copies share exactly what two different recorded tasks would share. This module refuses to know file formats.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np

from saga.errors import UsageError
from saga.views import PromptPath
from saga.workloads.chains import Chains, Layout
from saga.workloads.conversation import Conversation, common_tokens
from saga.workloads.limits import Fit
from saga.workloads.plan import Call, SessionPlan, Skipped, Task
from saga.workloads.sessions import Recorded, RecordedSession, Recording, read_recording
from saga.workloads.tool_latency import USER_GAP_S, tool_latency


class TraceWorkload:
    """Tasks of a recorded trace. Satisfies `plan.Workload`.

    A task is a session that nobody spawned, with the sessions below it. Where the trace has a clock, tasks come in
    order of arrival from a seeded place on, the first at 0 s, and the trace begins again at its end: load and bursts
    stay as recorded. Else they come in a seeded permutation, permuted again when it is used up. tenants: share by
    tenant.
    Reading costs O(rows); a copy about 2 us per call. Raises TraceError, and UsageError where no session fits.
    """

    def __init__(self, path: Path, fit: Fit) -> None:
        self.name = path.name.split(".")[0]
        self.provenance = f"trace {path.name}"
        templates = _Templates(read_recording(path), fit, self.name)
        self.skipped = templates.skipped
        self._templates = templates.tasks
        self._num_shared = templates.num_shared
        self._num_private = templates.num_private
        calls = [call for task in self._templates for session in task.sessions for call in session.calls]
        firsts = [session.calls[0] for task in self._templates for session in task.sessions]
        self.mean_context_tokens = _mean_context(calls)
        self.first_context_tokens = _mean_context(firsts)
        tenants = [task.tenant for task in self._templates]
        self.tenants = {tenant: tenants.count(tenant) / len(tenants) for tenant in dict.fromkeys(tenants)}

    @property
    def recorded(self) -> tuple[Task, ...]:
        """The tasks of the trace once each, in its order: copy 0 of each."""
        return tuple(self._copy(task, 0, task.arrival_s) for task in self._templates)

    def tasks(self, num_tasks: int, seed: int) -> Iterator[Task]:
        """`num_tasks` tasks, the same for the same seed; fewer tasks are a prefix of more."""
        if num_tasks < 0:
            raise UsageError(f"num_tasks must not be negative: {num_tasks}")
        rng = np.random.Generator(np.random.PCG64(seed))
        arrivals = [task.arrival_s for task in self._templates if task.arrival_s is not None]
        clocked = len(arrivals) == len(self._templates)
        return islice(self._in_time(rng, arrivals) if clocked else self._permuted(rng), num_tasks)

    def _permuted(self, rng: np.random.Generator) -> Iterator[Task]:
        for copy in count():
            for index in rng.permutation(len(self._templates)).tolist():
                yield self._copy(self._templates[index], copy, None)

    def _in_time(self, rng: np.random.Generator, arrivals: list[float]) -> Iterator[Task]:
        order = sorted(range(len(arrivals)), key=arrivals.__getitem__)
        start = int(rng.integers(len(order)))
        begin_s, end_s = arrivals[order[0]], arrivals[order[-1]]
        round_s = (end_s - begin_s) * (1 + 1 / len(order))  # the last interval is as long as the mean
        for k in count(start):
            copy, place = divmod(k, len(order))
            index = order[place]
            at_s = arrivals[index] - arrivals[order[start]] + copy * round_s
            yield self._copy(self._templates[index], copy, at_s)

    def _copy(self, task: Task, copy: int, arrival_s: float | None) -> Task:
        return _copied(task, copy, self._num_shared + copy * self._num_private - 1, arrival_s)


def _copied(task: Task, copy: int, above: int, arrival_s: float | None) -> Task:
    """Copy number `copy` of a template: own names, private streams -1, -2, ... as above + 1, above + 2, ...

    O(calls x streams).
    """
    mark = f"#{copy}"
    sessions = []
    for session in task.sessions:
        calls = tuple(
            Call(
                tuple([(stream if stream >= 0 else above - stream, tokens) for stream, tokens in call.path]),
                call.prompt_tokens,
                call.output_tokens,
                call.gap_s,
                call.tools,
                call.gap_kind,
                call.shared_tokens,
                call.common_tokens,
                call.spawns,
                call.service_s,
            )
            for call in session.calls
        )
        sessions.append(SessionPlan(session.session + mark, calls, session.parent))
    return Task(task.task + mark, task.tenant, task.workflow, task.source, tuple(sessions), arrival_s)


class _Templates:
    """The tasks of a recording that fit, as templates: shared streams 0, 1, ..., private ones -1, -2, ..."""

    def __init__(self, recording: Recording, fit: Fit, workflow: str) -> None:
        self._sessions = recording.sessions
        self._fit = fit
        self._workflow = workflow
        self.skipped = Skipped()
        roots = [self._root(session) for session in self._sessions]
        self._layout = Layout(recording.chains or Chains(1), roots)
        self._rng = np.random.Generator(np.random.PCG64(zlib.crc32(workflow.encode())))
        groups: dict[int, list[RecordedSession]] = {}
        for session, root in zip(self._sessions, roots, strict=True):
            groups.setdefault(root, []).append(session)
        self.tasks = [task for root, group in groups.items() if (task := self._task(root, group)) is not None]
        if not self.tasks:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.reasons.items())
            raise UsageError(f"no session of {recording.path} fits: {reasons}; raise that limit")

    @property
    def num_shared(self) -> int:
        """Streams that several tasks use."""
        return self._layout.num_shared

    @property
    def num_private(self) -> int:
        """Streams that one task uses, over all tasks."""
        return self._layout.num_private

    def _root(self, session: RecordedSession) -> int:
        while session.parent is not None:
            session = self._sessions[session.parent]
        return session.number

    def _task(self, root: int, group: list[RecordedSession]) -> Task | None:
        """The task of these sessions, None where it does not fit."""
        group.sort(key=lambda session: session.number != root)
        longest = max(call.prompt_tokens + call.output_tokens for session in group for call in session.calls)
        reason = self._fit.reason_against(len(group[0].calls), longest)
        if reason is not None:
            self.skipped.reasons[reason] = self.skipped.reasons.get(reason, 0) + len(group)
            return None
        index = {session.number: k for k, session in enumerate(group)}
        spawns = self._spawns(group, index)
        plans = tuple(
            SessionPlan(
                session.name,
                self._calls(session, spawns),
                None if session.parent is None else index[session.parent],
            )
            for session in group
        )
        first = group[0].calls[0]
        return Task(group[0].name, group[0].tenant, self._workflow, group[0].name, plans, first.arrival_s)

    def _spawns(self, group: list[RecordedSession], index: dict[int, int]) -> dict[tuple[int, int], list[int]]:
        """(session number, call index) -> indexes of the sessions that this call spawned."""
        spawns: dict[tuple[int, int], list[int]] = {}
        for session in group:
            if session.parent is not None:
                if session.parent_call is None:
                    session.parent_call = _spawning_call(self._sessions[session.parent], session)
                spawns.setdefault((session.parent, session.parent_call), []).append(index[session.number])
        self._take_out_children(group, spawns)
        return spawns

    def _take_out_children(self, group: list[RecordedSession], spawns: dict[tuple[int, int], list[int]]) -> None:
        """Shorten a parent's gap by the time its children took, and start them as late as they were."""
        for (number, call_index), children in spawns.items():
            parent = self._sessions[number]
            spawned_s = parent.calls[call_index].end_s
            if spawned_s is None:
                continue
            lasted_s = 0.0
            for child in (group[k] for k in children):
                if child.calls[0].start_s is not None:
                    child.calls[0].gap_s = max(child.calls[0].start_s - spawned_s, 0.0)
                    lasted_s = max(lasted_s, (child.calls[-1].end_s or spawned_s) - spawned_s)
            if call_index + 1 < len(parent.calls):
                after = parent.calls[call_index + 1]
                after.gap_s = None if after.gap_s is None else max(after.gap_s - lasted_s, 0.0)

    def _calls(self, session: RecordedSession, spawns: dict[tuple[int, int], list[int]]) -> tuple[Call, ...]:
        paths = self._chained(session) if session.chained else self._appended(session)
        several = self._layout.several
        calls: list[Call] = []
        previous: Recorded | None = None
        for k, (call, (path, common)) in enumerate(zip(session.calls, paths, strict=True)):
            kind = call.gap_kind or ("user" if previous is not None and not previous.tools else "tool")
            shared = 0
            for stream, tokens in path:
                if stream not in several:
                    break
                shared += tokens
            calls.append(
                Call(
                    path=path,
                    prompt_tokens=call.prompt_tokens,
                    output_tokens=call.output_tokens,
                    gap_s=min(self._gap_s(call, previous, kind), self._fit.gap_cap_s),
                    tools=call.tools,
                    gap_kind=kind,
                    shared_tokens=shared,
                    common_tokens=common,
                    spawns=tuple(spawns.get((session.number, k), ())),
                    service_s=call.llm_s,
                )
            )
            previous = call
        return tuple(calls)

    def _gap_s(self, call: Recorded, previous: Recorded | None, kind: str) -> float:
        """The recorded gap; else what start and end say; else drawn: for a person or for the tools (longest counts)."""
        if call.gap_s is not None:
            return call.gap_s
        if previous is None:
            return 0.0
        if call.start_s is not None and previous.end_s is not None and previous.llm_s is not None:
            return max(call.start_s - previous.end_s, 0.0)
        chance = self._rng.random(1)
        if kind == "user":
            return float(USER_GAP_S.at(chance)[0])
        return max(float(tool_latency(tool).at(chance)[0]) for tool in previous.tools or ("",))

    def _chained(self, session: RecordedSession) -> Iterator[tuple[PromptPath, int]]:
        """Paths by block ids, and the tokens in common with the context before."""
        context: PromptPath = ()
        for call in session.calls:
            path = self._layout.place(
                session.number, call.node, call.prompt_tokens, call.output_tokens, num_ids=call.num_ids
            )
            yield path, common_tokens(context, path)
            stream, tokens = path[-1]
            context = (*path[:-1], (stream, tokens + call.output_tokens))

    def _appended(self, session: RecordedSession) -> Iterator[tuple[PromptPath, int]]:
        """Paths where no ids tell: a prompt extends the context where it is long enough for all of it.

        A shorter prompt was rewritten: what it keeps is what the source says it reused, else all of it.
        """
        conversation = Conversation(self._private_names())
        for call in session.calls:
            extends = call.prompt_tokens >= conversation.context_tokens
            kept = 0 if call.resets else None if extends else call.kept_tokens
            yield conversation.ask(call.prompt_tokens, call.output_tokens, kept)

    def _private_names(self) -> Iterator[int]:
        while True:
            yield self._layout.new_private()


_CLOCK_SLACK_S = 1.0


def _spawning_call(parent: RecordedSession, child: RecordedSession) -> int:
    """Index of the parent's call that spawned `child`: the last delegating one that ended before the child began.

    Where no clock tells, the first delegating call (a tool named like Task or agent), else the first call.
    """
    delegating = [k for k, call in enumerate(parent.calls) if any(_delegates(tool) for tool in call.tools)]
    began_s = child.calls[0].start_s
    if began_s is None:
        return delegating[0] if delegating else 0
    for candidates in (delegating, range(len(parent.calls))):
        ended = [k for k in candidates if (parent.calls[k].end_s or 0.0) <= began_s + _CLOCK_SLACK_S]
        if ended:
            return ended[-1]
    return 0


def _delegates(tool: str) -> bool:
    return tool == "Task" or "agent" in tool.lower()


def _mean_context(calls: list[Call]) -> float:
    return sum(call.prompt_tokens + call.output_tokens for call in calls) / len(calls)
