"""Runs side by side give what runs one after the other give, and errors find their way home."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future

import pytest

from saga.cli.farm import Job, _watch, run_all
from saga.errors import PeerError, UnknownName, UsageError
from saga.sim.config import SimConfig
from saga.sim.metrics import Run
from saga.workloads.limits import Limits

CONFIG = SimConfig(preset="vllm_apc", workload="swe_bench", workers=1, agents_per_worker=2, tasks=6)
JOBS = [
    Job(dataclasses.replace(CONFIG, preset=name, seed=seed), Limits(max_calls=30))
    for seed in (0, 1)
    for name in ("vllm_apc", "saga")
]


def figures(runs: list[Run]) -> list[dict[str, object]]:
    """What must be equal: everything but the time it took."""
    return [{"as": (run.preset, run.seed), **run.metrics, "wall_s": None} for run in runs]


@pytest.mark.slow
def test_processes_change_nothing() -> None:
    """Two processes give the same runs in the same order as one."""
    assert figures(run_all(JOBS, jobs=2)) == figures(run_all(JOBS, jobs=1))


@pytest.mark.slow
def test_an_error_in_a_process_is_the_same_error_here() -> None:
    """Errors that cannot be pickled arrive as a usage error with their words."""
    lost = Job(dataclasses.replace(CONFIG, workload="swe_bunch"), Limits())
    with pytest.raises(UsageError, match="did you mean 'swe_bench'"):
        run_all([lost, lost], jobs=2)


def test_in_one_process_errors_keep_their_class() -> None:
    """Nothing is wrapped where nothing needs to be."""
    with pytest.raises(UnknownName):
        run_all([Job(dataclasses.replace(CONFIG, workload="swe_bunch"), Limits())], jobs=1)


def test_what_ends_together_with_a_failure_is_not_lost() -> None:
    """Whoever keeps finished runs is told of all of them before the error goes on."""
    futures: list[Future[Run]] = [Future() for _ in range(40)]
    for index, future in enumerate(futures):
        if index % 2:
            future.set_result(Run("saga", index, {}))
        else:
            future.set_exception(PeerError("on fire"))
    told: list[int] = []
    with pytest.raises(PeerError, match="on fire"):
        _watch(futures, [0] * 41, lambda _finished: None, lambda index, _run: told.append(index))
    assert sorted(told) == list(range(1, 40, 2))


@pytest.mark.slow
def test_a_process_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process is one clear error, not a hang and not a traceback of the pool."""
    monkeypatch.setattr("saga.cli.farm._begin", _die)
    with pytest.raises(PeerError, match="a simulating process died"):
        run_all(JOBS, jobs=2)


def _die(_counts: object) -> None:
    """What the kernel does when memory is short."""
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)
