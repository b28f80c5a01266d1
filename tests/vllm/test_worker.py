"""Tests of `saga worker` with a real vLLM behind a gateway: it registers, obeys, and outlives its coordinator."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest

from saga import commands as do
from saga.gateway.config import GatewayConfig
from saga.gateway.serve import Gateway

from .engines import ENVIRONMENT, free_port

KEY = "the coordinator's"
FLAGS = ["--block-size", "32", "--num-gpu-blocks-override", "257", "--max-model-len", "4096", "--enforce-eager"]


@asynccontextmanager
async def worker(model, coordinator: str, log, *flags: str, name: str = "tiny"):
    """`saga worker` with a host tier; (its process, its url)."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "saga", "worker", str(model), "--port", str(port), "--dram-gb", "0.1"]
    command += ["--coordinator", coordinator, "--name", name, "--served-model-name", "tiny"]
    command += [*flags, *FLAGS]
    environment = os.environ | ENVIRONMENT | {"SAGA_COORDINATOR_KEY": KEY}
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield process, url
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def until(true, *, s: float = 20.0) -> None:
    """Wait for what another process makes true."""
    async with asyncio.timeout(s):
        while not true():  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.02)


def sample(gateway: Gateway, line: str) -> float:
    """A sample of the gateway's /metrics, 0 where it is not there."""
    found = [text for text in gateway.metrics.text().decode().splitlines() if text.startswith(line + " ")]
    return float(found[0].rsplit(" ", 1)[1]) if found else 0.0


def told(gateway: Gateway, directive: str, outcome: str, name: str = "tiny") -> float:
    """How many directives had that outcome."""
    return sample(gateway, f'saga_directives_total{{directive="{directive}",outcome="{outcome}",worker="{name}"}}')


def cached(gateway: Gateway, what: str = "cached") -> float:
    """Tokens found on the device, or loaded from the `host`, by the engine's own count."""
    return sample(gateway, f'saga_engine_tokens_total{{what="{what}",worker="tiny"}}')


async def ask(url: str, session: str, num_words: int = 700) -> int:
    """Prompt tokens of a call of a session; its words are its own."""
    return (await usage(url, session, num_words))["prompt_tokens"]


async def usage(url: str, session: str, num_words: int = 700, max_tokens: int = 4) -> dict:
    """What a call took."""
    words = " ".join(f"{session}{place % 97}" for place in range(num_words))
    body = {"model": "tiny", "messages": [{"role": "user", "content": words}], "max_tokens": max_tokens}
    body |= {"temperature": 0, "ignore_eos": True}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/chat/completions", json=body, headers={"x-session-id": session}) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return (await answer.json())["usage"]


@pytest.mark.slow
def test_a_worker_registers_obeys_and_outlives_its_coordinator(tiny_model, tmp_path):
    """One life of a real engine: used unasked, told to prefetch while idle, alone, with the next coordinator."""
    log = tmp_path / "worker.log"

    async def live() -> None:
        gateway = Gateway(GatewayConfig(port=0, admin_port=0, coordinator_port=0, coordinator_key=KEY))
        await gateway.start()
        port = int(gateway.coordinator.rpartition(":")[2])
        try:
            async with worker(tiny_model, gateway.coordinator, log) as (process, url):
                await until(lambda: gateway.workers.num_up or process.returncode is not None, s=180.0)
                assert process.returncode is None, log.read_text(errors="replace")[-4_000:]
                known = gateway.workers.get("tiny")
                assert (known.capacity.block_tokens, known.config.url) == (32, url)
                assert known.capacity.host_kv_tokens > 0

                # what it finds is told
                num_tokens = await ask(gateway.url, "a")
                await ask(gateway.url, "a")
                await until(lambda: cached(gateway) >= num_tokens - 64)

                # a session that has left the device comes back while the engine is idle
                for other in "bcdefghi":
                    await ask(gateway.url, other)
                await until(lambda: told(gateway, "retain", "accepted") + told(gateway, "release", "accepted") > 0)
                (pool,) = gateway.scheduling.pools
                name = next(session.session for session in pool.scheduler.sessions if session.session.endswith("a"))
                gateway.scheduling.engines.order(
                    "tiny", do.Prefetch(name, "tiny", ""), asyncio.get_running_loop().time()
                )
                await until(lambda: told(gateway, "prefetch", "accepted") + told(gateway, "prefetch", "clipped") == 1.0)
                await asyncio.sleep(1.0)
                before, host = cached(gateway), cached(gateway, "host")
                await ask(gateway.url, "a")
                await until(lambda: cached(gateway) + cached(gateway, "host") > before + host)
                assert cached(gateway) - before >= num_tokens - 64
                assert cached(gateway, "host") == host

                # without a coordinator it serves on, and finds the next one
                await gateway.stop(1.0)
                assert await ask(url, "a") == num_tokens
                gateway = Gateway(GatewayConfig(port=0, admin_port=0, coordinator_port=port, coordinator_key=KEY))
                await gateway.start()
                await until(lambda: gateway.workers.num_up == 1)
                assert await ask(gateway.url, "a") == num_tokens
                await until(lambda: cached(gateway) > 0.0)

                # and leaves when it is told to
                process.terminate()
                assert await asyncio.wait_for(process.wait(), 60.0) == 0
        finally:
            await gateway.stop(1.0)

    asyncio.run(live())
    assert "Traceback" not in log.read_text(errors="replace")


@pytest.mark.slow
def test_a_session_that_is_moved_finds_its_prefix_at_the_other_worker(tiny_model, tmp_path):
    """Told what the hardware does, the scheduler orders the move; its source answers, its target computes little."""
    flags = ("--shared-kv", str(tmp_path / "shared"), "--hardware", "llama3-8b-h100")
    names = ("one", "two")
    logs = {name: tmp_path / f"{name}.log" for name in names}

    async def live() -> None:
        gateway = Gateway(GatewayConfig(port=0, admin_port=0, coordinator_port=0, coordinator_key=KEY))
        await gateway.start()
        now_s = asyncio.get_running_loop().time
        try:
            async with AsyncExitStack() as stack:
                started = [worker(tiny_model, gateway.coordinator, logs[name], *flags, name=name) for name in names]
                processes = [(await stack.enter_async_context(each))[0] for each in started]
                await until(
                    lambda: gateway.workers.num_up == 2 or any(each.returncode is not None for each in processes),
                    s=180.0,
                )
                tails = [log.read_text(errors="replace")[-2_000:] for log in logs.values()]
                assert gateway.workers.num_up == 2, "\n".join(tails)
                for known in gateway.workers:
                    assert known.capacity.move_tokens_per_s > known.capacity.prefill_tokens_per_s > 0

                # a session lives on the one worker, which is then drained while another call runs there
                gateway.workers.drain("two", now_s())
                first = await usage(gateway.url, "a")
                other = asyncio.create_task(usage(gateway.url, "b", 10, 3_000))
                await until(lambda: gateway.workers.get("one").num_calls == 1)
                gateway.workers.resume("two", now_s())
                await until(lambda: gateway.workers.get("two").is_up)
                gateway.workers.drain("one", now_s())
                moved = await usage(gateway.url, "a")

                assert not other.done()
                assert sample(gateway, 'saga_commands_total{command="Migrate"}') == 1.0
                await until(
                    lambda: told(gateway, "offload", "accepted", "one") + told(gateway, "offload", "clipped", "one") > 0
                )
                assert moved["prompt_tokens"] == first["prompt_tokens"]
                assert moved["prompt_tokens_details"]["cached_tokens"] >= first["prompt_tokens"] - 64
                other.cancel()
                await asyncio.gather(other, return_exceptions=True)
        finally:
            await gateway.stop(1.0)

    asyncio.run(live())
