"""Who asks for traces, and a real OTLP receiver that gets them from a whole gateway."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from saga.errors import UsageError
from saga.gateway import tracing
from saga.gateway.config import GatewayConfig
from saga.gateway.serve import Gateway
from saga.gateway.tracing import is_wanted, traces_endpoint
from saga.gateway.worker_config import WorkerConfig

from .fakes import FakeWorker

URL = "http://collector:4318"
OK = b'{"choices":[],"model":"m-1","usage":{"prompt_tokens":5,"completion_tokens":2}}'


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": URL}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": URL}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
    ],
)
def test_the_standard_variables_ask_for_traces(environment: dict[str, str], wanted: bool) -> None:
    """As OpenTelemetry describes them; nothing asks for traces by default."""
    assert is_wanted(environment) == wanted


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "expected http://host:port"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc is not spoken"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "set otlp or none"),
    ],
)
def test_what_cannot_be_done_is_refused(environment: dict[str, str], said: str) -> None:
    """With the variable, its value and what would be right."""
    with pytest.raises(UsageError, match=said):
        is_wanted(environment)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces that were asked for are not left out silently."""
    monkeypatch.setattr(tracing, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"saga-sched\[otel\]"):
        is_wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": URL})


@pytest.mark.parametrize("url", [URL, URL + "/", URL + "/v1/traces"])
def test_a_collector_is_named_with_or_without_its_path(url: str) -> None:
    """OTLP's own path is added where there is none; another is left."""
    assert traces_endpoint(url) == URL + "/v1/traces"
    assert traces_endpoint(URL + "/otlp/x") == URL + "/otlp/x"


def test_who_is_not_asked_for_traces_imports_nothing_of_them() -> None:
    """Off costs nothing."""
    program = "import sys, saga.gateway.serve; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_collector_gets_the_spans_of_a_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP, in protobuf: who speaks and what was called; what waits at the end is sent before it stops."""
    heard: list[ExportTraceServiceRequest] = []

    async def collect(request: web.Request) -> web.Response:
        heard.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response(content_type="application/x-protobuf")

    async def work() -> None:
        app = web.Application()
        app.router.add_post("/v1/traces", collect)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{runner.addresses[0][1]}")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=front-3,zone=z")
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(OK), OK)
        engine = await FakeWorker(answer).start()
        worker = WorkerConfig(f"http://127.0.0.1:{engine.address.port}", models=("m",)).named()
        gateway = Gateway(GatewayConfig(port=0, admin_port=0, workers=(worker,)))
        try:
            await gateway.start()
            async with aiohttp.ClientSession() as http:
                body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
                fields = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
                async with http.post(f"{gateway.url}/v1/chat/completions", json=body, headers=fields) as answered:
                    assert answered.status == 200
                    session = answered.headers["x-saga-session"]
                async with http.get(f"{gateway.admin_url}/metrics") as metrics:
                    assert "saga_trace_spans_dropped 0.0" in await metrics.text()
            assert gateway.spans is not None
        finally:
            await gateway.stop(0.0)
            await engine.close()
            await runner.cleanup()
        assert (gateway.spans.num_sent, gateway.spans.num_dropped) == (1, 0)
        (resource,) = heard[0].resource_spans
        assert {"front-3", "z"} <= {field.value.string_value for field in resource.resource.attributes}
        (span,) = resource.scope_spans[0].spans
        assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("chat m", "ab" * 16, "cd" * 8)
        said = {field.key: field.value for field in span.attributes}
        assert said["gen_ai.conversation.id"].string_value == session
        assert said["gen_ai.usage.input_tokens"].int_value == 5
        assert said["gen_ai.response.model"].string_value == "m-1"
        assert any(b"traceparent: 00-" + b"ab" * 16 in request.head for request in engine.heard)

    asyncio.run(asyncio.wait_for(work(), 30.0))
