"""Keeps the garbage collector's pauses short where a hundred thousand sessions live.

Python's cyclic collector looks at every object that has lived for a while, again and again, while all calls wait: 0.6 s
for 100,000 sessions (0.35 s worst seen in a call). Nearly all garbage here is freed by its reference count; what lives
is sessions, and they hold no cycles. So once a second the young are collected and whatever is left is *frozen*: the
collector does not look at it any more. Cycles among the frozen are found when nothing runs, or after an hour at the
latest. It belongs to a process that is a gateway, not to one that merely has one, and refuses to know what it sweeps.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

_YOUNG = 1


class Sweeper:
    """Collect and freeze until cancelled; then the collector is as it was.

    idle: whether nobody would wait now. every_s: between sweeps. full_every_s: between looks at everything, while idle;
    patience_s: the same, idle or not. All in seconds.
    """

    def __init__(
        self,
        idle: Callable[[], bool],
        *,
        every_s: float = 1.0,
        full_every_s: float = 600.0,
        patience_s: float = 3_600.0,
    ) -> None:
        self._idle = idle
        self._every_s = every_s
        self._full_every_s = full_every_s
        self._patience_s = patience_s
        self._full_at_s: float | None = None

    async def run(self) -> None:
        """Sweep on."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self.sweep(loop.time())
                await asyncio.sleep(self._every_s)
        finally:
            gc.unfreeze()

    def sweep(self, at_s: float) -> bool:
        """One sweep; whether it looked at everything. Cost: O(objects made since the last), else O(all objects)."""
        since_s = self._patience_s if self._full_at_s is None else at_s - self._full_at_s
        full = since_s >= self._patience_s or (since_s >= self._full_every_s and self._idle())
        if full:
            self._full_at_s = at_s
            gc.unfreeze()
            gc.collect()
        else:
            gc.collect(_YOUNG)
        gc.freeze()
        return full
