"""Block ids and paths tell the same story: two calls share by path what they share by id."""

from __future__ import annotations

import re
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.views import PromptPath
from saga.workloads.chains import ROOT, Chains, Layout
from saga.workloads.conversation import common_tokens

BLOCK = 4
CONTENTS = st.lists(st.integers(0, 2), max_size=5).map(tuple)
CALLS = st.lists(st.tuples(CONTENTS, st.integers(0, BLOCK - 1), st.integers(1, 9)), min_size=1, max_size=6)
SESSIONS = st.lists(st.tuples(st.integers(0, 2), CALLS), min_size=1, max_size=5)


class Laid:
    """Sessions of (task, calls), each call (contents of its full blocks, tokens behind, answer), laid out as paths."""

    def __init__(self, sessions: list[tuple[int, list[tuple[tuple[int, ...], int, int]]]]) -> None:
        self.chains = Chains(BLOCK)
        self.names: dict[tuple[int, ...], int] = {}
        self.ids: list[list[int]] = []
        self.prompts: list[int] = []
        self.answers: list[int] = []
        self.session: list[int] = []
        nodes = []
        for number, (_, calls) in enumerate(sessions):
            for contents, behind, answer in calls:
                ids = [self._id(contents[: k + 1]) for k in range(len(contents))]
                nodes.append(self.chains.add(ids, number))
                self.ids.append(ids)
                self.prompts.append(max(len(ids) * BLOCK + behind, 1))
                self.answers.append(answer)
                self.session.append(number)
        self.layout = Layout(self.chains, [task for task, _ in sessions])
        self.paths = [
            self.layout.place(session, node, prompt, answer, num_ids=len(ids))
            for session, node, prompt, answer, ids in zip(
                self.session, nodes, self.prompts, self.answers, self.ids, strict=True
            )
        ]

    def _id(self, prefix: tuple[int, ...]) -> int:
        return self.names.setdefault(prefix, len(self.names) + 100)

    def common_blocks(self, one: int, other: int) -> int:
        """Full blocks that two calls share by id."""
        blocks = 0
        for left, right in zip(self.ids[one], self.ids[other], strict=False):
            if left != right:
                break
            blocks += 1
        return blocks


@given(SESSIONS)
def test_paths_share_whole_blocks_exactly_where_ids_do(
    sessions: list[tuple[int, list[tuple[tuple[int, ...], int, int]]]],
) -> None:
    """Block-aligned overlap of any two paths is that of their ids.

    One token less where a prompt was nothing but known blocks: its last token is its own, and of what extends it.
    """
    laid = Laid(sessions)
    for one, other in combinations(range(len(laid.paths)), 2):
        by_id = laid.common_blocks(one, other)
        by_path = common_tokens(laid.paths[one], laid.paths[other])
        exact = by_id * BLOCK in laid.prompts
        assert by_path // BLOCK == by_id or (exact and by_path == by_id * BLOCK - 1)


@given(SESSIONS)
def test_paths_have_the_prompts_length_and_streams_one_front(
    sessions: list[tuple[int, list[tuple[tuple[int, ...], int, int]]]],
) -> None:
    """Paths sum to prompts without empty pieces, and a stream always follows the same content."""
    laid = Laid(sessions)
    front: dict[int, PromptPath] = {}
    for path, prompt in zip(laid.paths, laid.prompts, strict=True):
        assert sum(tokens for _, tokens in path) == prompt
        assert all(tokens > 0 for _, tokens in path)
        for k, (stream, _) in enumerate(path):
            assert front.setdefault(stream, path[:k]) == path[:k]


@given(SESSIONS)
def test_answers_are_written_where_nobody_else_writes(
    sessions: list[tuple[int, list[tuple[tuple[int, ...], int, int]]]],
) -> None:
    """The end of a call's stream is its session's own: no two sessions end in the same stream."""
    laid = Laid(sessions)
    writer: dict[int, int] = {}
    for path, session in zip(laid.paths, laid.session, strict=True):
        assert writer.setdefault(path[-1][0], session) == session
        assert path[-1][0] not in laid.layout.several


@given(SESSIONS)
def test_streams_of_one_task_are_negative(
    sessions: list[tuple[int, list[tuple[tuple[int, ...], int, int]]]],
) -> None:
    """A stream has a name from 0 up exactly if it holds what several tasks use."""
    laid = Laid(sessions)
    users: dict[int, set[int]] = {}
    for path, session in zip(laid.paths, laid.session, strict=True):
        for stream, _ in path:
            users.setdefault(stream, set()).add(sessions[session][0])
    for stream, tasks in users.items():
        assert len(tasks) == 1 or stream >= 0


def test_a_session_that_extends_its_context_stays_in_its_stream() -> None:
    """All full blocks again and room for the answer: the whole context is kept, tail and answer included."""
    laid = Laid([(0, [((1, 2), 1, 3), ((1, 2, 0), 2, 1)])])
    assert laid.paths == [((-1, 9),), ((-1, 14),)]


def test_an_answer_that_does_not_come_back_is_dropped_at_the_prompts_end() -> None:
    """All full blocks again but no room for the answer: the prompt is kept, the answer is not."""
    laid = Laid([(0, [((1, 2), 1, 9), ((1, 2, 0), 2, 1)])])
    assert laid.paths[1] == ((-1, 9), (-2, 5))


def test_ids_that_do_not_cover_the_prompt_promise_nothing_behind_them() -> None:
    """Where full blocks have no id (images), only the blocks with ids count as kept."""
    chains = Chains(BLOCK)
    nodes = [chains.add(ids, 0) for ids in ([1, 2], [1, 2, 3])]
    layout = Layout(chains, [0])
    layout.place(0, nodes[0], 30, 2, num_ids=2)
    assert layout.place(0, nodes[1], 50, 2, num_ids=3) == ((-1, 8), (-2, 42))


def test_no_ids_end_at_the_root() -> None:
    """A prompt shorter than a block has no node and still a path."""
    chains = Chains(BLOCK)
    assert chains.add([], 0) == ROOT
    assert Layout(chains, [0]).place(0, ROOT, 3, 1, num_ids=0) == ((-1, 3),)


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        ([1, 2], [2], "hash id 2 stands at block 1 here and for block 2 before"),
        ([1, 2], [3, 2], "hash id 2 stands at block 2 here and for another prefix before"),
        ([1], [5, 5], "hash id 5 stands at block 2 here and for block 1 before"),
    ],
)
def test_an_id_that_means_two_prefixes_is_refused(first: list[int], second: list[int], problem: str) -> None:
    """Ids that contradict themselves are found, in one session or in two."""
    for session in (0, 1):
        chains = Chains(BLOCK)
        chains.add(first, 0)
        with pytest.raises(ValueError, match=re.escape(problem)):
            chains.add(second, session)
