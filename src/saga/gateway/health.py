"""How workers are: active checks, the models they serve, and vLLM's own figures.

Each worker has two loops that know nothing of each other: one asks `/health` (where there is none, `/v1/models`) and
tells the registry, the other reads `/v1/models` now and then and `/metrics` often. A worker whose metrics are slow or
silent is as good as any: its figures are just not known. Answers are read up to a bound. It refuses to know calls and
what the circuit does with a failed check (`workers`).

Metrics read (vLLM 0.32; `gpu_cache_usage_perc` before 0.10): `vllm:num_requests_running`, `vllm:num_requests_waiting`,
`vllm:kv_cache_usage_perc`, `vllm:cache_config_info` (num_gpu_blocks x block_size); of several engines, sums.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp
import msgspec

from saga.gateway.journal import say
from saga.gateway.workers import Worker, Workers, WorkerState

_MAX_BYTES = 8 * 2**20
_CAPACITY_CHANGED = 0.05
_LEAD_S = 0.01  # of what is on the link, before the call that wakes
_WAKE_EVERY_S, _WAKES = 0.25, 8
_SAMPLE = re.compile(rb"^vllm:(\w+)(\{[^}]*\})? ([^ \n]+)", re.MULTILINE)
_LABEL = re.compile(rb'(\w+)="([^"]*)"')
_EXPECTED = (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, msgspec.MsgspecError)


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """interval_s between checks, down_interval_s of a worker that is not up; timeout_s of each question.

    metrics_interval_s, models_interval_s: how often those are read.
    """

    interval_s: float = 2.0
    down_interval_s: float = 0.5
    timeout_s: float = 2.0
    metrics_interval_s: float = 1.0
    models_interval_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What `/metrics` says; None where it does not. kv_usage: 0..1. kv_tokens: capacity."""

    running: int | None = None
    waiting: int | None = None
    kv_usage: float | None = None
    kv_tokens: int | None = None


class _Card(msgspec.Struct):
    """An entry of `/v1/models`."""

    id: str
    owned_by: str = ""
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    """What `/v1/models` answers."""

    data: list[msgspec.Raw]


_cards = msgspec.json.Decoder(_Cards)
_card = msgspec.json.Decoder(_Card)


def read_figures(text: bytes) -> Figures | None:
    """Figures of vLLM in the exposition format; None where there are none. O(bytes)."""
    sums: dict[bytes, float] = {}
    usages: list[float] = []
    blocks = 0
    for name, labels, value in _SAMPLE.findall(text):
        if name in {b"num_requests_running", b"num_requests_waiting"}:
            sums[name] = sums.get(name, 0.0) + float(value)
        elif name in {b"kv_cache_usage_perc", b"gpu_cache_usage_perc"}:
            usages.append(float(value))
        elif name == b"cache_config_info":
            blocks += _capacity(dict(_LABEL.findall(labels)))
    if not sums and not usages and not blocks:
        return None
    running, waiting = sums.get(b"num_requests_running"), sums.get(b"num_requests_waiting")
    return Figures(
        running=None if running is None else int(running),
        waiting=None if waiting is None else int(waiting),
        kv_usage=sum(usages) / len(usages) if usages else None,
        kv_tokens=blocks or None,
    )


def _capacity(labels: dict[bytes, bytes]) -> int:
    blocks, size = labels.get(b"num_gpu_blocks", b""), labels.get(b"block_size", b"")
    return int(blocks) * int(size) if blocks.isdigit() and size.isdigit() else 0


class Health:
    """Looks after all workers that it is told to follow. `context` makes the TLS context of a worker."""

    def __init__(
        self,
        workers: Workers,
        settings: HealthSettings | None = None,
        *,
        context: Callable[[Worker], ssl.SSLContext | bool] | None = None,
    ) -> None:
        self.settings = settings or HealthSettings()
        self._workers = workers
        self._context = context or (lambda worker: worker.config.verify_tls)
        self._session: aiohttp.ClientSession | None = None
        self._tasks: dict[Worker, list[asyncio.Task[None]]] = {}
        self._first: list[asyncio.Future[None]] = []
        self._waking: dict[str, asyncio.Task[None]] = {}

    def follow(self, worker: Worker) -> None:
        """Look after the worker until it is removed."""
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self.settings.timeout_s)
            self._session = aiohttp.ClientSession(timeout=timeout, trust_env=False)
        loop = asyncio.get_running_loop()
        checked: asyncio.Future[None] = loop.create_future()
        self._first = [first for first in self._first if not first.done()] + [checked]
        self._tasks[worker] = [
            loop.create_task(self._check_on(worker, checked)),
            loop.create_task(self._read_on(worker)),
        ]

    async def settle(self, timeout_s: float) -> None:
        """Until every worker has been checked once, or the time is over."""
        if self._first:
            await asyncio.wait(self._first, timeout=timeout_s)

    def wake(self, worker: Worker, wanted: Callable[[], bool]) -> None:
        """Give an idle engine a call of one token, so that it hears what waits on its link. Does not wait.

        One that has calls hears it anyway; it is looked at now and then for as long as it is `wanted`, seconds at most.
        """
        if worker.name in self._waking or self._session is None:
            return
        task = asyncio.get_running_loop().create_task(self._wake_on(worker, wanted))
        self._waking[worker.name] = task
        task.add_done_callback(lambda _: self._waking.pop(worker.name, None))

    async def close(self) -> None:
        """Look after nobody any longer."""
        tasks = [task for tasks in self._tasks.values() for task in tasks] + list(self._waking.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    # ------------------------------------------------------------------ the two loops

    async def _check_on(self, worker: Worker, checked: asyncio.Future[None]) -> None:
        while worker.state is not WorkerState.REMOVED:
            await self.check(worker)
            if not checked.done():
                checked.set_result(None)
            up = worker.is_up or worker.state is WorkerState.DRAINING
            await asyncio.sleep(self.settings.interval_s if up else self.settings.down_interval_s)
        self._tasks.pop(worker, None)

    async def _read_on(self, worker: Worker) -> None:
        next_models_s = 0.0
        while worker.state is not WorkerState.REMOVED:
            await asyncio.sleep(self.settings.metrics_interval_s)
            if worker.is_up:
                await self.read_metrics(worker)
                if _now_s() >= next_models_s:
                    next_models_s = _now_s() + self.settings.models_interval_s
                    await self.read_models(worker)

    async def check(self, worker: Worker) -> None:
        """Ask once whether it is well, and tell the registry."""
        try:
            status, _ = await self._get(worker, "/health")
            if status in {404, 405}:
                status, _ = await self._get(worker, "/v1/models")
        except _EXPECTED as error:
            refused = isinstance(error, aiohttp.ClientConnectorError)
            why = f"check failed: {str(error) or type(error).__name__}"
            self._workers.failed(worker, why, _now_s(), unreachable=refused)
            return
        if status < 400 or status in {401, 403, 404, 405}:
            if worker.state in {WorkerState.DOWN, WorkerState.STARTING}:
                await asyncio.gather(self.read_models(worker), self.read_metrics(worker))
            self._workers.passed(worker, _now_s())
        else:
            self._workers.failed(worker, f"check answered {status}", _now_s())

    # ------------------------------------------------------------------ what it serves and holds

    async def read_models(self, worker: Worker) -> None:
        """Ask which models it serves; what was written down wins, what cannot be read changes nothing."""
        await self._quietly(worker, "/v1/models", self._take_models)

    async def read_metrics(self, worker: Worker) -> None:
        """Read its own figures; without them none are known."""
        if not await self._quietly(worker, "/metrics", self._take_metrics):
            worker.running = worker.waiting = worker.kv_usage = None

    def _take_models(self, worker: Worker, body: bytes) -> None:
        raw_cards = _cards.decode(body).data
        cards = [_card.decode(raw) for raw in raw_cards]
        worker.model_cards = {card.id: msgspec.json.decode(raw) for card, raw in zip(cards, raw_cards, strict=True)}
        worker.max_model_len = max((card.max_model_len or 0 for card in cards), default=0) or None
        if worker.config.extensions is None and any(card.owned_by == "vllm" for card in cards):
            worker.extensions = True
        models = frozenset(worker.config.models) or frozenset(card.id for card in cards) or None
        if models != worker.models:
            worker.models = models
            self._workers.changed(worker)

    def _take_metrics(self, worker: Worker, body: bytes) -> None:
        figures = read_figures(body)
        if figures is None:
            worker.running = worker.waiting = worker.kv_usage = None
            return
        if worker.config.extensions is None:
            worker.extensions = True
        worker.running, worker.waiting, worker.kv_usage = figures.running, figures.waiting, figures.kv_usage
        kv_tokens = worker.config.kv_tokens or figures.kv_tokens or worker.capacity.kv_tokens
        if not worker.is_up:
            worker.kv_tokens = kv_tokens
        elif abs(kv_tokens - worker.kv_tokens) > _CAPACITY_CHANGED * worker.kv_tokens:
            worker.kv_tokens = kv_tokens
            self._workers.changed(worker)
        self._workers.reported(worker)

    async def _quietly(self, worker: Worker, path: str, take: Callable[[Worker, bytes], None]) -> bool:
        """Ask, and take what comes; False where nothing useful came."""
        try:
            status, body = await self._get(worker, path)
            if status != 200:
                return False
            take(worker, body)
        except _EXPECTED as error:
            say(logging.DEBUG, "worker does not say", worker=worker.name, path=path, why=str(error))
            return False
        return True

    async def _wake_on(self, worker: Worker, wanted: Callable[[], bool]) -> None:
        await asyncio.sleep(_LEAD_S)
        for _ in range(_WAKES):
            if not wanted() or not worker.is_up:
                return
            if not worker.num_calls:
                await self._wake(worker)
            await asyncio.sleep(_WAKE_EVERY_S)

    async def _wake(self, worker: Worker) -> None:
        model = min(worker.models or (), default="")
        call = {"model": model, "prompt": ".", "max_tokens": 1, "vllm_xargs": {"saga_wake": 1}}
        try:
            status, _ = await self._get(worker, "/v1/completions", call)
        except _EXPECTED as error:
            say(logging.DEBUG, "engine could not be woken", worker=worker.name, why=str(error))
            return
        if status != 200:
            say(logging.DEBUG, "engine could not be woken", worker=worker.name, why=f"it answered {status}")

    async def _get(self, worker: Worker, path: str, call: Mapping[str, object] | None = None) -> tuple[int, bytes]:
        """GET, or POST where there is a call to send: (status, body)."""
        assert self._session is not None
        address = worker.address
        host = f"[{address.host}]" if ":" in address.host else address.host
        url = f"{'https' if address.tls else 'http'}://{host}:{address.port}{address.base_path}{path}"
        headers = {name.decode(): value.decode() for name, value in address.headers}
        tls = self._context(worker) if address.tls else True
        asked = self._session.request(
            "GET" if call is None else "POST", url, json=call, headers=headers, ssl=tls, allow_redirects=False
        )
        async with asked as answer:
            body = await answer.content.read(_MAX_BYTES)
            while not answer.content.at_eof() and len(body) < _MAX_BYTES:
                body += await answer.content.read(_MAX_BYTES - len(body))
            return answer.status, body


def _now_s() -> float:
    return asyncio.get_running_loop().time()
