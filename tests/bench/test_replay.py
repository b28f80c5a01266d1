"""A replay against the modelled engine's server: the workload's calls, its prefixes, its gaps, and honest figures."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from saga.bench.measured import RunRecord, measured_table, measured_tenants, summary_of
from saga.bench.openai_client import OpenAiClient, base_url
from saga.bench.replay import Replay, ReplayConfig, Target, parse_target
from saga.engine.hardware import HARDWARE
from saga.engine.server import EngineServer, ServerSettings
from saga.errors import PeerError, UsageError
from saga.workloads.describe import infinite_cache_reuse
from saga.workloads.plan import Call, SessionPlan, Skipped, Task

H100 = HARDWARE["llama3-8b-h100"]


class TinyWorkload:
    """Tasks of two tenants: five turns with tools behind a shared prompt, and a child that knows its parent's words."""

    name = "tiny"
    provenance = "made for this test"
    mean_context_tokens = first_context_tokens = 1_000.0

    def __init__(self, gap_s: float = 1.0) -> None:
        self.tenants = {"a": 1.0, "b": 1.0}
        self.skipped = Skipped()
        self.gap_s = gap_s

    def tasks(self, num_tasks: int, seed: int) -> Iterator[Task]:
        """Streams 0 is everybody's; 2k + 1 and 2k + 2 are task k's."""
        for number in range(num_tasks):
            own, childs = 2 * number + 1, 2 * number + 2
            calls, prompt = [], 700
            for turn in range(5):
                tools = ("shell",) if turn < 4 else ()
                path = ((0, 400), (own, prompt - 400))
                spawns = (1,) if turn == 1 else ()
                calls.append(Call(path, prompt, 40, self.gap_s if turn else 0.0, tools, spawns=spawns))
                prompt += 40 + 200
            fork = ((0, 400), (own, 300), (childs, 100))
            child = (Call(fork, 800, 30), Call((*fork[:2], (childs, 330)), 1_030, 30, self.gap_s))
            sessions = (SessionPlan(f"{number}/root", tuple(calls)), SessionPlan(f"{number}/child", child, 0))
            yield Task(f"t{number}", "ab"[number % 2], "tiny", f"t{number}", sessions)


def replayed(
    config: ReplayConfig, *, num_servers: int = 1, **settings: Any
) -> tuple[list[RunRecord], list[EngineServer]]:
    """Records of a replay of the tiny workload against so many servers, and the servers."""

    async def run() -> tuple[list[RunRecord], list[EngineServer]]:
        servers = [
            EngineServer(ServerSettings(**{"hardware": H100, "speed": 200.0} | settings)) for _ in range(num_servers)
        ]
        targets = [Target(f"server{index}", await server.start()) for index, server in enumerate(servers)]
        try:
            return await Replay(targets, TinyWorkload(), config).run(), servers
        finally:
            for server in servers:
                await server.close()

    return asyncio.run(run())


def figures_of(record: RunRecord) -> dict[str, Any]:
    """A run's figures, of any type."""
    return record.figures()


@pytest.mark.parametrize("stream", [True, False])
def test_every_call_is_made_and_finds_the_prefix_that_the_workload_says(stream: bool) -> None:
    """All tasks complete; prompts and answers are as long as planned; cached share is that of an endless cache."""
    tasks = list(TinyWorkload().tasks(12, 0))
    records, servers = replayed(ReplayConfig(agents=4, tasks=12, speed=200.0, stream=stream))
    figures = figures_of(records[0])
    calls = [call for task in tasks for session in task.sessions for call in session.calls]
    assert (figures["tasks_completed"], figures["calls"], figures["errors"]) == (12, len(calls), 0)
    assert figures["output_tokens"] == sum(call.output_tokens for call in calls)
    assert figures["input_tokens"] == pytest.approx(sum(call.prompt_tokens for call in calls), rel=0.05)
    assert figures["prefix_hit_share"] == pytest.approx(infinite_cache_reuse(tasks, block_tokens=16).all, abs=0.05)
    assert ("ttft_p50_s" in figures) == stream
    assert {name: tenant["tasks_completed"] for name, tenant in figures["tenants"].items()} == {"a": 6, "b": 6}
    assert not figures["partial"]
    assert servers[0].engine.report()[:2] == (0, 0)


def test_lengths_are_scaled_and_capped() -> None:
    """Half the lengths, and no answer above the cap."""
    records, _ = replayed(ReplayConfig(agents=4, tasks=4, speed=500.0, scale=0.5, max_tokens_cap=10))
    figures = figures_of(records[0])
    assert figures["output_tokens"] == 4 * 7 * 10
    planned = sum(call.prompt_tokens for task in TinyWorkload().tasks(4, 0) for s in task.sessions for call in s.calls)
    assert figures["input_tokens"] == pytest.approx(planned / 2, rel=0.1)


def test_two_servers_take_turns_and_are_compared_by_repeat() -> None:
    """A B B A; one run never finds the caches of another warm; the table has the paired speed-up."""
    records, _ = replayed(ReplayConfig(agents=4, tasks=4, speed=500.0, repeats=2), num_servers=2)
    assert [record.label for record in records] == ["server0", "server1", "server1", "server0"]
    assert [record.repeat for record in records] == [0, 0, 1, 1]
    runs = [figures_of(record) for record in records]
    shares = [run["prefix_hit_share"] for run in runs]
    assert max(shares) - min(shares) < 0.02
    summary = summary_of(runs)
    assert [(row["preset"], row["runs"]) for row in summary] == [("server0", 2), ("server1", 2)]
    assert summary[0]["speedup"] == pytest.approx(1.0)
    table = measured_table(runs, summary)
    assert table.columns == ("", "server0", "server1")
    assert table.rows[0][0] == "speed-up"
    assert measured_tenants(runs) is not None


def scripted(handler: Any, scene: Any) -> Any:
    """`await scene(url)` while a server answers chats with `handler`."""

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m"}]})

    async def run() -> Any:
        app = web.Application()
        app.router.add_get("/v1/models", models)
        app.router.add_post("/v1/chat/completions", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            return await scene(f"http://127.0.0.1:{runner.addresses[0][1]}")
        finally:
            await runner.cleanup()

    return asyncio.run(run())


WHOLE = {"choices": [{"message": {"role": "assistant", "content": "ok"}}], "usage": {"prompt_tokens": 9}}


def test_requests_carry_key_session_and_tools() -> None:
    """A tenant's key, the session's name (one per session and run), the recorded tool chosen and its result sent."""
    seen: list[tuple[Any, Any]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.headers, await request.json()))
        return web.json_response(WHOLE, headers={"x-saga-queued-ms": "250", "x-saga-worker": "w1"})

    async def scene(url: str) -> RunRecord:
        config = ReplayConfig(agents=1, tasks=2, speed=1e4, stream=False, keys={"a": "ka", "*": "kb"}, model="m")
        return (await Replay([Target("x", url)], TinyWorkload(), config).run())[0]

    record = scripted(handler, scene)
    assert {headers["Authorization"] for headers, _ in seen} == {"Bearer ka", "Bearer kb"}
    assert len({headers["X-Session-ID"] for headers, _ in seen}) == 4
    first, second = seen[0][1], seen[1][1]
    assert first["tool_choice"]["function"]["name"] == "shell"
    assert first["ignore_eos"] is True
    assert [message["role"] for message in second["messages"]][-2:] == ["assistant", "tool"]
    assert second["messages"][-2]["tool_calls"][0]["id"] == second["messages"][-1]["tool_call_id"]
    figures = figures_of(record)
    assert figures["queued_p50_s"] == 0.25
    assert figures["calls_by_worker"] == {"w1": 14}


def test_without_key_fields_or_tools_nothing_extra_is_sent() -> None:
    """Only what every OpenAI-compatible server takes."""
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        assert "X-Session-ID" not in request.headers
        assert "Authorization" not in request.headers
        seen.append(await request.json())
        return web.json_response(WHOLE)

    async def scene(url: str) -> RunRecord:
        config = ReplayConfig(
            tasks=1, speed=1e4, stream=False, session_header="", vllm_fields=False, tool_calls=False, model="m"
        )
        return (await Replay([Target("x", url)], TinyWorkload(), config).run())[0]

    assert not figures_of(scripted(handler, scene))["errors"]
    assert all(set(body) == {"model", "messages", "max_tokens", "stream"} for body in seen)
    assert not any(message["role"] == "tool" for body in seen for message in body["messages"])


def test_busy_servers_are_asked_again_and_errors_are_counted_by_kind() -> None:
    """429 with Retry-After is repeated; 500, cut streams and nonsense fail the task and are told apart."""
    answers = iter([429, 200, 500, "cut", "nonsense", "error"])

    async def handler(request: web.Request) -> web.Response:
        kind = next(answers)
        if isinstance(kind, int):
            return web.json_response(WHOLE, status=kind, headers={"Retry-After": "0"})
        text = {"cut": 'data: {"choices": []}\n\n', "nonsense": "data: []\n\n", "error": 'data: {"error": {}}\n\n'}[
            kind
        ]
        return web.Response(text=text, content_type="text/event-stream")

    async def scene(url: str) -> list[Any]:
        client = OpenAiClient(url)
        try:
            return [await client.chat({}, {}, "t") for _ in range(5)]
        finally:
            await client.close()

    found = scripted(handler, scene)
    assert [call.error for call in found] == ["", "http_500", "cut_stream", "not_openai", "stream_error"]
    assert [call.retries for call in found] == [1, 0, 0, 0, 0]
    assert found[0].prompt_tokens == 9


def test_a_failed_call_fails_its_task_only() -> None:
    """The agent goes on with the next task; the run says how many failed."""
    count = iter(range(1_000))

    async def handler(request: web.Request) -> web.Response:
        return web.json_response(WHOLE, status=400 if next(count) == 2 else 200)

    async def scene(url: str) -> RunRecord:
        config = ReplayConfig(agents=1, tasks=3, speed=1e4, stream=False)
        return (await Replay([Target("x", url)], TinyWorkload(), config).run())[0]

    figures = figures_of(scripted(handler, scene))
    assert (figures["tasks_completed"], figures["tasks_failed"]) == (2, 1)
    assert figures["errors_by_kind"] == {"http_400": 1}


def test_a_run_that_is_stopped_is_flagged_partial() -> None:
    """Its figures are of what was done by then, and no further run is begun."""

    async def run() -> Replay:
        server = EngineServer(ServerSettings(hardware=H100, speed=200.0))
        url = await server.start()
        replay = Replay([Target("x", url)], TinyWorkload(gap_s=50.0), ReplayConfig(tasks=4, repeats=3))
        asyncio.get_running_loop().call_later(0.2, replay.stop)
        await replay.run()
        await server.close()
        return replay

    replay = asyncio.run(run())
    assert [figures_of(record)["partial"] for record in replay.records] == [True]


def test_peers_that_are_not_servers_are_named() -> None:
    """Nobody listens, nobody speaks OpenAI, the model is another: one error that says so."""

    async def html(request: web.Request) -> web.Response:
        return web.Response(text="<html>")

    async def ask(url: str, model: str = "") -> None:
        await Replay([Target("x", url)], TinyWorkload(), ReplayConfig(model=model)).run()

    with pytest.raises(PeerError, match="no answer: Connection refused"):
        asyncio.run(ask("http://127.0.0.1:1"))
    with pytest.raises(PeerError, match="not an OpenAI-compatible server"):
        scripted(html, lambda url: ask(url + "/else"))
    with pytest.raises(UsageError, match="does not serve model 'other' but m"):
        scripted(html, lambda url: ask(url, "other"))


def test_urls_and_settings_are_checked() -> None:
    """Spellings of a URL mean the same; what cannot be is refused."""
    assert base_url("http://h:1") == base_url("http://h:1/") == base_url("http://h:1/v1/") == "http://h:1/v1"
    assert parse_target("mine=http://h:1").label == "mine"
    assert parse_target("http://h:1/v1").label == "h:1"
    for bad in ("h:1", "ftp://h", "http://", ""):
        with pytest.raises(UsageError, match="is no URL"):
            base_url(bad)
    with pytest.raises(UsageError, match="same name"):
        Replay([Target("x", "http://h:1")] * 2, TinyWorkload(), ReplayConfig())
    for wrong in ({"agents": 0}, {"speed": 0.0}, {"scale": -1.0}, {"max_tokens_cap": 0}, {"repeats": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            ReplayConfig(**wrong)  # type: ignore[arg-type]
