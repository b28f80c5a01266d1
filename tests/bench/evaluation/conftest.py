"""A small scale and made-up runs: every table can be read without simulating anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from saga.bench.evaluation.cells import QUICK, Cell, Scale
from saga.bench.evaluation.claims import paper_claims
from saga.bench.evaluation.experiments import EXPERIMENTS, cells_of
from saga.bench.evaluation.results import Results

CLASSES = ("heavy-0", "medium-0", "light-0")


def made_up(cell: Cell, seed: int, tct_s: float = 100.0) -> dict[str, object]:
    """A run's metrics, with the mean completion time that is asked for and a little of the seed in it."""
    if cell.kind == "cache":
        return {"lru": 2.0 + seed / 10, "prefix_lru": 1.8, "workflow_lru": 1.5, "next_use": 1.1 + seed / 10}
    if cell.kind == "timed":
        return {
            "decision_p50_s": 2e-5,
            "decision_p99_s": 2e-4,
            "decision_mean_s": 4e-5,
            "core": "native",
            "machine": "an abacus",
        }
    in_time = {"within_1_5x_share": 0.4, "within_2x_share": 0.8, "within_2_5x_share": 0.9}
    tenant = {"tasks_completed": 10, "tct_mean_s": tct_s, **in_time}
    return {
        **in_time,
        "tct_mean_s": tct_s * (1.0 + seed / 1000),
        "tasks_per_min": 5.0 + seed / 1000,
        "tasks_completed": 40,
        "regenerated_time_share": 0.2,
        "prefix_hit_share": 0.7,
        "kv_used_mean_share": 0.6,
        "evicted_share": 0.1,
        "holds_kept_share": 0.9,
        "moves": 12,
        "move_mean_s": 0.25,
        "move_p95_s": 0.8,
        "tenants": dict.fromkeys(CLASSES, tenant),
    }


@pytest.fixture
def scale() -> Scale:
    """The quick one, with three seeds."""
    return dataclasses.replace(QUICK, seeds=3)


@pytest.fixture
def results(scale: Scale) -> Callable[..., Results]:
    """`results(saga_paper=50.0)`: runs of every cell of every table; systems take 100 s unless said otherwise."""

    def build(*, seeds: int = 3, wanted: int = 3, **times_s: float) -> Results:
        found = Results(wanted)
        for cell in cells_of(list(EXPERIMENTS), scale, paper_claims()):
            for seed in range(seeds):
                found.add(cell, seed, made_up(cell, seed, times_s.get(cell.system, 100.0)))
        return found

    return build


@pytest.fixture
def make_up() -> Callable[..., dict[str, object]]:
    """`make_up(cell, seed, tct_s)`: a run's metrics."""
    return made_up
