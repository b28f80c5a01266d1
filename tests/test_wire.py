"""What each system really sends, and what is understood of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.errors import UnknownName
from saga.events import Hints
from saga.wire import BODY_FIELDS, DEFAULT, Resolver, select

UUID = "57a121ec-f78c-48c3-a745-e3036a3ecc33"
CHILD = "01997f5a-0000-7000-8000-00000000c0de"


def resolve(headers=None, body=None, conventions=DEFAULT):
    """What a call with these headers and body fields says about itself."""
    lowered = [(name.lower().encode(), str(value).encode()) for name, value in (headers or {}).items()]
    return Resolver(conventions).resolve(lowered, body or {})


AGENTIC = {
    "program_id": "p-7",
    "task_id": "job-1",
    "session_id": "s-1",
    "agent_id": "coder",
    "parent_program_id": "p-1",
    "root_program_id": "p-0",
    "expected_resume": False,
    "agent_role": "subagent",
    "step_id": 3,
    "priority": 2,
    "deadline_seconds": 90,
    "expected_output_length": 400,
    "kv_retention_ttl_seconds": 20,
}

SAYS = {
    "ours in headers": (
        {
            "X-Saga-Session": "s",
            "X-Saga-Parent-Session": "p",
            "X-Saga-Task": "t",
            "X-Saga-Workflow": "coding",
            "X-Saga-Tenant": "team",
            "X-Saga-Deadline-S": "12.5",
            "X-Saga-Final": "true",
        },
        {},
        {
            "source": "saga",
            "session": "s",
            "parent": "p",
            "task": "t",
            "workflow": "coding",
            "tenant": "team",
            "deadline_s": 12.5,
            "final": True,
            "hints": Hints(final=True),
        },
    ),
    "ours in the body": (
        {},
        {"saga": {"session": "s", "parent_session": "p", "next_tools": ["Bash"], "gap_s": 3, "remaining_steps": 4}},
        {
            "source": "saga",
            "session": "s",
            "parent": "p",
            "hints": Hints(next_tools=("Bash",), gap_s=3.0, remaining_steps=4),
        },
    ),
    "Dynamo's headers": (
        {
            "X-Dynamo-Session-ID": "research-run-42:researcher",
            "X-Dynamo-Parent-Session-ID": "research-run-42:lead",
            "X-Dynamo-Session-Final": "true",
        },
        {},
        {
            "source": "dynamo",
            "session": "research-run-42:researcher",
            "parent": "research-run-42:lead",
            "final": True,
            "hints": Hints(final=True),
        },
    ),
    "Dynamo's nvext, whose priority is higher first": (
        {},
        {
            "nvext": {
                "agent_hints": {"priority": 5, "osl": 1024, "speculative_prefill": True},
                "agent_context": {
                    "session_type_id": "deep_research",
                    "session_id": "research-run-42",
                    "trajectory_id": "research-run-42:researcher",
                    "parent_trajectory_id": "research-run-42:lead",
                    "trajectory_final": False,
                },
            }
        },
        {
            "source": "dynamo",
            "session": "research-run-42:researcher",
            "task": "research-run-42",
            "parent": "research-run-42:lead",
            "workflow": "deep_research",
            "priority": -5,
            "final": False,
            "hints": Hints(output_tokens=1024, final=False),
        },
    ),
    "vllm-router's agentic_context": (
        {},
        {"vllm_xargs": {"agentic_context": AGENTIC}},
        {
            "source": "agentic_context",
            "session": "p-7",
            "task": "job-1",
            "parent": "p-1",
            "root": "p-0",
            "workflow": "subagent",
            "final": True,
            "priority": 2,
            "deadline_s": 90.0,
            "retention_s": 20.0,
            "hints": Hints(output_tokens=400, final=True),
        },
    ),
    "agentic_context as the flat JSON string that vLLM takes": (
        {},
        {"vllm_xargs": {"agentic_context": json.dumps(AGENTIC)}},
        {"source": "agentic_context", "session": "p-7", "parent": "p-1", "deadline_s": 90.0},
    ),
    "agentic_context without a program: task and agent make the session": (
        {},
        {"vllm_xargs": {"agentic_context": {"task_id": "job-1", "agent_id": "coder", "expected_resume": True}}},
        {"source": "agentic_context", "session": "job-1/coder", "parent": "job-1", "task": "job-1", "final": False},
    ),
    "agent_hint": (
        {},
        {"agent_hint": {"session_id": "c", "parent_session_id": "p"}},
        {"source": "agent_hint", "session": "c", "parent": "p"},
    ),
    "agent_hint inside vllm_xargs": (
        {},
        {"vllm_xargs": {"agent_hint": '{"session_id": "c", "parent_session_id": "p"}'}},
        {"source": "agent_hint", "session": "c", "parent": "p"},
    ),
    "Claude Code's main agent": (
        {"X-Claude-Code-Session-Id": UUID, "User-Agent": "claude-cli/2.1.211 (external, cli)"},
        {"metadata": {"user_id": json.dumps({"device_id": "d", "account_uuid": "", "session_id": UUID})}},
        {"source": "claude-code", "session": UUID, "task": UUID, "parent": None},
    ),
    "Claude Code's sub-agent": (
        {"X-Claude-Code-Session-Id": UUID, "X-Claude-Code-Agent-Id": "a3"},
        {},
        {"source": "claude-code", "session": f"{UUID}/a3", "task": UUID, "parent": UUID},
    ),
    "Claude Code's sub-agent of a sub-agent": (
        {
            "X-Claude-Code-Session-Id": UUID,
            "X-Claude-Code-Agent-Id": "a4",
            "X-Claude-Code-Parent-Agent-Id": "a3",
        },
        {},
        {"source": "claude-code", "session": f"{UUID}/a4", "parent": f"{UUID}/a3"},
    ),
    "Claude Code's metadata as JSON": (
        {},
        {"metadata": {"user_id": json.dumps({"device_id": "d", "account_uuid": "", "session_id": UUID})}},
        {"source": "claude-code", "session": UUID, "weak": False},
    ),
    "Claude Code's older metadata": (
        {},
        {"metadata": {"user_id": f"user_{'0' * 64}_account__session_{UUID}"}, "cache_control": {"ttl": "1h"}},
        {"source": "claude-code", "session": UUID, "retention_s": 3600.0},
    ),
    "Codex": (
        {"session-id": UUID, "thread-id": UUID, "originator": "codex_cli_rs"},
        {"prompt_cache_key": UUID},
        {"source": "codex", "session": UUID, "task": UUID, "weak": False},
    ),
    "Codex's sub-agent": (
        {"session-id": UUID, "thread-id": CHILD, "x-codex-parent-thread-id": UUID},
        {"prompt_cache_key": CHILD},
        {"source": "codex", "session": CHILD, "task": UUID, "parent": UUID},
    ),
    "an older Codex": ({"session_id": UUID}, {}, {"source": "codex", "session": UUID}),
    "OpenCode": (
        {"x-session-id": "ses_1", "x-session-affinity": "ses_1", "x-parent-session-id": "ses_0"},
        {},
        {"source": "session-headers", "session": "ses_1", "parent": "ses_0"},
    ),
    "OpenCode behind its own gateway": (
        {"x-opencode-session": "ses_1", "x-opencode-request": "msg_1"},
        {},
        {"source": "session-headers", "session": "ses_1"},
    ),
    "AIPerf": (
        {"X-Session-ID": UUID, "X-Session-Affinity": UUID, "X-Request-ID": "r1"},
        {},
        {"source": "session-headers", "session": UUID},
    ),
    "vLLM in the body": (
        {},
        {"session_id": "abc", "priority": -3, "cache_salt": "pepper"},
        {"source": "vllm", "session": "abc", "priority": -3, "cache_salt": "pepper"},
    ),
    "vLLM's headers": (
        {"X-Session-ID": "abc", "X-Vllm-Priority": "7"},
        {"priority": 9},
        {"source": "session-headers", "session": "abc", "priority": 7},
    ),
    "llm-d": (
        {
            "x-session-token": "cG9kLTE=",
            "x-session-id": "abc",
            "x-llm-d-inference-fairness-id": "team-a",
            "x-llm-d-inference-objective": "interactive",
            "x-llm-d-slo-ttft-ms": "250",
            "x-llm-d-slo-tpot-ms": "40",
        },
        {},
        {
            "session": "abc",
            "routing_key": "cG9kLTE=",
            "tenant": "team-a",
            "objective": "interactive",
            "ttft_s": 0.25,
            "tpot_s": 0.04,
        },
    ),
    "llm-d's token names a server, not a session": (
        {"x-session-token": "cG9kLTE="},
        {},
        {"session": None, "routing_key": "cG9kLTE="},
    ),
    "SMG": (
        {"X-SMG-Routing-Key": "user-9", "x-smg-priority": "Bulk", "x-smg-tenant-id": "team-b"},
        {},
        {"source": "smg-routing-key", "session": "user-9", "weak": True, "priority": 1, "tenant": "team-b"},
    ),
    "SGLang's sessions": (
        {},
        {"session_params": {"id": "sg-1", "rid": "r", "offset": 0}, "rid": "r2"},
        {"source": "sglang", "session": "sg-1"},
    ),
    "LiteLLM's header": ({"x-litellm-session-id": "ll"}, {}, {"source": "litellm", "session": "ll"}),
    "LiteLLM's body": ({}, {"litellm_session_id": "ll"}, {"source": "litellm", "session": "ll"}),
    "LiteLLM's metadata": ({}, {"metadata": {"litellm_session_id": "ll"}}, {"source": "litellm", "session": "ll"}),
    "Grok": ({"x-grok-conv-id": "g"}, {}, {"source": "grok", "session": "g"}),
    "OpenAI's conversation": ({}, {"conversation": "conv_1"}, {"source": "openai", "session": "conv_1"}),
    "OpenAI's conversation as an object": (
        {},
        {"conversation": {"id": "conv_1"}},
        {"source": "openai", "session": "conv_1"},
    ),
    "OpenAI's metadata": (
        {},
        {"metadata": {"thread_id": "th_1", "workflow": "triage"}},
        {"source": "openai", "session": "th_1", "workflow": "triage"},
    ),
    "OpenAI's cache key, which many conversations may share": (
        {},
        {"prompt_cache_key": "app-v2"},
        {"source": "prompt_cache_key", "session": "app-v2", "weak": True},
    ),
    "OpenAI's user, who has many conversations": (
        {},
        {"user": "u-17"},
        {"source": "user", "session": "u-17", "weak": True},
    ),
    "nobody": ({"user-agent": "curl/8"}, {}, {"source": "", "session": None, "hints": None, "priority": None}),
}


@pytest.mark.parametrize("what", SAYS)
def test_each_system_is_understood_as_it_speaks(what):
    """A call as that system sends it yields exactly what it says about itself."""
    headers, body, expected = SAYS[what]
    named = resolve(headers, body)
    assert {field: getattr(named, field) for field in expected} == expected
    assert named.ignored == ()


def test_every_convention_of_the_table_is_spoken_in_a_test():
    """No entry of the default table is without a test that sends it."""
    said = {resolve(headers, body).source for headers, body, _ in SAYS.values()}
    assert {convention.name for convention in DEFAULT} - said == {"llm-d"}


def test_the_first_convention_wins_and_identities_are_not_mixed():
    """Parent and task come from the convention that names the session, not from another system's headers."""
    named = resolve({"X-Dynamo-Session-ID": "d", "x-parent-session-id": "other", "X-Session-ID": "s"})
    assert (named.source, named.session, named.parent) == ("dynamo", "d", None)


def test_ours_completes_any_other():
    """X-Saga-Task and X-Saga-Parent-Session speak also where another system names the session."""
    named = resolve({"X-Session-ID": "s", "X-Saga-Task": "t", "X-Saga-Parent-Session": "p"})
    assert (named.source, named.session, named.task, named.parent) == ("session-headers", "s", "t", "p")


def test_the_order_is_configuration():
    """A shorter list in another order is obeyed; what is not in it is not read."""
    only = select(["vllm", "claude-code"])
    named = resolve({"X-Claude-Code-Session-Id": "c", "X-Saga-Session": "s"}, {"session_id": "v"}, only)
    assert (named.source, named.session) == ("vllm", "v")


def test_an_unknown_convention_is_named():
    """A typo in the configuration is answered with the nearest name."""
    with pytest.raises(UnknownName, match="did you mean 'dynamo'"):
        select(["dinamo"])


@pytest.mark.parametrize(
    ("headers", "body", "reason"),
    [
        ({"X-Session-ID": "x" * 257}, {}, "too long"),
        ({"X-Session-ID": "a\x01b"}, {}, "control characters"),
        ({"X-Session-ID": "a\u202eb"}, {}, "control characters"),
        ({"X-Session-ID": " "}, {}, "empty"),
        ({}, {"session_id": ["a"]}, "wrong type"),
        ({}, {"session_id": True}, "wrong type"),
        ({}, {"session_id": 10**400}, "empty"),
        ({"X-Saga-Deadline-S": "soon"}, {}, "not a number"),
        ({"X-Saga-Deadline-S": "nan"}, {}, "out of range"),
        ({"X-Saga-Deadline-S": "-1"}, {}, "not positive"),
        ({"X-Saga-Final": "maybe"}, {}, "not true or false"),
        ({"x-smg-priority": "urgent"}, {}, "unknown class"),
        ({"X-Vllm-Priority": "1e300"}, {}, "out of range"),
        ({}, {"vllm_xargs": {"agentic_context": "{broken"}}, "malformed JSON"),
        ({}, {"saga": {"next_tools": [1] * 20}}, "wrong type"),
    ],
)
def test_what_cannot_be_read_is_ignored_and_counted(headers, body, reason):
    """A hostile or broken value names nothing, raises nothing, and is counted with its reason."""
    resolver = Resolver()
    named = resolver.resolve([(name.lower().encode(), value.encode()) for name, value in headers.items()], body)
    assert named.session is None
    assert [why for _, _, why in named.ignored] == [reason]
    assert list(resolver.ignored.values()) == [1]


def test_headers_that_nobody_reads_are_not_heard():
    """What is heard says the same as all headers, in their order."""
    resolver = Resolver()
    headers = [(b"host", b"h"), (b"x-session-id", b"s"), (b"accept", b"*"), (b"x-session-id", b"t")]
    heard = resolver.heard(headers)
    assert heard == ((b"x-session-id", b"s"), (b"x-session-id", b"t"))
    assert resolver.resolve(heard).session == resolver.resolve(headers).session == "s"


def test_bytes_that_are_not_utf8_name_nobody():
    """A header in another encoding is ignored, with that reason."""
    named = Resolver().resolve([(b"x-session-id", b"\xff\xfe")])
    assert (named.session, named.ignored) == (None, (("session-headers", "x-session-id", "not UTF-8"),))


def test_a_bad_value_leaves_room_for_the_next_way_to_say_it():
    """Where a system's first field is unreadable its second is used."""
    named = resolve({"x-session-id": "x" * 300, "x-session-affinity": "fine"})
    assert named.session == "fine"


def test_of_two_headers_of_one_name_the_first_counts():
    """A second X-Session-ID cannot replace the first."""
    named = Resolver().resolve([(b"x-session-id", b"first"), (b"x-session-id", b"second")])
    assert named.session == "first"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=8,
)
known_paths = sorted({field.path for convention in DEFAULT for field in convention.fields if field.path})
known_headers = sorted({field.header for convention in DEFAULT for field in convention.fields if field.header})


def _nested(paths):
    body = {}
    for path, value in paths:
        inside = body
        for key in path[:-1]:
            inside = inside.setdefault(key, {})
            if not isinstance(inside, dict):
                break
        else:
            inside[path[-1]] = value
    return body


@given(
    st.lists(st.tuples(st.sampled_from(known_headers).map(str.encode), st.binary(max_size=300)), max_size=8),
    st.lists(st.tuples(st.sampled_from(known_paths), json_values), max_size=8).map(_nested)
    | st.dictionaries(st.sampled_from(sorted(BODY_FIELDS)), json_values, max_size=6),
)
def test_nothing_that_a_client_sends_makes_the_resolver_raise(headers, body):
    """Whatever stands in the known places: names are printable and bounded, numbers are finite, nothing is raised."""
    named = Resolver().resolve(headers, body)
    for name in (named.session, named.task, named.parent, named.root, named.workflow, named.tenant):
        assert name is None or (name.isprintable() and 0 < len(name) <= 2 * 256 + 1)
    assert named.deadline_s is None or 0 < named.deadline_s <= 2**53
    assert named.priority is None or abs(named.priority) <= 2**31
