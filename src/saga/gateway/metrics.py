"""What the gateway counts, for Prometheus to scrape. Names are documented in docs/gateway.md.

Labels are bounded: workers are as many as there are, tenants beyond `max_tenants` are counted as "other", kinds and
outcomes are fixed lists. Label values are looked up once and kept, so that counting a call costs microseconds. It
refuses to know sessions' names and anything that a client wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from saga.gateway.contracts import Answer
    from saga.gateway.scheduling import GatewayScheduling

_WAIT_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TTFT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_DECISION_S = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 2e-2)


class GatewayMetrics:
    """A `scheduling.Meter` that counts into a registry of its own."""

    def __init__(self, *, max_tenants: int = 100) -> None:
        registry = self.registry = CollectorRegistry()
        self._max_tenants = max_tenants
        self._tenants: set[str] = set()
        self._calls = Counter(
            "saga_calls", "Calls that ended.", ("worker", "tenant", "kind", "outcome"), registry=registry
        )
        self._refused = Counter("saga_refused", "Calls that got no worker.", ("tenant", "why"), registry=registry)
        self._queued = Histogram(
            "saga_queue_seconds", "Time at the gate.", ("kind",), buckets=_WAIT_S, registry=registry
        )
        self._ttft = Histogram(
            "saga_ttft_seconds",
            "From a call's arrival to the first byte of its answer.",
            ("worker",),
            buckets=_TTFT_S,
            registry=registry,
        )
        self._decision = Histogram(
            "saga_decision_seconds", "Handling one event.", buckets=_DECISION_S, registry=registry
        )
        self._commands = Counter("saga_commands", "What the scheduler ordered.", ("command",), registry=registry)
        self._tokens = Counter("saga_tokens", "Tokens by the engines' count.", ("tenant", "what"), registry=registry)
        self._kept: dict[tuple[str, ...], object] = {}

    def gauge(self, name: str, text: str, ask: Callable[[], float]) -> None:
        """A figure that is asked for when somebody scrapes."""
        Gauge(name, text, registry=self.registry).set_function(ask)

    def watch(self, scheduling: GatewayScheduling) -> None:
        """Show what the scheduler and the workers' registry hold."""
        self.registry.register(_Holdings(scheduling))

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def tenant_label(self, tenant: str) -> str:
        """The tenant's label: its name, or "other" beyond the cap."""
        if tenant in self._tenants:
            return tenant
        if len(self._tenants) >= self._max_tenants:
            return "other"
        self._tenants.add(tenant)
        return tenant

    # ------------------------------------------------------------------ scheduling.Meter

    def decided(self, seconds: float) -> None:
        """An event was handled."""
        self._decision.observe(seconds)

    def commanded(self, name: str) -> None:
        """The scheduler ordered something."""
        self._child(self._commands, name).inc()

    def dispatched(self, worker: str, tenant: str, kind: str, queued_s: float) -> None:
        """A call got its ticket."""
        self._child(self._queued, kind).observe(queued_s)

    def began(self, worker: str, ttft_s: float) -> None:
        """The first byte came."""
        self._child(self._ttft, worker).observe(ttft_s)

    def ended(self, worker: str, tenant: str, kind: str, outcome: str, answer: Answer | None) -> None:
        """A ticket ended."""
        tenant = self.tenant_label(tenant)
        self._child(self._calls, worker, tenant, kind, outcome).inc()
        if answer is None:
            return
        for what, tokens in (
            ("prompt", answer.prompt_tokens),
            ("cached", answer.cached_tokens),
            ("output", answer.output_tokens),
        ):
            if tokens:
                self._child(self._tokens, tenant, what).inc(tokens)

    def refused(self, tenant: str, kind: str, why: str) -> None:
        """A call got no ticket."""
        self._child(self._refused, self.tenant_label(tenant), why).inc()

    def _child(self, metric: Counter | Histogram, *labels: str) -> _Any:
        """The metric's child with these labels, kept: `labels()` validates each time."""
        key = (metric._name, *labels)  # noqa: SLF001 - the only name a metric has
        child = self._kept.get(key)
        if child is None:
            if len(self._kept) > _MAX_KEPT:
                self._kept.clear()
            child = self._kept[key] = metric.labels(*labels)
        return child  # type: ignore[return-value]


_MAX_KEPT = 10_000


class _Any(Protocol):
    """A child of a counter or a histogram."""

    def inc(self, amount: float = 1.0) -> None:
        """Count."""
        ...

    def observe(self, amount: float) -> None:
        """Count into buckets."""
        ...


class _Holdings(Collector):
    """What is there when somebody scrapes. O(workers)."""

    def __init__(self, scheduling: GatewayScheduling) -> None:
        self._scheduling = scheduling

    def collect(self) -> Iterator[Metric]:
        """All families."""
        scheduling = self._scheduling
        open_sessions = sum(len(pool.scheduler.sessions) for pool in scheduling.pools)
        yield GaugeMetricFamily("saga_sessions", "Open sessions.", value=open_sessions)
        yield GaugeMetricFamily("saga_calls_waiting", "Calls at the gate.", value=scheduling.num_waiting)
        yield GaugeMetricFamily("saga_calls_running", "Calls at workers.", value=scheduling.num_running)
        yield from self._of_workers()

    def _of_workers(self) -> Iterator[Metric]:
        families = {
            "saga_worker_up": "1 where it may get calls.",
            "saga_worker_calls": "Calls that this gateway has there.",
            "saga_worker_running": "Calls running, by its own count.",
            "saga_worker_waiting": "Calls waiting, by its own count.",
            "saga_worker_kv_usage": "Share of its KV memory in use, by its own count.",
            "saga_worker_sessions": "Open sessions whose home it is.",
            "saga_worker_retained_sessions": "Sessions with a place there: running, or held across a gap.",
            "saga_worker_reserved_tokens": "Contexts of those sessions and their growth, tokens.",
            "saga_worker_kv_tokens": "KV capacity, tokens.",
        }
        made = {name: GaugeMetricFamily(name, text, labels=("worker",)) for name, text in families.items()}
        for worker in self._scheduling.workers:
            seat = self._scheduling.pools.seat_of(worker)
            record = seat.pool.scheduler.fleet.get(seat.name) if seat is not None else None
            values = (
                float(worker.is_up),
                worker.num_calls,
                worker.running,
                worker.waiting,
                worker.kv_usage,
                record.num_live if record is not None else None,
                record.num_active if record is not None else None,
                record.reserved_tokens if record is not None else None,
                worker.kv_tokens,
            )
            for family, value in zip(made.values(), values, strict=True):
                if value is not None:
                    family.add_metric((worker.name,), value)
        yield from made.values()
