"""Agents that live a workload against a real URL: closed loop, real gaps, prompts with the prefixes of the workload.

    plan (saga.workloads) ── transcript ──▶ messages ── openai_client ──▶ any OpenAI-compatible server
    its answer ── transcript ──▶ part of the next prompt;   times and usage ── measured ──▶ figures

K agents take task after task. A session's next call comes its gap after the answer before; children start when the call
that spawns them ends, and the session waits for them. Replays of several servers alternate (A B B A ...). It refuses to
know what serves: everything it learns comes over HTTP.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from saga.bench.measured import RunRecord, TaskTime
from saga.bench.openai_client import Measured, OpenAiClient
from saga.bench.transcript import WORD_BYTES, Texts, shared_streams, tool_definition, tool_name
from saga.errors import UsageError
from saga.workloads.plan import Call, Task, Workload

_MAX_TOOLS = 32


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """How to replay. agents: at work at once; tasks: per run; speed: gaps are divided by it.

    session_header: carries the session's name, "" for none. scale: of all lengths. max_tokens_cap: of answers.
    vllm_fields: send `ignore_eos`, so that answers are as long as recorded. tool_calls: offer the workload's tools and
    choose the recorded one. keys: API key by tenant, "*" for all others.
    """

    agents: int = 16
    tasks: int = 100
    speed: float = 1.0
    seed: int = 0
    repeats: int = 1
    model: str = ""
    stream: bool = True
    session_header: str = "X-Session-ID"
    scale: float = 1.0
    max_tokens_cap: int | None = None
    vllm_fields: bool = True
    tool_calls: bool = True
    timeout_s: float = 600.0
    keys: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises UsageError."""
        for name in ("agents", "tasks", "repeats"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1: {getattr(self, name)}")
        for name in ("speed", "scale", "timeout_s"):
            if not 0 < getattr(self, name) < 1e9:
                raise UsageError(f"{name} must be above 0: {getattr(self, name)}")
        if self.max_tokens_cap is not None and self.max_tokens_cap < 1:
            raise UsageError(f"max_tokens_cap must be at least 1: {self.max_tokens_cap}")

    def headers(self, tenant: str) -> dict[str, str]:
        """What proves that a call is the tenant's."""
        key = self.keys.get(tenant, self.keys.get("*", ""))
        return {"Authorization": f"Bearer {key}"} if key else {}


@dataclass(frozen=True)
class Target:
    """A server to be measured; label: in tables."""

    label: str
    url: str


def parse_target(argument: str) -> Target:
    """`URL` or `NAME=URL`."""
    name, equals, url = argument.partition("=")
    if equals and "/" not in name:
        return Target(name, url)
    return Target(argument.rstrip("/").removesuffix("/v1").partition("://")[2] or argument, argument)


class Dial(Protocol):
    """Makes the client of a URL."""

    def __call__(self, url: str, *, timeout_s: float) -> OpenAiClient:
        """Connects to nothing yet."""
        ...


class Replay:
    """One workload against one or several servers. `records` has what is done so far, also after `stop`.

    dial: makes the client of a URL; another one may add fields that a server wants.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        workload: Workload,
        config: ReplayConfig,
        *,
        on_progress: Callable[[str, int, int], None] | None = None,
        dial: Dial = OpenAiClient,
    ) -> None:
        if len({target.label for target in targets}) < len(targets):
            raise UsageError("two servers have the same name; give them as NAME=URL")
        self.config = config
        self.records: list[RunRecord] = []
        self._targets = targets
        self._workload = workload
        self._on_progress = on_progress
        self._dial = dial
        self._running: set[asyncio.Task[None]] = set()
        self._stopped = False

    def stop(self) -> None:
        """End now; the run under way is flagged partial."""
        self._stopped = True
        for task in self._running:
            task.cancel()

    async def run(self) -> list[RunRecord]:
        """All runs. Raises UsageError for a URL that is none, PeerError where no OpenAI-compatible server answers."""
        clients = [self._dial(target.url, timeout_s=self.config.timeout_s) for target in self._targets]
        try:
            models = [await self._model(client) for client in clients]
            for repeat in range(self.config.repeats):
                order = range(len(clients)) if repeat % 2 == 0 else reversed(range(len(clients)))
                for index in order:
                    if not self._stopped:
                        await self._one_run(self._targets[index], clients[index], models[index], repeat)
        finally:
            for client in clients:
                await client.close()
        return self.records

    async def _model(self, client: OpenAiClient) -> str:
        """The model to ask for: the one named, else the first that is served."""
        some_tenant = next(iter(self.config.keys), "")
        served = await client.models(self.config.headers(some_tenant))
        if self.config.model:
            if served and self.config.model not in served:
                raise UsageError(f"{client.url}: does not serve model {self.config.model!r} but {', '.join(served)}")
            return self.config.model
        if not served:
            raise UsageError(f"{client.url}: names no model; give one with --model")
        return served[0]

    async def _one_run(self, target: Target, client: OpenAiClient, model: str, repeat: int) -> None:
        config = self.config
        tasks = list(self._workload.tasks(config.tasks, config.seed + repeat))
        record = RunRecord(target.label, client.url, repeat, config.seed, len(tasks))
        self.records.append(record)
        run = _Run(client, model, tasks, record, config, self._progress)
        began_s = time.perf_counter()
        agents = [asyncio.create_task(run.agent(index)) for index in range(min(config.agents, len(tasks)))]
        self._running = set(agents)
        results = await asyncio.gather(*agents, return_exceptions=True)
        self._running = set()
        record.wall_s = time.perf_counter() - began_s
        record.partial = self._stopped
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result

    def _progress(self, record: RunRecord) -> None:
        if self._on_progress is not None:
            self._on_progress(record.label, len(record.tasks), record.num_tasks)


class _Failed(Exception):
    """A call failed for good; so has its task."""


class _Run:
    """The agents of one run: they share the list of tasks and what streams say."""

    def __init__(
        self,
        client: OpenAiClient,
        model: str,
        tasks: list[Task],
        record: RunRecord,
        config: ReplayConfig,
        on_progress: Callable[[RunRecord], None],
    ) -> None:
        self._client = client
        self._model = model
        self._config = config
        self._record = record
        self._on_progress = on_progress
        self._tasks: Iterator[Task] = iter(tasks)
        # Every run has words of its own, so that none finds the caches of another one warm.
        self._name = uuid.uuid4().hex[:8]
        salt = f"{config.seed}/{record.repeat}/{self._name}"
        self._texts = Texts(salt, scale=config.scale, kept=shared_streams(tasks))
        self._tools = _tools_by_workflow(tasks) if config.tool_calls else {}
        gaps = [call.gap_s for task in tasks[: config.agents] for call in task.sessions[0].calls[1:]]
        self._ramp_s = sum(gaps) / max(1, len(gaps)) / config.speed / max(1, min(config.agents, len(tasks)))

    async def agent(self, index: int) -> None:
        """Task after task until there is none; agents begin one after the other within a mean gap."""
        await asyncio.sleep(index * self._ramp_s)
        for task in self._tasks:
            start_s = time.perf_counter()
            failed = False
            try:
                await self._session(task, 0)
            except _Failed:
                failed = True
            self._record.tasks.append(TaskTime(task.tenant, time.perf_counter() - start_s, failed))
            self._texts.forget(task)
            self._on_progress(self._record)

    async def _session(self, task: Task, index: int) -> None:
        """One session with its children. Raises _Failed."""
        children: list[asyncio.Task[None]] = []
        called = False
        try:
            for number, call in enumerate(task.sessions[index].calls):
                await asyncio.gather(asyncio.sleep(call.gap_s / self._config.speed), *children)
                children = []
                called = await self._call(task, index, call, tools_were_called=called and number > 0)
                children = [asyncio.create_task(self._session(task, child)) for child in call.spawns]
            await asyncio.gather(*children)
        finally:
            for child in children:
                child.cancel()

    async def _call(self, task: Task, index: int, call: Call, *, tools_were_called: bool) -> bool:
        """One call; whether its answer called tools. Raises _Failed."""
        config = self._config
        tools = self._tools.get(task.workflow, [])
        head_tokens = len(msgspec.json.encode(tools)) // WORD_BYTES if tools else 0
        output_tokens = self._texts.tokens(call.output_tokens)
        if config.max_tokens_cap is not None:
            output_tokens = min(output_tokens, config.max_tokens_cap)
        body: dict[str, Any] = {
            "model": self._model,
            "messages": self._texts.messages(call, tools_were_called=tools_were_called, head_tokens=head_tokens),
            "max_tokens": output_tokens,
            "stream": config.stream,
        }
        if config.stream:
            body["stream_options"] = {"include_usage": True}
        if config.vllm_fields:
            body["ignore_eos"] = True
        name = tool_name(call.tools[0]) if call.tools else ""
        if tools:
            chosen = {"type": "function", "function": {"name": name}}
            body |= {"tools": tools, "tool_choice": chosen if name in _names(tools) else "none"}
        headers = config.headers(task.tenant)
        if config.session_header:
            headers[config.session_header] = f"{self._name}-{task.sessions[index].session}"
        measured = await self._client.chat(body, headers, task.tenant)
        self._record.calls.append(measured)
        if measured.error:
            raise _Failed(measured.error)
        tool_calls = measured.tool_calls or ([_made_up_call(name)] if name and config.tool_calls else [])
        self._texts.answered(call, measured.text, _answer_tokens(measured, output_tokens), tool_calls)
        measured.text, measured.tool_calls = "", []
        return bool(call.tools)


def _answer_tokens(measured: Measured, asked: int) -> int:
    """How long the answer is, by `usage`, else as asked for."""
    return asked if measured.output_tokens is None else measured.output_tokens


def _made_up_call(name: str) -> dict[str, Any]:
    """The recorded call, where the server answered in words."""
    call_id = f"call_{uuid.uuid4().hex[:24]}"
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": "{}"}}


def _names(tools: list[dict[str, Any]]) -> set[str]:
    return {tool["function"]["name"] for tool in tools}


def _tools_by_workflow(tasks: Sequence[Task]) -> dict[str, list[dict[str, Any]]]:
    """Definitions of the tools that each kind of agent calls, the same in all its requests."""
    counts: dict[str, dict[str, int]] = {}
    for task in tasks:
        mine = counts.setdefault(task.workflow, {})
        for session in task.sessions:
            for call in session.calls:
                for tool in call.tools[:1]:
                    mine[tool_name(tool)] = mine.get(tool_name(tool), 0) + 1
    return {
        workflow: [tool_definition(name) for name in sorted(sorted(mine, key=lambda name: -mine[name])[:_MAX_TOOLS])]
        for workflow, mine in counts.items()
    }
