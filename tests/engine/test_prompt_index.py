"""Prompts become streams: equal text is equal place, different text never is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from saga.engine.prompt_index import Placed, PromptIndex

BLOCK = 2  # tokens; 8 bytes
SIZE = 4 * BLOCK


def whole_blocks(text: bytes) -> list[bytes]:
    """The text up to the end of each whole block."""
    return [text[:end] for end in range(SIZE, len(text) + 1, SIZE)]


def places(placed: Placed, text: bytes) -> dict[tuple[int, int], bytes]:
    """(stream, block) -> text up to the block's end, for all whole blocks of `text`, which the path begins."""
    found, streams = {}, [name for name, tokens in placed.path for _ in range(tokens // BLOCK)]
    for block, prefix in enumerate(whole_blocks(text)):
        name = streams[block] if block < len(streams) else placed.path[-1][0]
        found[name, block] = prefix
    return found


TEXTS = st.lists(st.sampled_from([b"aaaaaaaa", b"bbbbbbbb", b"aaaabbbb", b"ab"]), max_size=6).map(b"".join)
LIVES = st.lists(st.tuples(TEXTS, TEXTS, st.sampled_from(["answered", "abandoned", "live"])), min_size=1, max_size=12)


@given(LIVES)
def test_a_place_says_one_thing(lives: list[tuple[bytes, bytes, str]]) -> None:
    """Whoever writes at the same time, gives up, or goes on: (stream, block) stands for one text for ever."""
    index = PromptIndex(BLOCK, 1 << 20)
    said: dict[tuple[int, int], bytes] = {}
    for prompt, answer, fate in lives:
        placed = index.place(b"", prompt)
        assert sum(tokens for _, tokens in placed.path) == placed.prompt_tokens == max(1, len(prompt) // 4)
        for place, prefix in places(placed, prompt + answer).items():
            assert said.setdefault(place, prefix) == prefix
        if fate == "answered":
            index.answered(placed, answer)
        elif fate == "abandoned":
            index.abandoned(placed)


@given(st.lists(TEXTS, min_size=1, max_size=12))
def test_equal_text_is_at_one_place(prompts: list[bytes]) -> None:
    """Every whole block of a prompt that was seen before, behind the same text, is where it was then."""
    index = PromptIndex(BLOCK, 1 << 20)
    known: dict[bytes, tuple[int, int]] = {}
    for prompt in prompts:
        placed = index.place(b"", prompt)
        for place, prefix in places(placed, prompt).items():
            assert known.setdefault(prefix, place) == place
        index.answered(placed, b"")


def test_a_conversation_that_is_only_appended_to_stays_one_stream() -> None:
    """Prompt, answer, next prompt: one stream, however long it gets."""
    index = PromptIndex(BLOCK, 1 << 20)
    text = b"x" * 37
    for turn in range(20):
        placed = index.place(b"root", text)
        assert [tokens for _, tokens in placed.path] == [len(text) // 4]
        answer = f"answer {turn} ".encode() * 3
        index.answered(placed, answer)
        text += answer + b"and the next question"


def test_another_root_shares_nothing() -> None:
    """The same text under another model or salt is elsewhere."""
    index = PromptIndex(BLOCK, 1 << 20)
    one, other = (index.place(root, b"the same text for both") for root in (b"a", b"b"))
    assert one.path[0][0] != other.path[0][0]
    assert one.digest != other.digest


def test_what_is_remembered_is_bounded_and_the_least_recently_used_goes_first() -> None:
    """Beyond max_blocks old prompts are forgotten; one that is used again and again is not."""
    index = PromptIndex(BLOCK, 100)
    often = index.place(b"", b"often used" * 8)
    index.answered(often, b"")
    for number in range(100):
        index.answered(index.place(b"", f"{number:08}".encode() * 10), b"")
        again = index.place(b"", b"often used" * 8)
        index.answered(again, b"")
        assert again.path[0][0] == often.path[0][0]
        assert index.num_blocks <= 100
    first = index.place(b"", f"{0:08}".encode() * 10)
    assert first.path[0][0] > often.path[0][0] + 100


def test_a_prompt_longer_than_the_memory_is_placed_all_the_same() -> None:
    """One path alone may exceed the bound; the next prompt of the conversation still has a valid path."""
    index = PromptIndex(BLOCK, 4)
    placed = index.place(b"", b"y" * 800)
    index.answered(placed, b"z" * 80)
    assert index.place(b"", b"y" * 800 + b"z" * 80).prompt_tokens == 220


def test_prompts_without_a_whole_block_leave_nothing_behind() -> None:
    """However many short prompts come and go, answered or not, nothing is remembered of them."""
    index = PromptIndex(BLOCK, 1 << 20)
    for number in range(100):
        (index.abandoned if number % 2 else lambda placed: index.answered(placed, b"x"))(index.place(b"", b"hi"))
    assert index.num_blocks == 0
