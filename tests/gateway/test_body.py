"""What is read of a body, and what is refused in which words."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.body import MAX_ITEMS, parse
from saga.gateway.contracts import Kind, Refused

KINDS = [Kind.CHAT, Kind.COMPLETIONS, Kind.RESPONSES, Kind.MESSAGES, Kind.EMBEDDINGS]
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def chat(**more):
    """A chat body."""
    return json.dumps({**HELLO, **more}).encode()


def refusal(body, kind=Kind.CHAT):
    """How the body is refused."""
    with pytest.raises(Refused) as refused:
        parse(kind, body)
    assert refused.value.status == 400
    assert refused.value.kind == "invalid_request_error"
    return refused.value


def test_what_scheduling_needs_is_read_and_the_rest_is_not_looked_at():
    """Model, stream, limits and extension fields are there; unknown fields of any type do not matter."""
    read = parse(Kind.CHAT, chat(stream=True, max_completion_tokens=50, user="u", temperature="hot", brand_new=[{}]))
    assert (read.model, read.stream, read.max_output_tokens, read.fields) == ("m", True, 50, {"user": "u"})
    assert read.asks_usage is None
    assert bytes(read.items[0].content) == b'"hello"'


@pytest.mark.parametrize(
    ("options", "asks"),
    [
        (None, None),
        ({}, False),
        ({"include_usage": True}, True),
        ({"include_usage": False}, False),
        ({"include_usage": None, "other": 1}, False),
    ],
)
def test_it_is_known_whether_usage_was_asked_for(options, asks):
    """stream_options that are absent or null leave it open; any object decides it."""
    assert parse(Kind.CHAT, chat(stream_options=options)).asks_usage is asks


def test_of_equal_keys_the_last_counts_as_in_engines():
    """A second `model` overrides the first here as in json.loads: nobody is routed by what the engine does not see."""
    body = b'{"model":"a","messages":[{"role":"user","content":"x"}],"model":"b"}'
    assert parse(Kind.CHAT, body).model == json.loads(body)["model"] == "b"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"", None, "invalid_json"),
        (b"{", None, "invalid_json"),
        (b"[1]", None, "invalid_type"),
        (b"null", None, "invalid_type"),
        (chat()[:-1] + b"}{}", None, "invalid_json"),
        (chat(temperature=float("nan")), None, "invalid_json"),
        (chat(temperature=float("inf")), None, "invalid_json"),
        (b'\xef\xbb\xbf{"model":"m"}', None, "invalid_json"),
        (b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}', None, "invalid_json"),
        (b'{"model":"m","ignored":"\xc3\x28","messages":[{"role":"user","content":""}]}', None, "invalid_json"),
        (b'{"model":"m","messages":[{"role":"user","content":"a\nb"}]}', None, "invalid_json"),
        (b'{"model":"m","messages":[{"role":"user","content":' + b"[" * 100_000, None, "invalid_json"),
        (b'{"x":' * 50_000, None, "invalid_json"),
        (b'{"messages":[{"role":"user","content":"x"}]}', "model", "missing_required_parameter"),
        (b'{"model":"","messages":[{"role":"user","content":"x"}]}', "model", "missing_required_parameter"),
        (b'{"model":7,"messages":[{"role":"user","content":"x"}]}', "model", "invalid_type"),
        (b'{"model":null,"messages":[{"role":"user","content":"x"}]}', "model", "invalid_type"),
        (chat(model="a\nb"), "model", "invalid_value"),
        (chat(model="x" * 600), "model", "invalid_value"),
        (b'{"model":"m"}', "messages", "missing_required_parameter"),
        (b'{"model":"m","messages":[]}', "messages", "invalid_value"),
        (b'{"model":"m","messages":"hello"}', "messages", "invalid_type"),
        (b'{"model":"m","messages":["hello"]}', "messages[0]", "invalid_type"),
        (b'{"model":"m","messages":[{"role":7}]}', "messages[0].role", "invalid_type"),
        (b'{"model":"m","messages":[{"content":"x"}]}', "messages[0].role", "missing_required_parameter"),
        (chat(stream="yes"), "stream", "invalid_type"),
        (chat(max_tokens="many"), "max_tokens", "invalid_type"),
        (chat(max_tokens=-1), "max_tokens", "invalid_value"),
        (chat(max_tokens=1.5), "max_tokens", "invalid_value"),
        (chat(stream_options=[1]), "stream_options", "invalid_type"),
    ],
)
def test_bad_chats_are_refused_with_the_parameter_named(body, param, code):
    """Each bad body gets a 400 that names the parameter, in the place and the words of OpenAI."""
    refused = refusal(body)
    assert (refused.param, refused.code) == (param, code)
    assert refused.message


@pytest.mark.parametrize(
    ("kind", "body", "param"),
    [
        (Kind.COMPLETIONS, {"model": "m"}, "prompt"),
        (Kind.COMPLETIONS, {"model": "m", "prompt": None}, "prompt"),
        (Kind.COMPLETIONS, {"model": "m", "prompt": {"text": "x"}}, "prompt"),
        (Kind.RESPONSES, {"model": "m"}, "input"),
        (Kind.RESPONSES, {"model": "m", "input": 7}, "input"),
        (Kind.RESPONSES, {"model": "m", "input": [7]}, "input[0]"),
        (Kind.RESPONSES, {"model": "m", "input": "x", "previous_response_id": 7}, "previous_response_id"),
        (Kind.MESSAGES, {"model": "m", "max_tokens": 10}, "messages"),
        (Kind.EMBEDDINGS, {"model": "m"}, "input"),
    ],
)
def test_bad_bodies_of_the_other_kinds_are_refused_too(kind, body, param):
    """The parameter that is wrong or missing is named for every route."""
    assert refusal(json.dumps(body).encode(), kind).param == param


def test_forms_of_a_completion():
    """A string or one list of tokens is one prompt; a list of prompts is a batch, which no session owns."""
    for prompt, single in (("text", True), ([1, 2, 3], True), (["a", "b"], False), ([[1], [2]], False), ([], False)):
        body = json.dumps({"model": "m", "prompt": prompt}).encode()
        assert parse(Kind.COMPLETIONS, body).single is single


def test_forms_of_a_response():
    """A string is one user's message; a list of items is split; a stored response may go on without input."""
    assert parse(Kind.RESPONSES, b'{"model":"m","input":"hi"}').items[0].role == "user"
    items = [{"type": "function_call_output", "call_id": "c", "output": "x"}, {"role": "user", "content": "y"}]
    read = parse(Kind.RESPONSES, json.dumps({"model": "m", "input": items, "store": False}).encode())
    assert [item.type for item in read.items] == ["function_call_output", ""]
    assert read.store is False
    assert parse(Kind.RESPONSES, b'{"model":"m","previous_response_id":"r"}').previous_response_id == "r"


def test_ten_thousand_messages_are_taken_and_far_too_many_are_not():
    """The number of messages is bounded, well above what anybody sends."""
    message = {"role": "user", "content": "x"}
    many = json.dumps({"model": "m", "messages": [message] * 10_000}).encode()
    assert len(parse(Kind.CHAT, many).items) == 10_000
    too_many = json.dumps({"model": "m", "messages": [message] * (MAX_ITEMS + 1)}).encode()
    assert refusal(too_many).param == "messages"


def test_an_extension_too_large_to_be_a_name_is_left_out():
    """Metadata of a megabyte is passed through and not decoded."""
    assert "metadata" not in parse(Kind.CHAT, chat(metadata={"x": "y" * 100_000})).fields


@given(st.sampled_from(KINDS), st.binary(max_size=400))
def test_arbitrary_bytes_are_parsed_or_refused(kind, body):
    """No bytes raise anything but Refused."""
    with suppress(Refused):
        parse(kind, body)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    *("model", "messages", "prompt", "input", "system", "instructions", "tools", "stream", "stream_options"),
    *("max_tokens", "max_completion_tokens", "previous_response_id", "store", "metadata", "saga", "nvext", "user"),
]


@given(
    st.sampled_from(KINDS),
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=8),
    st.lists(st.dictionaries(st.sampled_from(["role", "type", "content", "tool_calls", "output"]), values, max_size=4)),
)
def test_arbitrary_values_in_known_fields_are_parsed_or_refused(kind, fields, messages):
    """Any JSON in any known field is taken or refused with a 400, never anything else."""
    body = {"model": "m", "messages": messages, "input": messages, "prompt": "x", **fields}
    with suppress(Refused):
        read = parse(kind, json.dumps(body).encode("utf-8", "replace"))
        assert isinstance(read.model, str)
