"""Whether calls are traced, as OpenTelemetry's standard environment variables say it, and by what.

    OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT     a collector is named: yes
    OTEL_TRACES_EXPORTER=otlp                                             yes, to http://localhost:4318
    OTEL_TRACES_EXPORTER=none, OTEL_SDK_DISABLED=true                     no

Every process of a gateway reads them for itself. Where they do not ask for traces nothing of OpenTelemetry is imported.
It refuses to know what is in a span (`saga.gateway.spans`).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from saga.errors import UsageError

if TYPE_CHECKING:
    from saga.gateway.contracts import Identity, Scheduling
    from saga.gateway.relay import Watchers
    from saga.gateway.spans import Spans

TRACES_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
"""Where traces go; of all these variables it has the last word."""

_ENDPOINTS: Final = (TRACES_ENDPOINT, "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether these variables ask for traces. Raises UsageError for what cannot be done."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter not in {"", "otlp", "none"}:
        raise UsageError(f"OTEL_TRACES_EXPORTER={exporter}: traces go to an OTLP collector; set otlp or none")
    endpoints = [(name, environment[name]) for name in _ENDPOINTS if environment.get(name)]
    if exporter == "none" or not (exporter or endpoints):
        return False
    for name, url in endpoints:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(f"{name}={url}: expected http://host:port of an OTLP collector")
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        raise UsageError(f"{protocol} is not spoken to collectors: set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf")
    if not _is_installed():
        raise UsageError("traces need pip install 'saga-sched[otel]'; OTEL_SDK_DISABLED=true goes without")
    return True


def traces_endpoint(url: str) -> str:
    """Where traces go at a collector: its URL, with the path that OTLP gives them where it has none."""
    return url.rstrip("/") + "/v1/traces" if urlsplit(url).path in {"", "/"} else url


class Plane(NamedTuple):
    """Who works for a front, with `spans` between it and them where calls are traced."""

    identity: Identity
    scheduling: Scheduling
    watchers: Watchers
    spans: Spans | None = None

    @property
    def workers(self) -> tuple[Identity, Scheduling, Watchers]:
        """What a front is made of."""
        return self[:3]


def plane(environment: Mapping[str, str], identity: Identity, scheduling: Scheduling, watchers: Watchers) -> Plane:
    """Those who are to work for a front, traced where these variables ask for it. Raises UsageError."""
    if not is_wanted(environment):
        return Plane(identity, scheduling, watchers)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra

    from saga.gateway.spans import Spans  # noqa: PLC0415 - the same

    spans = Spans(identity, scheduling, watchers, OTLPSpanExporter())
    return Plane(spans, spans, spans.watch, spans)


def _is_installed() -> bool:
    try:
        return all(find_spec(f"opentelemetry.{name}") is not None for name in ("sdk", "exporter.otlp.proto.http"))
    except ModuleNotFoundError:
        return False
