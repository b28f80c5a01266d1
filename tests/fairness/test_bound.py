"""The bound of docs/fairness.md against the production scheduler: searched for violations, and sharp enough to be one.

The witness keeps books of its own (benchmarks/service_watch.py); the stage is benchmarks/fair_stage.py.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from fair_stage import BROKEN, SHARES, Agents, Failure, Scene, Stage, random_scene
from hypothesis import event, given, target

from saga.fairness.agent_fair_share import NoShares
from saga.presets import preset
from saga.sim.config import SimConfig
from saga.sim.driver import simulate
from saga.workloads.catalogue import workload
from saga.workloads.limits import Limits

pytestmark = pytest.mark.skipif(
    os.environ.get("SAGA_CORE") == "native",
    reason="the witness replaces methods, which compiled classes do not allow; test_core compares the logs of both",
)

AGENTS = st.builds(
    Agents,
    weight=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
    begins_s=st.floats(0.0, 40.0),
    every_s=st.floats(0.0, 3.0),
    tasks=st.integers(1, 25),
    steps=st.integers(1, 20),
    step_s=st.sampled_from([0.1, 0.5, 1.0, 2.0]),
    slow=st.floats(1.0, 4.0),
    gap_s=st.floats(0.0, 4.0),
    prompt_tokens=st.integers(100, 9_000),
    keeps_one=st.booleans(),
)
FAILURES = st.builds(Failure, at_s=st.floats(0.0, 60.0), worker=st.integers(0, 2), down_s=st.sampled_from([0.0, 3.0]))
SCENES = st.builds(
    Scene,
    tenants=st.lists(AGENTS, min_size=2, max_size=5).map(tuple),
    failures=st.lists(FAILURES, max_size=4).map(tuple),
    workers=st.integers(1, 3),
    hold_s=st.sampled_from([0.5, 2.0, 5.0]),
)


@given(SCENES)
def test_no_tenant_gets_further_ahead_of_one_that_waits_than_the_theorem_allows(scene: Scene) -> None:
    """Whatever tenants, weights, arrivals and failures: the worst lead is within the bound, and all laws hold."""
    worst = Stage(scene).run(most_events=1_500).worst()
    target(worst.share)
    event("somebody waited" if worst.behind else "nobody waited")
    assert worst.deviation_s <= worst.bound_s + 1e-9, worst


@pytest.mark.parametrize("broken", [name for name in BROKEN if name != "as it is"])
def test_a_broken_scheduler_is_caught(broken: str) -> None:
    """The same witness finds a lead beyond the bound where charges, virtual time, order or the window are missing."""
    change, damage = BROKEN[broken]
    rng = random.Random(0)
    for _ in range(100):
        scene = random_scene(rng)
        stage = Stage(scene, change(scene.composition()))
        damage(stage.scheduler)
        if stage.run(laws=False).worst().share > 1.0:
            return
    pytest.fail("no scene showed it")


def test_a_tenant_that_kept_a_session_open_has_saved_up_nothing() -> None:
    """One step now and then for 50 s, then a flood: its lead over who waits is that of any other tenant."""
    busy = Agents(tasks=40, steps=5)
    saver = Agents(tasks=40, steps=5, begins_s=50.0, keeps_one=True)
    plain = Agents(tasks=40, steps=5, begins_s=50.0)
    leads = [Stage(Scene((busy, other))).run().deviation_s["t1", "t0"] for other in (saver, plain)]
    assert leads[0] <= leads[1] + SHARES.slack_s


def test_splitting_agents_into_many_sessions_wins_nothing() -> None:
    """A tenant whose 12 agents of 10 steps are 120 of one step gets no further ahead than the bound, like the other."""
    whole, split = Agents(tasks=12, steps=10), Agents(tasks=120, steps=1)
    stage = Stage(Scene((whole, split)))
    witness = stage.run(most_events=500)
    served = [witness.served_s[name] for name in ("t0", "t1")]
    assert abs(served[0] - served[1]) <= max(witness.bound_s("t0", "t1"), witness.bound_s("t1", "t0"))


def test_a_tenant_alone_is_scheduled_as_if_there_were_no_shares() -> None:
    """On a worker with too many agents of one tenant, shares change no figure."""
    config = SimConfig(preset="saga", workload="swe_bench", workers=1, oversubscription=1.5, tasks=30)
    tasks = workload("swe_bench", Limits(), kv_tokens=450_000)
    shared, plain = (
        simulate(config, tasks, composition=replace(preset("saga"), tenants=tenants)).metrics
        for tenants in (preset("saga").tenants, NoShares())
    )
    assert {**shared, "wall_s": 0.0} == {**plain, "wall_s": 0.0}
