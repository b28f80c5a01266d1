"""What the gateway counts, for Prometheus to scrape. Names are documented in docs/gateway.md.

Labels are bounded: workers are as many as there are, tenants beyond `max_tenants` are counted as "other", kinds and
outcomes are fixed lists. Counting is one addition in a dictionary (a tenth of what prometheus_client's own metrics
take); families are made when somebody scrapes. It refuses to know sessions' names and anything that a client wrote.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from saga.gateway.contracts import Answer
    from saga.gateway.engines import Engines
    from saga.gateway.scheduling import GatewayScheduling
    from saga.protocol.coordinator_pb2 import Finished

_WAIT_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TTFT_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_DECISION_S = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 2e-2)
_LINK_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
_MAX_SERIES: Final = 10_000


class _Counts:
    """A counter by its labels' values."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self.name = name
        self.text = text
        self.labels = labels
        self.values: dict[tuple[str, ...], int] = {}

    def add(self, key: tuple[str, ...], number: int = 1) -> None:
        """Count so many under these labels' values."""
        self.values[key] = self.values.get(key, 0) + number

    def family(self) -> Metric:
        """What a scrape shows."""
        family = CounterMetricFamily(self.name, self.text, labels=self.labels)
        for key, value in self.values.items():
            family.add_metric(key, value)
        if len(self.values) > _MAX_SERIES:  # workers of many names came and went
            self.values.clear()
        return family


class _Spans:
    """A histogram of seconds by one label's value."""

    def __init__(self, name: str, text: str, bounds_s: tuple[float, ...], *labels: str) -> None:
        self.name = name
        self.text = text
        self.labels = labels
        self._bounds_s = bounds_s
        self._counts: dict[str, list[float]] = {}

    def observe(self, label: str, seconds: float) -> None:
        """Count one. The last two places hold what is over all bounds, and the sum."""
        counts = self._counts.get(label)
        if counts is None:
            if len(self._counts) >= _MAX_SERIES:
                self._counts.clear()
            counts = self._counts[label] = [0.0] * (len(self._bounds_s) + 2)
        counts[bisect_left(self._bounds_s, seconds)] += 1.0
        counts[-1] += seconds

    def family(self) -> Metric:
        """What a scrape shows."""
        family = HistogramMetricFamily(self.name, self.text, labels=self.labels)
        for label, counts in self._counts.items():
            buckets: list[tuple[str, float]] = []
            total = 0.0
            for bound_s, number in zip((*self._bounds_s, float("inf")), counts, strict=False):
                total += number
                buckets.append(("+Inf" if bound_s == float("inf") else str(float(bound_s)), total))
            family.add_metric((label,) if self.labels else (), buckets, counts[-1])
        return family


class GatewayMetrics:
    """A `scheduling.Meter` that counts into a registry of its own."""

    def __init__(self, *, max_tenants: int = 100) -> None:
        self.registry = CollectorRegistry()
        self._max_tenants = max_tenants
        self._tenants: set[str] = set()
        self._calls = _Counts("saga_calls", "Calls that ended.", "worker", "tenant", "kind", "outcome")
        self._refused = _Counts("saga_refused", "Calls that got no worker.", "tenant", "why")
        self._commands = _Counts("saga_commands", "What the scheduler ordered.", "command")
        self._tokens = _Counts("saga_tokens", "Tokens by the engines' count.", "tenant", "what")
        self._queued = _Spans("saga_queue_seconds", "Time at the gate.", _WAIT_S, "kind")
        self._ttft = _Spans("saga_ttft_seconds", "From arrival to the answer's first byte.", _TTFT_S, "worker")
        self._decision = _Spans("saga_decision_seconds", "Handling one event.", _DECISION_S)
        self._directives = _Counts("saga_directives", "What engines were told.", "worker", "directive", "outcome")
        self._engine_tokens = _Counts("saga_engine_tokens", "Tokens of steps that ended.", "worker", "what")
        self._preempted = _Counts("saga_engine_preemptions", "Times that a running call was put back.", "worker")
        self._misunderstood = _Counts("saga_engine_misunderstood", "What engines said and cannot be used.", "why")
        self._answered = _Spans("saga_directive_seconds", "From order to answer.", _LINK_S, "worker")
        counts = (self._calls, self._refused, self._commands, self._tokens)
        of_links = (self._directives, self._engine_tokens, self._preempted, self._misunderstood, self._answered)
        self.registry.register(_Counted((*counts, self._queued, self._ttft, self._decision, *of_links)))

    def gauge(self, name: str, text: str, ask: Callable[[], float]) -> None:
        """A figure that is asked for when somebody scrapes."""
        Gauge(name, text, registry=self.registry).set_function(ask)

    def watch(self, scheduling: GatewayScheduling) -> None:
        """Show what the scheduler and the workers' registry hold."""
        self.registry.register(_Holdings(scheduling))

    def watch_engines(self, engines: Engines) -> None:
        """Show what engines with a link say of themselves."""
        self.registry.register(_Links(engines))

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
        self._decision.observe("", seconds)

    def commanded(self, name: str) -> None:
        """The scheduler ordered something."""
        self._commands.add((name,))

    def dispatched(self, worker: str, tenant: str, kind: str, queued_s: float) -> None:
        """A call got its ticket."""
        self._queued.observe(kind, queued_s)

    def began(self, worker: str, ttft_s: float) -> None:
        """The first byte came."""
        self._ttft.observe(worker, ttft_s)

    def ended(self, worker: str, tenant: str, kind: str, outcome: str, answer: Answer | None) -> None:
        """A ticket ended."""
        tenant = self.tenant_label(tenant)
        self._calls.add((worker, tenant, kind, outcome))
        if answer is None:
            return
        tokens = self._tokens
        if answer.prompt_tokens:
            tokens.add((tenant, "prompt"), answer.prompt_tokens)
        if answer.cached_tokens:
            tokens.add((tenant, "cached"), answer.cached_tokens)
        if answer.output_tokens:
            tokens.add((tenant, "output"), answer.output_tokens)

    def refused(self, tenant: str, kind: str, why: str) -> None:
        """A call got no ticket."""
        self._refused.add((self.tenant_label(tenant), why))

    # ------------------------------------------------------------------ engines.EngineMeter

    def answered(self, worker: str, directive: str, outcome: str, seconds: float | None) -> None:
        """What became of a directive."""
        self._directives.add((worker, directive, outcome))
        if seconds is not None:
            self._answered.observe(worker, seconds)

    def engine_finished(self, worker: str, finished: Finished) -> None:
        """A step ended, by the engine's own count."""
        tokens = self._engine_tokens
        tokens.add((worker, "prompt"), finished.prompt_tokens)
        tokens.add((worker, "output"), finished.output_tokens)
        tokens.add((worker, "cached"), finished.cached_tokens)
        tokens.add((worker, "host"), finished.host_tokens)
        self._preempted.add((worker,), finished.preemptions)

    def misunderstood(self, why: str) -> None:
        """An engine said what cannot be used."""
        self._misunderstood.add((why,))


class _Counted(Collector):
    """The families of what was counted."""

    def __init__(self, metrics: tuple[_Counts | _Spans, ...]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """All families."""
        for metric in self._metrics:
            yield metric.family()


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


class _Links(Collector):
    """What engines said last. O(links)."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        """All families."""
        up = GaugeMetricFamily("saga_engine_link_up", "1 where the engine has a link.", labels=("worker",))
        blocks = GaugeMetricFamily("saga_engine_blocks", "KV blocks in use.", labels=("worker", "what"))
        ignored = GaugeMetricFamily(
            "saga_engine_ignored", "What the engine did not understand since it began.", labels=("worker", "reason")
        )
        for worker, link in self._engines.links.items():
            up.add_metric((worker,), 1.0)
            figures = link.figures
            blocks.add_metric((worker, "used"), figures.used_blocks)
            blocks.add_metric((worker, "retained"), figures.retained_blocks)
            blocks.add_metric((worker, "host"), figures.used_host_blocks)
            for reason, number in figures.ignored.items():
                ignored.add_metric((worker, reason), number)
        yield from (up, blocks, ignored)
