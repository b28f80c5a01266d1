"""Which session a prompt belongs to, told as conversations."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.body import parse
from saga.gateway.contracts import Answer, Kind
from saga.gateway.conversations import Conversations, ConversationSettings, Digest, ends_with_tool, seed_of

SECRET = 0x5A6A
SYSTEM = {"role": "system", "content": "You are a careful engineer. " * 40}


def user(text):
    """A user's message."""
    return {"role": "user", "content": text}


def said(text):
    """An answer of the model."""
    return {"role": "assistant", "content": text}


def calls(name, arguments="{}", place="c1"):
    """An answer that calls a tool."""
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": place, "type": "function", "function": function}],
    }


def result(text, place="c1"):
    """A tool's result."""
    return {"role": "tool", "tool_call_id": place, "content": text}


class Gateway:
    """Conversations with a clock, and calls that say which session they got."""

    def __init__(self, **settings):
        self.conversations = Conversations(ConversationSettings(**settings))
        self.now_s = 0.0
        self.num_steps = 0

    def begin(self, messages, *, named=None, scope="t/", model="m", retrying=False, parent=None, **more):
        """A call begins; (placement, step)."""
        self.now_s += 1.0
        self.num_steps += 1
        body = {"model": model, "messages": messages, **more}
        return self.begin_body(Kind.CHAT, body, named=named, scope=scope, model=model, retrying=retrying, parent=parent)

    def begin_body(self, kind, body, *, named=None, scope="t/", model="m", retrying=False, parent=None, after=None):
        """A call of any kind begins."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        step = f"step{self.num_steps}-{self.now_s}"
        digest = Digest(parse(kind, raw), raw, seed_of(named or scope, SECRET), 7)
        placement = self.conversations.place(
            digest,
            scope=scope,
            named=named,
            parent=parent,
            model=model,
            at_s=self.now_s,
            retrying=retrying,
            after=after,
        )
        self.conversations.began(placement, digest, step, model, self.now_s)
        return placement, step

    def end(self, placement, step, text="", tools=(), *, complete=True, prompt_tokens=None, output_tokens=None):
        """It is answered, or fails."""
        answer = Answer(
            text=text,
            tool_calls=tuple(tools),
            complete=complete,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
        )
        self.now_s += 1.0
        self.conversations.answered(placement.session, step, answer, self.now_s)

    def turn(self, messages, text="done", tools=(), **more):
        """A whole call; its placement."""
        placement, step = self.begin(messages, **more)
        self.end(placement, step, text, tools)
        return placement


def test_a_conversation_that_goes_on_stays_one_session():
    """Prompt, answer, tool result, answer, next question: one session, and everything before is shared."""
    gateway = Gateway()
    messages = [SYSTEM, user("fix the bug")]
    first, step = gateway.begin(messages)
    gateway.end(first, step, tools=["Bash:git"], prompt_tokens=300, output_tokens=20)
    messages += [calls("Bash", '{"command":"git log"}'), result("commit 1")]
    second, step = gateway.begin(messages)
    assert (second.session, second.why, second.common_tokens) == (first.session, "extends", 320)
    gateway.end(second, step, "It is fixed.", prompt_tokens=330, output_tokens=8)
    messages += [said("It is fixed."), user("thanks, and now the docs")]
    third, _ = gateway.begin(messages)
    assert (third.session, third.why, third.common_tokens) == (first.session, "extends", 338)
    assert third.prompt_tokens > 338


def test_a_shared_system_prompt_makes_nobody_related():
    """64 agents, 6 turns interleaved, one system prompt of 25 KB, tasks of their own: 64 sessions, no moves."""
    gateway = Gateway()
    rng = random.Random(1)
    system = {"role": "system", "content": "rules " * 4_200}
    agents = {agent: [system, user(f"task of agent {agent}")] for agent in range(64)}
    sessions = {agent: set() for agent in agents}
    for turn in range(6):
        order = list(agents)
        rng.shuffle(order)
        begun = []
        for agent in order:
            placement, step = gateway.begin(agents[agent])
            sessions[agent].add(placement.session)
            assert placement.conversation.parent is None
            begun.append((agent, placement, step))
        rng.shuffle(begun)
        for agent, placement, step in begun:
            gateway.end(placement, step, "ok")
            agents[agent] += [said("ok"), user(f"continue with {turn}")]
    assert all(len(names) == 1 for names in sessions.values())
    assert len(set.union(*sessions.values())) == 64


def test_identical_first_messages_are_strangers_and_their_answers_tell_them_apart():
    """Two clients that begin alike get two sessions, and each continues its own by the answer it was given."""
    gateway = Gateway()
    opening = [SYSTEM, user("hello")]
    one = gateway.turn(opening, "Hello, one!")
    two = gateway.turn(opening, "Hello, two!")
    assert one.session != two.session
    assert two.conversation.parent is None
    again_two = gateway.turn([*opening, said("Hello, two!"), user("continue")])
    again_one = gateway.turn([*opening, said("Hello, one!"), user("continue")])
    assert (again_one.session, again_two.session) == (one.session, two.session)


def test_64_agents_that_begin_and_answer_alike_still_have_a_session_each():
    """Where not even the answers differ, every agent gets one session of its own and no two share one at a time."""
    gateway = Gateway()
    agents = [[SYSTEM, user("go")] for _ in range(64)]
    for turn in range(4):
        begun = [gateway.begin(messages) for messages in agents]
        assert len({placement.session for placement, _ in begun}) == 64
        for (placement, step), messages in zip(begun, agents, strict=True):
            gateway.end(placement, step, "ok")
            messages += [said("ok"), user(f"more {turn}")]
    assert len(gateway.conversations) == 64


def test_a_stranger_whose_answer_was_not_ours_is_not_glued():
    """A second turn after the same first prompt, but with another answer, is somebody else's."""
    gateway = Gateway()
    opening = [SYSTEM, user("hello")]
    mine = gateway.turn(opening, "This is what I said to you.")
    other = gateway.turn([*opening, said("An answer from elsewhere."), user("and then?")])
    assert other.session != mine.session


def test_an_answer_without_its_thoughts_is_still_the_answer():
    """A client that drops the reasoning before an answer keeps its session."""
    gateway = Gateway()
    opening = [SYSTEM, user("hello")]
    answer = "The capital of France is Paris, as everybody knows, and it has been so for long."
    mine = gateway.turn(opening, f"<think>hm, a question</think>\n\n{answer}")
    assert gateway.turn([*opening, said(answer), user("thanks")]).session == mine.session


def test_edited_history_stays_in_its_session():
    """Old tool results cleared in the middle: the same session, of which only the part before the edit is shared."""
    gateway = Gateway()
    messages = [SYSTEM, user("task"), calls("Read"), result("x" * 4_000), calls("Read"), result("second file")]
    first, step = gateway.begin(messages)
    gateway.end(first, step, "so far so good", prompt_tokens=2_000, output_tokens=10)
    edited = [*messages]
    edited[3] = result("[cleared]")
    second, _ = gateway.begin([*edited, said("so far so good"), user("go on")])
    assert (second.session, second.why) == (first.session, "edited")
    assert 0 < second.common_tokens < 500


def test_compacted_history_stays_in_its_session():
    """History replaced by a summary after the first message: the same session, if it is the only one with that task."""
    gateway = Gateway()
    messages = [SYSTEM, user("a task that only this agent has")]
    first = gateway.turn(messages, "step")
    for turn in range(5):
        messages += [said("step"), user("y" * 500 + str(turn))]
        assert gateway.turn(messages, "step").session == first.session
    compacted = gateway.turn([*messages[:2], said("summary of all that"), user("now finish")])
    assert (compacted.session, compacted.why) == (first.session, "compacted")


def test_a_fork_while_the_first_branch_is_live_is_a_child():
    """The same prefix extended twice at once: the second branch is a session of its own, a child of the first."""
    gateway = Gateway()
    messages = [SYSTEM, user("task"), calls("Read"), result("file")]
    first = gateway.turn(messages, "plan")
    grown = [*messages, said("plan")]
    main, step = gateway.begin([*grown, user("branch one")])
    fork, fork_step = gateway.begin([*grown, user("branch two")])
    assert main.session == first.session
    assert (fork.why, fork.conversation.parent) == ("fork", first.session)
    gateway.end(main, step, "one")
    gateway.end(fork, fork_step, "two")
    assert gateway.turn([*grown, user("branch two"), said("two"), user("more")]).session == fork.session
    assert gateway.turn([*grown, user("branch one"), said("one"), user("more")]).session == first.session


def test_a_fork_afterwards_is_a_child():
    """The same prefix extended again after the first branch was answered: a child session of the same task."""
    gateway = Gateway()
    messages = [SYSTEM, user("task"), calls("Read"), result("file")]
    first = gateway.turn(messages, "plan")
    grown = [*messages, said("plan")]
    gateway.turn([*grown, user("branch one")], "one")
    fork = gateway.turn([*grown, user("branch two")], "two")
    assert (fork.conversation.parent, fork.conversation.task) == (first.session, first.session)
    assert gateway.turn([*grown, user("branch one"), said("one"), user("more")]).session == first.session


def test_identical_calls_at_once_are_samples_not_retries():
    """Four equal bodies in flight together, as best-of-n sampling sends them, are four sessions."""
    gateway = Gateway()
    begun = [gateway.begin([SYSTEM, user("solve it")]) for _ in range(4)]
    assert len({placement.session for placement, _ in begun}) == 4
    assert all(placement.retry_of == "" for placement, _ in begun)


def test_a_retry_that_says_so_is_no_new_step():
    """The same body in flight, marked by the client as another attempt, is a retry of the live step."""
    gateway = Gateway()
    first, step = gateway.begin([SYSTEM, user("hello")])
    again, _ = gateway.begin([SYSTEM, user("hello")], retrying=True)
    assert (again.session, again.retry_of, again.why) == (first.session, step, "retry")


def test_a_retry_soon_after_a_failure_is_no_new_session():
    """The same body again within the retry time of its failure goes to the same session; only once."""
    gateway = Gateway()
    first, step = gateway.begin([SYSTEM, user("hello")])
    gateway.end(first, step, complete=False)
    again, again_step = gateway.begin([SYSTEM, user("hello")])
    assert (again.session, again.retry_of) == (first.session, step)
    gateway.end(again, again_step, "hi")
    assert gateway.begin([SYSTEM, user("hello")])[0].session != first.session


def test_a_retry_long_after_a_failure_is_a_new_session():
    """After the retry time an equal first message is a stranger's."""
    gateway = Gateway(retry_s=30.0)
    first, step = gateway.begin([SYSTEM, user("hello")])
    gateway.end(first, step, complete=False)
    gateway.now_s += 31.0
    assert gateway.begin([SYSTEM, user("hello")])[0].session != first.session


def test_asking_again_in_the_middle_is_the_same_session():
    """The same long prompt once more after its answer (regenerate) stays where its cache is."""
    gateway = Gateway()
    messages = [SYSTEM, user("task"), said("first"), user("second")]
    first = gateway.turn(messages, "a")
    again = gateway.turn(messages, "b")
    assert (again.session, again.why) == (first.session, "again")


def test_scopes_never_meet():
    """Equal conversations of two tenants (or of two keys) are never one session, whatever they extend."""
    gateway = Gateway()
    messages = [SYSTEM, user("task"), said("x"), user("y")]
    one = gateway.turn(messages, "a", scope="one/")
    two = gateway.turn([*messages, said("a"), user("z")], scope="two/")
    assert one.session.startswith("one/")
    assert two.session.startswith("two/")
    assert two.why == "new"


def test_one_model_never_continues_anothers_conversation():
    """The same conversation asked of another model is another session: its cache is another."""
    gateway = Gateway()
    messages = [SYSTEM, user("task"), said("x"), user("y")]
    one = gateway.turn(messages, "a")
    two = gateway.turn([*messages, said("a"), user("z")], model="other")
    assert two.session != one.session


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" , ", " : ")])
def test_a_message_written_anew_is_the_same_message(separators):
    """Order of fields, spaces, unknown fields, null fields, cache marks and single text blocks change nothing."""
    gateway = Gateway()
    first = gateway.turn([SYSTEM, user("task"), said("x"), user("y")], "a")
    rewritten = {
        "messages": [
            {"content": [{"type": "text", "text": SYSTEM["content"]}], "role": "system"},
            {"content": [{"type": "text", "text": "task", "cache_control": {"type": "ephemeral"}}], "role": "user"},
            {"content": "x", "type": None, "refusal": None, "annotations": [], "tool_calls": None, "role": "assistant"},
            {"role": "user", "content": "y", "name": None},
            said("a"),
            user("z"),
        ],
        "model": "m",
    }
    raw = json.dumps(rewritten, separators=separators).encode()
    second, _ = gateway.begin_body(Kind.CHAT, raw)
    assert (second.session, second.why) == (first.session, "extends")


def test_cache_marks_that_wander_change_nothing():
    """Anthropic clients mark the last messages of every call for caching; the marks are not the conversation."""

    def block(text, *, marked):
        return [
            {"type": "text", "text": text, **({"cache_control": {"type": "ephemeral", "ttl": "1h"}} if marked else {})}
        ]

    gateway = Gateway()
    one = {
        "model": "m",
        "max_tokens": 10,
        "system": block("rules", marked=True),
        "messages": [{"role": "user", "content": [*block("ls", marked=False), *block("now", marked=True)]}],
    }
    first, step = gateway.begin_body(Kind.MESSAGES, one)
    gateway.end(first, step, tools=["Bash:ls"], prompt_tokens=50, output_tokens=10)
    call = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "ls"}}
    outcome = {"type": "tool_result", "tool_use_id": "t1", "content": "a b", "cache_control": {"type": "ephemeral"}}
    two = {
        **one,
        "messages": [
            {"role": "user", "content": [*block("ls", marked=False), *block("now", marked=False)]},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [outcome]},
        ],
    }
    second, _ = gateway.begin_body(Kind.MESSAGES, two)
    assert (second.session, second.common_tokens) == (first.session, 60)
    assert ends_with_tool(parse(Kind.MESSAGES, json.dumps(two).encode()))


def test_changed_tools_or_system_prompt_share_nothing():
    """Tools come before everything in a prompt: where they change the session goes on, its cache does not."""
    gateway = Gateway()
    messages = [SYSTEM, user("task")]
    first = gateway.turn(messages, "a", tools=())
    grown = [*messages, said("a"), user("b")]
    second, _ = gateway.begin(grown, tools=[{"type": "function", "function": {"name": "New"}}])
    assert (second.session, second.common_tokens) == (first.session, 0)


def test_completions_continue_by_their_text():
    """A plain prompt that goes on from a whole earlier prompt belongs to it; one that parts before its end does not."""
    gateway = Gateway()
    shared = "rules " * 4_000
    one, step = gateway.begin_body(Kind.COMPLETIONS, {"model": "m", "prompt": f"{shared} agent one:"})
    gateway.end(one, step, "hm", prompt_tokens=6_000, output_tokens=3)
    two, step = gateway.begin_body(Kind.COMPLETIONS, {"model": "m", "prompt": f"{shared} agent two:"})
    gateway.end(two, step, "ah", prompt_tokens=6_000, output_tokens=3)
    assert one.session != two.session
    again, _ = gateway.begin_body(Kind.COMPLETIONS, {"model": "m", "prompt": f"{shared} agent one: hm. Next"})
    assert (again.session, again.why) == (one.session, "extends")
    assert again.common_tokens >= 6_000


def test_token_prompts_continue_too():
    """A prompt of token ids is found again like a text."""
    gateway = Gateway()
    tokens = list(range(1_000, 1_400))
    one, step = gateway.begin_body(Kind.COMPLETIONS, {"model": "m", "prompt": tokens})
    gateway.end(one, step)
    again, _ = gateway.begin_body(Kind.COMPLETIONS, {"model": "m", "prompt": [*tokens, 7, 8]})
    assert again.session == one.session


def test_responses_continue_by_their_items():
    """Input items that extend known ones belong to their session: messages, function calls and their outputs."""
    gateway = Gateway()
    items = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "task"}]}]
    one, step = gateway.begin_body(Kind.RESPONSES, {"model": "m", "instructions": "be brief", "input": items})
    gateway.end(one, step, tools=["shell:ls"])
    items += [
        {"type": "function_call", "call_id": "c", "name": "shell", "arguments": '{"command":["ls"]}'},
        {"type": "function_call_output", "call_id": "c", "output": "a b"},
    ]
    body = {"model": "m", "instructions": "be brief", "input": items}
    again, _ = gateway.begin_body(Kind.RESPONSES, body)
    assert again.session == one.session
    assert ends_with_tool(parse(Kind.RESPONSES, json.dumps(body).encode()))


def test_a_named_session_is_one_whatever_it_says():
    """A session with a name keeps it through compaction and anything else, as long as its calls do not overlap."""
    gateway = Gateway()
    one = gateway.turn([SYSTEM, user("task")], named="t/abc")
    two = gateway.turn([user("summary of everything"), user("go on")], named="t/abc")
    assert {one.session, two.session} == {"t/abc"}
    assert (two.why, two.common_tokens) == ("named", 0)


def test_overlapping_calls_of_a_named_session_are_its_children():
    """A side call while the session's own call runs does not wait behind it; its continuation finds it again."""
    gateway = Gateway()
    main, main_step = gateway.begin([SYSTEM, user("task")], named="t/abc")
    side, step = gateway.begin([SYSTEM, user("a title for this")], named="t/abc")
    assert main.session == "t/abc"
    assert (side.session, side.conversation.parent, side.conversation.task) == ("t/abc~2", "t/abc", "t/abc")
    gateway.end(side, step, "A title")
    on = gateway.turn([SYSTEM, user("a title for this"), said("A title"), user("shorter")], named="t/abc")
    assert on.session == side.session
    gateway.end(main, main_step, "ok")


def test_another_model_beside_a_named_session_is_a_child_of_its_own():
    """A small model's calls under the same name do not push the large one's conversation out."""
    gateway = Gateway()
    gateway.turn([SYSTEM, user("task")], named="t/abc", model="large")
    side = gateway.turn([user("title?")], named="t/abc", model="small")
    main = gateway.turn([SYSTEM, user("task"), said("done"), user("next")], named="t/abc", model="large")
    assert (side.session, side.conversation.parent) == ("t/abc~small", "t/abc")
    assert (main.session, main.why) == ("t/abc", "extends")


def test_what_the_engine_keeps_is_shared_whole():
    """A call that names a stored response continues its session, with all of its context before the new input."""
    gateway = Gateway()
    one, step = gateway.begin_body(Kind.RESPONSES, {"model": "m", "input": "task"})
    gateway.end(one, step, "ok", prompt_tokens=1_000, output_tokens=50)
    body = {"model": "m", "input": "and now?", "previous_response_id": "resp_1"}
    two, _ = gateway.begin_body(Kind.RESPONSES, body, after=one.session)
    assert (two.session, two.common_tokens) == (one.session, 1_050)
    assert 1_050 < two.prompt_tokens < 1_070
    forked, _ = gateway.begin_body(Kind.RESPONSES, body, after=one.session)
    assert forked.conversation.parent == one.session


def test_names_come_from_the_content():
    """Another process with the same secret gives the same conversation the same name; another secret does not."""
    first = Gateway().turn([SYSTEM, user("task")])
    second = Gateway().turn([SYSTEM, user("task")])
    late = Gateway().turn([SYSTEM, user("task"), said("x"), user("y")])
    assert first.session == second.session == late.session
    raw = json.dumps({"model": "m", "messages": [SYSTEM, user("task")]}).encode()
    digest = Digest(parse(Kind.CHAT, raw), raw, seed_of("t/", SECRET + 1), 7)
    assert Conversations().place(digest, scope="t/", at_s=0.0).session != first.session


def test_state_is_capped_and_ages():
    """No more conversations are kept than allowed, none longer than allowed, and no index outlives them."""
    gateway = Gateway(max_conversations=50, max_idle_s=1_000.0)
    for number in range(300):
        gateway.turn([SYSTEM, user(f"task {number}")])
        assert len(gateway.conversations) <= 51
    gateway.now_s += 2_000.0
    for number in range(20):
        gateway.turn([SYSTEM, user(f"later task {number}")])
    assert len(gateway.conversations) <= 20
    conversations = gateway.conversations
    for index in (conversations._ends, conversations._roots):
        indexed = {
            id(one) for members in index.values() for one in (members if isinstance(members, list) else [members])
        }
        assert indexed == {id(one) for one in conversations._table.values()}


def test_a_live_conversation_is_not_forgotten_for_a_new_one():
    """At the cap idle conversations go first."""
    gateway = Gateway(max_conversations=10)
    live, step = gateway.begin([SYSTEM, user("long work")])
    for number in range(50):
        gateway.turn([SYSTEM, user(f"task {number}")])
    gateway.end(live, step, "done")
    assert gateway.turn([SYSTEM, user("long work"), said("done"), user("more")]).session == live.session


def test_ten_thousand_messages_are_one_conversation():
    """A very long conversation is digested and continued like any other."""
    gateway = Gateway()
    messages = [SYSTEM, *(message for turn in range(5_000) for message in (user(f"q{turn}"), said(f"a{turn}")))]
    first = gateway.turn([*messages, user("last?")], "yes")
    again = gateway.turn([*messages, user("last?"), said("yes"), user("sure?")])
    assert (again.session, again.why) == (first.session, "extends")


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["ok", "fine", ""])), min_size=1, max_size=60))
def test_interleaved_agents_with_tasks_of_their_own_never_share(turns):
    """However the turns of six agents interleave: one session each, never two agents in one."""
    gateway = Gateway()
    agents = {agent: [SYSTEM, user(f"task {agent}")] for agent in range(6)}
    owners = {}
    for agent, answer in turns:
        placement = gateway.turn(agents[agent], answer)
        assert owners.setdefault(placement.session, agent) == agent
        assert placement.common_tokens is None or placement.common_tokens <= placement.prompt_tokens
        agents[agent] += [said(answer), user("go on")]
    assert len(owners) == len({agent for agent, _ in turns})


def restarted(gateway, away_s=60.0, **settings):
    """Another gateway that takes over what this one knew."""
    packed = []
    for packed in gateway.conversations.snapshots(gateway.now_s):  # noqa: B007 - the last one is whole
        pass
    other = Gateway(**settings)
    other.now_s = 5.0  # its own clock
    other.conversations.restore(packed, other.now_s, away_s)
    return other


def test_conversations_go_on_after_a_restart():
    """Sessions, forks, shares of prompts and answers are what they would have been."""
    gateway = Gateway()
    main, step = gateway.begin([SYSTEM, user("task")])
    gateway.end(main, step, "ok", prompt_tokens=500, output_tokens=9)
    side, step = gateway.begin([SYSTEM, user("other")])
    gateway.end(side, step, "fine", tools=("Bash:git",))
    asked = [SYSTEM, user("task"), said("ok"), user("more")]
    again = restarted(gateway)
    here, there = gateway.turn(asked), again.turn(asked)
    assert (here.session, here.why, here.prompt_tokens, here.common_tokens) == (
        there.session,
        there.why,
        there.prompt_tokens,
        there.common_tokens,
    )
    assert there.common_tokens == 509
    called = [SYSTEM, user("other"), calls("Bash"), result("x")]
    assert again.turn(called).session == side.session


def test_what_was_live_before_a_restart_is_retried_not_begun_again():
    """The client repeats the call that the restart has cut off: the same session, a retry."""
    gateway = Gateway()
    cut, _ = gateway.begin([SYSTEM, user("task")])
    retry = restarted(gateway).turn([SYSTEM, user("task")])
    assert (retry.session, retry.why) == (cut.session, "retry")


def test_what_is_kept_is_bounded_and_ages_while_nobody_is_there():
    """The latest, so many and of so many bytes; none that had been idle for too long by now."""
    gateway = Gateway(max_idle_s=100.0)
    for number in range(20):
        gateway.turn([SYSTEM, user(f"task {number}")])
    conversations = gateway.conversations
    latest = list(conversations._table)
    counts = [list(conversations.snapshots(gateway.now_s, most, size, 2)) for most, size in ((6, 9_999), (20, 32))]
    assert [len(packed[-1]) for packed in counts] == [3, 2]
    other = Gateway()
    other.conversations.restore(counts[0][-1], 0.0, 0.0)
    assert list(other.conversations._table) == latest[-6:]
    assert len(restarted(gateway, 1_000.0, max_idle_s=100.0).conversations) == 0
    assert len(restarted(gateway, max_conversations=3).conversations) == 3


def test_a_snapshot_that_cannot_be_read_takes_nothing_over():
    """Not even its good half."""
    gateway = Gateway()
    gateway.turn([SYSTEM, user("task")])
    (packed,) = gateway.conversations.snapshots(gateway.now_s)
    other = Gateway()
    with pytest.raises(ValueError, match="array"):
        other.conversations.restore([*packed, b"\x91\x91\x01"], 0.0, 0.0)
    assert len(other.conversations) == 0
