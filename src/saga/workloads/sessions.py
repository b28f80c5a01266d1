"""Recorded sessions, whatever format they came in: rows become calls of sessions, sessions become tasks.

One `Recording` is a whole trace in a common form: lengths, gaps, tools, places in the prefix tree. It knows how each
format says "same session", "after that call" and "spawned by"; it refuses to know limits, streams and copies. Sizes of
system prompts that a trace may state are not read: only equal block ids show that two sessions share content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from saga.errors import TraceError
from saga.workloads.chains import ROOT, Chains
from saga.workloads.rows import MOONCAKE_BLOCK_TOKENS, DynamoRow, MooncakeRow, Row, SagaRow, read_rows


class Recorded:
    """One recorded call. Times in seconds, None where the trace does not say.

    kept_tokens: how much of the session's earlier context it reuses, by the source's own account. node, num_ids: its
    last full block in the prefix tree and how many full blocks have ids. resets: its prompt begins anew, says the
    source.
    """

    __slots__ = (
        "arrival_s",
        "gap_kind",
        "gap_s",
        "kept_tokens",
        "line",
        "llm_s",
        "node",
        "num_ids",
        "output_tokens",
        "prompt_tokens",
        "resets",
        "start_s",
        "step",
        "tools",
    )

    def __init__(self, line: int, step: int, prompt_tokens: int, output_tokens: int) -> None:
        self.line = line
        self.step = step
        self.prompt_tokens = prompt_tokens
        self.output_tokens = max(output_tokens, 1)
        self.arrival_s: float | None = None
        self.gap_s: float | None = None
        self.gap_kind: str | None = None
        self.start_s: float | None = None
        self.llm_s: float | None = None
        self.kept_tokens: int | None = None
        self.tools: tuple[str, ...] = ()
        self.node = ROOT
        self.num_ids = 0
        self.resets = False

    @property
    def end_s(self) -> float | None:
        """When its answer was complete, on the session's clock."""
        return None if self.start_s is None else self.start_s + (self.llm_s or 0.0)


@dataclass(slots=True)
class RecordedSession:
    """Calls of one session, by step. parent: number of the session that spawned it; parent_call: index of the call."""

    number: int
    name: str
    tenant: str = "default"
    calls: list[Recorded] = field(default_factory=list)
    chained: bool = False
    parent: int | None = None
    parent_call: int | None = None


@dataclass(slots=True)
class Recording:
    """A trace: its sessions in order of appearance, and the prefix tree of their block ids (None: no ids)."""

    path: Path
    sessions: list[RecordedSession]
    chains: Chains | None


def read_recording(path: Path) -> Recording:
    """Read the whole trace. Raises TraceError. O(rows + hash ids)."""
    rows = read_rows(path)
    line, row = next(rows)
    assembler = _ASSEMBLERS[type(row)](path)
    assembler.add(line, row)
    for line, row in rows:
        assembler.add(line, row)
    return assembler.finish()


_AnyRow = TypeVar("_AnyRow", SagaRow, MooncakeRow, DynamoRow)


class _Assembler(Generic[_AnyRow]):
    """Common part of all formats: sessions by name, block ids into the tree."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sessions: dict[str, RecordedSession] = {}
        self.chains: Chains | None = None

    def add(self, line: int, row: _AnyRow) -> None:
        """Take one row."""
        raise NotImplementedError

    def finish(self) -> Recording:
        """All rows were taken."""
        for session in self.sessions.values():
            session.calls.sort(key=lambda call: call.step)
        return Recording(self.path, list(self.sessions.values()), self.chains)

    def session(self, name: str) -> RecordedSession:
        """The session of that name, opened where it is new."""
        found = self.sessions.get(name)
        if found is None:
            found = self.sessions[name] = RecordedSession(len(self.sessions), name)
        return found

    def chain(self, call: Recorded, session: RecordedSession, ids: Sequence[int] | None, block_tokens: int) -> None:
        """Put the call's block ids into the tree."""
        if ids is None:
            return
        if self.chains is None:
            self.chains = Chains(block_tokens)
        if block_tokens != self.chains.block_tokens:
            problem = f"field 'block_size' is {block_tokens}; {self.chains.block_tokens} as in the rows before is right"
            raise TraceError(self.path, problem, line=call.line)
        full = self.full_blocks(call, ids, block_tokens)
        session.chained = True
        call.num_ids = len(full)
        try:
            call.node = self.chains.add(full, session.number)
        except ValueError as error:
            raise TraceError(self.path, f"field 'hash_ids': {error}", line=call.line) from None

    def full_blocks(self, call: Recorded, ids: Sequence[int], block_tokens: int) -> Sequence[int]:
        """The ids of full blocks: without the last, partial one where it has an id too."""
        if len(ids) > -(-call.prompt_tokens // block_tokens):
            problem = (
                f"field 'hash_ids' has {len(ids)} ids of {block_tokens} tokens, longer than the prompt "
                f"of {call.prompt_tokens} tokens; at most {-(-call.prompt_tokens // block_tokens)} is right"
            )
            raise TraceError(self.path, problem, line=call.line)
        return ids[:-1] if len(ids) * block_tokens > call.prompt_tokens else ids


class _SagaAssembler(_Assembler[SagaRow]):
    """SAGA's own JSON lines: everything is said."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lines: dict[tuple[str, int], int] = {}
        self._parents: dict[str, tuple[str, int]] = {}

    def add(self, line: int, row: SagaRow) -> None:
        """See _Assembler."""
        first = self._lines.setdefault((row.session_id, row.step), line)
        if first != line:
            problem = f"session {row.session_id!r}, step {row.step} is a duplicate of line {first}"
            raise TraceError(self.path, problem, line=line)
        session = self.session(row.session_id)
        session.tenant = row.tenant or session.tenant
        if row.parent is not None:
            self._parents.setdefault(row.session_id, (row.parent, line))
        call = Recorded(line, row.step, row.input_tokens, row.output_tokens)
        call.arrival_s, call.gap_s, call.llm_s = row.arrival_s, row.gap_s, row.llm_s
        call.start_s = row.t_s if row.t_s is not None else row.arrival_s
        call.gap_kind = self._gap_kind(line, row.gap_kind)
        call.kept_tokens = row.reuse_tokens if row.reuse_tokens is not None else row.cached_tokens
        call.tools = _tools(row.tool, row.tool_cmd)
        if row.hash_ids is not None and row.block_size is None:
            raise TraceError(self.path, "field 'block_size' is null; tokens per hash id is right", line=line)
        self.chain(call, session, row.hash_ids, row.block_size or 0)
        session.calls.append(call)

    def finish(self) -> Recording:
        """Link children to parents; a parent that is not in the file leaves its child a task of its own."""
        for name, (parent, line) in self._parents.items():
            seen = {name}
            above: str | None = parent
            while above is not None and above in self.sessions:
                if above in seen:
                    raise TraceError(self.path, f"field 'parent' is {parent!r}: sessions spawn each other", line=line)
                seen.add(above)
                above = self._parents.get(above, (None, 0))[0]
            if parent in self.sessions:
                self.sessions[name].parent = self.sessions[parent].number
        return super().finish()

    def _gap_kind(self, line: int, kind: str | None) -> str | None:
        if kind in {None, "tool", "user", "user?"}:
            return "user" if kind == "user?" else kind
        raise TraceError(self.path, f"field 'gap_kind' is {kind!r}; 'tool', 'user' or 'user?' is right", line=line)


def _tools(tool: str | None, command: str | None) -> tuple[str, ...]:
    """Names of the tools called; Bash with the first word of its command."""
    if not tool:
        return ()
    names = tool.split("+")
    if command is not None:
        names = [f"Bash:{command}" if name == "Bash" else name for name in names]
    return tuple(names)


class _MooncakeAssembler(_Assembler[MooncakeRow]):
    """Mooncake rows: a session is named, or recovered where a prompt extends the last prompt of a session.

    A recovered link needs all full blocks of the earlier prompt, of which the last is nobody else's, and room for its
    answer. Where only arrivals are known, the gap is the interval less the service time, estimated as 0.2 s + prompt /
    10,000 tokens per s + 30 ms per token answered; such gaps are taken as a person's.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._tips: dict[int, RecordedSession | None] = {}

    def add(self, line: int, row: MooncakeRow) -> None:
        """See _Assembler."""
        call = Recorded(line, 0, row.input_length, row.output_length)
        full = self.full_blocks(call, row.hash_ids or (), MOONCAKE_BLOCK_TOKENS)
        named = row.session_id is not None
        session = self.session(str(row.session_id)) if named else self._recovered(call, full)
        call.step = len(session.calls)
        call.arrival_s = call.start_s = None if row.timestamp is None else row.timestamp / 1e3
        if session.calls:
            call.gap_kind = "user"
            call.gap_s = _estimated_gap_s(session.calls[-1], call) if row.delay is None else row.delay / 1e3
        self.chain(call, session, row.hash_ids, MOONCAKE_BLOCK_TOKENS)
        session.calls.append(call)
        if full:
            self._tips[full[-1]] = session if full[-1] not in self._tips else None

    def _recovered(self, call: Recorded, full: Sequence[int]) -> RecordedSession:
        """The session whose last prompt this one extends, else a new one."""
        for block in reversed(full):
            session = self._tips.get(block)
            if session is not None:
                last = session.calls[-1]
                if call.prompt_tokens >= last.prompt_tokens + last.output_tokens:
                    del self._tips[block]
                    return session
        return self.session(f"{self.path.name.split('.')[0]}:{len(self.sessions)}")


def _estimated_gap_s(last: Recorded, call: Recorded) -> float | None:
    if last.start_s is None or call.start_s is None:
        return None
    service_s = 0.2 + last.prompt_tokens / 10_000 + 0.03 * last.output_tokens
    return max(call.start_s - last.start_s - service_s, 0.0)


class _DynamoAssembler(_Assembler[DynamoRow]):
    """Dynamo's agentic rows: a row waits for other requests, then for `delay + tool_wait_ms`.

    A row without session_id continues the session of the one request it waits for, where nobody did so before. A
    session whose first row waits for a request of another session is its child; a parent waits for its children right
    after the call that spawned them. tool_events are those before the row: the tools of the session's previous call.
    prefix_reset says that the prompt begins anew; with hash_ids it needs no care.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._calls: dict[str, tuple[RecordedSession, int]] = {}

    def add(self, line: int, row: DynamoRow) -> None:
        """See _Assembler."""
        if row.request_id in self._calls:
            raise TraceError(self.path, f"field 'request_id' is {row.request_id!r} a second time", line=line)
        for request in row.wait_for:
            if request not in self._calls:
                problem = f"field 'wait_for' names {request!r}, no request of an earlier line"
                raise TraceError(self.path, problem, line=line)
        session = self._session_of(row)
        call = Recorded(line, len(session.calls), row.input_length, row.output_length)
        if not session.calls:
            self._adopt(session, row)
        elif row.tool_events:
            session.calls[-1].tools = tuple(_event_tool(event) for event in row.tool_events)
        call.arrival_s = None if row.timestamp is None or row.wait_for else row.timestamp / 1e3
        call.gap_s = ((row.delay or 0.0) + (row.tool_wait_ms or 0.0)) / 1e3
        call.resets = bool(row.prefix_reset)
        self.chain(call, session, row.hash_ids, MOONCAKE_BLOCK_TOKENS)
        self._calls[row.request_id] = session, call.step
        session.calls.append(call)

    def _session_of(self, row: DynamoRow) -> RecordedSession:
        if row.session_id is not None:
            return self.session(row.session_id)
        if len(row.wait_for) == 1:
            session, step = self._calls[row.wait_for[0]]
            if step == len(session.calls) - 1:
                return session
        return self.session(row.request_id)

    def _adopt(self, session: RecordedSession, row: DynamoRow) -> None:
        """Make the session the child of the first session it waits for."""
        for request in row.wait_for:
            parent, step = self._calls[request]
            if parent is not session:
                session.parent, session.parent_call = parent.number, step
                return


def _event_tool(event: dict[str, object]) -> str:
    """The tool's name in a tool event, by the spellings in use."""
    for key in ("tool_class", "tool_name", "name", "tool"):
        name = event.get(key)
        if isinstance(name, str) and name:
            return name
    return "tool"


_ASSEMBLERS: dict[type[Row], type[_Assembler[Any]]] = {
    SagaRow: _SagaAssembler,
    MooncakeRow: _MooncakeAssembler,
    DynamoRow: _DynamoAssembler,
}
