"""Tests of a whole gateway over modelled engines."""

from __future__ import annotations

import asyncio
import hashlib

import openai
import pytest

MODEL = "llama3-8b-h100"


def test_the_openai_client_needs_only_another_base_url(scene, play):
    """Unary and streamed answers, usage asked for or not, and the list of models."""

    async def work():
        async with scene() as s, s.client() as client:
            assert [model.id async for model in client.models.list()] == [MODEL]
            asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12}
            whole = await client.chat.completions.create(**asked)
            assert whole.usage.completion_tokens == 12
            chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
            assert "".join(c.choices[0].delta.content or "" for c in chunks)
            assert all(chunk.usage is None for chunk in chunks)
            asked["stream_options"] = {"include_usage": True}
            chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
            assert chunks[-1].usage.completion_tokens == 12
            with pytest.raises(openai.NotFoundError, match="does not exist"):
                await client.chat.completions.create(**asked | {"model": "other"})

    play(work)


def test_sessions_stay_on_their_worker_without_any_key(scene, play):
    """Agents that share a system prompt spread over the fleet, and none of them moves."""

    async def work():
        async with scene(3) as s:
            agents = await asyncio.gather(*(s.agent(f"agent {i}", 4) for i in range(9)))
            assert all(len(set(workers)) == 1 for workers in agents)
            assert {workers[0] for workers in agents} == {"e0", "e1", "e2"}

    play(work)


def test_no_unary_call_fails_when_a_worker_dies(scene, play):
    """Its calls under way and its sessions go elsewhere; later calls avoid it."""

    async def work():
        async with scene(3, speed=20.0) as s:
            names = [{"x-saga-session": f"s{i}"} for i in range(12)]
            hello = [{"role": "user", "content": "Hello"}]
            homes = [(await s.ask(hello, headers=name))[1]["x-saga-worker"] for name in names]
            assert "e1" in homes
            calls = [asyncio.create_task(s.ask(hello, headers=name, tokens=2_000, ignore_eos=True)) for name in names]
            await asyncio.sleep(0.1)
            await s.engines["e1"].close()
            answers = await asyncio.gather(*calls)
            assert [status for status, _, _ in answers] == [200] * 12
            assert all(seen["x-saga-worker"] != "e1" for _, seen, _ in answers)
            assert s.gateway.workers.get("e1").state == "down"
            after = [(await s.ask(hello, headers=name))[1]["x-saga-worker"] for name in names]
            assert "e1" not in after
            assert s.gateway.scheduling.num_running == 0

    play(work)


def test_a_stream_that_breaks_ends_with_an_error_and_its_session_goes_on(scene, play):
    """The client learns it in the stream; the next call of the session is served elsewhere."""

    async def work():
        async with scene(2, speed=2.0) as s, s.client(default_headers={"x-saga-session": "one"}) as client:
            asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2_000}
            asked["extra_body"] = {"ignore_eos": True}
            raw = await client.chat.completions.with_raw_response.create(**asked, stream=True)
            worker = raw.headers["x-saga-worker"]
            stream = raw.parse()
            await anext(stream)
            await s.engines[worker].close()
            with pytest.raises(openai.APIError, match="lost in the middle"):
                await _rest(stream)
            after = await client.chat.completions.with_raw_response.create(**asked | {"max_tokens": 2})
            assert after.headers["x-saga-worker"] != worker

    play(work)


async def _rest(stream) -> None:
    async for _ in stream:
        pass


def test_a_call_waits_at_the_gate_until_there_is_room(scene, play):
    """What would overflow the working set waits here, and is told how long."""

    async def work():
        async with scene(1, speed=10.0, kv_tokens=2_000) as s:
            long = [{"role": "user", "content": "many words " * 600}]
            headers = [{"x-saga-session": name, "x-saga-final": "true"} for name in ("one", "two")]
            answers = await asyncio.gather(*(s.ask(long, tokens=60, headers=header) for header in headers))
            assert [status for status, _, _ in answers] == [200, 200]
            waited = sorted(int(seen["x-saga-queued-ms"]) for _, seen, _ in answers)
            assert waited[0] < 20 < waited[1]

    play(work)


def test_a_full_queue_is_a_429_in_openais_shape(scene, play):
    """With Retry-After, and the calls that were let in are not disturbed."""

    async def work():
        async with scene(1, speed=5.0, kv_tokens=2_000, scheduling={"max_queue": 1}) as s:
            long = [{"role": "user", "content": "many words " * 600}]
            calls = [
                asyncio.create_task(s.ask(long, tokens=60, headers={"x-saga-session": f"s{i}", "x-saga-final": "true"}))
                for i in range(3)
            ]
            answers = await asyncio.gather(*calls)
            assert sorted(status for status, _, _ in answers) == [200, 200, 429]
            _, headers, body = next(answer for answer in answers if answer[0] == 429)
            assert float(headers["retry-after"]) >= 1
            assert body["error"]["type"] == "rate_limit_error"
            assert {"message", "type", "code", "param"} <= set(body["error"])

    play(work)


def test_draining_lets_calls_finish_and_takes_no_new_ones(scene, play):
    """SIGTERM's way: the answer under way is whole, then nobody listens."""

    async def work():
        async with scene(1, speed=10.0) as s:
            under_way = asyncio.create_task(s.ask([{"role": "user", "content": "Hello"}], tokens=200, ignore_eos=True))
            await asyncio.sleep(0.05)
            assert await s.gateway.stop(10.0)
            status, _, body = await under_way
            assert (status, body["usage"]["completion_tokens"]) == (200, 200)
            with pytest.raises(OSError, match="connect"):
                await s.ask([{"role": "user", "content": "Hello"}])

    play(work)


def test_a_restart_knows_what_was_learned_and_where_sessions_live(scene, play, tmp_path):
    """The graph of the workflow and the sessions' homes are there again."""

    async def work():
        names = [{"x-saga-session": f"s{i}", "x-saga-workflow": "demo"} for i in range(6)]
        db = str(tmp_path / "saga.db")
        async with scene(3, db=db) as s:
            before = [(await s.agent("agent", 2, headers=name))[-1] for name in names]
            kinds = s.gateway.scheduling.pools.model.kinds()
            assert len(kinds) == 1
            await s.gateway.stop(1.0)
            async with scene(engines=s.engines, db=db) as again:
                assert again.gateway.scheduling.pools.model.kinds() == kinds
                after = [(await again.agent("agent", 1, headers=name))[0] for name in reversed(names)]
                assert after == before[::-1]

    play(work)


def test_a_restart_finds_sessions_by_their_content_too(scene, play, tmp_path):
    """Agents without any key go on where they were, on the worker that has their prefix."""

    async def work():
        db = str(tmp_path / "saga.db")
        agents = [[{"role": "user", "content": f"I am agent {i}"}] for i in range(6)]

        async def turn(scene, messages):
            status, seen, body = await scene.ask(messages)
            assert status == 200, body
            answer = body["choices"][0]["message"]["content"]
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "and then?"}]
            return seen["x-saga-session"], seen["x-saga-worker"]

        async with scene(3, db=db) as s:
            before = [[await turn(s, messages) for _ in range(2)][-1] for messages in agents]
            assert len({worker for _, worker in before}) == 3
            await s.gateway.stop(1.0)
            async with scene(engines=s.engines, db=db) as again:
                after = [[await turn(again, messages) for _ in range(2)] for messages in reversed(agents)]
                assert after == [[place] * 2 for place in reversed(before)]

    play(work)


def test_tenants_cannot_join_one_anothers_sessions(scene, play, tmp_path):
    """The same name in two tenants is two sessions; without a key there is none."""
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("red", "blue")}
    file = tmp_path / "tenants.toml"
    file.write_text("".join(f'[[tenant]]\nname = "{n}"\nkey_sha256 = ["{k}"]\n' for n, k in keys.items()))

    async def work():
        async with scene(2, tenants=str(file)) as s:
            hello = [{"role": "user", "content": "Hello"}]
            same = {"x-saga-session": "same"}
            seen = [(await s.ask(hello, key=key, headers=same))[1]["x-saga-session"] for key in ("red", "blue", "red")]
            assert seen == ["red/same", "blue/same", "red/same"]
            assert (await s.ask(hello, key="green"))[0] == 401
            sessions = [x.session for pool in s.gateway.scheduling.pools for x in pool.scheduler.sessions]
            assert sorted(sessions) == ["blue/same", "red/same"]
            assert s.gateway.tenants.in_flight("red") == 0

    play(work)


def test_limits_count_calls_however_they_end(scene, play, tmp_path):
    """A tenant's calls in flight go back to none after refusals, errors and clients that leave."""
    digest = hashlib.sha256(b"red").hexdigest()
    file = tmp_path / "tenants.toml"
    file.write_text(f'[[tenant]]\nname = "red"\nkey_sha256 = ["{digest}"]\nmax_calls_in_flight = 1\n')

    async def work():
        async with scene(1, speed=2.0, tenants=str(file)) as s:
            hello = [{"role": "user", "content": "Hello"}]
            leaving = asyncio.create_task(s.ask(hello, key="red", tokens=500))
            await asyncio.sleep(0.1)
            assert (await s.ask(hello, key="red"))[0] == 429
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            await asyncio.sleep(0.1)
            assert (await s.ask(hello, key="red", model="other"))[0] == 404
            assert (await s.ask(hello, key="red", max_tokens=-1))[0] == 400
            assert (await s.ask(hello, key="red"))[0] == 200
            assert s.gateway.tenants.in_flight("red") == 0
            assert s.gateway.scheduling.num_running == 0

    play(work)


def test_the_bad_and_the_unknown_get_errors_in_openais_shape(scene, play):
    """Malformed JSON, a missing model, an unknown path, a wrong method."""

    async def work():
        async with scene(1) as s:
            for method, path, body, status in (
                ("POST", "/v1/chat/completions", b"{", 400),
                ("POST", "/v1/chat/completions", b"{}", 400),
                ("GET", "/v1/chat/completions", b"", 405),
                ("GET", "/nowhere", b"", 404),
                ("GET", "/v1/models/other", b"", 404),
            ):
                async with s.http.request(method, s.gateway.url + path, data=body) as answer:
                    said = await answer.json()
                    assert (answer.status, path) == (status, path)
                    assert isinstance(said["error"]["message"], str)

    play(work)


def test_a_worker_that_comes_back_is_used_again(scene, play):
    """Down, then up on the same port: who came in between waits for it and is served."""

    async def work():
        async with scene(1) as s:
            engine = s.engines["e0"]
            port = int(engine.url.rpartition(":")[2])
            await engine.close()
            call = asyncio.create_task(s.ask([{"role": "user", "content": "Hello"}]))
            await asyncio.sleep(0.1)
            await engine.start(port=port)
            assert (await call)[0] == 200
            assert (await s.ask([{"role": "user", "content": "Hello"}]))[0] == 200

    play(work)
