"""A whole gateway: every part made, joined, started in order and stopped in order.

    Workers + Health ─▶ GatewayScheduling ◀─ Front ─▶ GatewayIdentity        Admin on a port of its own
                                          ◀─ Coordinator ◀─ Fronts          instead, with several processes
    Engines ◀─ EnginePort: engines with a link say what they hold and are told what to keep
    Store: restored before the first call, saved now and then and at the end

Each part is known here and nowhere else by all others. This module refuses to decide anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import shutil
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec
from aiohttp import web

from saga import __version__
from saga.errors import PeerError, UsageError
from saga.gateway.admin import Admin
from saga.gateway.answers import watch_answer
from saga.gateway.config import GatewayConfig, load_config
from saga.gateway.contracts import Refused, Request
from saga.gateway.coordinator import Coordinator
from saga.gateway.frames import Drain, FromCoordinator, TenantsAre, Trust, Welcome
from saga.gateway.front import Front
from saga.gateway.fronts import Fronts, reserve
from saga.gateway.health import Health
from saga.gateway.identity import GatewayIdentity
from saga.gateway.journal import Journal, say
from saga.gateway.kv_events import KvEvents
from saga.gateway.metrics import GatewayMetrics
from saga.gateway.rewriting import Headers
from saga.gateway.scheduling import GatewayScheduling
from saga.gateway.settings import IdentitySettings
from saga.gateway.store import Store
from saga.gateway.tenants import Tenants
from saga.gateway.tracing import plane
from saga.gateway.worker_config import WorkerConfig
from saga.gateway.workers import Worker, Workers

if TYPE_CHECKING:
    from saga.gateway.engine_port import EnginePort
    from saga.gateway.spans import Spans

_FIRST_CHECK_S = 5.0
_WATCH_FILES_S = 1.0
_FRONTS_START_S = 60.0
_WATCH_FRONTS_S, _MOST_SILENT = 1.0, 10
"""A front says something every second; ten times nothing, and it hangs."""


class Gateway:
    """`await start()`, then `url` and `admin_url` answer until `await stop()`. Use it on one event loop.

    file: the TOML file whose workers are re-read when it changes.
    """

    def __init__(self, config: GatewayConfig, *, file: Path | None = None) -> None:
        config.check()
        self.config = config
        self.url = ""
        self.admin_url = ""
        self.tenants = Tenants(Path(config.tenants) if config.tenants else None)
        self.workers = Workers(config.circuit)
        self.metrics = GatewayMetrics()
        self.store = Store(Path(config.db)) if config.db else None
        self.identity = GatewayIdentity(self.tenants, settings=IdentitySettings(secret=self._secret()))
        self.scheduling = GatewayScheduling(
            self.workers,
            config.scheduling,
            meter=self.metrics,
            weights={tenant.name: tenant.weight for tenant in self.tenants.all()},
            journal=Journal(time.time),
            gone=self.identity.answered,
        )
        self.metrics.watch(self.scheduling)
        self._tls = _trust(config.workers)
        self.health = Health(self.workers, config.health, context=self._context)
        self.coordinator = ""
        self.front: Front | None = None
        self.spans: Spans | None = None
        self.fronts: Fronts | None = None
        self._front_links: Coordinator | None = None
        self._reserved: socket.socket | None = None
        self._folder: Path | None = None
        self._file = file
        self._file_stamp = _stamp(file)
        self._from_file = {worker.name: worker for worker in config.workers}
        self._admin: web.AppRunner | None = None
        self._engine_port: EnginePort | None = None
        self._kv_events: list[KvEvents] = []
        self._tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Listen. Raises PeerError where a port is taken, UsageError where a worker or file cannot be."""
        self._restore()
        self.scheduling.start()
        now_s = asyncio.get_running_loop().time()
        for config in self.config.workers:
            self.health.follow(self.workers.add(config, now_s))
        for worker, endpoint in self.config.kv_events.items():
            self._kv_events.append(KvEvents(worker, endpoint, self.scheduling.blocks_changed))
        if self.config.coordinator_port is not None:
            await self._start_engine_port(self.config.coordinator_port)
        await self.health.settle(_FIRST_CHECK_S)
        try:
            await (self._open_front() if self.config.processes == 1 else self._open_fronts())
        except OSError as error:
            await self.stop(0.0)
            raise PeerError(f"cannot listen on {self.config.host}:{self.config.port}: {_why(error)}") from error
        except PeerError:
            await self.stop(0.0)
            raise
        await self._start_admin()
        self._tasks = [asyncio.create_task(self._watch_files())]
        if self.fronts is not None and self._front_links is not None:
            self._tasks.append(asyncio.create_task(self._watch_fronts(self._front_links, self.fronts)))
        if self.store is not None:
            self._tasks.append(asyncio.create_task(self._save_on()))

    async def stop(self, drain_s: float | None = None) -> bool:
        """Drain, then stop everything; whether all calls ended in time."""
        ended = True
        drain_s = self.config.drain_s if drain_s is None else drain_s
        if self.front is not None:
            ended = await self.front.drain(drain_s)
        if self.spans is not None:
            await self.spans.close()
        if self.fronts is not None:
            self._tell_fronts(Drain(drain_s))
            ended = await self.fronts.ended(drain_s)
        self._close_links()
        self.scheduling.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for subscriber in self._kv_events:
            await subscriber.close()
        if self._engine_port is not None:
            await self._engine_port.stop()
        await self.health.close()
        if self._admin is not None:
            await self._admin.cleanup()
        if self.store is not None:
            self._save()
            await asyncio.to_thread(self.store.close)
        return ended

    async def _start_engine_port(self, port: int) -> None:
        from saga.gateway.engine_port import EnginePort  # noqa: PLC0415 - grpcio is an extra
        from saga.gateway.engines import Engines  # noqa: PLC0415 - protobuf too

        clock = asyncio.get_running_loop().time
        engines = Engines(self.workers, self.health, self.scheduling.blocks_changed, self.metrics, clock)
        self._engine_port = EnginePort(engines, self.metrics, self.config.coordinator_key)
        host = self.config.coordinator_host
        try:
            bound = await self._engine_port.start(host, port)
        except PeerError:
            await self.stop(0.0)
            raise
        self.coordinator = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
        self.scheduling.engines = engines
        self.metrics.watch_engines(engines)

    async def hurry(self) -> None:
        """Do not wait for calls any longer; for while `stop` drains."""
        if self.front is not None:
            self.front.close()
        if self.fronts is not None:
            await self.fronts.kill()

    async def _open_front(self) -> None:
        """Take calls in this process."""
        parts = plane(os.environ, self.identity, self.scheduling, watch_answer)
        front = Front(*parts.workers, self.config.limits, cold=self._cold, worker_tls=self._tls)
        self.front = front
        self.spans = spans = parts.spans
        if spans is not None:
            self.metrics.gauge("saga_trace_spans_sent", "Spans that the collector took.", lambda: spans.num_sent)
            self.metrics.gauge("saga_trace_spans_dropped", "Spans that nobody got.", lambda: spans.num_dropped)
        self._show_connections(lambda: front.num_connections, lambda: front.pool.num_connections)
        self.url = _url(*await front.start(self.config.host, self.config.port))

    async def _open_fronts(self) -> None:
        """Take calls in processes of their own, which share what is here."""
        self._reserved = reserve(self.config.host, self.config.port)
        host, port = self._reserved.getsockname()[:2]
        links = Coordinator(self.identity, self.scheduling, self._answers, lambda: self._welcome(host, port))
        self._front_links = links
        self._show_connections(lambda: links.num_clients, lambda: links.num_workers)
        self.metrics.gauge("saga_front_processes", "Fronts that take calls.", lambda: links.num_listening)
        self._folder = Path(tempfile.mkdtemp(prefix="saga-"))
        path = self._folder / "coordinator"
        await links.start(path)
        self.fronts = Fronts(self.config.processes, path, self.config.log_level)
        await self.fronts.start()
        fronts = self.fronts
        self.metrics.gauge("saga_front_restarts", "Fronts that were started anew.", lambda: fronts.num_restarts)
        await self._fronts_listen(links, fronts)
        self.url = _url(host, port)

    async def _fronts_listen(self, links: Coordinator, fronts: Fronts) -> None:
        """Wait for all fronts. Raises PeerError where one cannot or does not."""
        listening = asyncio.create_task(links.listening(self.config.processes))
        ending = asyncio.create_task(fronts.first_end())
        await asyncio.wait((listening, ending), timeout=_FRONTS_START_S, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if not listening.done():
            listening.cancel()
            raise PeerError(f"{links.num_listening} of {self.config.processes} front processes came up; see the log")
        await listening

    async def _watch_fronts(self, links: Coordinator, fronts: Fronts) -> None:
        """Replace those that hang: a client that is sent there would wait for ever."""
        while True:
            await asyncio.sleep(_WATCH_FRONTS_S)
            for process in links.silent(_MOST_SILENT):
                fronts.replace(process)

    def _welcome(self, host: str, port: int) -> tuple[FromCoordinator, ...]:
        """What a new front is told."""
        ca_files = tuple(worker.config.ca_file for worker in self.workers if worker.config.ca_file)
        share = self.config.limits.share(self.config.processes)
        return (
            Trust(ca_files),
            TenantsAre(self.tenants.keyed, self.tenants.all()),
            Welcome(self.identity.settings, host, port, self.config.drain_s, share),
        )

    def _tell_fronts(self, message: FromCoordinator) -> None:
        if self._front_links is not None:
            self._front_links.tell_all(message)

    def _close_links(self) -> None:
        if self._front_links is not None:
            self._front_links.close()
        if self._reserved is not None:
            self._reserved.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _show_connections(self, clients: Callable[[], float], workers: Callable[[], float]) -> None:
        self.metrics.gauge("saga_client_connections", "Open client connections.", clients)
        self.metrics.gauge("saga_worker_connections", "Open worker connections.", workers)

    async def _start_admin(self) -> None:
        loop = asyncio.get_running_loop()
        admin = Admin(
            self.scheduling, self.metrics, self.health, self.tenants, key=self.config.admin_key, clock=loop.time
        )
        self._admin = web.AppRunner(admin.app(), access_log=None, shutdown_timeout=1.0)
        await self._admin.setup()
        try:
            await web.TCPSite(self._admin, self.config.admin_host, self.config.admin_port).start()
        except OSError as error:
            await self.stop(0.0)
            where = f"{self.config.admin_host}:{self.config.admin_port}"
            raise PeerError(f"cannot listen on {where} (admin): {_why(error)}") from error
        host, port = self._admin.addresses[0][:2]
        self.admin_url = _url(host, port)

    # ------------------------------------------------------------------ joints

    def _context(self, worker: Worker) -> ssl.SSLContext | bool:
        return self._tls if worker.config.verify_tls else False

    async def _cold(self, request: Request) -> tuple[int, Headers, bytes]:
        """What the gateway answers itself on the public port."""
        if request.path not in {"/health", "/ready"}:
            self.tenants.authenticate(request.header(b"authorization"), request.header(b"x-api-key"))
        status, body = self._answers(request.path)
        return status, [(b"content-type", b"application/json")], body

    def _answers(self, path: str) -> tuple[int, bytes]:
        """The same for whom it may be told: a status and JSON. Raises Refused (404)."""
        if path == "/health":
            return 200, msgspec.json.encode({"status": "alive", "version": __version__})
        if path == "/ready":
            num_up = self.workers.num_up
            return 200 if num_up else 503, msgspec.json.encode({"workers_up": num_up})
        cards = self._model_cards()
        if path == "/v1/models":
            return 200, msgspec.json.encode({"object": "list", "data": list(cards.values())})
        name = unquote(path.removeprefix("/v1/models/"))
        if name not in cards:
            message = f"The model `{name[:200]}` does not exist or is not served here."
            raise Refused(404, message, code="model_not_found", param="model")
        return 200, msgspec.json.encode(cards[name])

    def _model_cards(self) -> dict[str, dict[str, Any]]:
        """Cards of all models that a worker serves, by name."""
        cards: dict[str, dict[str, Any]] = {}
        for worker in self.workers:
            if worker.is_up:
                cards.update(worker.model_cards)
                for model in worker.models or ():
                    cards.setdefault(model, {"id": model, "object": "model", "created": 0, "owned_by": "saga"})
        return dict(sorted(cards.items()))

    # ------------------------------------------------------------------ files that change

    async def _watch_files(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_FILES_S)
            try:
                if self.tenants.reload():
                    self.scheduling.set_weights({tenant.name: tenant.weight for tenant in self.tenants.all()})
                    self._tell_fronts(TenantsAre(self.tenants.keyed, self.tenants.all()))
                    say(logging.INFO, "tenants read again", number=len(self.tenants.all()))
                self._reread_workers()
            except (UsageError, OSError) as error:  # OSError: a ca_file that is none
                say(logging.ERROR, "a file that changed is bad; the old one holds", why=str(error))

    def _reread_workers(self) -> None:
        stamp = _stamp(self._file)
        if self._file is None or stamp == self._file_stamp:
            return
        self._file_stamp = stamp
        wanted = {worker.name: worker for worker in load_config(self._file).workers}
        for worker in wanted.values():
            if worker.ca_file:
                self._tls.load_verify_locations(worker.ca_file)
        self._tell_fronts(Trust(tuple(worker.ca_file for worker in wanted.values() if worker.ca_file)))
        now_s = asyncio.get_running_loop().time()
        for name, config in self._from_file.items():
            if wanted.get(name) != config and self.workers.get(name) is not None:
                self.workers.remove(name, now_s)
        for name, config in wanted.items():
            if self.workers.get(name) is None:
                self.health.follow(self.workers.add(config, now_s))
        self._from_file = wanted
        say(logging.INFO, "workers read again", workers=sorted(wanted))

    # ------------------------------------------------------------------ restarts

    def _secret(self) -> bytes:
        """What seeds names and salts: the same after a restart."""
        found = self.store.load("secret") if self.store is not None else None
        secret = found if isinstance(found, bytes) and len(found) == 32 else secrets.token_bytes(32)
        if self.store is not None:
            self.store.save("secret", secret)
        return secret

    def _restore(self) -> None:
        if self.store is None:
            return
        for part, restore in (("scheduling", self.scheduling.restore), ("identity", self._restore_identity)):
            saved = self.store.load(part)
            if saved is None:
                continue
            try:
                restore(saved)
            except (UsageError, KeyError, TypeError, ValueError) as error:
                say(logging.WARNING, "what was learned before cannot be used", part=part, why=str(error))

    def _restore_identity(self, saved: dict[str, Any]) -> None:
        away_s = time.time() - float(saved["saved_at"])
        self.identity.restore(saved["data"], asyncio.get_running_loop().time(), away_s)

    def _parts(self) -> Iterator[tuple[str, Any]]:
        """What is kept over a restart, by part: each as often as it has grown, by a millisecond's work or so."""
        for scheduling in self.scheduling.snapshots():
            yield "scheduling", scheduling
        saved_at = time.time()
        for identity in self.identity.snapshots(asyncio.get_running_loop().time()):
            yield "identity", {"saved_at": saved_at, "data": identity}

    def _save(self) -> None:
        if self.store is not None:
            for part, data in dict(self._parts()).items():
                self.store.save(part, data)

    async def _save_on(self) -> None:
        while True:
            await asyncio.sleep(self.config.save_every_s)
            whole: dict[str, Any] = {}
            for part, data in self._parts():
                whole[part] = data
                await asyncio.sleep(0)  # calls come first
            for part, data in whole.items():
                if self.store is not None:
                    self.store.save(part, data)


def _trust(workers: Iterable[WorkerConfig]) -> ssl.SSLContext:
    """The system's authorities and those of the workers' files."""
    context = ssl.create_default_context()
    for worker in workers:
        if worker.ca_file:
            try:
                context.load_verify_locations(worker.ca_file)
            except (OSError, ssl.SSLError) as error:
                raise UsageError(f"worker {worker.name}: ca_file {worker.ca_file}: {error}") from error
    return context


def _stamp(path: Path | None) -> tuple[int, int] | None:
    if path is None:
        return None
    with contextlib.suppress(OSError):
        stat = path.stat()
        return stat.st_mtime_ns, stat.st_size
    return None


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _why(error: OSError) -> str:
    return "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
