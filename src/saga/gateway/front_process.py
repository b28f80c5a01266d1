"""A front process: the data plane of a gateway whose scheduler is in another process.

    connect ─▶ hello ─▶ welcome: what to be ─▶ listen (SO_REUSEPORT) ─▶ calls ─▶ drain ─▶ leave

It owns client and worker connections and nothing that another front would miss. Where the coordinator's socket is lost
it tries again until it is told to stop (the parent's death tells it so); meanwhile calls are refused. It refuses to
know how many fronts there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import ssl
from pathlib import Path
from typing import Final

from saga import __version__
from saga.errors import PeerError
from saga.gateway import frames
from saga.gateway.answers import watch_answer
from saga.gateway.frames import FromCoordinator, FromFront, Link
from saga.gateway.front import Front
from saga.gateway.journal import say
from saga.gateway.reading import Reader
from saga.gateway.remote import Remote
from saga.gateway.sweeping import Sweeper
from saga.gateway.tenants import Tenants
from saga.gateway.tracing import plane

_GAUGES_S: Final = 1.0
_RECONNECT_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)


class FrontProcess:
    """Serve from the coordinator at a Unix socket: `await run()` lasts until drained. `stop` may be called at any time.

    address: where it listens, once it does. Use it on one event loop. Raises PeerError where no coordinator is there at
    the start.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._tls = ssl.create_default_context()
        self._tenants = Tenants()
        self._welcome: asyncio.Future[frames.Welcome] = self._loop.create_future()
        self._remote: Remote | None = None
        self._link: Link | None = None
        self._linked = asyncio.Event()
        self._lost = asyncio.Event()
        self._stopping: asyncio.Future[float] = self._loop.create_future()
        self.front: Front | None = None
        self.address: tuple[str, int] | None = None

    async def run(self) -> bool:
        """Listen until told to stop, then drain; whether all calls ended in time."""
        if not await self._connect():
            raise PeerError(f"no coordinator listens at {self._socket}")
        welcome = await self._first_words()
        remote = self._remote = Remote(Reader(self._tenants, settings=welcome.settings))
        self._linked_to(remote)
        parts = plane(os.environ, remote, remote, watch_answer)
        self.front = front = Front(*parts.workers, welcome.limits, cold=remote.cold, worker_tls=self._tls)
        try:
            self.address = await front.start(welcome.host, welcome.port, reuse_port=True)
        except OSError as error:
            self._say(frames.Listening(f"cannot listen on {welcome.host}:{welcome.port}: {error.strerror or error}"))
            if self._link is not None:
                self._link.close()
            return False
        self._say(frames.Listening())
        chores = [
            self._loop.create_task(work)
            for work in (
                self._report(front),
                self._stay_linked(remote),
                Sweeper(lambda: front.num_in_flight == 0).run(),
            )
        ]
        try:
            return await front.drain(await self._stopping)
        finally:
            for chore in chores:
                chore.cancel()
            await asyncio.gather(*chores, return_exceptions=True)
            if parts.spans is not None:
                await parts.spans.close()
            if self._link is not None:
                self._link.close()

    def stop(self, drain_s: float | None = None) -> None:
        """Take nothing new; leave when what is under way has ended, at most so late (the coordinator's by default)."""
        if drain_s is None:
            drain_s = self._welcome.result().drain_s if self._welcome.done() else 0.0
        if not self._stopping.done():
            self._stopping.set_result(drain_s)

    # ------------------------------------------------------------------ the link

    async def _connect(self) -> bool:
        try:
            _, link = await self._loop.create_unix_connection(
                lambda: Link(frames.read_coordinator, self._on_message, self._on_lost), str(self._socket)
            )
        except OSError:
            return False
        if not link.is_open:
            return False
        self._link = link
        self._lost.clear()
        link.send(frames.Hello(__version__, os.getpid()))
        return True

    async def _first_words(self) -> frames.Welcome:
        lost = self._loop.create_task(self._lost.wait())
        await asyncio.wait((self._welcome, lost), return_when=asyncio.FIRST_COMPLETED)
        lost.cancel()
        if not self._welcome.done():
            raise PeerError("the coordinator does not want this front")
        return self._welcome.result()

    async def _stay_linked(self, remote: Remote) -> None:
        """Connect again whenever the link is lost."""
        while True:
            await self._lost.wait()
            for wait_s in itertools.chain(_RECONNECT_S, itertools.repeat(_RECONNECT_S[-1])):
                await asyncio.sleep(wait_s)
                if await self._connect():
                    break
            self._linked_to(remote)
            self._say(frames.Listening())

    def _linked_to(self, remote: Remote) -> None:
        if self._link is not None and self._link.is_open:
            remote.linked(self._link)

    def _on_message(self, link: Link, message: FromCoordinator) -> None:
        match message:
            case frames.Welcome():
                if not self._welcome.done():
                    self._welcome.set_result(message)
            case frames.Trust():
                self._trust(message.ca_files)
            case frames.TenantsAre():
                self._tenants.replace(message.tenants, keyed=message.keyed)
            case frames.Drain():
                self.stop(message.timeout_s)
            case _ if self._remote is not None:
                self._remote.told(message)

    def _on_lost(self, link: Link, why: str) -> None:
        if link is self._link:
            self._link = None
            if self._remote is not None:
                self._remote.unlinked()
            self._lost.set()

    def _say(self, message: FromFront) -> None:
        if self._link is not None:
            self._link.send(message)

    # ------------------------------------------------------------------ chores

    def _trust(self, ca_files: tuple[str, ...]) -> None:
        for file in ca_files:
            try:
                self._tls.load_verify_locations(file)
            except (OSError, ssl.SSLError) as error:
                say(logging.ERROR, "certificates cannot be read", file=file, why=str(error))

    async def _report(self, front: Front) -> None:
        """How many connections there are, for the coordinator's metrics."""
        while True:
            self._say(frames.Gauges(front.num_connections, front.pool.num_connections))
            await asyncio.sleep(_GAUGES_S)


async def serve_front(socket: Path, parent: int) -> bool:
    """A front until it is told to stop, by the coordinator, SIGTERM or the death of its parent process."""
    front = FrontProcess(socket)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, front.stop)
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator's to act on
    watching = loop.create_task(_outlive(parent, front))
    try:
        return await front.run()
    finally:
        watching.cancel()
        if os.getppid() != parent:
            _tidy(socket)


def _tidy(socket: Path) -> None:
    """Nobody else removes what a parent that was killed has left."""
    with contextlib.suppress(OSError):
        socket.unlink(missing_ok=True)
        socket.parent.rmdir()


async def _outlive(parent: int, front: FrontProcess) -> None:
    """Not by long: where the parent is gone, so is the front's reason to be."""
    while os.getppid() == parent:  # noqa: ASYNC110  nobody else tells
        await asyncio.sleep(0.5)
    front.stop()
