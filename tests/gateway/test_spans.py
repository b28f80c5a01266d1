"""A span for every call: its names, whose child it is, its ends, and that nobody waits for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from saga.gateway.contracts import Answer, Call, Refused
from saga.gateway.spans import Spans

from .fakes import CLOSE, FakeIdentity, FakeWatcher, Plane, plane, post, run

SECRET = b"nobody-may-read-this"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Type: application/json\r\n\r\n%b"
TEXT = b'{"id":"chatcmpl-1","model":"m-2026","choices":[{"text":"\\"model\\": \\"x\\" ' + SECRET + b'"}]}'
ANSWER = OK % (len(TEXT), TEXT)
BODY = b'{"model":"m","messages":[{"content":"' + SECRET + b'"}]}'
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def named(call: Call) -> None:
    """What identity would have found."""
    call.model, call.max_output_tokens, call.stream = "m", 50, b'"stream":true' in call.request.body


class Counted(FakeWatcher):
    """Sees usage in every answer."""

    def close(self) -> Answer:
        return Answer(prompt_tokens=50, output_tokens=7, cached_tokens=40, finish_reason="stop", complete=True)


async def die(heard: Any, writer: asyncio.StreamWriter) -> None:
    """Close without an answer."""
    writer.close()


@asynccontextmanager
async def traced(
    *responds: Any, exporter: SpanExporter | None = None, max_waiting: int = 2_048, identity: FakeIdentity | None = None
) -> AsyncIterator[tuple[Plane, Spans, list[ReadableSpan]]]:
    """A plane whose front works through spans; those that were sent are in the list once the block is left."""
    kept = exporter or InMemorySpanExporter()
    sent: list[ReadableSpan] = []
    async with plane(*responds, identity=identity or FakeIdentity(change=named)) as p:
        relay = p.front.relay
        spans = Spans(relay.identity, relay.scheduling, lambda *_: Counted(), kept, max_waiting=max_waiting)
        relay.identity, relay.scheduling, relay._watchers = spans, spans, spans.watch
        try:
            yield p, spans, sent
            await p.settle(lambda: not spans._open)  # every span ends
        finally:
            await spans.close(0.2 if exporter else 10.0)
        if isinstance(kept, InMemorySpanExporter):
            sent += kept.get_finished_spans()


def test_a_call_is_one_span_in_the_words_of_the_conventions() -> None:
    """Name, kind, model, tokens, conversation and server; how it was scheduled; and nothing of what was said."""

    async def work() -> None:
        async with traced(ANSWER) as (p, spans, sent):
            before_ns = time.time_ns()
            assert (await p.talk(post(BODY, CLOSE))).endswith(TEXT)
            after_ns = time.time_ns()
        assert (spans.num_sent, spans.num_dropped) == (1, 0)
        (span,) = sent
        assert (span.name, span.kind, span.status.status_code) == ("chat m", SpanKind.CLIENT, StatusCode.UNSET)
        assert before_ns <= span.start_time < span.end_time <= after_ns
        assert dict(span.attributes) == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "openai.api.type": "chat_completions",
            "gen_ai.request.model": "m",
            "gen_ai.request.stream": False,
            "gen_ai.request.max_tokens": 50,
            "gen_ai.conversation.id": "s1",
            "gen_ai.response.model": "m-2026",
            "gen_ai.response.id": "chatcmpl-1",
            "gen_ai.response.finish_reasons": ("stop",),
            "gen_ai.usage.input_tokens": 50,
            "gen_ai.usage.output_tokens": 7,
            "gen_ai.usage.cache_read.input_tokens": 40,
            "http.response.status_code": 200,
            "server.address": "127.0.0.1",
            "server.port": p.workers[0].address.port,
            "saga.session": "s1",
            "saga.tenant": "tenant",
            "saga.worker": "w0",
            "saga.attempt": 1,
            "saga.queued_ms": 12.5,
            "saga.reason": "first worker",
        }
        assert [event.name for event in span.events] == ["saga.dispatched", "saga.first_byte"]
        assert span.resource.attributes["service.name"] == "saga"
        assert SECRET.decode() not in span.to_json()

    run(work())


@pytest.mark.parametrize(
    ("path", "name", "provider"),
    [
        (b"/v1/completions", "text_completion m", "openai"),
        (b"/v1/responses", "chat m", "openai"),
        (b"/v1/messages", "chat m", "anthropic"),
        (b"/v1/embeddings", "embeddings m", "openai"),
    ],
)
def test_every_kind_of_call_has_its_operation(path: bytes, name: str, provider: str) -> None:
    """The convention's own names of operations."""

    async def work() -> None:
        async with traced(ANSWER) as (p, _, sent):
            await p.talk(post(BODY, CLOSE, path=path))
        assert [(span.name, span.attributes["gen_ai.provider.name"]) for span in sent] == [(name, provider)]

    run(work())


def test_a_stream_says_when_its_first_chunk_came() -> None:
    """Seconds, as the convention has it; in a unary answer there is no such thing."""

    async def work() -> None:
        async with traced(STREAM + b"9\r\ndata: x\n\n\r\n0\r\n\r\n") as (p, _, sent):
            await p.talk(post(b'{"model":"m","stream":true}', CLOSE))
        assert 0.0 < sent[0].attributes["gen_ai.response.time_to_first_chunk"] < 20.0
        assert sent[0].attributes["gen_ai.request.stream"] is True

    run(work())


@pytest.mark.parametrize(
    ("fields", "continued", "flags", "state"),
    [
        ([f"traceparent: 00-{TRACE}-{PARENT}-01", "tracestate: a=1", "tracestate: b=2"], True, "01", b"a=1,b=2"),
        ([f"traceparent: 00-{TRACE}-{PARENT}-00"], True, "00", None),
        ([f"traceparent: 00-{TRACE}-{'0' * 16}-01", "tracestate: a=1"], False, "01", None),
        (["traceparent: \xff"], False, "01", None),
        ([], False, "01", None),
    ],
)
def test_the_clients_trace_is_continued_to_the_worker(fields, continued, flags, state) -> None:
    """W3C Trace Context: one traceparent, the span's; what is not sampled is not sent; what is bad starts anew."""

    async def work() -> None:
        async with traced(ANSWER) as (p, _, sent):
            request = post(BODY, *(field.encode("latin-1") for field in fields))
            await p.talk(request + request + post(BODY, CLOSE))  # the first head's twin and another
        heards = p.workers[0].heard
        lines = [heard.values(b"traceparent") for heard in heards]
        assert [len(one) for one in lines] == [1, 1, 1]
        assert [heard.values(b"tracestate") for heard in heards[:2]] == [[] if state is None else [state]] * 2
        for (line,) in lines[:2]:
            version, trace, parent, said = line.decode().split("-")
            assert version == "00"
            assert int(said, 16) & 1 == int(flags)  # the bit beside it says that the trace's id is random
            assert (trace == TRACE) == continued
            assert parent != PARENT
        told = [f"{span.context.trace_id:032x}-{span.context.span_id:016x}".encode() for span in sent]
        assert told == [line[3:-3] for (line,) in lines if int(line[-2:], 16) & 1]
        assert len({line for (line,) in lines}) == 3
        if continued and flags == "01":
            assert f"{sent[0].parent.span_id:016x}" == PARENT

    run(work())


def test_other_paths_have_no_span_and_keep_their_trace() -> None:
    """What is passed through is passed through."""

    async def work() -> None:
        parent = f"00-{TRACE}-{PARENT}-01".encode()
        async with traced(ANSWER) as (p, _, sent):
            await p.talk(post(BODY, b"Traceparent: " + parent, CLOSE, path=b"/v1/files"))
        assert p.workers[0].heard[0].values(b"traceparent") == [parent]
        assert not sent

    run(work())


def test_an_attempt_that_failed_is_an_event_of_the_same_span() -> None:
    """Both workers get the same parent; the last one is the server."""

    async def work() -> None:
        async with traced(die, ANSWER) as (p, _, sent):
            assert (await p.talk(post(BODY, CLOSE))).startswith(b"HTTP/1.1 200")
        (span,) = sent
        names = [event.name for event in span.events]
        assert names == ["saga.dispatched", "saga.attempt_failed", "saga.dispatched", "saga.first_byte"]
        assert span.events[1].attributes["saga.worker"] == "w0"
        assert (span.attributes["saga.worker"], span.attributes["saga.attempt"]) == ("w1", 2)
        assert span.status.status_code is StatusCode.UNSET
        first, second = (worker.heard[0].values(b"traceparent") for worker in p.workers)
        assert first == second != []

    run(work())


async def _break(heard: Any, writer: asyncio.StreamWriter) -> None:
    """Half a stream."""
    writer.write(STREAM + b"9\r\ndata: x\n\n\r\n")
    await writer.drain()
    writer.close()


@pytest.mark.parametrize(
    ("responds", "error"),
    [
        ((die, die), "worker_unavailable"),
        ((_break,), "worker_unavailable"),
        ((b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\n{}",), "400"),
        ((b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\n{}",), "worker_unavailable"),
    ],
)
def test_a_call_that_fails_says_how(responds: tuple[Any, ...], error: str) -> None:
    """error.type is of a short list, and the status says ERROR."""

    async def work() -> None:
        async with traced(*responds) as (p, _, sent):
            await p.talk(post(BODY, CLOSE))
        (span,) = sent
        assert span.attributes["error.type"] == error
        assert span.status.status_code is StatusCode.ERROR

    run(work())


def test_refusals_have_spans_where_somebody_is_known() -> None:
    """A gate that is full, a body that is bad; but not a key that is wrong: strangers write no traces."""

    async def work() -> None:
        async with traced(ANSWER) as (p, _, sent):
            p.scheduling.refuse = Refused(429, "5 calls wait", code="queue_full")
            await p.talk(post(BODY, CLOSE))
            p.identity.refuse = Refused(400, f"bad {SECRET.decode()}")
            await p.talk(post(BODY, CLOSE))
            p.identity.refuse = Refused(401, "who?", code="invalid_api_key")
            await p.talk(post(BODY, CLOSE))
        assert [(span.name, span.attributes["error.type"]) for span in sent] == [
            ("chat m", "queue_full"),
            ("chat", "400"),
        ]
        assert SECRET.decode() not in "".join(span.to_json() for span in sent)

    run(work())


@pytest.mark.parametrize("where", ["gate", "worker"])
def test_a_client_that_leaves_is_told_as_cancelled(where: str) -> None:
    """While it waits, and while it is served."""

    async def hang(heard: Any, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async def work() -> None:
        async with traced(hang) as (p, _, sent):
            p.scheduling.gate = asyncio.Event() if where == "gate" else None
            _, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(post(BODY))
            await p.settle(lambda: bool(p.workers[0].heard if where == "worker" else p.scheduling.log))
            writer.close()
        assert [span.attributes["error.type"] for span in sent] == ["cancelled"]

    run(work())


class Stuck(SpanExporter):
    """A collector that hangs until it is shut down."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def export(self, spans: Any) -> SpanExportResult:
        self.ended.wait(20.0)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.ended.set()


class Failing(SpanExporter):
    """A collector that takes nothing."""

    def export(self, spans: Any) -> SpanExportResult:
        raise ConnectionError("nobody listens")

    def shutdown(self) -> None:
        pass


@pytest.mark.parametrize("collector", [Stuck, Failing])
def test_nobody_waits_for_a_dead_collector(collector: type[SpanExporter]) -> None:
    """Calls are answered, a bounded number of spans waits, the rest is dropped and counted, the end is soon."""
    num_calls, bound = 200, 16

    async def work() -> None:
        most = 0
        async with traced(ANSWER, exporter=collector(), max_waiting=bound) as (p, spans, _):
            for _ in range(num_calls // 10):
                answer = await p.talk(post(BODY) * 9 + post(BODY, CLOSE))
                assert answer.count(b"HTTP/1.1 200") == 10
                most = max(most, spans._sender.num_waiting)
            assert most <= bound
            if collector is Stuck:
                assert spans.num_dropped >= num_calls - bound
        assert (spans.num_sent, spans.num_dropped) == (0, num_calls)

    run(work())
