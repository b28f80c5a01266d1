"""A coordinator and its fronts in one process, each front on a port of its own, so that tests choose the front."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saga.gateway.answers import watch_answer
from saga.gateway.coordinator import Coordinator
from saga.gateway.frames import TenantsAre, Trust, Welcome
from saga.gateway.front import Front
from saga.gateway.front_process import FrontProcess
from saga.gateway.identity import GatewayIdentity
from saga.gateway.limits import FrontLimits
from saga.gateway.scheduling import GatewayScheduling
from saga.gateway.settings import IdentitySettings, SchedulingSettings
from saga.gateway.tenants import Tenants
from saga.gateway.worker_config import WorkerConfig
from saga.gateway.workers import Workers

from .fakes import FakeWorker, Respond

MODEL = "m"


def chat_answer(text: str = "ok", **more: Any) -> bytes:
    """A worker's whole answer to a chat call."""
    said = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    body = json.dumps(said | {"usage": {"prompt_tokens": 20, "completion_tokens": 2}} | more).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


class Truth:
    """What a gateway has one of, over fake workers that are up."""

    def __init__(self, workers: list[FakeWorker], tenants: Path | None = None, **scheduling: Any) -> None:
        self.workers = Workers()
        self.identity = GatewayIdentity(Tenants(tenants), settings=IdentitySettings(secret=b"s" * 32))
        settings = SchedulingSettings(**({"check_every": 1} | scheduling))
        self.scheduling = GatewayScheduling(self.workers, settings, gone=self.identity.answered)
        self.scheduling.start()
        now_s = asyncio.get_running_loop().time()
        for number, fake in enumerate(workers):
            url = f"http://127.0.0.1:{fake.address.port}"
            worker = self.workers.add(WorkerConfig(url, name=f"w{number}", models=(MODEL,), key="own"), now_s)
            self.workers.passed(worker, now_s)

    @property
    def is_idle(self) -> bool:
        """No step is anywhere, no call is counted."""
        scheduling = self.scheduling
        waiting = scheduling.num_waiting or scheduling.num_running or scheduling._steps
        return not waiting and not self.identity._pending


@dataclass
class FarGateway:
    """Everything that is up."""

    truth: Truth
    coordinator: Coordinator
    path: Path
    fronts: list[FrontProcess]
    runs: list[asyncio.Task[bool]]
    workers: list[FakeWorker]

    def port(self, front: int) -> int:
        """Where that front listens."""
        address = self.fronts[front].address
        assert address is not None
        return address[1]

    async def ask(self, front: int, body: object, *fields: str, path: str = "/v1/chat/completions") -> bytes:
        """All that the front answers to one request."""
        return await ask(self.port(front), body, *fields, path=path)

    async def add_front(self) -> int:
        """One more front, once it listens."""
        front = FrontProcess(self.path)
        self.fronts.append(front)
        self.runs.append(asyncio.create_task(front.run()))
        await until(lambda: front.address is not None or self.runs[-1].done())
        return len(self.fronts) - 1


@contextlib.asynccontextmanager
async def far(
    *responds: Respond | bytes, num_fronts: int = 2, tenants: Path | None = None, **scheduling: Any
) -> AsyncIterator[FarGateway]:
    """A coordinator, fronts, and a fake worker for each way to respond."""
    workers = [await FakeWorker(respond).start() for respond in responds or (chat_answer(),)]
    truth = Truth(workers, tenants, **scheduling)
    folder = Path(tempfile.mkdtemp(prefix="saga-test-"))

    def welcome() -> tuple[Any, ...]:
        names = truth.identity.tenants
        return (
            Trust(()),
            TenantsAre(names.keyed, names.all()),
            Welcome(truth.identity.settings, "127.0.0.1", 0, 1.0, FrontLimits()),
        )

    coordinator = Coordinator(truth.identity, truth.scheduling, lambda path: (200, path.encode()), welcome)
    await coordinator.start(folder / "c")
    gateway = FarGateway(truth, coordinator, folder / "c", [], [], workers)
    try:
        for _ in range(num_fronts):
            await gateway.add_front()
        yield gateway
    finally:
        for front in gateway.fronts:
            front.stop(0.0)
        await asyncio.gather(*gateway.runs, return_exceptions=True)
        coordinator.close()
        truth.scheduling.stop()
        for worker in workers:
            await worker.close()
        shutil.rmtree(folder)


@contextlib.asynccontextmanager
async def near(*responds: Respond | bytes, tenants: Path | None = None, **scheduling: Any) -> AsyncIterator[Any]:
    """The same in one process: (truth, port)."""
    workers = [await FakeWorker(respond).start() for respond in responds or (chat_answer(),)]
    truth = Truth(workers, tenants, **scheduling)
    front = Front(truth.identity, truth.scheduling, watch_answer)
    _, port = await front.start("127.0.0.1", 0)
    try:
        yield truth, port
    finally:
        front.close()
        truth.scheduling.stop()
        for worker in workers:
            await worker.close()


async def ask(port: int, body: object, *fields: str, path: str = "/v1/chat/completions") -> bytes:
    """All that is answered to one request on a connection of its own."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: saga", "connection: close", f"content-length: {len(raw)}", *fields]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + raw)
        return await reader.read()
    finally:
        writer.close()


def chat(*messages: tuple[str, str], **more: Any) -> dict[str, Any]:
    """A chat body of (role, content)."""
    return {"model": MODEL, "messages": [{"role": role, "content": text} for role, text in messages], **more}


def header(answer: bytes, name: str) -> str:
    """A header of an answer."""
    lines = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return dict(line.split(": ", 1) for line in lines)[name]


async def until(true: Any) -> None:
    """Wait for what will be, 5 s at most."""
    async with asyncio.timeout(5.0):
        while not true():  # noqa: ASYNC110  a law over several objects
            await asyncio.sleep(0.005)
