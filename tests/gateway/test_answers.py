"""What is seen in answers of all formats, however their bytes are cut."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.answers import MAX_UNARY_BYTES, StreamWatcher, TokenEstimator, UnaryWatcher, watch, watch_answer
from saga.gateway.contracts import Answer, Call, Kind, Request

CHAT_USAGE = {
    "prompt_tokens": 120,
    "completion_tokens": 30,
    "total_tokens": 150,
    "prompt_tokens_details": {"cached_tokens": 96},
}


def sse(*events, end="\n\n", named=False):
    """A stream of these events."""
    lines = []
    for event in events:
        data = event if isinstance(event, str) else json.dumps(event)
        name = f"event: {event['type']}{end[: len(end) // 2]}" if named and isinstance(event, dict) else ""
        lines.append(f"{name}data: {data}{end}")
    return "".join(lines).encode()


def chunk(index=0, finish=None, **delta):
    """A chunk of a streamed chat."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}


def tool_delta(index, name=None, arguments=None):
    """A piece of a streamed tool call."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"tool_calls": [{"index": index, **({"id": "c", "type": "function"} if name else {}), "function": function}]}


CHAT_STREAM = sse(
    chunk(role="assistant", content=""),
    chunk(content="Let me "),
    chunk(content="look."),
    chunk(**tool_delta(0, "Bash", "")),
    chunk(**tool_delta(0, None, '{"comm')),
    chunk(**tool_delta(0, None, 'and": "git log"}')),
    chunk(**tool_delta(1, "Read", '{"path": "x"}')),
    chunk(index=1, content="another sample"),
    chunk(finish="tool_calls"),
    {"id": "chatcmpl-1", "choices": [], "usage": CHAT_USAGE},
    "[DONE]",
)
RESPONSE_STREAM = sse(
    {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress", "output": [], "usage": None}},
    {"type": "response.output_item.added", "item": {"type": "message", "content": []}},
    {"type": "response.output_text.delta", "item_id": "m", "delta": "Let me look."},
    {
        "type": "response.output_item.done",
        "item": {"type": "message", "content": [{"type": "output_text", "text": "Let me look."}]},
    },
    {"type": "response.output_item.added", "item": {"type": "function_call", "name": "shell", "arguments": ""}},
    {"type": "response.function_call_arguments.delta", "delta": '{"command":["git","log"]}'},
    {
        "type": "response.output_item.done",
        "item": {"type": "function_call", "name": "shell", "arguments": '{"command":["git","log"]}'},
    },
    {
        "type": "response.completed",
        "response": {
            "id": "resp_1",
            "status": "completed",
            "output": [{"type": "function_call", "name": "shell", "arguments": "{}"}],
            "usage": {
                "input_tokens": 120,
                "input_tokens_details": {"cached_tokens": 96},
                "output_tokens": 30,
                "output_tokens_details": {"reasoning_tokens": 3},
            },
        },
    },
    named=True,
)
MESSAGE_STREAM = sse(
    {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "type": "message",
            "content": [],
            "stop_reason": None,
            "usage": {
                "input_tokens": 4,
                "cache_read_input_tokens": 96,
                "cache_creation_input_tokens": 20,
                "output_tokens": 1,
            },
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Let me look."}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "name": "Bash", "input": {}}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"command":'}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": ' "git log"}'}},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 30}},
    {"type": "message_stop"},
    named=True,
)
COMPLETION_STREAM = sse(
    {"object": "text_completion", "choices": [{"index": 0, "text": "Let me ", "finish_reason": None}]},
    {"object": "text_completion", "choices": [{"index": 0, "text": "look.", "finish_reason": "stop"}]},
    {"object": "text_completion", "choices": [], "usage": CHAT_USAGE},
    "[DONE]",
)
STREAMS = {
    Kind.CHAT: (CHAT_STREAM, ("Bash:git", "Read"), "tool_calls", None),
    Kind.COMPLETIONS: (COMPLETION_STREAM, (), "stop", None),
    Kind.RESPONSES: (RESPONSE_STREAM, ("shell:git",), "completed", "resp_1"),
    Kind.MESSAGES: (MESSAGE_STREAM, ("Bash:git",), "tool_use", "msg_1"),
}
UNARY = {
    Kind.CHAT: {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Let me look.",
                    "tool_calls": [
                        {"id": "a", "function": {"name": "Bash", "arguments": '{"command": "git log"}'}},
                        {"id": "b", "function": {"name": "Read", "arguments": "{}"}},
                    ],
                },
                "finish_reason": "tool_calls",
            }
        ],
        "usage": CHAT_USAGE,
    },
    Kind.COMPLETIONS: {
        "object": "text_completion",
        "choices": [{"index": 0, "text": "Let me look.", "finish_reason": "stop"}],
        "usage": CHAT_USAGE,
    },
    Kind.RESPONSES: {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "error": None,
        "output": [
            {"type": "message", "content": [{"type": "output_text", "text": "Let me look."}]},
            {"type": "function_call", "name": "shell", "arguments": '{"command":["git","log"]}'},
        ],
        "usage": {"input_tokens": 120, "input_tokens_details": {"cached_tokens": 96}, "output_tokens": 30},
    },
    Kind.MESSAGES: {
        "id": "msg_1",
        "type": "message",
        "content": [
            {"type": "text", "text": "Let me look."},
            {"type": "tool_use", "id": "t", "name": "Bash", "input": {"command": "git log"}},
        ],
        "stop_reason": "tool_use",
        "usage": {
            "input_tokens": 4,
            "cache_read_input_tokens": 96,
            "cache_creation_input_tokens": 20,
            "output_tokens": 30,
        },
    },
}


def seen(watcher, *chunks):
    """What a watcher saw in these bytes."""
    for part in chunks:
        watcher.feed(part)
    return watcher.close()


def expected(kind, num_bytes):
    """What is in each of the examples above."""
    _, tools, finish, response_id = STREAMS[kind]
    return Answer(
        prompt_tokens=120,
        output_tokens=30,
        cached_tokens=96,
        tool_calls=tools,
        finish_reason=finish,
        response_id=response_id,
        complete=True,
        text="Let me look.",
        num_bytes=num_bytes,
    )


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_says_tokens_tools_and_its_end(kind):
    """Each format's stream yields the engine's count, the tools with a shell's first word, and how it ended."""
    stream = STREAMS[kind][0]
    assert seen(StreamWatcher(kind), stream) == expected(kind, len(stream))


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_byte_may_come_alone(kind, end):
    """Cut after every byte, with any line ending, the same is seen."""
    stream = STREAMS[kind][0].replace(b"\n", end)
    assert seen(StreamWatcher(kind), *(stream[i : i + 1] for i in range(len(stream)))) == expected(kind, len(stream))


@given(st.sampled_from(sorted(STREAMS)), st.lists(st.integers(0, 3_000), max_size=12))
def test_cuts_do_not_matter(kind, cuts):
    """Wherever a stream is cut, the same is seen."""
    stream = STREAMS[kind][0]
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    parts = [stream[a:b] for a, b in pairwise(bounds)]
    assert seen(StreamWatcher(kind), *parts) == expected(kind, len(stream))


@pytest.mark.parametrize("kind", UNARY)
def test_a_unary_answer_says_the_same(kind):
    """Whole or in pieces, a unary answer yields what its stream would."""
    body = json.dumps(UNARY[kind]).encode()
    assert seen(UnaryWatcher(kind), body) == expected(kind, len(body))
    assert seen(UnaryWatcher(kind), body[:100], body[100:101], body[101:]) == expected(kind, len(body))


@pytest.mark.parametrize("kind", STREAMS)
def test_a_broken_stream_is_not_complete(kind):
    """A stream that stops before its end says so, with what it had until then."""
    stream = STREAMS[kind][0]
    answer = seen(StreamWatcher(kind), stream[: len(stream) // 3])
    assert not answer.complete


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.CHAT, {"error": {"message": "no", "type": "BadRequestError", "param": None, "code": 400}}),
        (Kind.CHAT, {"object": "error", "message": "no", "code": 400}),
        (Kind.RESPONSES, {"id": "r", "status": "failed", "error": {"code": "server_error"}}),
        (Kind.MESSAGES, {"type": "error", "error": {"type": "overloaded_error"}}),
    ],
)
def test_errors_are_seen_in_bodies_and_streams(kind, body):
    """An error is one whether it comes at once, with a status, or in the middle of a stream."""
    raw = json.dumps(body).encode()
    assert seen(UnaryWatcher(kind), raw).error
    assert not seen(UnaryWatcher(kind), raw).complete
    event = {"type": "response.failed", "response": body} if kind is Kind.RESPONSES else body
    answer = seen(StreamWatcher(kind), sse(event, "[DONE]"))
    assert (answer.error, answer.complete) == (True, False)
    assert seen(watch(kind, stream=True, status=503), b"oops").error


def test_a_truncated_unary_body_is_not_complete_but_its_usage_counts():
    """Where the body cannot be read whole, usage near its end is still found."""
    answer = seen(UnaryWatcher(Kind.CHAT), json.dumps(UNARY[Kind.CHAT]).encode()[5:])
    assert (answer.complete, answer.prompt_tokens, answer.cached_tokens) == (False, 120, 96)


def test_a_huge_unary_body_is_not_kept():
    """Above the bound only the end is kept: memory stays small and the usage is seen."""
    watcher = UnaryWatcher(Kind.CHAT)
    body = {**UNARY[Kind.CHAT], "usage": None}
    body["choices"] = [{"index": 0, "message": {"content": "x" * (MAX_UNARY_BYTES + 1_000)}, "finish_reason": "stop"}]
    del body["usage"]
    raw = json.dumps({**body, "usage": CHAT_USAGE}).encode()
    for start in range(0, len(raw), 65_536):
        watcher.feed(raw[start : start + 65_536])
        assert sum(map(len, watcher._parts)) <= MAX_UNARY_BYTES + 65_536
    answer = watcher.close()
    assert (answer.prompt_tokens, answer.output_tokens, answer.complete) == (120, 30, True)


def test_a_long_text_keeps_its_two_ends():
    """Of a very long answer the beginning and the end are known, and nothing grows with it."""
    watcher = StreamWatcher(Kind.CHAT)
    for number in range(20_000):
        watcher.feed(sse(chunk(content=f"{number} ")))
    text = watcher.close().text
    assert len(text) <= 4_096
    assert text.startswith("0 1 2 ")
    assert text.endswith("19998 19999 ")


def test_a_line_without_end_is_skipped():
    """An event larger than the bound is dropped, the next one is read."""
    watcher = StreamWatcher(Kind.CHAT)
    for _ in range(80):
        watcher.feed(b"x" * 65_536)
        assert len(watcher._open) <= MAX_UNARY_BYTES + 65_536
    watcher.feed(b"\n" + CHAT_STREAM)
    assert watcher.close().tool_calls == ("Bash:git", "Read")


def test_absurd_counts_are_not_believed():
    """Negative, enormous or mistyped usage is as good as none."""
    for usage in ({"prompt_tokens": -5}, {"prompt_tokens": 2**60}, {"prompt_tokens": "many"}, {"prompt_tokens": None}):
        body = {"choices": [], "usage": usage}
        assert seen(UnaryWatcher(Kind.CHAT), json.dumps(body).encode()).prompt_tokens is None


def test_embeddings_are_not_parsed_but_counted():
    """A body of vectors is watched for its usage only."""
    body = {"data": [{"embedding": [0.5] * 50_000}], "usage": {"prompt_tokens": 7, "total_tokens": 7}}
    answer = seen(UnaryWatcher(Kind.EMBEDDINGS), json.dumps(body).encode())
    assert (answer.prompt_tokens, answer.complete) == (7, True)


@given(st.sampled_from(list(Kind)), st.booleans(), st.lists(st.binary(max_size=200), max_size=5))
def test_no_bytes_make_a_watcher_raise(kind, stream, chunks):
    """Whatever a worker sends, the watcher sees what it can."""
    answer = seen(watch(kind, stream=stream), *chunks)
    assert answer.num_bytes == sum(map(len, chunks))


def test_the_content_type_says_whether_it_is_a_stream():
    """What the worker sends decides, not what was asked for."""
    call = Call(Kind.CHAT, Request("POST", "/", "/", [], b""), "t", "s", "k", "1", stream=True)
    assert isinstance(watch_answer(call, 200, [(b"content-type", b"Text/Event-Stream; charset=utf-8")]), StreamWatcher)
    assert isinstance(watch_answer(call, 200, [(b"content-type", b"application/json")]), UnaryWatcher)
    assert isinstance(watch_answer(call, 500, [(b"content-type", b"text/event-stream")]), UnaryWatcher)


def test_bytes_per_token_are_learned_per_model():
    """The estimate starts at 4 bytes a token, approaches what is counted, and keeps models apart."""
    estimator = TokenEstimator()
    assert estimator.tokens("m", 400) == 100
    for _ in range(200):
        estimator.learn("m", 3_000, 1_000)
    assert estimator.bytes_per_token("m") == pytest.approx(3.0)
    assert estimator.bytes_per_token("other") == 4.0
    assert estimator.tokens("m", 0) == 1


def test_absurd_ratios_are_not_learned_and_models_are_bounded():
    """A count that cannot be is left out; only so many models are kept."""
    estimator = TokenEstimator(max_models=4)
    estimator.learn("m", 1_000_000, 1)
    estimator.learn("m", 10, 0)
    estimator.learn("m", 10, 10_000)
    assert estimator.bytes_per_token("m") == 4.0
    for number in range(20):
        estimator.learn(f"m{number}", 200, 100)
    assert len(estimator._ratios) == 4
