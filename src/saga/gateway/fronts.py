"""Front processes: started, kept, stopped.

    reserve the port ─▶ N children ─▶ all listen ─▶ one that dies is replaced ─▶ drain

The parent holds the port (bound, never listening) so that it stays the gateway's while fronts come and go. A child dies
with its parent. It refuses to know what fronts and coordinator say to one another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path
from typing import Final

from saga.gateway.journal import say

_STOP_S: Final = 3.0
_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 5.0
_WELL_AFTER_S: Final = 10.0


def reserve(host: str, port: int) -> socket.socket:
    """A socket that keeps `port` (0 for any free one) for listeners of this user. Raises OSError where it is in use."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:  # shares with nobody: finds out about other gateways
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        address = probe.getsockname()
    kept = socket.socket(family, kind, protocol)
    try:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(address)
    except OSError:
        kept.close()
        raise
    return kept


class Fronts:
    """`number` children that serve from the coordinator at `path`. Use it on one event loop."""

    def __init__(self, number: int, path: Path, log_level: str = "warning") -> None:
        self.number = number
        self.num_restarts = 0
        self._command = (sys.executable, "-m", "saga", "front", str(path), "--log-level", log_level)
        self._children: dict[int, Process] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._all_ended = True

    @property
    def processes(self) -> tuple[int, ...]:
        """Ids of the children that run, in their order."""
        return tuple(child.pid for _, child in sorted(self._children.items()))

    async def start(self) -> None:
        """Start them; they say themselves when they listen."""
        for place in range(self.number):
            await self._spawn(place)
        self._keepers = [asyncio.create_task(self._keep(place)) for place in range(self.number)]

    async def first_end(self) -> None:
        """Wait until one of those that were started has ended."""
        waits = {asyncio.create_task(child.wait()) for child in self._children.values()}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def ended(self, timeout_s: float) -> bool:
        """Wait until all have left by themselves, kill those that have not; whether all calls ended in time."""
        self._stopping.set()
        if self._keepers:
            await asyncio.wait(self._keepers, timeout=timeout_s + _STOP_S)
        await self.kill()
        return self._all_ended

    def replace(self, process: int) -> None:
        """End a child that hangs; another is started."""
        for child in self._children.values():
            if child.pid == process:
                say(logging.ERROR, "front hangs, it is killed", process=process)
                with contextlib.suppress(ProcessLookupError):
                    child.kill()

    async def kill(self) -> None:
        """End them now."""
        self._stopping.set()
        for child in list(self._children.values()):
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        if self._keepers:
            await asyncio.wait(self._keepers)

    async def _spawn(self, place: int) -> Process:
        child = self._children[place] = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=DEVNULL,
            stdout=DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        return child

    async def _keep(self, place: int) -> None:
        """One child after the other, sooner the longer the last one lived."""
        wait_s = _FIRST_WAIT_S
        while True:
            began_s = time.monotonic()
            child = self._children.get(place)
            if child is not None:
                code = await child.wait()
                del self._children[place]
                if self._stopping.is_set():
                    self._all_ended = self._all_ended and code == 0
                    return
                if time.monotonic() - began_s > _WELL_AFTER_S:
                    wait_s = _FIRST_WAIT_S
                say(logging.ERROR, "front ended, another is started", process=child.pid, code=code, wait_s=wait_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_s)
                return
            wait_s = min(2.0 * wait_s, _LONGEST_WAIT_S)
            self.num_restarts += 1
            try:
                await self._spawn(place)
            except OSError as error:
                say(logging.ERROR, "front could not be started", why=str(error), wait_s=wait_s)
