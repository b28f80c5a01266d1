"""Modelled engines as child processes, so that one command gives a working endpoint.

A child prints `READY URL` when it listens and dies with its parent. One that dies before it is told to is started again
on its port, after a pause that doubles each time; the health checks find it there, so that it comes back as any
worker does. This module refuses to know what an engine does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from dataclasses import dataclass, field

from saga.errors import PeerError
from saga.gateway.journal import say
from saga.gateway.worker_config import WorkerConfig

_START_S = 60.0
_STOP_S = 3.0
_MAX_PAUSE_S = 30.0
_STEADY_S = 60.0
_KEPT_BYTES = 2_000


@dataclass(slots=True)
class EmbeddedEngines:
    """`number` children. arguments: more flags of `saga engine`. Raises PeerError where one does not start.

    prefill_tokens_per_s: what the scheduler is to expect of each, speed counted in. first_pause_s: before a child that
    died is started again; doubled up to 30 s, and from the beginning for one that lived a minute.
    """

    number: int
    arguments: tuple[str, ...] = ()
    prefill_tokens_per_s: float = 5_000.0
    first_pause_s: float = 0.5
    _children: list[_Child] = field(default_factory=list)
    _keepers: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> tuple[WorkerConfig, ...]:
        """Start them side by side; where they are."""
        self._children = [_Child(f"engine-{place}", self.arguments) for place in range(1, self.number + 1)]
        try:
            urls = await asyncio.gather(*(child.start() for child in self._children))
        except BaseException:
            await self.stop()
            raise
        self._keepers = [asyncio.create_task(child.keep(self.first_pause_s)) for child in self._children]
        return tuple(
            WorkerConfig(url, name=child.name, prefill_tokens_per_s=self.prefill_tokens_per_s)
            for child, url in zip(self._children, urls, strict=True)
        )

    async def stop(self) -> None:
        """End them; those that do not listen are killed."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for child in self._children:
            child.terminate()
        for child in self._children:
            await child.end()
        self._children.clear()
        self._keepers.clear()


class _Child:
    """One engine: its process, and after the first start its port."""

    def __init__(self, name: str, arguments: tuple[str, ...]) -> None:
        self.name = name
        self._arguments = arguments
        self._port = "0"
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: asyncio.Task[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of its process; None before it was started."""
        return None if self._process is None else self._process.pid

    async def start(self) -> str:
        """Start it; its URL. Raises PeerError with its own words."""
        command = [sys.executable, "-m", "saga", "engine", "--port", self._port, "--announce", "--die-with-parent"]
        process = self._process = await asyncio.create_subprocess_exec(
            *command,
            *self._arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        assert process.stdout is not None
        assert process.stderr is not None
        self._stderr = asyncio.create_task(_last_of(process.stderr))
        try:
            line = (await asyncio.wait_for(process.stdout.readline(), _START_S)).decode(errors="replace").split()
        except TimeoutError:
            raise PeerError(f"an embedded engine did not start within {_START_S:g} s") from None
        if len(line) != 2 or line[0] != "READY":
            said = (await self._stderr).decode(errors="replace").strip().splitlines()
            raise PeerError(f"an embedded engine did not start: {said[-1] if said else 'it said nothing'}")
        self._port = line[1].rpartition(":")[2]
        return line[1]

    async def keep(self, first_pause_s: float) -> None:
        """Start it again whenever it dies; until cancelled."""
        loop = asyncio.get_running_loop()
        pause_s = first_pause_s
        while True:
            assert self._process is not None
            since_s = loop.time()
            code = await self._process.wait()
            if loop.time() - since_s >= _STEADY_S:
                pause_s = first_pause_s
            say(logging.WARNING, "embedded engine died", engine=self.name, code=code, again_in_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2.0 * pause_s, _MAX_PAUSE_S)
            try:
                await self.start()
            except (PeerError, OSError) as error:
                say(logging.WARNING, "embedded engine did not start", engine=self.name, why=str(error))
                self.terminate()

    def terminate(self) -> None:
        """Tell it to end."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    async def end(self) -> None:
        """Wait for its end, not for ever."""
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), _STOP_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        if self._stderr is not None:
            await self._stderr


async def _last_of(stream: asyncio.StreamReader) -> bytes:
    """The end of what comes; read all along, for a child blocks on a pipe that nobody reads."""
    last = b""
    while data := await stream.read(65_536):
        last = (last + data)[-_KEPT_BYTES:]
    return last
