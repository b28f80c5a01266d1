"""The order of calls: agents in a closed loop, who queue for memory and never look at a cache."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.engine.latency import ConstantLatency
from saga.sim.cache_timeline import ARRIVED, FINISHED, OVER, STARTED, Timeline, lay_out
from saga.workloads.catalogue import workload
from saga.workloads.limits import Limits
from saga.workloads.plan import Call, SessionPlan, Task

from .small_caches import Small, small_timeline, small_workloads


def times(timeline: Timeline, kind: int) -> dict[tuple[str, int], float]:
    """When it happened to each call."""
    return {(visit.session, visit.number): at_s for at_s, this, visit in timeline.events if this == kind}


@given(workload=small_workloads(max_calls=5), num_blocks=st.integers(9, 14))
def test_every_call_arrives_starts_and_finishes_in_order(workload: Small, num_blocks: int) -> None:
    """Time runs forward; each call arrives its gap after the one before, and all of a short supply are played."""
    timeline = small_timeline(workload, num_blocks)
    assert all(one[0] <= other[0] for one, other in pairwise(timeline.events))
    arrived, started, finished = (times(timeline, kind) for kind in (ARRIVED, STARTED, FINISHED))
    plans = [task.sessions[0] for task in workload.tasks(3, 0)]
    assert started.keys() == {(plan.session, index) for plan in plans for index in range(len(plan.calls))}
    for name, index in started:
        assert arrived[name, index] <= started[name, index] <= finished[name, index]
        if index:
            gap_s = next(plan.calls[index].gap_s for plan in plans if plan.session == name)
            assert arrived[name, index] == pytest.approx(finished[name, index - 1] + gap_s)
    assert {visit.session for _, kind, visit in timeline.events if kind == OVER} == {plan.session for plan in plans}


@given(workload=small_workloads(max_calls=5), num_blocks=st.integers(9, 14))
def test_memory_is_given_first_come_first_served(workload: Small, num_blocks: int) -> None:
    """What is in flight fits, and nobody starts before somebody who came earlier."""
    timeline = small_timeline(workload, num_blocks)
    arrivals = [visit.arrival_s for visit in timeline.starts()]
    assert arrivals == sorted(arrivals)
    held = 0
    for _, kind, visit in timeline.events:
        held += (kind == STARTED) * visit.held_blocks - (kind == FINISHED) * visit.held_blocks
        assert 0 <= held <= num_blocks


def test_a_parent_waits_for_its_children() -> None:
    """A call after a spawning one comes when the child's last call is over, not after its own short gap."""
    parent = SessionPlan("p", (Call(((1, 2),), 2, 1, spawns=(1,)), Call(((1, 4),), 4, 1, gap_s=0.1)))
    child = SessionPlan("c", (Call(((2, 2),), 2, 1, gap_s=50.0),), parent=0)
    timeline = small_timeline(Small([Task("t", "default", "small", "t", (parent, child))]), 20)
    arrived, finished = times(timeline, ARRIVED), times(timeline, FINISHED)
    assert arrived["c", 0] == finished["p", 0] + 50.0
    assert arrived["p", 1] == finished["c", 0]


def test_a_call_lasts_as_long_as_it_was_recorded() -> None:
    """Where its source says so and nobody asks for the model; the others last as long as the model says."""
    calls = (Call(((1, 2),), 2, 1, service_s=7.5), Call(((1, 4),), 4, 1, gap_s=0.1))
    small = Small([Task("t", "default", "small", "t", (SessionPlan("s", calls),))])
    recorded, modelled = small_timeline(small, 20), small_timeline(small, 20, recorded=False)
    lasted = [
        [times(timeline, FINISHED)["s", number] - times(timeline, STARTED)["s", number] for number in (0, 1)]
        for timeline in (recorded, modelled)
    ]
    assert lasted[0][0] == 7.5
    assert lasted[1][0] != 7.5
    assert lasted[0][1] == pytest.approx(lasted[1][1])


def test_it_ends_with_the_supply_of_tasks() -> None:
    """The load is steady to the end: nobody plays on alone, and agents are as many as were asked for."""
    swe = workload("swe_bench", Limits(), kv_tokens=100_000)
    timeline = lay_out(
        swe,
        ConstantLatency(0.1),
        num_agents=4,
        num_tasks=8,
        seed=3,
        num_blocks=6_250,
        block_tokens=16,
        chunk_tokens=2_048,
    )
    assert timeline.steady
    assert timeline.events[-1][1] == OVER
    ended = sum(kind == OVER for _, kind, _ in timeline.events)
    begun = len({visit.session for visit in timeline.starts()})
    assert (begun, ended) == (8, 5)
