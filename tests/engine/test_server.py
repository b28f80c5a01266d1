"""The engine's server seen by clients that nobody here wrote: the openai SDK, plain aiohttp, Prometheus' parser."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from openai import APIError, AsyncOpenAI, BadRequestError, NotFoundError
from prometheus_client.parser import text_string_to_metric_families

from saga.engine.answers import Chance, Script, Turn
from saga.engine.hardware import HARDWARE
from saga.engine.latency import ConstantLatency
from saga.engine.server import EngineServer, ServerSettings
from saga.errors import PeerError, UsageError

H100 = HARDWARE["llama3-8b-h100"]
MODEL = "llama3-8b-h100"
LONG = "A long system prompt that everybody shares, with rules and examples. " * 40
BASH: Any = {
    "type": "function",
    "function": {
        "name": "bash",
        "parameters": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
    },
}


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[EngineServer]:
    """A server that is closed afterwards and then holds to its laws."""
    server = EngineServer(ServerSettings(**{"hardware": H100, "speed": 200.0} | settings))
    await server.start()
    try:
        yield server
    finally:
        await server.close()
        server.engine.check()


@asynccontextmanager
async def sdk(server: EngineServer) -> AsyncIterator[AsyncOpenAI]:
    """The openai SDK pointed at it."""
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def with_sdk(scene: Callable[[EngineServer, AsyncOpenAI], Awaitable[None]], **settings: Any) -> None:
    """Run a scene with a server and a client."""

    async def run() -> None:
        async with serving(**settings) as server, sdk(server) as client:
            await scene(server, client)

    asyncio.run(run())


def user(text: str) -> Any:
    """One message."""
    return {"role": "user", "content": text}


async def get(url: str) -> tuple[int, str]:
    """Status and text of a GET."""
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        return response.status, await response.text()


async def post(url: str, data: bytes) -> tuple[int, Any]:
    """Status and JSON of a POST."""
    async with aiohttp.ClientSession() as http, http.post(url, data=data) as response:
        return response.status, await response.json(content_type=None)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it, two seconds at most."""
    async with asyncio.timeout(2.0):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)


def test_a_chat_streamed_or_not_says_the_same() -> None:
    """The same prompt gets the same words, as one object and as a stream with role, finish reason, usage and end."""

    async def scene(server: EngineServer, client: AsyncOpenAI) -> None:
        whole = await client.chat.completions.create(model=MODEL, messages=[user(LONG)], max_tokens=40)
        stream = await client.chat.completions.create(
            model=MODEL, messages=[user(LONG)], max_tokens=40, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert whole.choices[0].message.content == "".join(
            c.choices[0].delta.content or "" for c in chunks if c.choices
        )
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
        assert whole.usage is not None
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 40
        assert all(chunk.usage is None for chunk in chunks[:-1])
        assert len({chunk.id for chunk in chunks}) == 1

    with_sdk(scene)


def test_cached_tokens_grow_with_a_conversation() -> None:
    """The second turn finds the first prompt and its answer cached; another salt finds nothing."""

    async def scene(server: EngineServer, client: AsyncOpenAI) -> None:
        messages = [user(LONG)]

        async def ask(**extra: Any) -> tuple[str, int, int]:
            answer = await client.chat.completions.create(
                model=MODEL, messages=messages, max_tokens=64, extra_body={"ignore_eos": True, **extra}
            )
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            cached = answer.usage.prompt_tokens_details.cached_tokens
            return answer.choices[0].message.content or "", answer.usage.prompt_tokens, cached or 0

        text, first_prompt, first_cached = await ask()
        messages += [{"role": "assistant", "content": text}, user("Go on, please, and tell me more about it. " * 4)]
        _, _, second_cached = await ask()
        assert first_cached == 0
        assert first_prompt + 64 - 32 < second_cached <= first_prompt + 64
        _, _, salted = await ask(cache_salt="other")
        assert salted == 0

    with_sdk(scene)


def test_strangers_share_the_system_prompt_and_no_more() -> None:
    """Two conversations with one system prompt: the second finds just that."""

    async def scene(server: EngineServer, client: AsyncOpenAI) -> None:
        cached = []
        for name in ("Ann", "Bob"):
            answer = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "system", "content": LONG}, user(f"{name} asks. " * 50)], max_tokens=5
            )
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            cached.append(answer.usage.prompt_tokens_details.cached_tokens or 0)
        assert cached[0] == 0
        assert 0 <= len(LONG) // 4 + 16 - cached[1] < 32

    with_sdk(scene)


def test_tools_are_called_by_script_in_all_shapes() -> None:
    """Whole, streamed, and through the conversation: call, result, final answer."""
    script = Script((Turn(tool="bash", arguments={"command": "ls -la"}), Turn(answer="Finished.")))

    async def scene(server: EngineServer, client: AsyncOpenAI) -> None:
        messages = [user("List the files.")]
        whole = await client.chat.completions.create(model=MODEL, messages=messages, tools=[BASH])
        assert whole.choices[0].finish_reason == "tool_calls"
        call = whole.choices[0].message.tool_calls[0]  # type: ignore[index]
        assert (call.function.name, json.loads(call.function.arguments)) == ("bash", {"command": "ls -la"})  # type: ignore[union-attr]
        async with client.chat.completions.stream(model=MODEL, messages=messages, tools=[BASH]) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.tool_calls[0].function.arguments == call.function.arguments  # type: ignore[index, union-attr]
        messages += [
            whole.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "a.txt"},
        ]
        end = await client.chat.completions.create(model=MODEL, messages=messages, tools=[BASH])
        assert (end.choices[0].message.content, end.choices[0].finish_reason) == ("Finished.", "stop")

    with_sdk(scene, caller=script)


def test_tools_are_called_by_chance() -> None:
    """With probability 1 every answer that may call does; with `none` it does not."""

    async def scene(server: EngineServer, client: AsyncOpenAI) -> None:
        for choice, reason in (("auto", "tool_calls"), ("none", "stop")):
            answer = await client.chat.completions.create(
                model=MODEL, messages=[user("x")], tools=[BASH], tool_choice=choice
            )
            assert answer.choices[0].finish_reason == reason

    with_sdk(scene, caller=Chance(1.0))


def test_completions_take_text_and_token_ids() -> None:
    """Both prompts are answered; a stream ends like a whole answer."""

    async def scene(server: EngineServer, client: AsyncOpenAI) -> None:
        for prompt in ("Once upon a time", [1, 2, 3, 4]):
            answer = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=8)
            assert answer.usage is not None
            assert answer.usage.prompt_tokens == 4
            stream = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=8, stream=True)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == answer.choices[0].text

    with_sdk(scene)


def test_responses_are_stored_and_lead_on() -> None:
    """Whole and streamed; `previous_response_id` continues the conversation with its cache; an unknown one is a 404."""

    async def scene(server: EngineServer, client: AsyncOpenAI) -> None:
        first = await client.responses.create(model=MODEL, input=LONG, max_output_tokens=200)
        again = await client.responses.create(model=MODEL, input="More.", previous_response_id=first.id)
        assert (first.previous_response_id, again.previous_response_id) == (None, first.id)
        assert first.output_text
        assert again.usage is not None
        assert again.usage.input_tokens_details.cached_tokens > 600
        async with client.responses.stream(model=MODEL, input=LONG, max_output_tokens=200) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert final.output_text == first.output_text
        assert kinds[0] == "response.created"
        assert "response.output_text.delta" in kinds
        with pytest.raises(NotFoundError):
            await client.responses.create(model=MODEL, input="x", previous_response_id="resp_nobody")

    with_sdk(scene)


def test_responses_call_tools() -> None:
    """A function call item, whole and streamed; its output item is part of the next prompt."""
    tool: Any = {"type": "function", "name": "bash", "parameters": BASH["function"]["parameters"], "strict": False}

    async def scene(server: EngineServer, client: AsyncOpenAI) -> None:
        whole = await client.responses.create(model=MODEL, input="List.", tools=[tool])
        call = whole.output[-1]
        assert call.type == "function_call"
        async with client.responses.stream(model=MODEL, input="List.", tools=[tool]) as stream:
            final = await stream.get_final_response()
        assert final.output[-1].arguments == call.arguments  # type: ignore[union-attr]
        result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "a.txt"}]
        after = await client.responses.create(model=MODEL, input=result, previous_response_id=whole.id)
        assert after.status == "completed"

    with_sdk(scene, caller=Script((Turn(tool="bash", arguments={"command": "ls"}),)))


def test_messages_speak_anthropic() -> None:
    """Usage, stop reason, tool use and events have Anthropic's names, and the conversation is cached."""
    tool = {"name": "bash", "input_schema": BASH["function"]["parameters"]}
    body: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 400,
        "system": LONG,
        "messages": [user("List.")],
        "tools": [tool],
    }

    async def run() -> None:
        async with serving(caller=Script((Turn(tool="bash", arguments={"command": "ls"}),))) as server:
            url = f"{server.url}/v1/messages"
            status, whole = await post(url, json.dumps(body).encode())
            assert (status, whole["stop_reason"]) == (200, "tool_use")
            used = whole["content"][-1]
            assert (used["type"], used["input"]) == ("tool_use", {"command": "ls"})
            result = {"type": "tool_result", "tool_use_id": used["id"], "content": "a.txt"}
            more = body["messages"] + [
                {"role": "assistant", "content": whole["content"]},
                {"role": "user", "content": [result]},
            ]
            _, after = await post(url, json.dumps(body | {"messages": more}).encode())
            assert after["stop_reason"] == "end_turn"
            assert after["usage"]["cache_read_input_tokens"] > 600
            async with aiohttp.ClientSession() as http, http.post(url, json=body | {"stream": True}) as response:
                lines = (await response.text()).splitlines()
            names = [line[7:] for line in lines if line.startswith("event: ")]
            assert names[0] == "message_start"
            assert names[-1] == "message_stop"
            parts = [json.loads(line[6:]) for line in lines if "input_json_delta" in line]
            assert json.loads("".join(part["delta"]["partial_json"] for part in parts)) == {"command": "ls"}

    asyncio.run(run())


def test_a_client_that_leaves_frees_its_blocks() -> None:
    """Streaming or waiting for a whole answer: the call leaves the engine, holds nothing, counts as aborted."""

    async def run() -> None:
        async with serving(speed=1.0) as server:
            engine = server.engine
            body = {"messages": [user(LONG)], "max_tokens": 5_000, "ignore_eos": True}
            for stream in (True, False):
                asking = asyncio.create_task(
                    post(f"{server.url}/v1/chat/completions", json.dumps(body | {"stream": stream}).encode())
                )
                await until(lambda: engine.report()[0] == 1)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                await until(lambda: engine.report()[:3] == (0, 0, 0))
            engine.check()
            _, text = await get(f"{server.url}/metrics")
            assert 'finished_reason="abort",model_name="llama3-8b-h100"} 2.0' in text

    asyncio.run(run())


def test_metrics_have_vllm_names_and_count_what_happened() -> None:
    """What routers and dashboards read is there, under vLLM's names, labelled with the model."""
    counted = {
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:prompt_tokens_cached_by_source_total",
        "vllm:num_preemptions_total",
        "vllm:request_success_total",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:request_queue_time_seconds_sum",
        "vllm:time_to_first_token_seconds_count",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:cache_config_info",
    }

    async def scene(server: EngineServer, client: AsyncOpenAI) -> None:
        for _ in range(2):
            answer = await client.completions.create(model=MODEL, prompt=LONG, max_tokens=10)
        assert answer.usage is not None
        status, text = await get(f"{server.url}/metrics")
        assert status == 200
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        values = {sample.name: sample.value for sample in samples if sample.labels.get("model_name") == MODEL}
        assert counted <= {sample.name for sample in samples}
        assert values["vllm:prompt_tokens_total"] == 2 * answer.usage.prompt_tokens
        assert values["vllm:generation_tokens_total"] == 20
        assert 0 < values["vllm:prefix_cache_hits_total"] < answer.usage.prompt_tokens
        assert values["vllm:request_success_total"] == 2
        assert values["vllm:time_to_first_token_seconds_count"] == 2
        assert values["vllm:kv_cache_usage_perc"] == 0

    with_sdk(scene)


@pytest.mark.parametrize(("queue", "order"), [("priority", ["b", "a"]), ("fcfs", ["a", "b"])])
def test_lower_priority_numbers_run_first_where_the_queue_says_so(queue: str, order: list[str]) -> None:
    """With one place in the batch, two calls wait behind the first: by priority (body or header), or in turn."""
    ended: list[str] = []

    async def ask(url: str, name: str, *, header: int | None = None, body: int = 0) -> None:
        data = {"prompt": f"I am {name}", "max_tokens": 20, "ignore_eos": True, "priority": body}
        headers = {} if header is None else {"X-Vllm-Priority": str(header)}
        async with aiohttp.ClientSession() as http, http.post(url, json=data, headers=headers) as response:
            assert response.status == 200
        ended.append(name)

    async def run() -> None:
        constant = ConstantLatency(0.005)
        async with serving(queue=queue, max_running=1, chunk_tokens=64, latency=constant, speed=1.0) as server:
            url = f"{server.url}/v1/completions"
            calls = [asyncio.create_task(ask(url, "first"))]
            await until(lambda: server.engine.report()[0] == 1)
            calls.append(asyncio.create_task(ask(url, "a", body=5)))
            await until(lambda: server.engine.report()[1] == 1)
            calls.append(asyncio.create_task(ask(url, "b", header=-5)))
            await asyncio.gather(*calls)

    asyncio.run(run())
    assert ended == ["first", *order]


def test_tokens_arrive_in_real_time() -> None:
    """A stream shows tokens as they come: the engine still works on the call when the first ones are here."""

    async def run() -> None:
        async with serving(speed=1.0, latency=ConstantLatency(0.01)) as server, sdk(server) as client:
            stream = await client.completions.create(
                model=MODEL, prompt="x", max_tokens=30, stream=True, extra_body={"ignore_eos": True}
            )
            running = [server.engine.report()[0] async for _ in stream]
            assert len(running) > 2
            assert (running[0], running[-1]) == (1, 0)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/chat/completions", b"{", 400, "not JSON"),
        ("/v1/chat/completions", b"[]", 400, "must be a JSON object"),
        ("/v1/chat/completions", b"\xff\xfe", 400, "not JSON"),
        ("/v1/chat/completions", b"{}", 400, "messages"),
        ("/v1/chat/completions", b'{"messages": "hi"}', 400, "messages"),
        ("/v1/chat/completions", b'{"messages": [{"content": "x"}]}', 400, "role"),
        ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": 5}]}', 400, "content"),
        ("/v1/chat/completions", b'{"messages": [{"role": "user"}], "n": 2}', 400, "n must be 1"),
        ("/v1/chat/completions", b'{"messages": [{"role": "user"}], "max_tokens": 0}', 400, "max_tokens"),
        ("/v1/chat/completions", b'{"messages": [{"role": "user"}], "max_tokens": "9"}', 400, "max_tokens"),
        ("/v1/chat/completions", b'{"messages": [{"role": "user"}], "max_tokens": true}', 400, "max_tokens"),
        ("/v1/chat/completions", b'{"messages": [{"role": "user"}], "stream": 1}', 400, "stream"),
        ("/v1/chat/completions", b'{"messages": [{"role": "user"}], "vllm_xargs": {"a": {}}}', 400, "vllm_xargs.a"),
        ("/v1/chat/completions", b'{"messages": [{"role": "user"}], "max_tokens": 9000000}', 400, "maximum context"),
        ("/v1/chat/completions", b'{"messages": [{"role": "user"}], "model": "gpt-9"}', 404, "`gpt-9` does not exist"),
        ("/v1/completions", b'{"prompt": ["a", "b"]}', 400, "prompt"),
        ("/v1/messages", b'{"messages": [{"role": "user", "content": "x"}]}', 400, "max_tokens"),
        ("/v1/responses", b'{"input": [{"type": "nonsense"}]}', 400, "nonsense"),
        ("/v1/embeddings", b'{"input": 5}', 400, "input"),
        ("/v1/nothing", b"{}", 404, "Not Found"),
        ("/health", b"{}", 405, "Method Not Allowed"),
    ],
)
def test_errors_have_the_openai_shape(path: str, body: bytes, status: int, says: str) -> None:
    """The right status, a message that names what is wrong, and the engine untouched."""

    async def run() -> None:
        async with serving() as server:
            found, answer = await post(server.url + path, body)
            assert found == status
            assert says in answer["error"]["message"]
            assert answer["error"]["code"] == status
            assert {"type", "param"} <= answer["error"].keys()
            assert server.engine.report()[:2] == (0, 0)

    asyncio.run(run())


def test_the_sdk_knows_the_errors() -> None:
    """They arrive as the SDK's own exceptions, also where a context does not fit."""

    async def scene(server: EngineServer, client: AsyncOpenAI) -> None:
        with pytest.raises(NotFoundError):
            await client.completions.create(model="other", prompt="x")
        with pytest.raises(BadRequestError, match="maximum context length is 1000 tokens"):
            await client.completions.create(model=MODEL, prompt="word " * 2_000)
        answer = await client.completions.create(model=MODEL, prompt="word " * 700, max_tokens=100)
        assert answer.usage is not None

    with_sdk(scene, max_model_len=1_000)


def test_the_small_routes_answer() -> None:
    """Models, health, version, embeddings in both encodings, tokens counted."""

    async def scene(server: EngineServer, client: AsyncOpenAI) -> None:
        assert [model.id async for model in await client.models.list()] == ["mine"]
        assert (await get(f"{server.url}/health"))[0] == 200
        assert "saga" in (await get(f"{server.url}/version"))[1]
        packed = await client.embeddings.create(model="mine", input=["a", "b", "a"])
        plain = await client.embeddings.create(model="mine", input="a", encoding_format="float")
        vectors = [one.embedding for one in packed.data]
        assert vectors[0] == vectors[2] != vectors[1]
        assert vectors[0] == pytest.approx(plain.data[0].embedding)
        _, counted = await post(f"{server.url}/tokenize", b'{"prompt": "12345678"}')
        assert (counted["count"], len(counted["tokens"])) == (2, 2)

    with_sdk(scene, model="mine")


def test_a_session_is_named_by_body_header_or_xargs() -> None:
    """All three reach the engine as the owner of what is cached."""

    async def run() -> None:
        async with serving() as server, aiohttp.ClientSession() as http:
            url = f"{server.url}/v1/completions"
            await http.post(url, json={"prompt": "one" * 100, "session_id": "by-body"}, headers={"X-Session-ID": "no"})
            await http.post(url, json={"prompt": "two" * 100}, headers={"X-Session-ID": "by-header"})
            await http.post(url, json={"prompt": "six" * 100, "vllm_xargs": {"session_id": "by-xargs"}})
            assert set(server.engine.pool.owners) == {"by-body", "by-header", "by-xargs"}

    asyncio.run(run())


def test_closing_ends_what_is_under_way() -> None:
    """A server that closes during a stream leaves no call behind and the client is told."""

    async def run() -> None:
        server = EngineServer(ServerSettings(hardware=H100))
        await server.start()
        async with sdk(server) as client:
            stream = await client.completions.create(
                model=MODEL, prompt="x", max_tokens=9_000, stream=True, extra_body={"ignore_eos": True}
            )
            await anext(aiter(stream))
            await server.close()
            with pytest.raises(APIError):
                _ = [chunk async for chunk in stream]
        assert server.engine.report()[:3] == (0, 0, 0)

    asyncio.run(run())


def test_a_taken_port_is_the_peers_fault_and_bad_settings_are_the_callers() -> None:
    """Both say what is wrong."""

    async def run() -> None:
        async with serving() as server:
            port = int(server.url.rpartition(":")[2])
            with pytest.raises(PeerError, match=str(port)):
                await EngineServer(ServerSettings(hardware=H100)).start(port=port)

    asyncio.run(run())
    with pytest.raises(UsageError, match="speed"):
        ServerSettings(hardware=H100, speed=0)
    with pytest.raises(UsageError, match="max_model_len"):
        ServerSettings(hardware=H100, max_model_len=1)
