"""A server as an engine to be probed: what it says of itself, lengths, caches, others' calls, a server that breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from saga.bench.probed_url import ProbedUrl
from saga.engine.hardware import hardware
from saga.engine.probes import Prompt
from saga.engine.server import EngineServer, ServerSettings
from saga.errors import PeerError, UsageError


def play(scene: Callable[[ProbedUrl, EngineServer], Awaitable[None]], **settings: float) -> None:
    """A modelled engine's server and a client of it that is open."""

    async def run() -> None:
        server = EngineServer(ServerSettings(hardware=hardware("llama3-8b-h100"), kv_tokens=20_000, **settings))
        await server.start()
        engine = ProbedUrl(server.url, model="", key="", chunk_tokens=2_048)
        try:
            async with asyncio.timeout(20):
                await engine.open()
                await engine.prepare()
                await scene(engine, server)
        finally:
            await engine.close()
            await server.close()

    asyncio.run(run())


def test_what_the_server_says_of_itself() -> None:
    """Model, context, KV memory, block and version need no flag."""

    async def scene(engine: ProbedUrl, server: EngineServer) -> None:
        assert (engine.model, engine.max_context_tokens) == ("llama3-8b-h100", 9_000)
        assert (engine.kv_tokens, engine.block_tokens) == (20_000, 16)
        assert engine.version.startswith("saga-")

    play(scene, speed=100.0, max_model_len=9_000)


def test_prompts_are_as_long_as_wanted_and_share_what_they_should() -> None:
    """Within 3 %; the front of a prompt that another one had is cached, nothing else is."""

    async def scene(engine: ProbedUrl, server: EngineServer) -> None:
        first = engine.ask(Prompt(1, 1_000), 5)
        await first.last_s()
        assert first.prompt_tokens == pytest.approx(1_000, rel=0.03)
        assert (first.cached_tokens, first.times[-1][1]) == (0, 5)
        other = engine.ask(Prompt(2, 1_000), 1)
        await other.last_s()
        assert other.cached_tokens < 50
        again = engine.ask(Prompt(3, 200, shared=1, shared_tokens=1_000), 1)
        await again.last_s()
        assert again.prompt_tokens == pytest.approx(1_200, rel=0.05)
        assert again.cached_tokens == pytest.approx(1_000, rel=0.05)

    play(scene, speed=100.0)


def test_calls_of_others_are_seen() -> None:
    """The engine is not idle while somebody else's call runs, and is once a call of ours has left."""

    async def scene(engine: ProbedUrl, server: EngineServer) -> None:
        stranger = ProbedUrl(server.url, model="", key="", chunk_tokens=2_048)
        await stranger.open()
        await stranger.prepare()
        long = stranger.ask(Prompt(1, 100), 5_000)
        await long.first_s()
        assert await engine.num_under_way() == 1
        assert not await engine.idle()
        long.leave()
        await stranger.close()
        assert await engine.idle()

    play(scene, speed=1.0)


def test_a_server_that_stops_in_mid_answer_is_a_peer_s_error() -> None:
    """Whoever waits for the answer is told."""

    async def scene(engine: ProbedUrl, server: EngineServer) -> None:
        call = engine.ask(Prompt(1, 100), 5_000)
        await call.first_s()
        await server.close()
        with pytest.raises(PeerError):
            await call.last_s()

    play(scene, speed=1.0)


def test_a_model_that_is_not_served() -> None:
    """The message names those that are."""

    async def scene(engine: ProbedUrl, server: EngineServer) -> None:
        wrong = ProbedUrl(server.url, model="gpt", key="", chunk_tokens=2_048)
        try:
            with pytest.raises(UsageError, match="does not serve model 'gpt' but llama3-8b-h100"):
                await wrong.open()
        finally:
            await wrong.close()

    play(scene, speed=100.0)


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ('data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: [DONE]\n\n', "no usage.prompt_tokens"),
        ("data: nonsense\n\n", "not a chunk of an answer"),
        ("", "before its first token"),
    ],
)
def test_servers_that_say_too_little(said: str, complaint: str) -> None:
    """No usage, no JSON, no words: one clear error each, before any probe."""

    async def run() -> None:
        async def models(request: web.Request) -> web.Response:
            return web.json_response({"data": [{"id": "m"}]})

        async def chat(request: web.Request) -> web.Response:
            return web.Response(text=said, content_type="text/event-stream")

        app = web.Application()
        app.router.add_get("/v1/models", models)
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        engine = ProbedUrl(f"http://{host}:{port}", model="", key="", chunk_tokens=2_048)
        try:
            await engine.open()
            assert (engine.max_context_tokens, engine.kv_tokens, engine.version) == (0, 0, "unknown")
            with pytest.raises(PeerError, match=complaint):
                await engine.prepare()
        finally:
            await engine.close()
            await runner.cleanup()

    asyncio.run(run())
