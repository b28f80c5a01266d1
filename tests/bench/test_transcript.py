"""Messages share the bytes that their paths share, in the order and the roles that servers accept."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from saga.bench.transcript import Texts, shared_streams, tool_name
from saga.workloads.catalogue import workload
from saga.workloads.conversation import Conversation, common_tokens
from saga.workloads.limits import Limits
from saga.workloads.plan import Call

TURNS = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 80), st.floats(0, 1)), min_size=1, max_size=8)


def rendered(messages: list[dict[str, Any]]) -> str:
    """A prompt as a chat template would write it."""
    return "".join(f"<{message['role']}>{message['content']}" for message in messages)


def common(one: str, other: str) -> int:
    """Leading characters that are equal."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def calls_of(turns: list[tuple[int, int, float]], system: int = 100) -> list[Call]:
    """A session behind a shared system prompt that grows by `turns`; share < 0.2 rewrites from there."""
    conversation = Conversation(iter(range(10, 1_000)), ((0, system),))
    calls, prompt = [], system
    for new, output, share in turns:
        kept = None if share > 0.2 else int(prompt * share)
        prompt += new
        path, shared = conversation.ask(prompt, output, kept)
        calls.append(Call(path, prompt, output, common_tokens=shared))
        prompt += output
    return calls


@given(TURNS)
def test_text_is_shared_as_far_as_the_path_is(turns: list[tuple[int, int, float]]) -> None:
    """What the next path keeps of prompt and answer is kept byte by byte, and what it rewrites is other text."""
    texts = Texts("salt")
    calls = calls_of(turns)
    before, before_path = "", ()
    for call in calls:
        text = rendered(texts.messages(call, tools_were_called=False))
        kept_tokens = common_tokens(before_path, call.path)
        answer = "xyz " * call.output_tokens
        shared = common(before, text)
        assert shared >= 4 * kept_tokens * 0.5 - 200  # markup and whole words cost something at each message
        assert shared <= 4 * kept_tokens + 200
        texts.answered(call, answer, call.output_tokens, [])
        before = text + f"<assistant>{answer}"
        before_path = (*call.path[:-1], (call.path[-1][0], call.path[-1][1] + call.output_tokens))


@given(TURNS)
def test_a_history_that_is_appended_to_is_appended_to_in_bytes(turns: list[tuple[int, int, float]]) -> None:
    """Without rewriting every prompt begins with the whole prompt before it and its answer; lengths are as planned."""
    texts = Texts("salt")
    before = ""
    for call in calls_of([(new, output, 1.0) for new, output, _ in turns]):
        messages = texts.messages(call, tools_were_called=False)
        text = rendered(messages)
        assert text.startswith(before)
        written = sum(len(message["content"]) for message in messages) // 4
        assert call.prompt_tokens - 4 * len(messages) <= written <= call.prompt_tokens + 4 * len(messages)
        answer = "xyz " * call.output_tokens
        texts.answered(call, answer, call.output_tokens, [])
        before = text + f"<assistant>{answer}"


def test_strangers_share_the_system_prompt_and_nothing_else() -> None:
    """Two sessions with one shared stream have its text in common; another salt has nothing."""
    texts, other = Texts("salt"), Texts("other salt")
    paths = [((0, 500), (name, 200)) for name in (1, 2)]
    one, two = (texts.messages(Call(path, 700, 1), tools_were_called=False) for path in paths)
    assert one[0] == two[0]
    assert one[0]["role"] == "system"
    assert common(one[1]["content"], two[1]["content"]) < 40
    assert common(one[0]["content"], other.messages(Call(paths[0], 700, 1), tools_were_called=False)[0]["content"]) < 40


def test_a_tool_result_follows_its_call() -> None:
    """An answer that called tools is echoed with its calls; each gets a result, the first one the text."""
    texts = Texts("salt")
    first = Call(((0, 50), (1, 50)), 100, 20, tools=("bash",))
    texts.messages(first, tools_were_called=False)
    calls = [{"id": name, "type": "function", "function": {"name": "bash", "arguments": "{}"}} for name in ("a", "b")]
    texts.answered(first, "", 20, calls)
    messages = texts.messages(Call(((0, 50), (1, 150)), 200, 5), tools_were_called=True)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "tool"]
    assert messages[2]["tool_calls"] == calls
    assert [message["tool_call_id"] for message in messages[3:]] == ["a", "b"]


def test_a_short_answer_is_made_up_for() -> None:
    """Where the server said less than recorded, the next message is longer: prompts stay as long as planned."""
    texts = Texts("salt")
    first = Call(((1, 100),), 100, 500)
    texts.messages(first, tools_were_called=False)
    texts.answered(first, "yes ", 1, [])
    messages = texts.messages(Call(((1, 700),), 700, 5), tools_were_called=False)
    assert abs(sum(len(message["content"]) for message in messages) // 4 - 700) < 20


def test_lengths_scale() -> None:
    """A scale of a tenth makes prompts a tenth as long."""
    texts = Texts("salt", scale=0.1)
    messages = texts.messages(Call(((0, 1_000), (1, 1_000)), 2_000, 50), tools_were_called=False)
    assert abs(sum(len(message["content"]) for message in messages) // 4 - 200) < 20
    assert texts.tokens(50) == 5
    assert texts.tokens(1) == 1


def test_a_finished_task_leaves_only_what_others_use() -> None:
    """Streams of one task are dropped with it."""
    tasks = list(workload("swe_bench", Limits()).tasks(3, 0))
    kept = shared_streams(tasks)
    assert kept
    texts = Texts("salt", kept=kept)
    for task in tasks:
        for call in task.sessions[0].calls[:3]:
            texts.messages(call, tools_were_called=False)
        texts.forget(task)
        assert texts.num_streams <= len(kept)


def test_tool_names_are_made_acceptable() -> None:
    """Letters, digits, dashes and underscores, 64 at most."""
    assert tool_name("Bash:git commit") == "Bash_git_commit"
    assert tool_name("x" * 100) == "x" * 64
    assert tool_name("") == "tool"
