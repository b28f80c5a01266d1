"""Many runs on few processes: preset times seed, with one bar of progress, results in the order asked for.

A worker process loads a workload once and keeps it. Errors cross processes as their message. Whoever wants each run as
soon as it is finished says so. This module refuses to know what a run means.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from saga.errors import PeerError, SagaError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from saga.sim.config import SimConfig
    from saga.sim.metrics import Run
    from saga.workloads.limits import Limits
    from saga.workloads.plan import Workload

_POLL_S = 0.2
_LINE_EVERY_S = 20.0  # where there is no terminal for a bar

Done: TypeAlias = Callable[[int, "Run"], None]
"""Is told the index of a run and the run, as soon as it is finished."""


class Counts(Protocol):
    """Shared integers: tasks finished by each run, and last a flag that says stop."""

    def __getitem__(self, index: int) -> int: ...
    def __setitem__(self, index: int, value: int) -> None: ...
    def __len__(self) -> int: ...


class Work(Protocol):
    """One run of any kind: what goes to a worker process. Frozen, and can be pickled."""

    @property
    def num_tasks(self) -> int:
        """How much it is, for the bar of progress."""
        ...

    def perform(self, count: Callable[[int], None]) -> Run:
        """Do it; `count` is told how many tasks are finished."""
        ...


@dataclass(frozen=True)
class Job:
    """One run: what to simulate and which sessions of its workload to use."""

    config: SimConfig
    limits: Limits

    @property
    def num_tasks(self) -> int:
        """See Work."""
        return self.config.tasks

    def perform(self, count: Callable[[int], None]) -> Run:
        """See Work."""
        from saga.sim.driver import simulate

        return simulate(self.config, self.load(), count)

    def load(self) -> Workload:
        """Its workload, as far as it fits into the KV memory of one worker; read once per process."""
        from saga.engine.hardware import hardware

        kv_tokens = self.config.kv_tokens or hardware(self.config.hardware).kv_tokens
        return _load(self.config.workload, self.limits, kv_tokens)


@functools.lru_cache(maxsize=8)
def _load(name: str, limits: Limits, kv_tokens: int) -> Workload:
    """The workload of this name or path."""
    from saga.workloads.catalogue import workload

    return workload(name, limits, kv_tokens=kv_tokens)


def run_all(runs: Sequence[Work], *, jobs: int, on_done: Done | None = None) -> list[Run]:
    """Simulate them all, `jobs` at a time; one result each, in order.

    Shows progress on standard error. Errors of the tree pass through; PeerError where a process dies. What was finished
    until then has been given to `on_done`.
    """
    tell = on_done or (lambda _index, _run: None)
    num_tasks = sum(run.num_tasks for run in runs)
    with _progress(num_tasks, "1 run" if len(runs) == 1 else f"{len(runs)} runs") as show:
        if jobs == 1 or len(runs) == 1:
            return _in_this_process(runs, show, tell)
        return _in_processes(runs, min(jobs, len(runs)), show, tell)


def _in_this_process(runs: Sequence[Work], show: Callable[[int], None], tell: Done) -> list[Run]:
    """One after the other."""
    counts, finished = [0] * (len(runs) + 1), []
    for index, run in enumerate(runs):
        finished.append(_simulate(run, index, counts, show))
        tell(index, finished[-1])
    return finished


def _in_processes(runs: Sequence[Work], jobs: int, show: Callable[[int], None], tell: Done) -> list[Run]:
    """Side by side. Processes are spawned, not forked: nothing of this one leaks into them."""
    context = multiprocessing.get_context("spawn")
    counts = context.Array("q", len(runs) + 1, lock=False)
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(counts,)) as pool:
        futures = [pool.submit(_simulate_there, run, index) for index, run in enumerate(runs)]
        try:
            _watch(futures, counts, show, tell)
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise PeerError("a simulating process died (out of memory?); try --jobs 1 or fewer --tasks") from error
        except BaseException:
            counts[len(runs)] = 1
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _watch(futures: Sequence[Future[Run]], counts: Counts, show: Callable[[int], None], tell: Done) -> None:
    """Show progress and tell of what is finished until all are or one has failed; then its error, after the others."""
    pending, places = set(futures), {future: index for index, future in enumerate(futures)}
    while pending:
        done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        show(sum(counts[index] for index in range(len(futures))))
        failed = [future for future in done if future.exception() is not None]
        for future in done.difference(failed):
            tell(places[future], future.result())
        for future in failed:
            future.result()


_counts: Counts = [0]


def _begin(counts: Counts) -> None:
    """First thing in a new process: an interrupt ends it without a word, and so does the end of its parent."""
    global _counts  # noqa: PLW0603 - shared memory can be handed over only when the process starts
    _counts = counts
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Nobody waits for the runs of a command that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _simulate_there(run: Work, index: int) -> Run:
    """One run in a worker process; errors come back as a message, since not all of them can travel."""
    try:
        return _simulate(run, index, _counts, lambda _finished: None)
    except UsageError as error:
        raise UsageError(str(error)) from None
    except SagaError as error:
        raise PeerError(f"{type(error).__name__}: {error}") from None


def _simulate(run: Work, index: int, counts: Counts, show: Callable[[int], None]) -> Run:
    """One run, counting its finished tasks in `counts[index]`."""
    stop = len(counts) - 1

    def count(num_finished: int) -> None:
        if counts[stop]:
            raise KeyboardInterrupt
        counts[index] = num_finished
        show(sum(counts[place] for place in range(stop)))

    finished = run.perform(count)
    count(run.num_tasks)  # a first wave that is not measured is not counted on the way
    return finished


@contextmanager
def _progress(num_tasks: int, what: str) -> Iterator[Callable[[int], None]]:
    """A bar over all tasks of all runs on a terminal; one plain line elsewhere."""
    from rich.console import Console

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        console.print(f"simulating {what}, {num_tasks:,} tasks ...", highlight=False, soft_wrap=True)
        yield _now_and_then(console, num_tasks)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(f"simulating {what}"), BarColumn(), MofNCompleteColumn(), TextColumn("tasks"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        row = bar.add_task(what, total=num_tasks)
        yield lambda finished: bar.update(row, completed=finished)


def _now_and_then(console: Console, num_tasks: int) -> Callable[[int], None]:
    """A line every so often, with an estimate of the time left."""
    began_s = said_s = time.monotonic()

    def show(finished: int) -> None:
        nonlocal said_s
        now_s = time.monotonic()
        if now_s - said_s < _LINE_EVERY_S or not finished:
            return
        said_s = now_s
        left_s = (now_s - began_s) * (num_tasks - finished) / finished
        console.print(f"{finished / num_tasks:.0%} done, about {left_s / 60:.1f} min left", highlight=False)

    return show
