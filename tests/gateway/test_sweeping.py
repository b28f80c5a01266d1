"""The sweeper keeps what lives out of the collector's way, and loses no garbage."""

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Iterator

import pytest

from saga.gateway.sweeping import Sweeper


class Knot:
    """An object in a cycle with itself: only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """The collector as it was, after each test."""
    gc.disable()
    yield
    gc.unfreeze()
    gc.enable()


def test_what_lives_is_frozen() -> None:
    """After a sweep the collector has nearly nothing to look at."""
    kept = [[] for _ in range(10_000)]
    Sweeper(lambda: False).sweep(0.0)
    assert gc.get_freeze_count() > len(kept)
    assert len(gc.get_objects()) < len(kept)


def test_young_cycles_are_freed_at_once() -> None:
    """A cycle made and left between two sweeps does not outlive the second."""
    sweeper = Sweeper(lambda: False)
    sweeper.sweep(0.0)
    knot = weakref.ref(Knot())
    assert knot() is not None
    assert not sweeper.sweep(1.0)
    assert knot() is None


@pytest.mark.parametrize(("idle", "freed_at_s"), [(True, 600.0), (False, 3_600.0)])
def test_frozen_cycles_are_freed_in_the_end(idle: bool, freed_at_s: float) -> None:
    """A cycle left after it was frozen is found when nothing runs, or after an hour."""
    sweeper = Sweeper(lambda: idle)
    knot = Knot()
    seen = weakref.ref(knot)
    sweeper.sweep(0.0)
    del knot
    assert not sweeper.sweep(freed_at_s - 1.0)
    assert seen() is not None
    assert sweeper.sweep(freed_at_s)
    assert seen() is None


def test_a_cancelled_sweeper_freezes_nothing() -> None:
    """When it ends, the collector sees everything again."""

    async def run() -> None:
        task = asyncio.create_task(Sweeper(lambda: True, every_s=0.001).run())
        await asyncio.sleep(0.01)
        assert gc.get_freeze_count() > 0
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert gc.get_freeze_count() == 0
