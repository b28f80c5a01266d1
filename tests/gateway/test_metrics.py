"""Tests of what the gateway counts."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from saga.gateway.contracts import Answer, Call, Kind, Request
from saga.gateway.metrics import GatewayMetrics
from saga.gateway.scheduling import GatewayScheduling
from saga.gateway.worker_config import WorkerConfig
from saga.gateway.workers import Workers


def samples(metrics):
    """{(name, labels): value} of the exposition."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_a_call_is_counted_from_gate_to_end():
    """Queue, first byte, end and tokens, with the labels that were promised."""

    async def scene():
        metrics, workers = GatewayMetrics(), Workers()
        scheduling = GatewayScheduling(workers, meter=metrics)
        metrics.watch(scheduling)
        workers.passed(workers.add(WorkerConfig("http://a:1", name="a"), 0.0), 0.0)
        ticket = await scheduling.admit(Call(Kind.CHAT, Request("POST", "/", "/", [], b""), "t", "s", "s", "1"))
        seen = samples(metrics)
        assert seen["saga_calls_running", ()] == 1
        assert seen["saga_worker_calls", (("worker", "a"),)] == 1
        scheduling.first_byte(ticket)
        scheduling.finished(ticket, Answer(prompt_tokens=10, output_tokens=3, cached_tokens=8))
        return samples(metrics)

    seen = asyncio.run(scene())
    labels = (("kind", "chat"), ("outcome", "finished"), ("tenant", "t"), ("worker", "a"))
    assert seen["saga_calls_total", labels] == 1
    assert seen["saga_queue_seconds_count", (("kind", "chat"),)] == 1
    assert seen["saga_ttft_seconds_count", (("worker", "a"),)] == 1
    assert seen["saga_tokens_total", (("tenant", "t"), ("what", "cached"))] == 8
    assert seen["saga_commands_total", (("command", "Dispatch"),)] == 1
    assert seen["saga_decision_seconds_count", ()] >= 3
    assert (seen["saga_sessions", ()], seen["saga_calls_running", ()]) == (1, 0)


def test_labels_are_bounded():
    """Beyond the cap tenants are one; no session's name is a label."""
    metrics = GatewayMetrics(max_tenants=3)
    for i in range(100):
        metrics.ended("a", f"tenant {i}", "chat", "finished", None)
        metrics.refused(f"tenant {i}", "chat", "queue_full")
    tenants = {dict(labels)["tenant"] for name, labels in samples(metrics) if name == "saga_calls_total"}
    assert tenants == {"tenant 0", "tenant 1", "tenant 2", "other"}


def test_every_name_is_documented():
    """docs/gateway.md names each metric."""
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text()

    async def names():
        metrics = GatewayMetrics()
        metrics.watch(GatewayScheduling(Workers(), meter=metrics))
        return {
            family.name.removesuffix("_created") for family in text_string_to_metric_families(metrics.text().decode())
        }

    missing = {name for name in asyncio.run(names()) if f"`{name}" not in page}
    assert not missing
