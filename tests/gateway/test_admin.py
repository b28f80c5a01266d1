"""Tests of the admin port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re

import aiohttp
from aiohttp import web

from saga.gateway.admin import ROUTES, Admin, openapi
from saga.gateway.contracts import Answer, Call, Kind, Request
from saga.gateway.health import Health
from saga.gateway.metrics import GatewayMetrics
from saga.gateway.scheduling import GatewayScheduling
from saga.gateway.tenants import Tenants
from saga.gateway.worker_config import WorkerConfig
from saga.gateway.workers import Workers


@contextlib.asynccontextmanager
async def scene(key=""):
    """A client's `ask(method, path, ...)` -> (status, body), and the scheduling behind it."""
    workers, metrics = Workers(), GatewayMetrics()
    scheduling = GatewayScheduling(workers, meter=metrics)
    metrics.watch(scheduling)
    health = Health(workers)
    worker = WorkerConfig("http://127.0.0.1:1", name="a", key="very secret", models=("m",))
    workers.passed(workers.add(worker, 0.0), 0.0)
    admin = Admin(scheduling, metrics, health, Tenants(), key=key, clock=asyncio.get_running_loop().time)
    runner = web.AppRunner(admin.app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as http:

        async def ask(method, path, **fields):
            async with http.request(method, url + path, **fields) as answer:
                text = await answer.text()
                return answer.status, await answer.json() if answer.content_type == "application/json" else text

        try:
            yield ask, scheduling
        finally:
            await health.close()
            await runner.cleanup()


def call(session):
    """A call of a session."""
    request = Request("POST", "/v1/chat/completions", "/v1/chat/completions", [], b'{"secret prompt"}')
    return Call(Kind.CHAT, request, "default", session, session, f"{session}/1", model="m", prompt_tokens=100)


def test_every_route_answers_and_is_in_the_document():
    """The OpenAPI document has just the routes that are there."""

    async def work():
        async with scene() as (ask, scheduling):
            ticket = await scheduling.admit(call("s"))
            scheduling.finished(ticket, Answer(prompt_tokens=100, output_tokens=5))
            for route in ROUTES:
                if route.method == "GET":
                    path = route.path.replace("{name}", "a")
                    status, _ = await ask("GET", f"{path}?session=s")
                    assert (status, path) == (200, path)
            _, document = await ask("GET", "/openapi.json")
            assert document == json.loads(json.dumps(openapi()))
            described = {(m.upper(), path) for path, methods in document["paths"].items() for m in methods}
            assert described == {(route.method, route.path) for route in ROUTES}
            identities = [o["operationId"] for methods in document["paths"].values() for o in methods.values()]
            assert len(identities) == len(set(identities))
            for path in document["paths"]:
                for name in re.findall(r"{(\w+)}", path):
                    operations = document["paths"][path].values()
                    assert all(any(p["name"] == name for p in o["parameters"]) for o in operations)

    asyncio.run(work())


def test_workers_are_added_drained_resumed_and_removed():
    """The whole life of a worker, by name."""

    async def work():
        async with scene() as (ask, scheduling):
            status, said = await ask("POST", "/admin/workers", json={"url": "http://127.0.0.1:2/", "name": "b/c"})
            assert (status, said["state"], said["name"]) == (201, "starting", "b/c")
            assert (await ask("POST", "/admin/workers", json={"url": "http://x:2", "name": "a"}))[0] == 400
            assert (await ask("POST", "/admin/workers/a/drain"))[1]["state"] == "draining"
            assert (await ask("POST", "/admin/workers/a/resume"))[1]["state"] == "starting"
            assert (await ask("DELETE", "/admin/workers/b/c"))[1]["state"] == "removed"
            assert (await ask("DELETE", "/admin/workers/b/c"))[0] == 404
            assert [worker.name for worker in scheduling.workers] == ["a"]

    asyncio.run(work())


def test_bad_requests_are_400_with_a_message():
    """Not JSON, no object, unknown fields, files of this machine, limits out of range."""

    async def work():
        async with scene() as (ask, _):
            for body in (b"{", b"[]", b'{"url": 3}', b'{"url": "http://a:1", "sped": 1}', b'{"key_env": "HOME"}'):
                status, said = await ask("POST", "/admin/workers", data=body)
                assert (status, bool(said["error"]["message"])) == (400, True)
            assert (await ask("GET", "/admin/sessions?limit=0"))[0] == 400
            assert (await ask("GET", "/admin/explain"))[0] == 400
            assert (await ask("GET", "/admin/explain?session=none"))[0] == 404
            assert (await ask("GET", "/nowhere"))[0] == 404
            assert (await ask("PUT", "/admin/workers"))[0] == 405

    asyncio.run(work())


def test_a_key_is_asked_for_where_there_is_one():
    """Health and the document are open, everything else is not."""

    async def work():
        async with scene(key="the key") as (ask, _):
            assert (await ask("GET", "/health"))[0] == 200
            for path in ("/metrics", "/admin/workers", "/admin/overview"):
                assert (await ask("GET", path))[0] == 401
                assert (await ask("GET", path, headers={"Authorization": "Bearer wrong"}))[0] == 401
                assert (await ask("GET", path, headers={"Authorization": "Bearer the key"}))[0] == 200

    asyncio.run(work())


def test_without_a_key_a_web_page_cannot_ask():
    """An Origin, or a Host that is not this machine's, is refused."""

    async def work():
        async with scene() as (ask, scheduling):
            for headers in (
                {"Origin": "http://evil.example"},
                {"Host": "evil.example:8001"},
                {"Host": "127.0.0.1.evil"},
            ):
                assert (await ask("DELETE", "/admin/workers/a", headers=headers))[0] == 403
            assert len(scheduling.workers) == 1
            assert (await ask("GET", "/admin/workers", headers={"Host": "localhost:1"}))[0] == 200
            assert (await ask("GET", "/admin/workers", headers={"Host": "[::1]:1"}))[0] == 200

    asyncio.run(work())


def test_sessions_queue_and_explanations_show_what_is():
    """A session that runs, one that waits, and why."""

    async def work():
        async with scene() as (ask, scheduling):
            await scheduling.admit(call("one"))
            big = call("two")
            big.prompt_tokens = 10**9
            waiting = asyncio.create_task(scheduling.admit(big))
            await asyncio.sleep(0)
            _, said = await ask("GET", "/admin/sessions")
            assert {s["session"]: s["state"] for s in said["sessions"]} == {"one": "running", "two": "waiting"}
            assert (await ask("GET", "/admin/sessions?tenant=other"))[1]["total"] == 0
            _, said = await ask("GET", "/admin/queue")
            assert (said["total"], said["queue"][0]["session"]) == (1, "two")
            _, said = await ask("GET", "/admin/explain?session=two")
            assert [(d["what"], bool(d["reason"])) for d in said["decisions"]] == [("hold", True)]
            _, said = await ask("GET", "/admin/overview")
            assert said["calls"] == {"waiting": 1, "running": 1}
            waiting.cancel()

    asyncio.run(work())


def test_an_ended_session_is_gone():
    """DELETE ends it."""

    async def work():
        async with scene() as (ask, scheduling):
            scheduling.finished(await scheduling.admit(call("s")), Answer(prompt_tokens=100, output_tokens=5))
            assert (await ask("GET", "/admin/sessions"))[1]["total"] == 1
            await ask("DELETE", "/admin/sessions?session=s")
            assert (await ask("GET", "/admin/sessions"))[1]["total"] == 0

    asyncio.run(work())


def test_no_secret_and_no_prompt_is_shown():
    """Neither a worker's key nor what a client wrote."""

    async def work():
        async with scene() as (ask, scheduling):
            await scheduling.admit(call("s"))
            for route in ROUTES:
                if route.method == "GET":
                    _, said = await ask("GET", f"{route.path.replace('{name}', 'a')}?session=s")
                    assert "secret" not in str(said)

    asyncio.run(work())
