"""Tests of the coordinator's port with the real link of the plug-in at its other end, in a whole gateway."""

from __future__ import annotations

import asyncio
from math import inf

import aiohttp
import grpc
import grpc.aio
import pytest
from aiohttp import web

from saga import commands as do
from saga.errors import PeerError, UsageError
from saga.gateway.config import GatewayConfig
from saga.gateway.serve import Gateway
from saga.gateway.worker_config import WorkerConfig
from saga.protocol import METHOD, SERVICE, read_to_engine, write
from saga.protocol import coordinator_pb2 as wire
from saga.vllm_plugin.contracts import EngineFacts, Finished, Held, LinkConfig, Outcome, Report
from saga.vllm_plugin.link import connect

FACTS = EngineFacts("m", 16, 1_000, num_host_blocks=50, max_running=8)


class Engine:
    """An OpenAI server that answers every chat call and writes down what it was sent."""

    def __init__(self) -> None:
        self.calls: list[dict] = []
        self.woken = asyncio.Event()

    async def start(self) -> Engine:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _chat(self, request):
        self.calls.append(await request.json())
        call = {"type": "function", "id": "1", "function": {"name": "ls", "arguments": "{}"}}
        choice = {"index": 0, "message": {"role": "assistant", "tool_calls": [call]}, "finish_reason": "tool_calls"}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 50, "completion_tokens": 5}})

    async def _complete(self, request):
        self.calls.append(await request.json())
        self.woken.set()
        return web.json_response({"choices": []})

    async def _models(self, _):
        return web.json_response({"data": [{"id": "m", "object": "model", "owned_by": "vllm"}]})

    async def _health(self, _):
        return web.Response()


class World:
    """A gateway with a coordinator's port, an engine, and links to close."""

    def __init__(self, gateway: Gateway, engine: Engine, http: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.engine = engine
        self.http = http
        self.links = []

    def link(self, *, name="w", key="", facts=FACTS):
        config = LinkConfig(self.gateway.coordinator, name, self.engine.url, key)
        self.links.append(connect(config, facts))
        return self.links[-1]

    async def linked(self, **fields):
        link = self.link(**fields)
        await until(lambda: link.report_every_s < inf)
        return link

    async def ask(self, session="s", **headers) -> int:
        body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
        url = f"{self.gateway.url}/v1/chat/completions"
        async with self.http.post(url, json=body, headers={"x-session-id": session, **headers}) as answer:
            await answer.read()
            return answer.status

    async def directives(self, link, number: int):
        """The next `number` directives that the engine hears."""
        got = []
        await until(lambda: got.extend(link.poll()) or len(got) >= number)
        return got

    def count(self, line: str) -> float:
        """A sample of /metrics."""
        found = [text for text in self.gateway.metrics.text().decode().splitlines() if text.startswith(line + " ")]
        return float(found[0].rsplit(" ", 1)[1]) if found else 0.0


async def until(true):
    """Wait for it, 10 s at most."""
    async with asyncio.timeout(10.0):
        while not true():  # noqa: ASYNC110 - another thread makes it true
            await asyncio.sleep(0.002)


def play(work, *, workers=True, **fields):
    """Run `work(world)` in a gateway; a hang is a failure."""

    async def bounded():
        async with asyncio.timeout(30.0), aiohttp.ClientSession() as http:
            engine = await Engine().start()
            known = (WorkerConfig(engine.url, name="w"),) if workers else ()
            gateway = Gateway(GatewayConfig(port=0, admin_port=0, coordinator_port=0, workers=known, **fields))
            await gateway.start()
            world = World(gateway, engine, http)
            try:
                await work(world)
            finally:
                for link in world.links:
                    await asyncio.to_thread(link.close)
                await world.gateway.stop(1.0)
                await engine.stop()

    asyncio.run(bounded())


def test_a_call_its_engine_and_the_answer_meet():
    """The call names session, step and tenant; its end is a directive by the same name; the answer is counted."""

    async def work(world):
        link = await world.linked()
        await until(lambda: world.gateway.workers.get("w").capacity.block_tokens == 16)
        assert await world.ask() == 200
        sent = world.engine.calls[0]
        ((number, directive),) = await world.directives(link, 1)
        assert directive.session == sent["session_id"]
        assert {"saga_step", "saga_tenant", "saga_session", "saga_task"} <= sent["vllm_xargs"].keys()
        link.answer(number, Outcome.CLIPPED, "a cap")
        name = type(directive).__name__.lower()
        sample = f'saga_directives_total{{directive="{name}",outcome="clipped",worker="w"}}'
        await until(lambda: world.count(sample) == 1.0)
        step = sent["vllm_xargs"]["saga_step"]
        finished = Finished(step, directive.session, 50, 5, cached_tokens=32, host_tokens=16, preemptions=2)
        held = Held(directive.session, 48, 16)
        link.report(Report(running=1, waiting=2, used_blocks=100, sessions=(held,), finished=(finished,)))
        await until(lambda: world.count('saga_engine_tokens_total{what="cached",worker="w"}') == 32.0)
        assert world.count('saga_engine_preemptions_total{worker="w"}') == 2.0
        assert world.count('saga_engine_link_up{worker="w"}') == 1.0
        await until(lambda: world.count('saga_worker_kv_usage{worker="w"}') == 0.1)
        (pool,) = world.gateway.scheduling.pools
        await until(lambda: pool.scheduler.sessions.get(directive.session).home_tokens == 48)

    play(work)


def test_an_engine_registers_itself_and_is_used():
    """Nobody wrote it down."""

    async def work(world):
        assert await world.ask() == 503
        link = await world.linked(name="volunteer")
        await until(lambda: world.gateway.workers.num_up == 1)
        assert world.gateway.workers.get("volunteer").kv_tokens == 16_000
        assert await world.ask() == 200
        assert await world.directives(link, 1)

    play(work, workers=False)


def test_a_link_that_is_killed_in_mid_run_changes_nothing_for_calls():
    """The worker stays up, calls are served, commands are counted; a new link is used at once."""

    async def work(world):
        link = await world.linked()
        assert await world.ask("a") == 200
        link._call.cancel()  # as a broken network would
        assert [await world.ask(str(number)) for number in range(20)] == [200] * 20
        assert world.gateway.workers.get("w").is_up
        await until(lambda: link.report_every_s < inf)
        link.poll()
        assert await world.ask("b") == 200
        await until(lambda: any(d.session == world.engine.calls[-1]["session_id"] for _, d in link.poll()))

    play(work)


def test_a_coordinator_that_restarts_is_joined_again():
    """On the same port, with the link that was there before."""

    async def work(world):
        link = await world.linked()
        port = int(world.gateway.coordinator.rpartition(":")[2])
        await world.gateway.stop(1.0)
        await until(lambda: link.report_every_s == inf)
        config = GatewayConfig(port=0, admin_port=0, coordinator_port=port)
        world.gateway = Gateway(config)
        await world.gateway.start()
        await until(lambda: link.report_every_s < inf)
        await until(lambda: world.gateway.workers.num_up == 1)
        assert await world.ask() == 200
        assert await world.directives(link, 1)

    play(work)


def test_a_wrong_key_is_no_link_and_no_worker():
    """Missing, wrong, or right; the engine goes on without."""

    async def work(world):
        for key in ("", "wrong", "rightx"):
            link = world.link(name="stranger", key=key)
            await asyncio.sleep(0.1)
            assert link.report_every_s == inf
        assert world.gateway.workers.get("stranger") is None
        assert world.count('saga_engine_misunderstood_total{why="key"}') >= 3.0
        await world.linked(name="friend", key="right")
        assert world.gateway.workers.get("friend") is not None

    play(work, workers=False, coordinator_key="right")


def test_a_stream_of_garbage_hurts_nobody():
    """Bytes that mean nothing, no hello, a hello that cannot be, a message too long; a good engine goes on."""

    async def work(world):
        link = await world.linked()
        good = write(wire.FromEngine(hello=wire.Hello(worker="w", block_tokens=16, num_blocks=9, max_running=1)))
        bad = write(wire.FromEngine(hello=wire.Hello(worker="w")))
        for name, messages, code in (
            ("garbage", [b"\xff\xff\xff"], grpc.StatusCode.INVALID_ARGUMENT),
            ("no hello", [write(wire.FromEngine(report=wire.Report()))], grpc.StatusCode.INVALID_ARGUMENT),
            ("nothing", [], grpc.StatusCode.INVALID_ARGUMENT),
            ("no blocks", [bad], grpc.StatusCode.INVALID_ARGUMENT),
            ("too long", [b"x" * (2**20 + 1)], grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            async with grpc.aio.insecure_channel(world.gateway.coordinator) as channel:
                call = channel.stream_stream(f"/{SERVICE}/{METHOD}")(iter(messages))
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call.read()
                assert refused.value.code() is code, name
        assert link.report_every_s < inf
        async with grpc.aio.insecure_channel(world.gateway.coordinator) as channel:
            call = channel.stream_stream(f"/{SERVICE}/{METHOD}", response_deserializer=read_to_engine)()
            await call.write(good)
            assert (await call.read()).HasField("welcome")
            for _ in range(10):
                await call.write(b"\xff\xff")
            await until(lambda: world.count('saga_engine_misunderstood_total{why="unreadable"}') == 10.0)
        assert await world.ask() == 200

    play(work)


def test_an_engine_that_does_not_read_blocks_nobody():
    """What waits for it is bounded; calls and other links go on."""

    async def work(world):
        async with grpc.aio.insecure_channel(world.gateway.coordinator) as channel:
            call = channel.stream_stream(f"/{SERVICE}/{METHOD}")()
            said = wire.Hello(worker="w", block_tokens=16, num_blocks=9_000, max_running=8)
            await call.write(write(wire.FromEngine(hello=said)))
            engines = world.gateway.scheduling.engines
            await until(lambda: "w" in engines.links)
            for number in range(40_000):
                engines.order("w", do.Offload(f"{number:0400d}", "w", ""), 0.0)
                if number % 500 == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(0.2)
            assert 0 < len(engines.links["w"].waiting) <= 4_096
            assert world.count('saga_directives_total{directive="offload",outcome="dropped",worker="w"}') > 0
            assert await world.ask() == 200

    play(work)


def test_an_idle_engine_is_woken_for_a_prefetch():
    """By a call of one token that says what it is for."""

    async def work(world):
        link = await world.linked()
        world.gateway.scheduling.engines.order("w", do.Prefetch("s", "w", ""), 0.0)
        await asyncio.wait_for(world.engine.woken.wait(), 5.0)
        assert world.engine.calls[-1]["vllm_xargs"] == {"saga_wake": 1}
        assert (world.engine.calls[-1]["max_tokens"], world.engine.calls[-1]["model"]) == (1, "m")
        assert [directive.session for _, directive in await world.directives(link, 1)] == ["s"]

    play(work)


def test_two_tenants_sessions_of_one_name_are_two_sessions_to_the_engine(tmp_path):
    """Residency of one says nothing of the other."""
    file = tmp_path / "tenants.toml"
    import hashlib

    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("ann", "bob")}
    file.write_text("".join(f'[[tenant]]\nname = "{n}"\nkey_sha256 = ["{d}"]\n' for n, d in digests.items()))

    async def work(world):
        link = await world.linked()
        for name in digests:
            assert await world.ask("shared", authorization=f"Bearer {name}") == 200
        ann, bob = (call["session_id"] for call in world.engine.calls)
        assert ann != bob
        assert [call["vllm_xargs"]["saga_tenant"] for call in world.engine.calls] == ["ann", "bob"]
        (pool,) = world.gateway.scheduling.pools
        link.report(Report(sessions=(Held(ann, 16), Held("of nobody", 16))))
        await until(lambda: pool.scheduler.sessions.get(ann).home_tokens == 16)
        assert pool.scheduler.sessions.get(bob).home_tokens == 55

    play(work, tenants=str(file))


def test_the_port_is_not_open_to_strangers_unless_it_has_a_key():
    """As the other ports."""
    with pytest.raises(UsageError, match="SAGA_COORDINATOR_KEY"):
        Gateway(GatewayConfig(coordinator_port=0, coordinator_host="0.0.0.0"))  # noqa: S104 - refused
    GatewayConfig(coordinator_port=0, coordinator_host="0.0.0.0", coordinator_key="k").check()  # noqa: S104


def test_a_port_in_use_is_said_with_its_address():
    """And nothing else of the gateway stays open."""

    async def work(world):
        port = int(world.gateway.coordinator.rpartition(":")[2])
        with pytest.raises(PeerError, match=rf"127.0.0.1:{port} \(coordinator\): the port is in use"):
            await Gateway(GatewayConfig(port=0, admin_port=0, coordinator_port=port)).start()

    play(work)
