"""Modelled engines as child processes, so that one command gives a working endpoint.

A child prints `READY URL` when it listens and dies with its parent. This module refuses to know what an engine does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass, field

from saga.errors import PeerError
from saga.gateway.workers import WorkerConfig

_START_S = 60.0
_STOP_S = 3.0


@dataclass(slots=True)
class EmbeddedEngines:
    """`number` children. arguments: more flags of `saga engine`. Raises PeerError where one does not start."""

    number: int
    arguments: tuple[str, ...] = ()
    _children: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def start(self) -> tuple[WorkerConfig, ...]:
        """Start them side by side; where they are."""
        command = [sys.executable, "-m", "saga", "engine", "--port", "0", "--announce", "--die-with-parent"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        for _ in range(self.number):
            self._children.append(
                await asyncio.create_subprocess_exec(
                    *command,
                    *self.arguments,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    env=environment,
                )
            )
        try:
            urls = await asyncio.gather(*(_ready(child) for child in self._children))
        except BaseException:
            await self.stop()
            raise
        return tuple(WorkerConfig(url, name=f"engine-{place}") for place, url in enumerate(urls, 1))

    async def stop(self) -> None:
        """End them; those that do not listen are killed."""
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
        for child in self._children:
            try:
                await asyncio.wait_for(child.wait(), _STOP_S)
            except TimeoutError:
                child.kill()
                await child.wait()
        self._children.clear()


async def _ready(child: asyncio.subprocess.Process) -> str:
    """The URL that a child announces."""
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        line = (await asyncio.wait_for(child.stdout.readline(), _START_S)).decode(errors="replace").split()
    except TimeoutError:
        raise PeerError(f"an embedded engine did not start within {_START_S:g} s") from None
    if len(line) != 2 or line[0] != "READY":
        said = (await child.stderr.read()).decode(errors="replace").strip().splitlines()
        raise PeerError(f"an embedded engine did not start: {said[-1] if said else 'it said nothing'}")
    return line[1]
