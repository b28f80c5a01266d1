"""The index of the least loaded says what sorting the fleet would say."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.events import WorkerJoined
from saga.routing.profile import Balance
from saga.scheduler.least import LeastLoadedIndex
from saga.scheduler.workers import Worker

LOADS = {"calls": "num_running", "sessions": "num_live", "reserved": "reserved_tokens"}
CHANGES = st.lists(
    st.tuples(st.sampled_from(["load", "load", "load", "drain", "lose"]), st.integers(0, 11), st.integers(0, 5)),
    max_size=80,
)


def fleet() -> list[Worker]:
    """Twelve workers of two sizes."""
    return [Worker(WorkerJoined(0.0, f"w{index}", 1_000 * (1 + index % 2)), index) for index in range(12)]


@pytest.mark.parametrize("balance", LOADS)
@given(changes=CHANGES, count=st.integers(1, 14))
def test_the_least_loaded_are_the_first_of_the_sorted_fleet(
    balance: Balance, changes: list[tuple[str, int, int]], count: int
) -> None:
    """After any loads, drains and losses; ties go to who joined first, and asking changes nothing."""
    index, workers, gone = LeastLoadedIndex(balance), fleet(), set[int]()

    def load(worker: Worker) -> float:
        share = worker.kv_tokens if balance == "reserved" else 1
        return getattr(worker, LOADS[balance]) / share

    for worker in workers:
        index.update(worker)
    for action, which, amount in changes:
        worker = workers[which]
        if action == "load":
            setattr(worker, LOADS[balance], amount)
            index.update(worker)
        elif which not in gone:
            gone.add(which)
            worker.lost, worker.draining = action == "lose", action == "drain"
            index.remove(worker)
            index.update(worker)
        left = [each for each in workers if each.index not in gone]
        expected = sorted(left, key=lambda each: (load(each), each.index))[:count]
        assert index.least(count) == index.least(count) == expected
        assert len(index) == len(left)


def test_updates_without_end_leave_a_small_heap() -> None:
    """Dead entries are thrown away when they outnumber the workers."""
    index, workers = LeastLoadedIndex("calls"), fleet()
    for turn in range(5_000):
        worker = workers[turn % 12]
        worker.num_running = turn
        index.update(worker)
        assert len(index._heap) <= 65 + 4 * 12
