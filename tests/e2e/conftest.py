"""A whole fleet in one process: modelled engines, the gateway in front of them, and the `openai` client."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import openai
import pytest

from saga.engine.hardware import hardware
from saga.engine.server import EngineServer, ServerSettings
from saga.gateway.config import GatewayConfig
from saga.gateway.health import HealthSettings
from saga.gateway.serve import Gateway
from saga.gateway.settings import SchedulingSettings
from saga.gateway.worker_config import CircuitRules, WorkerConfig

MODEL = "llama3-8b-h100"
_FAST = HealthSettings(interval_s=0.1, down_interval_s=0.05, timeout_s=1.0, metrics_interval_s=0.1)


@dataclass
class Scene:
    """What is running."""

    engines: dict[str, EngineServer]
    gateway: Gateway
    http: aiohttp.ClientSession

    def client(self, key: str = "none", **fields: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.gateway.url}/v1", api_key=key, max_retries=0, **fields)

    async def ask(self, messages, *, tokens=8, headers=None, key="none", **fields):
        """(status, headers, parsed body) of a chat call."""
        body = {"model": MODEL, "messages": messages, "max_tokens": tokens} | fields
        headers = {"authorization": f"Bearer {key}"} | (headers or {})
        async with self.http.post(f"{self.gateway.url}/v1/chat/completions", json=body, headers=headers) as answer:
            return answer.status, answer.headers, await answer.json()

    async def agent(self, name: str, num_turns: int, *, headers=None, pause_s=0.0) -> list[str]:
        """A conversation; the workers that served its turns. Every call must succeed."""
        messages = [{"role": "system", "content": "You are one of many. " * 20}]
        workers = []
        for turn in range(num_turns):
            messages.append({"role": "user", "content": f"{name} asks for the {turn}. time"})
            status, seen, body = await self.ask(messages, headers=headers)
            assert status == 200, body
            workers.append(seen["x-saga-worker"])
            messages.append({"role": "assistant", "content": body["choices"][0]["message"]["content"]})
            await asyncio.sleep(pause_s)
        return workers


@contextlib.asynccontextmanager
async def open_scene(num_engines=2, *, speed=200.0, kv_tokens=100_000, scheduling=None, engines=None, **fields):
    """Everything up, then everything down."""
    machine = hardware(MODEL)
    own = (
        {}
        if engines is not None
        else {
            f"e{i}": EngineServer(ServerSettings(hardware=machine, speed=speed, kv_tokens=kv_tokens, step_s=0.005))
            for i in range(num_engines)
        }
    )
    for engine in own.values():
        await engine.start()
    engines = engines or own
    config = GatewayConfig(
        port=0,
        admin_port=0,
        workers=tuple(WorkerConfig(engine.url, name=name) for name, engine in engines.items()),
        scheduling=SchedulingSettings(**({"check_every": 5} | (scheduling or {}))),
        health=_FAST,
        circuit=CircuitRules(open_s=0.2),
    )
    gateway = Gateway(replace(config, **fields))
    await gateway.start()
    try:
        async with aiohttp.ClientSession() as http:
            yield Scene(engines, gateway, http)
    finally:
        await gateway.stop(1.0)
        for engine in own.values():
            await engine.close()


@pytest.fixture
def scene():
    """To be entered with `async with`; see `open_scene`."""
    return open_scene


@pytest.fixture
def play():
    """Run a coroutine function; what hangs fails."""

    def run(work, timeout_s=20.0):
        async def bounded():
            async with asyncio.timeout(timeout_s):
                return await work()

        return asyncio.run(bounded())

    return run
