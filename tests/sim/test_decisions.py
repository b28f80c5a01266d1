"""Decisions are timed one by one, and timing them changes nothing."""

from __future__ import annotations

from collections.abc import Callable

from saga.sim.config import SimConfig
from saga.sim.decisions import decision_times
from saga.workloads.plan import Workload


def test_every_event_is_timed(tiny: Workload, config: Callable[..., SimConfig]) -> None:
    """As many times as events, in order: the middle is no more than the tail, and nothing takes no time."""
    found = decision_times(config("saga", tasks=10), tiny)
    assert found["decisions"] > 100
    assert 0.0 < found["decision_p50_s"] <= found["decision_p99_s"]
    assert found["decision_mean_s"] > 0.0
