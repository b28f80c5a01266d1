"""What the `openai` client sees through a whole gateway: every call of its own API, its helpers, errors and retries."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter

import openai
import pytest

from saga.engine.answers import Chance
from saga.engine.hardware import hardware
from saga.engine.server import EngineServer, ServerSettings

MODEL = "llama3-8b-h100"
HELLO = [{"role": "user", "content": "Hello"}]
SHELL = {
    "type": "function",
    "function": {
        "name": "shell",
        "description": "Run a command.",
        "parameters": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
    },
}


async def _calling_engines(number: int) -> dict[str, EngineServer]:
    """Engines whose answers always call one of the tools offered."""
    settings = ServerSettings(hardware=hardware(MODEL), speed=200.0, caller=Chance(1.0), step_s=0.005)
    engines = {f"e{i}": EngineServer(settings) for i in range(number)}
    for engine in engines.values():
        await engine.start()
    return engines


def test_an_agent_with_tools_stays_where_it_is(scene, play):
    """Chat with tool calls, streamed and not: ids and arguments arrive whole, the session never moves."""

    async def work():
        engines = await _calling_engines(3)
        async with scene(engines=engines) as s, s.client() as client:
            workers, sessions = set(), set()
            messages = [{"role": "system", "content": "You are an agent."}, *HELLO]
            for turn in range(4):
                asked = {"model": MODEL, "messages": messages, "tools": [SHELL], "max_tokens": 80}
                if turn % 2:
                    async with client.chat.completions.stream(**asked) as stream:
                        async for _ in stream:
                            pass
                        message = (await stream.get_final_completion()).choices[0].message
                else:
                    raw = await client.chat.completions.with_raw_response.create(**asked)
                    workers.add(raw.headers["x-saga-worker"])
                    sessions.add(raw.headers["x-saga-session"])
                    completion = raw.parse()
                    assert completion.choices[0].finish_reason == "tool_calls"
                    message = completion.choices[0].message
                call = message.tool_calls[0]
                assert (call.type, call.function.name) == ("function", "shell")
                assert call.function.arguments.endswith("}")
                messages.append(message.model_dump(exclude_none=True))
                messages.append({"role": "tool", "tool_call_id": call.id, "content": f"result {turn}"})
            assert (len(workers), len(sessions)) == (1, 1)
            counted = s.gateway.scheduling.pools.model.kinds()
            assert counted
        for engine in engines.values():
            await engine.close()

    play(work)


def test_responses_and_what_they_are_followed_by(scene, play):
    """The Responses API, streamed and not; `previous_response_id` leads back to the worker that stored it."""

    async def work():
        async with scene(3) as s, s.client() as client:
            for _ in range(4):
                first = await client.responses.create(model=MODEL, input="Hello", max_output_tokens=16)
                assert first.output_text
                raw = await client.responses.with_raw_response.create(
                    model=MODEL, input="And then?", previous_response_id=first.id, max_output_tokens=16
                )
                second = raw.parse()
                assert second.previous_response_id == first.id
                assert second.usage.input_tokens > first.usage.input_tokens
            async with client.responses.stream(model=MODEL, input="Hello") as stream:
                kinds = [event.type async for event in stream]
                final = await stream.get_final_response()
            assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
            assert final.status == "completed"
            with pytest.raises(openai.NotFoundError):
                await client.responses.create(model=MODEL, input="x", previous_response_id="resp_nobody_knows")

    play(work)


def test_completions_embeddings_and_models(scene, play):
    """The older and the smaller parts of the API."""

    async def work():
        async with scene() as s, s.client() as client:
            completion = await client.completions.create(model=MODEL, prompt="Once", max_tokens=5)
            assert completion.usage.completion_tokens == 5
            parts = [c async for c in await client.completions.create(model=MODEL, prompt="Once", stream=True)]
            assert "".join(c.choices[0].text for c in parts if c.choices)
            embeddings = await client.embeddings.create(model=MODEL, input=["one", "two"])
            assert [item.index for item in embeddings.data] == [0, 1]
            assert embeddings.data[0].embedding != embeddings.data[1].embedding
            assert (await client.models.retrieve(MODEL)).id == MODEL

    play(work)


def test_each_refusal_is_the_error_that_the_client_has_for_it(scene, play, tmp_path):
    """Status, type, code and message reach the classes that programs catch."""
    file = tmp_path / "tenants.toml"
    file.write_text(f'[[tenant]]\nname = "red"\nkey_sha256 = ["{hashlib.sha256(b"red").hexdigest()}"]\n')

    async def work():
        async with scene(1, tenants=str(file)) as s, s.client("red") as client, s.client("blue") as stranger:
            asked = {"model": MODEL, "messages": HELLO}
            with pytest.raises(openai.AuthenticationError) as refused:
                await stranger.chat.completions.create(**asked)
            assert (refused.value.status_code, refused.value.code) == (401, "invalid_api_key")
            with pytest.raises(openai.NotFoundError) as refused:
                await client.chat.completions.create(**asked | {"model": "other"})
            assert refused.value.code == "model_not_found"
            with pytest.raises(openai.BadRequestError, match="max_tokens"):
                await client.chat.completions.create(**asked, max_tokens=-1)
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(**asked | {"messages": "no list"})
            with pytest.raises(openai.NotFoundError):
                await client.files.list()
            assert (await client.chat.completions.create(**asked, max_tokens=2)).usage.completion_tokens == 2

    play(work)


def test_its_own_retries_get_through_a_full_queue(scene, play):
    """Refused with 429 and Retry-After at first, served in the end, and each call answered once."""

    async def work():
        limits = {"max_queue": 0}
        async with scene(1, speed=100.0, kv_tokens=2_000, scheduling=limits) as s:
            seen = Counter()

            async def note(response):
                seen[response.status_code] += 1
                if response.status_code == 429:
                    assert float(response.headers["retry-after"]) >= 1

            http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [note]})
            async with s.client(http_client=http).with_options(max_retries=5) as client:
                long = [{"role": "user", "content": "many words " * 600}]
                calls = [
                    client.chat.completions.create(
                        model=MODEL,
                        messages=long,
                        max_tokens=60,
                        extra_headers={"x-saga-session": f"s{i}", "x-saga-final": "true"},
                        extra_body={"ignore_eos": True},
                    )
                    for i in range(2)
                ]
                answers = await asyncio.gather(*calls)
            assert [answer.usage.completion_tokens for answer in answers] == [60, 60]
            assert seen[200] == 2
            assert seen[429] >= 1
            assert s.gateway.scheduling.num_running == 0

    play(work)


def test_a_client_that_gives_up_leaves_nothing_behind(scene, play):
    """Its own timeout, and a stream closed in the middle: the engine is told, the session goes on."""

    async def work():
        async with scene(1, speed=1.0) as s, s.client(default_headers={"x-saga-session": "one"}) as client:
            asked = {"model": MODEL, "messages": HELLO, "max_tokens": 5_000, "extra_body": {"ignore_eos": True}}
            with pytest.raises(openai.APITimeoutError):
                await client.chat.completions.create(**asked, timeout=0.3)
            stream = await client.chat.completions.create(**asked, stream=True)
            async for _ in _first(stream, 3):
                pass
            await stream.close()
            await asyncio.sleep(0.2)
            assert s.gateway.scheduling.num_running == 0
            answer = await client.chat.completions.create(**asked | {"max_tokens": 2})
            assert answer.usage.completion_tokens == 2

    play(work)


async def _first(stream, number):
    """The first few of an asynchronous stream."""
    for _ in range(number):
        yield await anext(stream)


def test_the_client_that_blocks_works_as_well(scene, play):
    """`openai.OpenAI` in threads: connections are kept and used again, text of all the world arrives as it was sent."""

    async def work():
        async with scene(2) as s:
            with openai.OpenAI(base_url=f"{s.gateway.url}/v1", api_key="none", max_retries=0) as client:

                def ask(text: str) -> int:
                    chat = [{"role": "user", "content": text}]
                    whole = client.chat.completions.create(model=MODEL, messages=chat, max_tokens=4)
                    parts = client.chat.completions.create(model=MODEL, messages=chat, max_tokens=4, stream=True)
                    assert whole.choices[0].message.content == "".join(p.choices[0].delta.content or "" for p in parts)
                    return whole.usage.completion_tokens

                texts = ("Grüße", "你好", "\U0001f680 \\u0000", "x" * 300_000)
                answers = await asyncio.gather(*(asyncio.to_thread(ask, text) for text in texts))
            assert answers == [4] * 4

    play(work)
