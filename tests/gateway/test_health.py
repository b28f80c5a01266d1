"""Tests of the checks of workers, against small servers that do as they are told."""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import web

from saga.gateway.health import Figures, Health, HealthSettings, read_figures
from saga.gateway.worker_config import CircuitRules, WorkerConfig
from saga.gateway.workers import Workers, WorkerState

FAST = HealthSettings(
    interval_s=0.02, down_interval_s=0.02, timeout_s=0.2, metrics_interval_s=0.02, models_interval_s=0.02
)
TEXT = b"""# HELP vllm:num_requests_running Number of requests.
vllm:num_requests_running{model_name="m",engine="0"} 3.0
vllm:num_requests_running{model_name="m",engine="1"} 2.0
vllm:num_requests_waiting{model_name="m",engine="0"} 4.0
vllm:kv_cache_usage_perc{model_name="m",engine="0"} 0.25
vllm:kv_cache_usage_perc{model_name="m",engine="1"} 0.75
vllm:cache_config_info{block_size="16",num_gpu_blocks="100",engine="0"} 1.0
vllm:cache_config_info{block_size="16",num_gpu_blocks="100",engine="1"} 1.0
"""


def test_figures_of_several_engines_are_summed():
    """Running, waiting and capacity add up, usage is a mean."""
    assert read_figures(TEXT) == Figures(running=5, waiting=4, kv_usage=0.5, kv_tokens=3_200)


def test_older_names_are_read_and_others_are_not():
    """gpu_cache_usage_perc was the name before; a server that is not vLLM has no figures."""
    assert read_figures(b'vllm:gpu_cache_usage_perc{a="b"} 0.5\n') == Figures(kv_usage=0.5)
    assert read_figures(b'sglang:num_running_reqs{a="b"} 5\n') is None
    assert read_figures(b'vllm:cache_config_info{block_size="x",num_gpu_blocks="None"} 1.0\n') is None


class Server:
    """A worker whose answers can be changed."""

    def __init__(self) -> None:
        self.health = 200
        self.models = ["m"]
        self.metrics: bytes | None = TEXT
        self.stall = False
        self.seen: list[str] = []
        self.calls: list[dict] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.seen.append(request.headers.get("Authorization", ""))
        if request.method == "POST":
            self.calls.append(await request.json())
            return web.json_response({"choices": []})
        if request.path == "/health":
            return web.Response(status=self.health)
        if request.path == "/v1/models":
            cards = [{"id": name, "owned_by": "vllm", "max_model_len": 4_096} for name in self.models]
            return web.json_response({"data": cards})
        if request.path == "/metrics" and self.stall:
            await asyncio.sleep(30.0)
        if request.path == "/metrics" and self.metrics is not None:
            return web.Response(body=self.metrics)
        return web.Response(status=404)


@contextlib.asynccontextmanager
async def scene(server, **fields):
    """The server, followed by `server.looked_after`; yields (workers, worker)."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    workers = Workers(CircuitRules(failures_to_open=2, open_s=0.02))
    health = server.looked_after = Health(workers, FAST)
    worker = workers.add(WorkerConfig(f"http://127.0.0.1:{runner.addresses[0][1]}", **fields), 0.0)
    health.follow(worker)
    try:
        await health.settle(2.0)
        yield workers, worker
    finally:
        await health.close()
        await runner.cleanup()


async def until(true):
    """Wait for a condition, 3 s at most."""
    async with asyncio.timeout(3.0):
        while not true():  # noqa: ASYNC110 - what is waited for is what a server will do
            await asyncio.sleep(0.005)


def test_a_worker_is_up_with_its_models_and_capacity_after_the_first_check():
    """All that a scheduler wants to know is known before the first call."""

    async def work():
        async with scene(Server(), key="k") as (_, worker):
            assert worker.is_up
            assert (worker.models, worker.max_model_len, worker.kv_tokens) == (frozenset({"m"}), 4_096, 3_200)
            assert (worker.extensions, worker.running, worker.kv_usage) == (True, 5, 0.5)

    asyncio.run(work())


def test_what_was_written_down_wins():
    """Models, capacity and extensions of the configuration are not asked for."""

    async def work():
        async with scene(Server(), models=("x",), kv_tokens=77, extensions=False) as (_, worker):
            assert (worker.models, worker.kv_tokens, worker.extensions) == (frozenset({"x"}), 77, False)

    asyncio.run(work())


def test_its_own_key_is_sent():
    """Each question carries the worker's key."""

    async def work():
        server = Server()
        async with scene(server, key="k"):
            assert set(server.seen) == {"Bearer k"}

    asyncio.run(work())


def test_failed_checks_open_the_circuit_and_passed_ones_close_it():
    """503 twice is down; 200 again is up."""

    async def work():
        server = Server()
        async with scene(server) as (_, worker):
            server.health = 503
            await until(lambda: worker.state is WorkerState.DOWN)
            server.health = 200
            await until(lambda: worker.is_up)

    asyncio.run(work())


def test_silent_metrics_block_nothing():
    """A worker whose metrics never come is up, with figures unknown."""

    async def work():
        server = Server()
        server.stall = True
        async with scene(server) as (_, worker):
            assert worker.is_up
            assert (worker.running, worker.kv_usage) == (None, None)

    asyncio.run(work())


def test_a_server_without_health_route_or_metrics_will_do():
    """Any OpenAI-compatible server is a worker; its extension fields stay away."""

    async def work():
        server = Server()
        server.health, server.metrics = 404, None
        async with scene(server, extensions=False) as (_, worker):
            assert worker.is_up
            assert worker.models == frozenset({"m"})

    asyncio.run(work())


def test_models_that_change_are_noticed():
    """A worker that loads another model gets its calls."""

    async def work():
        server = Server()
        async with scene(server) as (_, worker):
            server.models = ["m", "adapter"]
            await until(lambda: worker.models == frozenset({"m", "adapter"}))

    asyncio.run(work())


def test_an_idle_engine_is_woken_while_it_is_wanted():
    """By calls of one token that say what they are; once at a time, and not while it has calls."""

    async def work():
        server = Server()
        async with scene(server) as (_, worker):
            wanted = True
            worker.num_calls = 1
            for _ in range(3):
                server.looked_after.wake(worker, lambda: wanted)
            await asyncio.sleep(0.1)
            assert server.calls == []
            worker.num_calls = 0
            await until(lambda: len(server.calls) >= 2)
            wanted = False
            assert server.calls[0] == {"model": "m", "prompt": ".", "max_tokens": 1, "vllm_xargs": {"saga_wake": 1}}
            await until(lambda: not server.looked_after._waking)

    asyncio.run(work())


def test_an_engine_that_cannot_be_woken_is_left_alone():
    """It is down by then, or answers with an error: the health checks see to it."""

    async def work():
        server = Server()
        async with scene(server) as (workers, worker):
            workers.drain(worker.name, 0.0)
            server.looked_after.wake(worker, lambda: True)
            await until(lambda: not server.looked_after._waking)
            assert server.calls == []

    asyncio.run(work())
