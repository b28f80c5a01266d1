"""The seams of the gateway: what its parts hand one another, and nothing else.

    bytes of a client ── front (HTTP/1.1, limits) ──▶ Request
    Request ── identity (tenant, conventions, conversations) ──▶ Call
    Call ── scheduling (the scheduler's asyncio driver) ──▶ Ticket          waits at the gate
    Ticket ── upstream (pooled connections) ──▶ bytes of the worker, streamed back untouched
    the same bytes ── answers (usage, tool calls) ──▶ Answer ── scheduling.finished

The front knows bytes and sockets and no scheduler; identity knows names and content and no worker; scheduling
knows workers and events and no bytes; answers know formats of answers and nothing else. Times are seconds on the
event loop's clock unless named otherwise.

Of what is made for every call `__init__` is written out: compiled (`native/build.py`), it takes a tenth of the time of
the one that dataclass makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

from saga.errors import SagaError
from saga.events import Hints
from saga.gateway.addresses import WorkerAddress

MAX_CLASS: Final = 8
"""Clients' own priorities count from -8 to 8: more than that is as much as that."""


class Kind(StrEnum):
    """What a route is about; `other` is passed through to any worker and never scheduled as a step."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDINGS = "embeddings"
    OTHER = "other"


KINDS = {
    "/v1/chat/completions": Kind.CHAT,
    "/v1/completions": Kind.COMPLETIONS,
    "/v1/responses": Kind.RESPONSES,
    "/v1/messages": Kind.MESSAGES,
    "/v1/embeddings": Kind.EMBEDDINGS,
}
"""Paths that take POST and are scheduled as steps; any other path under /v1/ is passed through."""


def kind_of(method: str, path: str) -> Kind:
    """What a route (its path without the query) is about."""
    return KINDS.get(path, Kind.OTHER) if method == "POST" else Kind.OTHER


class HeadMemo:
    """What was derived from a request's head, kept for requests of the same connection with the same head.

    read: what identity made of it. sent: by worker's name, its address and the head as that worker gets it.
    """

    __slots__ = ("read", "sent")

    def __init__(self) -> None:
        self.read: Any = None
        self.sent: dict[str, tuple[WorkerAddress, bytes]] = {}


@dataclass(slots=True, init=False)
class Request:
    """A client's request, whole. header names are lower-case bytes, in order, hop-by-hop ones still there.

    memo: shared by requests whose heads differ in their length only.
    """

    method: str
    target: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    peer: str
    memo: HeadMemo

    def __init__(
        self,
        method: str,
        target: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        peer: str = "",
        memo: HeadMemo | None = None,
    ) -> None:
        self.method = method
        self.target = target
        self.path = path
        self.headers = headers
        self.body = body
        self.peer = peer
        self.memo = HeadMemo() if memo is None else memo

    def header(self, name: bytes) -> bytes | None:
        """The first header of that (lower-case) name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


@dataclass(slots=True, init=False)
class Call:
    """A client's call with everything that is known before it is scheduled.

    tenant, task, session, parent are unique in the process (session and task names carry their tenant). step: unique.
    prompt_tokens: estimated from bytes, never tokenized. retryable: may be sent again elsewhere if no byte came back.
    pinned: worker that must serve it ("" for any), e.g. by previous_response_id. retry_of: the live step that this is a
    client's retry of, "" if it is a new step. body: to be sent upstream (the client's own, unless a field must be added
    or replaced). lines: header lines to add for the worker, each with its line end. priority: the client's own class,
    lower first, 0 for none.
    """

    kind: Kind
    request: Request
    tenant: str
    session: str
    task: str
    step: str
    model: str
    stream: bool
    parent: str | None
    workflow: str
    prompt_tokens: int
    common_tokens: int | None
    prefix: str
    prefix_tokens: int
    gap_kind: str
    deadline_s: float | None
    final: bool
    hints: Hints | None
    retryable: bool
    pinned: str
    retry_of: str
    max_output_tokens: int | None
    wants_usage: bool
    body: bytes
    lines: bytes
    priority: int

    def __init__(
        self,
        kind: Kind,
        request: Request,
        tenant: str,
        session: str,
        task: str,
        step: str,
        *,
        model: str = "",
        stream: bool = False,
        parent: str | None = None,
        workflow: str = "",
        prompt_tokens: int = 1,
        common_tokens: int | None = None,
        prefix: str = "",
        prefix_tokens: int = 0,
        gap_kind: str = "tool",
        deadline_s: float | None = None,
        final: bool = False,
        hints: Hints | None = None,
        retryable: bool = False,
        pinned: str = "",
        retry_of: str = "",
        max_output_tokens: int | None = None,
        wants_usage: bool = True,
        body: bytes = b"",
        lines: bytes = b"",
        priority: int = 0,
    ) -> None:
        self.kind = kind
        self.request = request
        self.tenant = tenant
        self.session = session
        self.task = task
        self.step = step
        self.model = model
        self.stream = stream
        self.parent = parent
        self.workflow = workflow
        self.prompt_tokens = prompt_tokens
        self.common_tokens = common_tokens
        self.prefix = prefix
        self.prefix_tokens = prefix_tokens
        self.gap_kind = gap_kind
        self.deadline_s = deadline_s
        self.final = final
        self.hints = hints
        self.retryable = retryable
        self.pinned = pinned
        self.retry_of = retry_of
        self.max_output_tokens = max_output_tokens
        self.wants_usage = wants_usage
        self.body = body
        self.lines = lines
        self.priority = priority


@dataclass(slots=True, init=False)
class Ticket:
    """Leave to send a call to a worker. extra: top-level JSON fields to add for engines that accept them.

    priority is lower-first, as in vLLM. reason: the scheduler's own words.
    """

    call: Call
    address: WorkerAddress
    queued_s: float
    reason: str
    attempt: int
    extra: Mapping[str, Any]

    def __init__(
        self,
        call: Call,
        address: WorkerAddress,
        queued_s: float,
        reason: str,
        attempt: int = 1,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.call = call
        self.address = address
        self.queued_s = queued_s
        self.reason = reason
        self.attempt = attempt
        self.extra = {} if extra is None else extra


@dataclass(slots=True, init=False)
class Answer:
    """What was seen in an answer; None where it did not say. Tokens are the engine's own count.

    tool_calls: names in order, "Bash:git" where a shell command's first word shows; () for a final answer.
    complete: the body (or the stream's end marker) was seen. response_id: of the Responses API. fingerprint: of the
    text, where the text itself stays in another process.
    """

    prompt_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    tool_calls: tuple[str, ...]
    finish_reason: str | None
    response_id: str | None
    error: bool
    complete: bool
    text: str
    num_bytes: int
    fingerprint: tuple[int, int] | None

    def __init__(
        self,
        *,
        prompt_tokens: int | None = None,
        output_tokens: int | None = None,
        cached_tokens: int | None = None,
        tool_calls: tuple[str, ...] = (),
        finish_reason: str | None = None,
        response_id: str | None = None,
        error: bool = False,
        complete: bool = False,
        text: str = "",
        num_bytes: int = 0,
        fingerprint: tuple[int, int] | None = None,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.cached_tokens = cached_tokens
        self.tool_calls = tool_calls
        self.finish_reason = finish_reason
        self.response_id = response_id
        self.error = error
        self.complete = complete
        self.text = text
        self.num_bytes = num_bytes
        self.fingerprint = fingerprint


class Refused(SagaError):
    """A call that is answered here with an OpenAI-shaped error.

    status: HTTP. code, kind, param: fields `code`, `type`, `param` of the error body. retry_after_s: header, if any.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s


class Identity(Protocol):
    """Tells whose call it is."""

    def identify(self, request: Request, at_s: float) -> Call:
        """The call; raises Refused (400, 401, 404, 413, 429) where it cannot be served. Never blocks."""
        ...

    def answered(self, call: Call, answer: Answer, at_s: float) -> None:
        """The call was answered: conversations and response ids learn from it."""
        ...


class AnswerWatcher(Protocol):
    """Looks at an answer's bytes as they pass."""

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the body (content-coding identity)."""
        ...

    def close(self) -> Answer:
        """No more bytes come."""
        ...


class Scheduling(Protocol):
    """The scheduler, seen from the data plane. All methods run on the event loop; none blocks."""

    def admit_at_once(self, call: Call) -> Ticket | None:
        """The ticket where nothing has to wait; None where `admit` is to be awaited now. Raises what that raises."""
        ...

    async def admit(self, call: Call) -> Ticket:
        """Wait at the gate; raises Refused (429, 503 with retry_after_s, 404 for a model nobody serves).

        Cancelling the awaiting task cancels the step.
        """
        ...

    def first_byte(self, ticket: Ticket) -> None:
        """The answer began."""
        ...

    def finished(self, ticket: Ticket, answer: Answer) -> None:
        """The answer is complete."""
        ...

    async def failed(self, ticket: Ticket, why: str, *, retry: bool) -> Ticket | None:
        """The attempt is lost; another ticket if it may be tried again elsewhere, None if not."""
        ...

    def cancelled(self, ticket: Ticket) -> None:
        """The client went away."""
        ...
