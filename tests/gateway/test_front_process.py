"""Several fronts before one truth: what clients see, whichever front they come to."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re

import pytest

from saga.errors import PeerError
from saga.gateway.frames import Drain, TenantsAre
from saga.gateway.front_process import FrontProcess

from .fakes import run
from .far import MODEL, ask, chat, chat_answer, far, header, near, until

SYSTEM = ("system", "You are a careful engineer. " * 40)
HELLO = chat(SYSTEM, ("user", "hello"))
TOOL_CALL = {"id": "c1", "type": "function", "function": {"name": "Bash", "arguments": '{"command": "git log"}'}}


def masked(answer: bytes) -> bytes:
    """An answer without what differs between any two runs: time, and names made of it."""
    answer = re.sub(rb"(date: )[^\r]*", rb"\1-", answer)
    answer = re.sub(rb"(x-saga-queued-ms: )\d+", rb"\1-", answer)
    return re.sub(rb"~[0-9a-f]{8}-[0-9a-f]+", b"~step", answer)


def tool_messages():
    """A conversation whose last answer is a tool call, with the tool's result."""
    asked = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}
    return [
        {"role": "system", "content": SYSTEM[1]},
        {"role": "user", "content": "look"},
        asked,
        {"role": "tool", "tool_call_id": "c1", "content": "nothing"},
    ]


ASKED = [
    (HELLO, (), "/v1/chat/completions"),
    (chat(SYSTEM, ("user", "hello"), ("assistant", "ok"), ("user", "more")), (), "/v1/chat/completions"),
    (chat(SYSTEM, ("user", "hello"), ("assistant", "other"), ("user", "more")), (), "/v1/chat/completions"),
    (chat(SYSTEM, ("user", "hello"), ("assistant", "ok"), ("user", "more"), stream=True), (), "/v1/chat/completions"),
    ({"model": MODEL, "messages": tool_messages()}, ("x-saga-workflow: w",), "/v1/chat/completions"),
    (HELLO, ("x-saga-session: a~b%", "x-saga-task: t", "x-saga-final: true"), "/v1/chat/completions"),
    ({"model": MODEL, "prompt": "word " * 300}, (), "/v1/completions"),
    ({"model": MODEL, "prompt": "word " * 300 + "and so on " * 60}, (), "/v1/completions"),
    ({"model": MODEL, "prompt": ["one", "two"]}, (), "/v1/completions"),
    ({"model": MODEL, "input": "text"}, (), "/v1/embeddings"),
    ({"model": MODEL, "input": "text"}, (), "/v1/responses"),
    ({"anything": 1}, (), "/v1/unknown"),
    ({"model": "nobody's", "messages": HELLO["messages"]}, (), "/v1/chat/completions"),
    ({"model": MODEL}, (), "/v1/chat/completions"),
    (b"{", (), "/v1/chat/completions"),
    (HELLO, ("x-saga-deadline-s: soon",), "/v1/chat/completions"),
    (HELLO, (), "/nowhere"),
]


def test_answers_are_those_of_one_process_byte_for_byte():
    """Whole answers and refusals, sessions and reasons; through two fronts in turn as through one."""

    async def work():
        async with near(chat_answer(), chat_answer()) as (_, port):
            alone = [masked(await ask(port, body, *fields, path=path)) for body, fields, path in ASKED]
        async with far(chat_answer(), chat_answer()) as gateway:
            shared = [
                masked(await gateway.ask(place % 2, body, *fields, path=path))
                for place, (body, fields, path) in enumerate(ASKED)
            ]
            await until(lambda: gateway.truth.is_idle)
        assert shared == alone
        assert [answer.split(b" ", 2)[1] for answer in alone].count(b"200") == 12

    run(work())


def test_a_session_keeps_its_worker_through_all_fronts():
    """By content alone: agents whose turns come through another front each time stay where they are."""

    async def work():
        async with far(*[chat_answer()] * 3, num_fronts=3) as gateway:
            seen = []
            for agent in range(9):
                messages, places = [SYSTEM, ("user", f"task {agent}")], set()
                for turn in range(4):
                    answer = await gateway.ask((agent + turn) % 3, chat(*messages))
                    places.add((header(answer, "x-saga-session"), header(answer, "x-saga-worker")))
                    messages += [("assistant", "ok"), ("user", f"and {turn}?")]
                seen.append(places)
            assert [len(places) for places in seen] == [1] * 9
            assert {worker for places in seen for _, worker in places} == {"w0", "w1", "w2"}
            await until(lambda: gateway.truth.is_idle)

    run(work())


async def hang(heard, writer):
    """A worker that never answers."""
    await asyncio.Event().wait()


def test_a_clients_retry_through_another_front_joins_the_live_step():
    """One step, two calls that hang on it, both for the same worker."""

    async def work():
        async with far(hang, hang) as gateway:
            first = asyncio.create_task(gateway.ask(0, HELLO, "x-stainless-retry-count: 0"))
            await until(lambda: gateway.truth.scheduling.num_running == 1)
            second = asyncio.create_task(gateway.ask(1, HELLO, "x-stainless-retry-count: 1"))
            await until(lambda: gateway.truth.scheduling.num_running == 2)
            steps = set(map(id, gateway.truth.scheduling._steps.values()))
            assert len(steps) == 1
            assert sorted(len(worker.heard) for worker in gateway.workers) == [0, 2]
            first.cancel()
            second.cancel()
            await until(lambda: gateway.truth.is_idle)

    run(work())


def test_the_limits_of_a_tenant_hold_over_all_fronts(tmp_path):
    """A call in flight at one front is counted at the other."""
    file = tmp_path / "tenants.toml"
    digest = hashlib.sha256(b"sk").hexdigest()
    file.write_text(f'[[tenant]]\nname = "t"\nkey_sha256 = "{digest}"\nmax_calls_in_flight = 1\n')

    async def work():
        async with far(hang, tenants=file) as gateway:
            assert (await gateway.ask(0, HELLO)).startswith(b"HTTP/1.1 401")
            first = asyncio.create_task(gateway.ask(0, HELLO, "authorization: Bearer sk"))
            await until(lambda: gateway.truth.scheduling.num_running == 1)
            second = await gateway.ask(1, HELLO, "authorization: Bearer sk")
            assert second.startswith(b"HTTP/1.1 429")
            assert json.loads(second.partition(b"\r\n\r\n")[2])["error"]["code"] == "rate_limit_exceeded"
            first.cancel()
            await until(lambda: gateway.truth.is_idle)
            assert gateway.truth.identity.tenants.in_flight("t") == 0

    run(work())


def test_fronts_hear_of_new_keys(tmp_path):
    """A key that the coordinator has read is good at every front; one that it has dropped is not."""
    file = tmp_path / "tenants.toml"

    def write(key):
        file.write_text(f'[[tenant]]\nname = "{key}"\nkey_sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n')

    async def work():
        write("old")
        async with far(tenants=file) as gateway:
            write("other")
            tenants = gateway.truth.identity.tenants
            assert tenants.reload()
            late = await gateway.ask(0, HELLO, "authorization: Bearer old")
            assert late.startswith(b"HTTP/1.1 401"), "a front that has not heard of it yet"
            gateway.coordinator.tell_all(TenantsAre(tenants.keyed, tenants.all()))
            for front in range(2):
                assert (await gateway.ask(front, HELLO, "authorization: Bearer other")).startswith(b"HTTP/1.1 200")
                assert (await gateway.ask(front, HELLO, "authorization: Bearer old")).startswith(b"HTTP/1.1 401")

    run(work())


def test_a_lost_worker_is_replaced_for_calls_of_any_front():
    """The retry crosses over and back; the client sees the second worker's answer."""

    async def drop(heard, writer):
        writer.transport.abort()

    async def work():
        async with far(drop, chat_answer()) as gateway:
            answers = [await gateway.ask(turn % 2, chat(("user", f"task {turn}"))) for turn in range(4)]
            assert [header(answer, "x-saga-worker") for answer in answers] == ["w1"] * 4
            assert gateway.workers[0].heard
            await until(lambda: gateway.truth.is_idle)

    run(work())


def test_a_call_that_no_worker_answers_is_the_same_error():
    """After two attempts, the last worker's name and why."""

    async def drop(heard, writer):
        writer.transport.abort()

    async def work():
        async with far(drop, drop) as gateway:
            answer = await gateway.ask(0, HELLO)
            assert answer.startswith(b"HTTP/1.1 502")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "worker_unavailable"
            assert sum(len(worker.heard) for worker in gateway.workers) == 2
            await until(lambda: gateway.truth.is_idle)

    run(work())


def test_a_front_that_is_gone_leaves_nothing_behind():
    """Its running and its waiting calls are cancelled, those of other fronts go on."""

    async def work():
        async with far(hang, max_queue=10) as gateway:
            (worker,) = gateway.truth.workers
            calls = [asyncio.create_task(gateway.ask(0, chat(("user", f"task {i}")))) for i in range(3)]
            other = asyncio.create_task(gateway.ask(1, chat(("user", "other"))))
            await until(lambda: worker.num_calls == 4)
            gateway.fronts[0]._link._transport.abort()
            await until(lambda: worker.num_calls == 1)
            other.cancel()
            for call in calls:
                call.cancel()
            await until(lambda: gateway.truth.is_idle)

    run(work())


def test_without_a_coordinator_calls_are_refused_and_with_the_next_they_are_not():
    """503 with Retry-After in OpenAI's shape, also for calls that wait; the front links up again by itself."""

    async def work():
        async with far(num_fronts=1) as gateway:
            gateway.coordinator.close()
            await until(lambda: gateway.fronts[0]._remote._link is None)
            for path in ("/v1/chat/completions", "/v1/unknown"):
                refused = await gateway.ask(0, HELLO, path=path)
                assert refused.startswith(b"HTTP/1.1 503")
                assert float(header(refused, "retry-after")) >= 1
                assert json.loads(refused.partition(b"\r\n\r\n")[2])["error"]["code"] == "no_coordinator"
            gateway.path.unlink(missing_ok=True)
            await gateway.coordinator.start(gateway.path)
            await until(lambda: gateway.fronts[0]._remote._link is not None)
            assert (await gateway.ask(0, HELLO)).startswith(b"HTTP/1.1 200")

    run(work())


def test_an_answer_under_way_outlives_the_link():
    """What the worker still sends reaches the client whole; the step is not counted twice."""
    more = asyncio.Event()

    async def slow(heard, writer):
        answer = chat_answer("slowly")
        writer.write(answer[:-10])
        await more.wait()
        writer.write(answer[-10:])

    async def work():
        async with far(slow, num_fronts=1) as gateway:
            call = asyncio.create_task(gateway.ask(0, HELLO))
            await until(lambda: gateway.truth.scheduling.num_running == 1)
            await until(lambda: gateway.workers[0].heard)
            await asyncio.sleep(0.05)
            gateway.fronts[0]._link._transport.abort()
            await until(lambda: gateway.truth.is_idle)
            more.set()
            assert b"slowly" in await call

    run(work())


def test_what_the_gateway_answers_itself_is_right_at_every_front():
    """GET /health, /ready and /v1/models come from the coordinator; without it they are 503."""

    async def get(port, path):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer

    async def work():
        async with far() as gateway:
            for front in range(2):
                for path in ("/health", "/ready", "/v1/models", "/v1/models/m"):
                    answer = await get(gateway.port(front), path)
                    assert answer.startswith(b"HTTP/1.1 200")
                    assert answer.endswith(path.encode())
            gateway.coordinator.close()
            await until(lambda: gateway.fronts[0]._remote._link is None)
            assert (await get(gateway.port(0), "/health")).startswith(b"HTTP/1.1 503")

    run(work())


def test_a_front_that_is_told_to_drain_lets_answers_end():
    """Nothing new is accepted; the one under way is whole; then the front is gone from the coordinator."""
    more = asyncio.Event()

    async def slow(heard, writer):
        await more.wait()
        writer.write(chat_answer("late"))

    async def work():
        async with far(slow) as gateway:
            call = asyncio.create_task(gateway.ask(0, HELLO))
            await until(lambda: gateway.truth.scheduling.num_running == 1)
            gateway.coordinator.tell_all(Drain(5.0))
            await gateway.runs[1]
            with pytest.raises(OSError, match="Connect"):
                await gateway.ask(0, HELLO)
            more.set()
            assert b"late" in await call
            assert await gateway.runs[0]
            await until(lambda: gateway.coordinator.num_listening == 0)
            await until(lambda: gateway.truth.is_idle)

    run(work())


def test_a_front_without_a_coordinator_does_not_start(tmp_path):
    """With the path in the error."""

    async def work():
        with pytest.raises(PeerError, match=r"no coordinator listens at .*nobody"):
            await FrontProcess(tmp_path / "nobody").run()

    run(work())
