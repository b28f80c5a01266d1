"""The judge of forecasts: halves, rivals, and figures that mean what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from saga.bench.forecasts import ForecastScores, evaluate
from saga.workloads.catalogue import workload
from saga.workloads.limits import Limits
from saga.workloads.plan import Call, SessionPlan, Task


def task(number: int, tools: list[str], *, gap_s: float = 2.0) -> Task:
    """A task of one session whose prompts grow by 150 tokens a call."""
    calls = tuple(
        Call(
            path=((0, 1000 + 200 * step),),
            prompt_tokens=1000 + 200 * step,
            output_tokens=50,
            gap_s=gap_s if step else 0.0,
            tools=(name,) if name else (),
            common_tokens=1050 + 200 * (step - 1) if step else 0,
        )
        for step, name in enumerate(tools)
    )
    return Task(f"t{number}", "default", "kind", f"s{number}", (SessionPlan(f"s{number}", calls),))


def figures(scores: ForecastScores) -> dict[str, tuple[float, float]]:
    """Model and rival by figure."""
    return {row.figure: (row.model, row.naive) for row in scores.figures}


def test_half_teaches_and_half_is_scored() -> None:
    """Every step of the second half is judged once, none of the first."""
    scores, model = evaluate([task(k, ["a", "b", ""]) for k in range(10)])
    assert (scores.num_tasks_taught, scores.num_tasks_scored, scores.num_steps_scored) == (5, 5, 15)
    assert sum(row.steps for row in scores.reliability) == 15
    assert model.graph("kind").tasks == 10


def test_a_regular_workload_is_foreseen() -> None:
    """Where every session is the same, everything is nearly known, and better than by counting."""
    found = figures(evaluate([task(k, ["a", "b", "a", "c", ""]) for k in range(200)])[0])
    assert found["next node, nats per step"][0] < 0.2 < found["next node, nats per step"][1]
    assert found["goes on, Brier"][0] < 0.01 < found["goes on, Brier"][1]
    assert found["remaining steps, mean error"][0] < 0.1
    assert found["gap log-ratio p50"][0] < 0.2
    assert found["new tokens, mean error"][0] == pytest.approx(0.0, abs=1.0)


def test_a_workload_without_gaps_is_not_scored_on_them() -> None:
    """Figures that would rest on nothing are left out."""
    scores, _ = evaluate([task(k, ["a", ""], gap_s=0.0) for k in range(4)])
    assert not [row for row in scores.figures if row.figure.startswith("gap")]
    assert scores.below_p50 is None
    assert scores.below_p95 is None


def test_one_order_one_verdict() -> None:
    """The same tasks give the same scores."""
    tasks = [task(k, ["a"] * (1 + k % 4) + [""], gap_s=0.1 + k) for k in range(20)]
    assert evaluate(tasks)[0] == evaluate(tasks)[0]


def test_real_gaps_are_calibrated(shared_dir: Path) -> None:
    """On a recorded coding agent about 19 of 20 gaps stay within the forecast's 95th percentile."""
    source = workload(str(shared_dir / "traces" / "agentcgroup_haiku.jsonl"), Limits())
    scores, _ = evaluate(source.tasks(55, 0))
    assert scores.below_p95 is not None
    assert 0.9 < scores.below_p95 < 0.99
