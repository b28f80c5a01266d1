"""A conversation keeps the law of content streams however it grows and is cut."""

from __future__ import annotations

from itertools import count, pairwise

from hypothesis import given
from hypothesis import strategies as st

from saga.workloads.conversation import Conversation, common_tokens, cut

STEPS = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 20), st.one_of(st.none(), st.integers(0, 80))), min_size=1, max_size=12
)


@given(STEPS, st.integers(0, 5))
def test_paths_sum_to_the_prompt_and_common_is_what_paths_say(
    steps: list[tuple[int, int, int | None]], system: int
) -> None:
    """Every path has the prompt's length without empty pieces, and `common` is its overlap with the context before."""
    conversation = Conversation(count(1), ((0, system),) if system else ())
    context: tuple[tuple[int, int], ...] = ((0, system),) if system else ()
    for prompt_tokens, output_tokens, kept in steps:
        prompt = prompt_tokens + system
        path, common = conversation.ask(prompt, output_tokens, kept)
        assert sum(tokens for _, tokens in path) == prompt
        assert all(tokens > 0 for _, tokens in path)
        assert common == common_tokens(context, path) <= prompt
        stream, tokens = path[-1]
        context = (*path[:-1], (stream, tokens + output_tokens))


@given(STEPS)
def test_a_stream_always_follows_the_same_content(steps: list[tuple[int, int, int | None]]) -> None:
    """What lies in front of a stream is the same wherever the stream occurs."""
    conversation = Conversation(count(1))
    front: dict[int, tuple[tuple[int, int], ...]] = {}
    for prompt_tokens, output_tokens, kept in steps:
        path, _ = conversation.ask(prompt_tokens, output_tokens, kept)
        for k, (stream, _) in enumerate(path):
            assert front.setdefault(stream, path[:k]) == path[:k]


def test_an_append_only_session_is_one_stream() -> None:
    """Without a cut there is the shared stream and one growing stream of its own."""
    conversation = Conversation(count(7), ((0, 10),))
    paths = [conversation.ask(prompt, 5)[0] for prompt in (20, 40, 60)]
    assert paths == [((0, 10), (7, 10)), ((0, 10), (7, 30)), ((0, 10), (7, 50))]
    assert all(common_tokens(before, after) == sum(n for _, n in before) for before, after in pairwise(paths))


def test_a_prompt_as_long_as_what_it_keeps_has_a_last_token_of_its_own() -> None:
    """A prompt that is a pure prefix of the context does not write its answer over the old one."""
    conversation = Conversation(count(1))
    conversation.ask(50, 5)
    path, common = conversation.ask(30, 5)
    assert (path, common) == (((1, 29), (2, 1)), 29)


def test_cut_takes_whole_and_part_streams() -> None:
    """Cutting a path counts tokens across streams."""
    assert cut(((1, 10), (2, 10)), 15) == ((1, 10), (2, 5))
    assert cut(((1, 10), (2, 10)), 10) == ((1, 10),)
    assert cut(((1, 10),), 0) == ()
