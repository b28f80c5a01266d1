"""A trace span for every call, by OpenTelemetry's conventions for generative AI. Needs the extra `otel`.

    Front ─▶ Spans ─▶ the identity, scheduling and watchers that do the work

Spans stand between the front and those who work for it, and change nothing but one thing: the client's `traceparent` is
continued by the span, and the worker is sent the span's own. A call is one span, from its arrival to the end of its
answer; what happens on the way (a worker was found, the answer began, an attempt failed) are events in it. What ended
before it was known whose call it is has no span if it showed no valid key, so that strangers write no traces.

Names: semantic conventions for GenAI client spans, and `saga.*`. No prompt, answer, tool argument or key is ever
recorded. Finished spans wait, at most `max_waiting` of them, for a thread that sends them in batches; where that is too
slow, or nobody listens, they are dropped and counted. It refuses to know what calls are scheduled by.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from saga import __version__
from saga.gateway.contracts import (
    Answer,
    AnswerWatcher,
    Call,
    Identity,
    Kind,
    Refused,
    Request,
    Scheduling,
    Ticket,
    kind_of,
)
from saga.gateway.journal import say
from saga.gateway.relay import Watchers
from saga.gateway.rewriting import Headers

_OPERATIONS: Final = {
    Kind.CHAT: "chat",
    Kind.RESPONSES: "chat",
    Kind.MESSAGES: "chat",
    Kind.COMPLETIONS: "text_completion",
    Kind.EMBEDDINGS: "embeddings",
}
_TRACE_HEADERS: Final = frozenset({b"traceparent", b"tracestate"})
_MAX_VALUE_CHARS: Final = 256
_MAX_OPEN: Final = 20_000
_LOOKED_AT_BYTES: Final = 4_096
_MODEL: Final = re.compile(rb'"model"\s*:\s*"([^"\\]{1,256})"')
_ID: Final = re.compile(rb'"id"\s*:\s*"([\x21\x23-\x5b\x5d-\x7e]{1,256})"')
_NS_PER_S: Final = 1e9

Attributes = dict[str, str | bool | int | float | Sequence[str]]


class _Open:
    """A span that has not ended."""

    __slots__ = ("began_ns", "span", "status")

    def __init__(self, span: Span, began_ns: int) -> None:
        self.span = span
        self.began_ns = began_ns
        self.status = 0


class Spans:
    """`contracts.Identity` and `contracts.Scheduling` around others; `watch` is put around `relay.Watchers`.

    exporter: sends batches, from a thread of ours. max_waiting: finished spans that may wait for it.
    Cost of a call: some 60 microseconds where it is sampled. Use it on one event loop.
    """

    def __init__(
        self,
        identity: Identity,
        scheduling: Scheduling,
        watchers: Watchers,
        exporter: SpanExporter,
        *,
        max_waiting: int = 2_048,
    ) -> None:
        self._identity = identity
        self._scheduling = scheduling
        self._watchers = watchers
        self._sender = _Sender(exporter, max_waiting)
        limits = SpanLimits(max_span_attributes=64, max_events=32, max_span_attribute_length=_MAX_VALUE_CHARS)
        provider = TracerProvider(resource=_resource(), span_limits=limits, shutdown_on_exit=False)
        provider.add_span_processor(self._sender)
        self._provider = provider
        self._tracer = provider.get_tracer("saga.gateway", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._open: dict[str, _Open] = {}

    @property
    def num_sent(self) -> int:
        """Spans that the collector took."""
        return self._sender.num_sent

    @property
    def num_dropped(self) -> int:
        """Spans that nobody got: too many waited, or the collector did not take them."""
        return self._sender.num_dropped

    async def close(self, timeout_s: float = 3.0) -> None:
        """Send what waits, for so long; the event loop goes on."""
        cut = threading.Timer(timeout_s, self._sender.give_up)
        cut.start()
        try:
            await asyncio.to_thread(self._provider.shutdown)
        finally:
            cut.cancel()

    # ------------------------------------------------------------------ contracts.Identity

    def identify(self, request: Request, at_s: float) -> Call:
        """The call, with a span; raises what the other raises."""
        operation = _OPERATIONS.get(kind_of(request.method, request.path))
        if operation is None:
            return self._identity.identify(request, at_s)
        began_ns = time.time_ns()
        try:
            call = self._identity.identify(request, at_s)
        except Refused as refused:
            if refused.status != 401:
                _end(self._start(operation, request, began_ns), refused.code or str(refused.status))
            raise
        if len(self._open) < _MAX_OPEN:
            opened = self._open[call.step] = self._start(f"{operation} {call.model}".rstrip(), request, began_ns)
            opened.span.set_attributes(_of_call(operation, call))
            call.lines = _continued(opened.span)
            request.headers = [field for field in request.headers if field[0] not in _TRACE_HEADERS]
        return call

    def answered(self, call: Call, answer: Answer, at_s: float) -> None:
        """Passed on."""
        self._identity.answered(call, answer, at_s)

    # ------------------------------------------------------------------ contracts.Scheduling

    def admit_at_once(self, call: Call) -> Ticket | None:
        """What the other says; raises what it raises."""
        try:
            ticket = self._scheduling.admit_at_once(call)
        except BaseException as error:
            self._not_sent(call, error)
            raise
        if ticket is not None:
            self._sent(ticket)
        return ticket

    async def admit(self, call: Call) -> Ticket:
        """Wait at the gate; raises what the other raises."""
        try:
            ticket = await self._scheduling.admit(call)
        except BaseException as error:
            self._not_sent(call, error)
            raise
        self._sent(ticket)
        return ticket

    def _not_sent(self, call: Call, error: BaseException) -> None:
        self._finish(call, (error.code or str(error.status)) if isinstance(error, Refused) else _name_of(error))

    def first_byte(self, ticket: Ticket) -> None:
        """The answer began."""
        self._scheduling.first_byte(ticket)
        opened = self._open.get(ticket.call.step)
        if opened is not None:
            opened.span.add_event("saga.first_byte")
            if ticket.call.stream:
                waited_s = (time.time_ns() - opened.began_ns) / _NS_PER_S
                opened.span.set_attribute("gen_ai.response.time_to_first_chunk", waited_s)

    def finished(self, ticket: Ticket, answer: Answer) -> None:
        """The answer is complete."""
        self._scheduling.finished(ticket, answer)
        opened = self._open.get(ticket.call.step)
        if opened is not None:
            opened.span.set_attributes(_of_answer(answer))
            failed = answer.error or opened.status >= 400
            self._finish(ticket.call, (str(opened.status) if opened.status >= 400 else "error") if failed else "")

    async def failed(self, ticket: Ticket, why: str, *, retry: bool) -> Ticket | None:
        """The attempt is lost; what the other makes of it."""
        opened = self._open.get(ticket.call.step)
        if opened is not None:
            told: Attributes = {"saga.worker": ticket.address.worker, "saga.attempt": ticket.attempt, "saga.why": why}
            opened.span.add_event("saga.attempt_failed", told)
        try:
            another = await self._scheduling.failed(ticket, why, retry=retry)
        except BaseException as error:
            self._finish(ticket.call, _name_of(error))
            raise
        if another is None:
            self._finish(ticket.call, "worker_unavailable", why)
        else:
            self._sent(another)
        return another

    def cancelled(self, ticket: Ticket) -> None:
        """The client went away."""
        self._scheduling.cancelled(ticket)
        self._finish(ticket.call, "cancelled")

    # ------------------------------------------------------------------ relay.Watchers

    def watch(self, call: Call, status: int, headers: Headers) -> AnswerWatcher:
        """The other's watcher, with an eye on the answer's first bytes."""
        watcher = self._watchers(call, status, headers)
        opened = self._open.get(call.step)
        if opened is None:
            return watcher
        opened.status = status
        opened.span.set_attribute("http.response.status_code", status)
        return _Looking(watcher, opened.span) if opened.span.is_recording() else watcher

    # ------------------------------------------------------------------ spans

    def _start(self, name: str, request: Request, began_ns: int) -> _Open:
        carrier: dict[str, str] = {}
        for field, value in request.headers:
            if field in _TRACE_HEADERS:
                key, text = field.decode(), value.decode("latin-1")
                carrier[key] = f"{carrier[key]},{text}" if key in carrier else text
        parent = self._propagator.extract(carrier, context=Context())
        return _Open(self._tracer.start_span(name, parent, SpanKind.CLIENT, start_time=began_ns), began_ns)

    def _sent(self, ticket: Ticket) -> None:
        """A worker was found."""
        opened = self._open.get(ticket.call.step)
        if opened is None:
            return
        call, address = ticket.call, ticket.address
        span = opened.span
        decision: Attributes = {
            "saga.worker": address.worker,
            "saga.attempt": ticket.attempt,
            "saga.queued_ms": round(ticket.queued_s * 1_000.0, 3),
            "saga.reason": ticket.reason,
        }
        span.add_event("saga.dispatched", decision)
        span.set_attributes(decision)
        span.set_attributes(
            {
                "gen_ai.conversation.id": call.session,
                "saga.session": call.session,
                "saga.tenant": call.tenant,
                "server.address": address.host,
                "server.port": address.port,
            }
        )

    def _finish(self, call: Call, error: str = "", why: str = "") -> None:
        opened = self._open.pop(call.step, None)
        if opened is not None:
            _end(opened, error, why)


class _Looking:
    """A watcher that finds the model's name and the answer's id in its first bytes.

    Neither can be taken from a text in the answer: there its quotes are escaped.
    """

    __slots__ = ("_first", "_span", "_watcher")

    def __init__(self, watcher: AnswerWatcher, span: Span) -> None:
        self._watcher = watcher
        self._span = span
        self._first: bytes | None = b""

    def feed(self, chunk: bytes) -> None:
        """The next bytes."""
        self._watcher.feed(chunk)
        if self._first is not None:
            self._first += chunk[:_LOOKED_AT_BYTES]
            self._look(self._first)

    def close(self) -> Answer:
        """No more come."""
        return self._watcher.close()

    def _look(self, first: bytes) -> None:
        model = _MODEL.search(first)
        if model is None and len(first) < _LOOKED_AT_BYTES:
            return
        self._first = None
        for name, found in (("gen_ai.response.model", model), ("gen_ai.response.id", _ID.search(first))):
            if found is not None:
                self._span.set_attribute(name, found[1].decode("utf-8", "replace"))


class _Sender(BatchSpanProcessor):
    """Batches in a thread, with a bound that counts what it turns away.

    num_waiting counts what is being sent as well, so that a collector that hangs takes no more memory.
    """

    def __init__(self, exporter: SpanExporter, max_waiting: int) -> None:
        self._counting = _Counting(exporter)
        self._max_waiting = max_waiting
        self._num_taken = 0
        self._num_turned_away = 0
        super().__init__(self._counting, max_waiting, max_export_batch_size=min(512, max_waiting))

    @property
    def num_sent(self) -> int:
        return self._counting.num_sent

    @property
    def num_dropped(self) -> int:
        return self._num_turned_away + self._counting.num_lost

    @property
    def num_waiting(self) -> int:
        return self._num_taken - self._counting.num_sent - self._counting.num_lost

    def give_up(self) -> None:
        """Send nothing more, also where a batch is being tried again."""
        self._counting.give_up()

    def on_end(self, span: ReadableSpan) -> None:
        """Take a finished span, or drop it."""
        if not span.context.trace_flags.sampled:
            return
        if self.num_waiting < self._max_waiting:
            self._num_taken += 1
            super().on_end(span)
            return
        if not self._num_turned_away:
            say(logging.WARNING, "trace spans are dropped: the collector does not take them fast enough")
        self._num_turned_away += 1


class _Counting(SpanExporter):
    """An exporter that counts; called from one thread at a time."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._given_up = False
        self.num_sent = 0
        self.num_lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            if not self._given_up:
                result = self._exporter.export(spans)
        finally:
            if result is SpanExportResult.SUCCESS:
                self.num_sent += len(spans)
            else:
                self.num_lost += len(spans)
        return result

    def give_up(self) -> None:
        self._given_up = True
        self._exporter.shutdown()

    def shutdown(self) -> None:
        if not self._given_up:
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _resource() -> Resource:
    """Who speaks: what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say, else `saga`."""
    resource = Resource.create({"service.version": __version__})
    named = str(resource.attributes.get("service.name", ""))
    return resource.merge(Resource({"service.name": "saga"})) if named.startswith("unknown_service") else resource


def _continued(span: Span) -> bytes:
    """The header lines by which a worker continues the trace (W3C Trace Context)."""
    context = span.get_span_context()
    line = f"traceparent: 00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}\r\n"
    if context.trace_state:
        line += f"tracestate: {context.trace_state.to_header()}\r\n"
    return line.encode("latin-1")


def _end(opened: _Open, error: str = "", why: str = "") -> None:
    """End a span; error: its class, of a short list, "" for none."""
    span = opened.span
    if error:
        span.set_attribute("error.type", error)
        span.set_status(Status(StatusCode.ERROR, why or None))
    span.end()


def _of_call(operation: str, call: Call) -> Attributes:
    """What is known of a call when it comes."""
    known: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "anthropic" if call.kind is Kind.MESSAGES else "openai",
        "gen_ai.request.model": call.model,
        "gen_ai.request.stream": call.stream,
    }
    if call.max_output_tokens is not None:
        known["gen_ai.request.max_tokens"] = call.max_output_tokens
    if call.kind in {Kind.CHAT, Kind.RESPONSES}:
        known["openai.api.type"] = "chat_completions" if call.kind is Kind.CHAT else "responses"
    return known


def _of_answer(answer: Answer) -> Attributes:
    """What the engine counted."""
    counted: Mapping[str, int | None] = {
        "gen_ai.usage.input_tokens": answer.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": answer.cached_tokens,
    }
    known: Attributes = {name: value for name, value in counted.items() if value is not None}
    if answer.finish_reason is not None:
        known["gen_ai.response.finish_reasons"] = [answer.finish_reason]
    return known


def _name_of(error: BaseException) -> str:
    return "cancelled" if isinstance(error, asyncio.CancelledError) else type(error).__name__
