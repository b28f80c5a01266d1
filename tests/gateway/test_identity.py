"""Whose call it is, from the bytes of a request to the names that the scheduler sees."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.contracts import MAX_CLASS, Answer, Kind, Refused, Request, kind_of
from saga.gateway.identity import GatewayIdentity
from saga.gateway.reading import with_fields
from saga.gateway.settings import IdentitySettings
from saga.gateway.tenants import Tenants
from saga.wire import DEFAULT

SYSTEM = {"role": "system", "content": "You are a careful engineer. " * 40}
DONE = Answer(prompt_tokens=100, output_tokens=10, complete=True, text="ok")
PATHS = {
    "/v1/chat/completions": Kind.CHAT,
    "/v1/completions": Kind.COMPLETIONS,
    "/v1/responses": Kind.RESPONSES,
    "/v1/messages": Kind.MESSAGES,
    "/v1/embeddings": Kind.EMBEDDINGS,
}


def user(text):
    """A user's message."""
    return {"role": "user", "content": text}


def request(body=None, headers=None, path="/v1/chat/completions", method="POST"):
    """A request as the front hands it over."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    return Request(
        method, path, path, [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()], raw
    )


def chat(*messages, **more):
    """A chat body."""
    return {"model": "m", "messages": list(messages) or [SYSTEM, user("hello")], **more}


@pytest.fixture
def identity():
    """A gateway without keys."""
    return GatewayIdentity(settings=IdentitySettings(secret=b"test"))


@pytest.fixture
def keyed(tmp_path):
    """A gateway with two tenants, one of which is salted and limited."""
    path = tmp_path / "tenants.toml"
    hashes = {key: hashlib.sha256(key.encode()).hexdigest() for key in ("sk-a", "sk-b")}
    path.write_text(
        f'[[tenant]]\nname = "a"\nkey_sha256 = "{hashes["sk-a"]}"\n'
        f'[[tenant]]\nname = "b"\nkey_sha256 = "{hashes["sk-b"]}"\ncache_salt = true\nmax_calls_in_flight = 1\n'
        "may_go_first = true\n"
    )
    return GatewayIdentity(Tenants(path), settings=IdentitySettings(secret=b"test"))


def as_tenant(key, **headers):
    """Headers with a key."""
    return {"Authorization": f"Bearer {key}", **headers}


def test_routes_have_kinds():
    """Only POSTs to the known paths are calls; everything else is passed through."""
    assert {path: kind_of("POST", path) for path in PATHS} == PATHS
    assert kind_of("GET", "/v1/responses") is Kind.OTHER
    assert kind_of("POST", "/v1/messages/count_tokens") is Kind.OTHER
    assert kind_of("GET", "/v1/models") is Kind.OTHER


def test_a_call_has_everything_that_the_scheduler_asks_for(identity):
    """Names inside the tenant, estimates by bytes, hints, limits: nothing is left at its default by mistake."""
    headers = {
        "X-Saga-Session": "abc",
        "X-Saga-Task": "job",
        "X-Saga-Parent-Session": "lead",
        "X-Saga-Workflow": "coding",
        "X-Saga-Deadline-S": "60",
        "X-Saga-Final": "1",
    }
    call = identity.identify(request(chat(stream=True, max_tokens=77), headers), 1_000.0)
    assert (call.kind, call.tenant, call.model, call.stream) == (Kind.CHAT, "default", "m", True)
    assert (call.session, call.task, call.parent) == ("default/abc", "default/job", "default/lead")
    assert (call.workflow, call.deadline_s, call.final) == ("default/coding", 1_060.0, True)
    assert (call.max_output_tokens, call.retryable, call.pinned, call.retry_of) == (77, True, "", "")
    assert call.hints is not None
    assert call.hints.final is True
    assert 250 < call.prompt_tokens < 350
    assert 250 < call.prefix_tokens < call.prompt_tokens
    assert call.prefix != ""
    assert call.gap_kind == "user"


def test_a_tool_result_ends_a_tool_gap(identity):
    """What the last message is says what the session was waiting for."""
    messages = [user("x"), {"role": "assistant", "content": "y"}, {"role": "tool", "content": "z", "tool_call_id": "1"}]
    assert identity.identify(request(chat(*messages)), 0.0).gap_kind == "tool"


def test_64_agents_keep_a_session_each_without_any_key(identity):
    """The affinity probe: 64 agents, 6 turns, one system prompt of 25 KB, no key; 64 sessions, all of one prefix."""
    system = {"role": "system", "content": "rules " * 4_200}
    agents = [[system, user(f"task {agent}")] for agent in range(64)]
    sessions = [set() for _ in agents]
    prefixes = set()
    for turn in range(6):
        calls = [identity.identify(request(chat(*messages)), float(turn)) for messages in agents]
        for call, messages, names in zip(calls, agents, sessions, strict=True):
            names.add(call.session)
            prefixes.add((call.prefix, call.workflow))
            identity.answered(call, DONE, turn + 0.5)
            messages += [{"role": "assistant", "content": "ok"}, user(f"go on {turn}")]
    assert [len(names) for names in sessions] == [1] * 64
    assert len(set.union(*sessions)) == 64
    assert len(prefixes) == 1


KEYS = {
    "saga": lambda name: ({"X-Saga-Session": name}, {}),
    "dynamo": lambda name: ({"X-Dynamo-Session-ID": name}, {}),
    "agentic_context": lambda name: ({}, {"vllm_xargs": {"agentic_context": json.dumps({"program_id": name})}}),
    "agent_hint": lambda name: ({}, {"agent_hint": {"session_id": name}}),
    "claude-code": lambda name: ({"X-Claude-Code-Session-Id": name}, {}),
    "codex": lambda name: ({"session-id": name, "thread-id": name}, {"prompt_cache_key": name}),
    "litellm": lambda name: ({"x-litellm-session-id": name}, {}),
    "grok": lambda name: ({"x-grok-conv-id": name}, {}),
    "session-headers": lambda name: ({"X-Session-ID": name, "X-Session-Affinity": name}, {}),
    "vllm": lambda name: ({}, {"session_id": name}),
    "sglang": lambda name: ({}, {"session_params": {"id": name}}),
    "openai": lambda name: ({}, {"conversation": {"id": name}}),
    "smg-routing-key": lambda name: ({"X-SMG-Routing-Key": name}, {}),
    "prompt_cache_key": lambda name: ({}, {"prompt_cache_key": name}),
    "user": lambda name: ({}, {"user": name}),
}


def test_every_convention_that_names_sessions_has_a_key_here():
    """The table above is complete."""
    naming = {c.name for c in DEFAULT if any(field.what in ("session", "group") for field in c.fields)}
    assert set(KEYS) == naming


@pytest.mark.parametrize("convention", KEYS)
def test_agents_with_keys_keep_a_session_each(identity, convention):
    """With each convention's key: as many sessions as agents, though they all say the same words."""
    agents = {f"agent-{number}": [SYSTEM, user("the same task")] for number in range(8)}
    sessions = {name: set() for name in agents}
    for turn in range(4):
        for name, messages in agents.items():
            headers, fields = KEYS[convention](name)
            call = identity.identify(request(chat(*messages, **fields), headers), float(turn))
            sessions[name].add(call.session)
            identity.answered(call, DONE, turn + 0.5)
            messages += [{"role": "assistant", "content": "ok"}, user(f"go on {turn}")]
    assert all(len(names) == 1 for names in sessions.values())
    assert len(set.union(*sessions.values())) == 8


@pytest.mark.parametrize("convention", ["smg-routing-key", "prompt_cache_key", "user"])
def test_a_key_that_many_share_does_not_glue_them(identity, convention):
    """Where all agents of an application send one cache key or user, the content tells them apart."""
    headers, fields = KEYS[convention]("the-app")
    calls = [identity.identify(request(chat(SYSTEM, user(f"task {n}"), **fields), headers), 0.0) for n in range(16)]
    assert len({call.session for call in calls}) == 16


def test_nobody_joins_another_tenants_session(keyed):
    """The same names and the same content under two keys are two sessions, tasks and parents."""
    headers = {"X-Saga-Session": "shared", "X-Saga-Task": "job", "X-Saga-Parent-Session": "lead"}
    one = keyed.identify(request(chat(), as_tenant("sk-a", **headers)), 0.0)
    two = keyed.identify(request(chat(), as_tenant("sk-b", **headers)), 0.0)
    assert (one.session, two.session) == ("a/shared", "b/shared")
    assert (one.task, two.task) == ("a/job", "b/job")
    assert (one.parent, two.parent) == ("a/lead", "b/lead")


@pytest.mark.parametrize("hostile", ["b/shared", "../b/shared", "a/b/shared", "b%2Fshared", "~1", "x~2"])
def test_hostile_names_stay_inside_their_tenant(keyed, hostile):
    """No name that tenant a sends equals any of tenant b's, nor one that the gateway makes up."""
    call = keyed.identify(request(chat(), as_tenant("sk-a", **{"X-Saga-Session": hostile})), 0.0)
    assert call.session.startswith("a/")
    assert "~" not in call.session
    theirs = keyed.identify(request(chat(), as_tenant("sk-b", **{"X-Saga-Session": "shared"})), 0.0)
    assert call.session != theirs.session


def test_a_key_decides_the_tenant_not_a_header(keyed):
    """X-Saga-Tenant is believed only where nobody is asked for a key."""
    call = keyed.identify(request(chat(), as_tenant("sk-a", **{"X-Saga-Tenant": "b"})), 0.0)
    assert call.tenant == "a"


def test_without_keys_a_named_tenant_is_believed_escaped_and_bounded():
    """On a machine of one's own tenants may be named; no name holds a slash, and there are only so many."""
    identity = GatewayIdentity(settings=IdentitySettings(max_named_tenants=3))
    call = identity.identify(request(chat(), {"X-Saga-Tenant": "team/a", "X-Saga-Session": "s"}), 0.0)
    assert (call.tenant, call.session) == ("team%2Fa", "team%2Fa/s")
    names = {identity.identify(request(chat(), {"X-Saga-Tenant": f"t{n}"}), 0.0).tenant for n in range(10)}
    assert names == {"t0", "t1", "default"}


def test_refusals(keyed):
    """No key, a compressed body, and our own deadline misspelt: refused here, with the field named."""
    for headers, body, status, param in (
        ({}, chat(), 401, None),
        (as_tenant("sk-a", **{"Content-Encoding": "zstd"}), chat(), 400, None),
        (as_tenant("sk-a", **{"X-Saga-Deadline-S": "soon"}), chat(), 400, "X-Saga-Deadline-S"),
        (as_tenant("sk-a"), chat(saga={"deadline_s": -1}), 400, "saga.deadline_s"),
        (as_tenant("sk-a"), b"{", 400, None),
    ):
        with pytest.raises(Refused) as refused:
            keyed.identify(request(body, headers), 0.0)
        assert (refused.value.status, refused.value.param) == (status, param)


def test_limits_count_calls_until_they_are_answered(keyed):
    """The second call at once of a tenant that may have one is refused, until the first has ended, however it ended."""
    first = keyed.identify(request(chat(), as_tenant("sk-b")), 0.0)
    with pytest.raises(Refused) as refused:
        keyed.identify(request(chat(), as_tenant("sk-b")), 0.0)
    assert refused.value.status == 429
    keyed.answered(first, Answer(), 1.0)
    keyed.answered(first, Answer(), 1.0)
    second = keyed.identify(request(chat(), as_tenant("sk-b")), 2.0)
    assert second.retry_of == first.step
    assert keyed.tenants.in_flight("b") == 1


def test_a_salted_tenant_has_its_own_salt(keyed):
    """A salt goes into every prompt of a tenant that asked for it; the client's own is folded in."""
    plain = keyed.identify(request(chat(cache_salt="x"), as_tenant("sk-a")), 0.0)
    assert plain.body == plain.request.body
    salts = []
    for more in ({}, {"cache_salt": "x"}, {"cache_salt": "y"}, {}):
        call = keyed.identify(request(chat(**more), as_tenant("sk-b")), 0.0)
        keyed.answered(call, DONE, 0.0)
        sent = json.loads(call.body)
        assert {**sent, "cache_salt": 0} == {**chat(), "cache_salt": 0}
        salts.append(sent["cache_salt"])
        assert call.prefix != plain.prefix
    assert salts[0] == salts[3]
    assert len(set(salts)) == 3


@pytest.mark.parametrize(
    ("more", "asked", "wants"),
    [
        ({"stream": True}, {"include_usage": True}, False),
        ({"stream": True, "stream_options": None}, {"include_usage": True}, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, {"include_usage": True}, True),
        ({"stream": True, "stream_options": {"include_usage": False}}, {"include_usage": False}, True),
        ({"stream": False}, None, True),
        ({}, None, True),
    ],
)
def test_usage_is_asked_for_where_a_stream_would_not_say_it(identity, more, asked, wants):
    """Only a stream whose client left it open is changed, in nothing else; its added chunk is to be taken out again."""
    call = identity.identify(request(chat(**more)), 0.0)
    sent = json.loads(call.body)
    assert sent.pop("stream_options", None) == asked
    assert sent == {key: value for key, value in chat(**more).items() if key != "stream_options"}
    assert call.wants_usage is wants


@pytest.mark.parametrize(
    ("said", "anybody", "trusted"),
    [
        ({"body": {"priority": 3}}, 3, 3),
        ({"body": {"priority": -3}}, 0, -3),
        ({"body": {"priority": -(2**31)}}, 0, -MAX_CLASS),
        ({"body": {"priority": 10**6}}, MAX_CLASS, MAX_CLASS),
        ({"headers": {"X-Vllm-Priority": "-1"}}, 0, -1),
        ({"headers": {"x-smg-priority": "bulk"}}, 1, 1),
        ({"body": {"nvext": {"agent_hints": {"priority": 2}}}}, 0, -2),
        ({"body": {"priority": "first"}}, 0, 0),
        ({}, 0, 0),
    ],
)
def test_anybody_may_stand_back_and_who_may_goes_first(keyed, said, anybody, trusted):
    """Lower goes first, in whichever words it was said; within bounds, and below 0 only for tenants who may."""
    for key, expected in (("sk-a", anybody), ("sk-b", trusted)):
        call = keyed.identify(request(chat(**said.get("body", {})), as_tenant(key, **said.get("headers", {}))), 0.0)
        assert call.priority == expected


def test_usage_is_not_asked_for_where_that_is_switched_off():
    """With ask_usage off the body is the client's own."""
    identity = GatewayIdentity(settings=IdentitySettings(ask_usage=False))
    call = identity.identify(request(chat(stream=True)), 0.0)
    assert call.body == call.request.body


def test_fields_are_set_in_raw_json():
    """A field is added at the end, or replaced where it stands; numbers and text elsewhere keep their writing."""
    assert with_fields(b'{"a": 1.0}\n', {"b": b"2"}) == b'{"a": 1.0,"b":2}'
    assert with_fields(b'{"b": null, "a": 1.50, "t": "\\u00e9"}', {"b": b"2"}) == b'{"b":2,"a":1.50,"t":"\\u00e9"}'


def test_tokens_are_learned_and_shared_tokens_are_the_engines_own(identity):
    """The next call's estimate starts from what the engine counted, not from bytes."""
    messages = [SYSTEM, user("hello")]
    first = identity.identify(request(chat(*messages)), 0.0)
    identity.answered(first, Answer(prompt_tokens=555, output_tokens=45, complete=True, text="ok"), 1.0)
    messages += [{"role": "assistant", "content": "ok"}, user("more")]
    second = identity.identify(request(chat(*messages)), 2.0)
    assert (second.session, second.common_tokens) == (first.session, 600)
    assert 600 < second.prompt_tokens < 610
    assert identity.estimator.bytes_per_token("m") != 4.0


def test_a_stored_response_leads_back_to_its_worker_and_session(identity):
    """previous_response_id pins the worker that keeps it, and its session; another tenant's id leads nowhere."""
    first = identity.identify(request({"model": "m", "input": "task"}, path="/v1/responses"), 0.0)
    answer = Answer(prompt_tokens=10, output_tokens=5, complete=True, response_id="resp_1")
    identity.answered(first, answer, 1.0, worker="w3")
    body = {"model": "m", "input": "and?", "previous_response_id": "resp_1"}
    second = identity.identify(request(body, path="/v1/responses"), 2.0)
    assert (second.session, second.pinned, second.common_tokens) == (first.session, "w3", 15)
    assert not second.retryable
    fetched = identity.identify(request(path="/v1/responses/resp_1/input_items", method="GET"), 3.0)
    assert (fetched.kind, fetched.pinned) == (Kind.OTHER, "w3")
    other = identity.identify(request(body, {"X-Saga-Tenant": "other"}, path="/v1/responses"), 3.0)
    assert (other.pinned, other.session == first.session) == ("", False)


def test_what_may_be_sent_again(identity):
    """Stateless kinds may be repeated; stored responses and unknown POSTs may not."""

    def retryable(path, body, method="POST"):
        return identity.identify(request(body, path=path, method=method), 0.0).retryable

    assert retryable("/v1/chat/completions", chat())
    assert retryable("/v1/completions", {"model": "m", "prompt": "x"})
    assert retryable("/v1/embeddings", {"model": "m", "input": "x"})
    assert retryable("/v1/responses", {"model": "m", "input": "x", "store": False})
    assert retryable("/v1/models", None, "GET")
    assert not retryable("/v1/responses", {"model": "m", "input": "x"})
    assert not retryable("/v1/files", {"x": 1})


def test_sdks_that_count_their_attempts_are_believed(identity):
    """x-stainless-retry-count above zero makes an equal body in flight a retry; without it, it is a sample."""
    first = identity.identify(request(chat(), {"x-stainless-retry-count": "0"}), 0.0)
    sample = identity.identify(request(chat(), {"x-stainless-retry-count": "0"}), 1.0)
    retry = identity.identify(request(chat(), {"x-stainless-retry-count": "1"}), 2.0)
    assert sample.session != first.session
    assert retry.retry_of in (first.step, sample.step)
    assert len({first.step, sample.step, retry.step}) == 3


def test_calls_that_no_session_owns_leave_nothing_behind(identity):
    """Embeddings, batches and passed-through calls are sessions of one step each."""
    for path, body in (
        ("/v1/embeddings", {"model": "m", "input": ["x", "y"]}),
        ("/v1/completions", {"model": "m", "prompt": ["x", "y"]}),
        ("/v1/rerank", {"anything": 1}),
    ):
        calls = [identity.identify(request(body, path=path), 0.0) for _ in range(2)]
        assert calls[0].session != calls[1].session
        assert calls[0].final
    assert len(identity.conversations) == 0


def test_calls_that_are_never_answered_do_not_pile_up():
    """What is pending is bounded, and what falls out is no longer counted against its tenant."""
    identity = GatewayIdentity(settings=IdentitySettings(max_pending=10))
    for number in range(50):
        identity.identify(request(chat(user(f"task {number}"))), float(number))
    assert len(identity._pending) == 10
    assert identity.tenants.in_flight("default") == 10


@given(
    st.sampled_from(sorted(PATHS)),
    st.lists(st.tuples(st.sampled_from(sorted({f.header for c in DEFAULT for f in c.fields if f.header})), st.binary()))
    | st.just([]),
    st.binary(max_size=200) | st.sampled_from([json.dumps(chat()).encode(), b'{"model":"m","prompt":"x","input":"y"}']),
)
def test_no_request_raises_anything_but_a_refusal(path, headers, body):
    """Hostile headers and bodies on every route: a call inside its tenant, or Refused."""
    identity = GatewayIdentity()
    with suppress(Refused):
        lowered = [(name.encode(), value) for name, value in headers]
        call = identity.identify(Request("POST", path, path, lowered, body), 0.0)
        assert call.session.startswith(f"{call.tenant}/")
        identity.answered(call, DONE, 1.0)


@pytest.mark.python_core
def test_words_are_read_once_and_say_the_same_each_time(identity, monkeypatch):
    """Calls that name themselves in the same words ask the resolver once; other words ask it again."""
    asked = []
    resolve = identity.reader.resolver.resolve
    monkeypatch.setattr(identity.reader.resolver, "resolve", lambda *said: asked.append(said) or resolve(*said))
    for at_s, (session, label) in enumerate((("one", "x"), ("one", "x"), ("one", "y"), ("two", "x"))):
        call = identity.identify(request(chat(metadata={"label": label}), {"X-Session-Id": session}), float(at_s))
        assert call.session == f"default/{session}"
        identity.answered(call, DONE, at_s + 0.5)
    assert len(asked) == 3


def test_words_that_cannot_be_read_are_counted_each_time(identity):
    """What is remembered must not hide how often a client is wrong."""
    for at_s in range(3):
        identity.answered(identity.identify(request(chat(), {"X-Vllm-Priority": "high"}), at_s), DONE, at_s + 0.5)
    assert list(identity.reader.resolver.ignored.values()) == [3]


@pytest.mark.python_core
def test_remembered_words_are_bounded(identity, monkeypatch):
    """Neither many words nor long ones fill the memory."""
    monkeypatch.setattr("saga.gateway.reading._MAX_WORDS", 8)
    for at_s in range(50):
        named = {"X-Session-Id": f"s{at_s}", "X-Saga-Workflow": "w" * (2_000 if at_s % 2 else 1)}
        identity.answered(identity.identify(request(chat(), named), at_s), DONE, at_s + 0.5)
        assert len(identity.reader._words) <= 8
    assert all(len(value) < 1_024 for headers, _ in identity.reader._words for _, value in headers)


def test_stored_responses_and_estimates_survive_a_restart(identity):
    """`previous_response_id` leads back to its worker and session; no text is kept."""
    first = identity.identify(request({"model": "m", "input": "secret task"}, path="/v1/responses"), 0.0)
    answer = Answer(prompt_tokens=10, output_tokens=5, complete=True, text="secret answer", response_id="resp_1")
    identity.answered(first, answer, 1.0, "w1")
    *_, data = identity.snapshots(2.0)
    packed = msgspec.msgpack.encode(data)
    assert b"secret" not in packed
    other = GatewayIdentity(settings=IdentitySettings(secret=b"test"))
    other.restore(msgspec.msgpack.decode(packed), 0.0, 30.0)
    assert other.estimator.bytes_per_token("m") == identity.estimator.bytes_per_token("m") != 4.0
    body = {"model": "m", "input": "go on", "previous_response_id": "resp_1"}
    second = other.identify(request(body, path="/v1/responses"), 1.0)
    assert (second.session, second.pinned, second.common_tokens) == (first.session, "w1", 15)


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"responses": [["a"]]}, {"bytes_per_token": {"m": [1.0, 0.0]}}, {"conversations": [b"x"]}]
)
def test_what_is_no_snapshot_is_refused(identity, change):
    """With ValueError, which the gateway logs."""
    *_, data = identity.snapshots(2.0)
    with pytest.raises(ValueError, match=r".+"):
        identity.restore(data | change, 0.0, 0.0)
