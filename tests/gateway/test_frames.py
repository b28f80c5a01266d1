"""What crosses between fronts and coordinator: whole, bounded, and enough to say the same as in one process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from array import array
from dataclasses import fields

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.errors import PeerError
from saga.events import Hints
from saga.gateway import frames
from saga.gateway.contracts import Answer, Kind, Refused, Request
from saga.gateway.conversations import Conversations
from saga.gateway.frames import FarPrompt, Link, Untold
from saga.gateway.reading import Reader
from saga.gateway.settings import IdentitySettings

from .fakes import run
from .far import until

PATHS = {Kind.CHAT: "/v1/chat/completions", Kind.COMPLETIONS: "/v1/completions", Kind.RESPONSES: "/v1/responses"}
READER = Reader(settings=IdentitySettings(secret=b"s" * 32))


def read(body, kind=Kind.CHAT, **headers):
    """What a front reads of a request."""
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return READER.read(Request("POST", PATHS[kind], PATHS[kind], fields, json.dumps(body).encode()))


def crossed(reading, number=1):
    """The reading as the coordinator gets it."""
    place = frames.read_front.decode(frames.encoded(frames.placing(number, reading, reading.digest)))
    return frames.reading(place, reading.tenant)


def told(ask, near, far):
    """What `ask` gives about a far prompt, whose questions are answered from the near one."""
    while True:
        try:
            return ask(far)
        except Untold as untold:
            question = frames.read_coordinator.decode(frames.encoded(frames.Question(1, untold.what, untold.place)))
            far.learn(frames.read_front.decode(frames.encoded(frames.told(question, near))))


def test_a_reading_crosses_whole():
    """Every field of call and reading that placing asks for is what it was; the request stays behind."""
    body = {"model": "m", "stream": True, "max_tokens": 9, "messages": [{"role": "user", "content": "a" * 900}]}
    headers = {
        "x_saga_session": "s",
        "x_saga_task": "t",
        "x_saga_parent_session": "p",
        "x_saga_workflow": "w",
        "x_saga_deadline_s": "5",
        "x_saga_final": "1",
        "x_stainless_retry_count": "1",
    }
    near = read(body, **headers)
    far = crossed(near)
    for name in ("size", "previous", "scope", "session", "parent", "task", "deadline_s", "retrying", "tenant"):
        assert getattr(far, name) == getattr(near, name), name
    for name in (field.name for field in fields(near.call)):
        if name not in ("request", "body", "wants_usage"):
            assert getattr(far.call, name) == getattr(near.call, name), name
    assert far.retrying
    assert isinstance(far.call.hints, Hints)
    assert b"aaa" not in frames.encoded(frames.placing(1, near, near.digest))


texts = st.sampled_from(["", "ok", "fine", "a longer answer, with words in it"])
messages = st.lists(
    st.one_of(
        st.builds(lambda text: {"role": "user", "content": text}, texts),
        st.builds(lambda text: {"role": "assistant", "content": text}, texts),
        st.builds(
            lambda name: {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": "{}"}}]},
            st.sampled_from(["Bash", "Read", "mcp:fetch"]),
        ),
        st.builds(lambda text: {"role": "tool", "content": text, "tool_call_id": "c"}, texts),
        st.builds(lambda text: {"role": "system", "content": [{"type": "text", "text": text}]}, texts),
    ),
    min_size=1,
    max_size=80,
)


@given(messages)
def test_a_far_prompt_says_all_that_the_near_one_does(said):
    """Hashes at once, the rest when it is asked for."""
    near = read({"model": "m", "messages": said}).digest
    far = crossed(read({"model": "m", "messages": said})).digest
    for name in ("end", "size", "root", "prefix", "prefix_size", "body", "plain"):
        assert getattr(far, name) == getattr(near, name)
    assert (list(far.chain), list(far.sizes)) == (list(near.chain), list(near.sizes))
    assert far.last() == near.last()
    assert told(lambda prompt: prompt.tail(), near, far) == near.tail()
    answers = [place for place in range(len(said) + 1) if near.is_answer(place)]
    assert [place for place in range(len(said) + 1) if far.is_answer(place)] == answers
    for place in answers[-10:]:
        fresh = crossed(read({"model": "m", "messages": said})).digest
        assert told(lambda prompt, at=place: prompt.said(at), near, fresh) == near.said(place)
        assert told(lambda prompt, at=place: prompt.called(at), near, fresh) == near.called(place)


turns = st.lists(
    st.tuples(
        st.integers(0, 3), st.sampled_from(["go on", "fork", "edit", "again", "plain"]), st.sampled_from(["ok", "fine"])
    ),
    min_size=1,
    max_size=40,
)


@given(turns)
def test_far_prompts_are_placed_as_near_ones_are(turns):
    """However four agents go on, fork, edit, repeat themselves: the same sessions, reasons and shares of prompts."""
    both = [Conversations() for _ in range(2)]
    agents = {agent: [{"role": "user", "content": f"task {agent % 2}"}] for agent in range(4)}
    for at_s, (agent, what, text) in enumerate(turns):
        history = agents[agent]
        if what == "edit" and len(history) > 2:
            history[len(history) // 2] = {"role": "user", "content": f"edited {at_s}"}
        if what == "fork":
            history = [*history[: len(history) // 2 + 1], {"role": "user", "content": f"aside {at_s}"}]
        kind, body = Kind.CHAT, {"model": "m", "messages": history}
        if what == "plain":
            kind, body = Kind.COMPLETIONS, {"model": "m", "prompt": "words " * (20 * (1 + agent)) + f"{at_s} " * at_s}
        found = []
        for far, conversations in enumerate(both):
            reading = read(body, kind)
            digest = crossed(read(body, kind)).digest if far else reading.digest

            def place(prompt, conversations=conversations, at_s=at_s):
                return conversations.place(prompt, scope="t/", model="m", at_s=float(at_s))

            placement = told(place, reading.digest, digest) if far else place(digest)
            conversations.began(placement, digest, f"step {at_s}", "m", float(at_s))
            answer = Answer(text=text, complete=True, prompt_tokens=5, output_tokens=2)
            if far:
                answer = frames.answer(frames.read_front.decode(frames.encoded(frames.finishing(1, answer))))
            conversations.answered(placement.session, f"step {at_s}", answer, at_s + 0.5)
            found.append((placement.session, placement.why, placement.prompt_tokens, placement.common_tokens))
        assert found[0] == found[1]
        if what == "go on":
            history += [{"role": "assistant", "content": text}, {"role": "user", "content": f"more {at_s}"}]


def test_an_answer_crosses_without_its_text():
    """Counts, names of tools and a fingerprint; the length of the text is what counts where the engine did not."""
    answer = Answer(
        output_tokens=None, tool_calls=("Bash:git",), response_id="r", complete=True, text="secret words", num_bytes=999
    )
    raw = frames.encoded(frames.finishing(7, answer))
    assert b"secret" not in raw
    far = frames.answer(frames.read_front.decode(raw))
    assert (far.tool_calls, far.response_id, far.complete, far.error) == (("Bash:git",), "r", True, False)
    assert (far.text, far.num_bytes) == ("", len("secret words"))


def test_a_refusal_crosses_whole():
    """Status, words and the time to wait."""
    refused = Refused(429, "later", kind="rate_limit_error", code="c", param="p", retry_after_s=2.5)
    far = frames.refused(frames.read_coordinator.decode(frames.encoded(frames.refusing(1, refused))))
    assert vars(far) == vars(refused)


@pytest.mark.parametrize(
    "change",
    [{"chain": b"123"}, {"root": 9}, {"root": -1}, {"sizes": b""}, {"answers": b"\0\0\0"}],
)
def test_a_prompt_that_cannot_be_is_refused(change):
    """Before it reaches the conversations."""
    digest = read({"model": "m", "messages": [{"role": "user", "content": "x"}]}).digest
    sent = msgspec.structs.replace(frames.sent(digest), **change)
    with pytest.raises(PeerError, match="a prompt of"):
        FarPrompt(sent)


def test_questions_are_bounded():
    """A prompt that would ask for ever is taken as unlike anything."""
    said = [{"role": "assistant", "content": f"{place}"} for place in range(40)]
    far = crossed(read({"model": "m", "messages": said})).digest
    num_questions = 0
    for place in range(39):
        with contextlib.suppress(Untold):
            far.said(place)
            num_questions -= 1
        num_questions += 1
    assert num_questions == 16
    assert far.said(0) is None
    assert far.called(0) == frozenset()


@pytest.mark.parametrize(
    "told",
    [("said", (1,), ()), ("tail", None, ()), ("begins", (1, 2), ()), ("anything", (1,), ())],
)
def test_answers_that_answer_nothing_are_refused(told):
    """A front cannot make a prompt say what no prompt says."""
    far = crossed(read({"model": "m", "messages": [{"role": "user", "content": "x"}]})).digest
    what, numbers, names = told
    with pytest.raises(PeerError, match="that is none"):
        far.learn(frames.Told(1, what, 0, numbers, names))


@pytest.mark.parametrize("question", [("said", 5), ("called", -1), ("begins", 1), ("text", 0)])
def test_questions_about_nothing_are_refused(question):
    """A coordinator cannot ask a front for more than there is."""
    digest = read({"model": "m", "messages": [{"role": "user", "content": "x"}]}).digest
    with pytest.raises(PeerError, match="a question about"):
        frames.told(frames.Question(1, *question), digest)


def test_a_conversation_too_long_for_a_frame_is_refused_by_name(monkeypatch):
    """413, where the front can still say so."""
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 1_000)
    reading = read({"model": "m", "messages": [{"role": "user", "content": "x"}] * 200})
    with pytest.raises(Refused, match="more messages than can be scheduled") as refused:
        frames.encoded(frames.placing(1, reading, reading.digest))
    assert refused.value.status == 413


class Ends:
    """Both ends of a link on a socket pair; the near one is written to raw."""

    def __init__(self):
        self.heard = []
        self.lost = []

    async def open(self, folder):
        loop = asyncio.get_running_loop()
        made = []

        def end():
            link = Link(
                frames.read_front, lambda _, said: self.heard.append(said), lambda _, why: self.lost.append(why)
            )
            made.append(link)
            return link

        self.server = await loop.create_unix_server(end, str(folder / "s"))
        self.reader, self.writer = await asyncio.open_unix_connection(str(folder / "s"))
        await until(lambda: made and made[0].is_open)
        self.link = made[0]
        return self

    async def close(self):
        self.writer.close()
        self.link.close()
        self.server.close()
        await asyncio.sleep(0.01)


def framed(message):
    """As it travels."""
    raw = frames.encoded(message)
    return struct.pack(">I", len(raw)) + raw


@pytest.mark.parametrize("size", [1, 3, 5, 1_000])
def test_messages_are_whole_however_their_bytes_are_cut(tmp_path, size):
    """In order, none lost, none twice."""

    async def work():
        ends = await Ends().open(tmp_path)
        said = [frames.Began(1), frames.Failed(2, "why" * 50, retry=True), frames.Left(3)] * 5
        raw = b"".join(map(framed, said))
        for start in range(0, len(raw), size):
            ends.link.data_received(raw[start : start + size])
        assert ends.heard == said
        await ends.close()

    run(work())


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (struct.pack(">I", frames.MAX_FRAME_BYTES + 1), "a frame of"),
        (b"GET / HTTP/1.1\r\n\r\n", "a frame of"),
        (struct.pack(">I", 3) + b"abc", ""),
        (struct.pack(">I", 3) + msgspec.msgpack.encode([99, 1]), ""),
        (struct.pack(">I", 5) + msgspec.msgpack.encode([7, "one"]), ""),
        (struct.pack(">I", 0), ""),
    ],
)
def test_what_is_no_frame_ends_the_link(tmp_path, raw, why):
    """Too long, no msgpack, an unknown message, a wrong type: closed at once, said once, memory stays bounded."""

    async def work():
        ends = await Ends().open(tmp_path)
        ends.writer.write(raw + framed(frames.Began(1)))
        await ends.reader.read()
        assert ends.heard == []
        (said,) = ends.lost
        assert why in said
        assert not ends.link.is_open
        ends.link.send(frames.Left(1))
        await ends.close()

    run(work())


def test_messages_of_one_turn_are_one_write(tmp_path):
    """The other end gets them in one piece."""

    async def work():
        ends = await Ends().open(tmp_path)
        for number in range(10):
            ends.link.send(frames.NoMore(number))
        got = await ends.reader.read(65_536)
        assert got == b"".join(framed(frames.NoMore(number)) for number in range(10))
        await ends.close()

    run(work())


def test_hashes_take_thirteen_bytes_a_message():
    """Eight of chain, four of size, one mark."""
    digest = read({"model": "m", "messages": [{"role": "user", "content": "x" * 5_000}] * 100}).digest
    sent = frames.sent(digest)
    assert len(sent.chain) + len(sent.sizes) + len(sent.answers) == 100 * (array("Q").itemsize + 4 + 1)
