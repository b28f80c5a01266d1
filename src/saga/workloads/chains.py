"""From block ids to prompt paths: a prefix tree of ids, laid out as content streams.

Equal id means equal whole prefix up to that block, so the last id of a prompt is the whole prompt (its full blocks).
`Chains` notes which sessions pass through which block while rows stream by; `Layout` then gives every block a place in
a stream. Blocks that several tasks use lie in shared streams, which copies of a task keep; blocks of one task lie in
streams of its own. This module refuses to know files, times and tools.
"""

from __future__ import annotations

from collections.abc import Sequence

from saga.views import PromptPath
from saga.workloads.conversation import cut

ROOT = -1


class Chains:
    """The prefix tree of a trace's block ids. Nodes are numbered parents first; ROOT stands for the empty prompt."""

    __slots__ = ("block_tokens", "depth", "node_of", "owner", "parent", "users")

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.node_of: dict[int, int] = {}
        self.depth: list[int] = []
        self.parent: list[int] = []
        self.owner: list[int] = []
        self.users: dict[int, set[int]] = {}

    def add(self, ids: Sequence[int], session: int) -> int:
        """Note that `session` uses this chain; its last node. O(ids that the session did not use before).

        Raises ValueError where an id stands for two prefixes.
        """
        start, node_of = self._first_unused(ids, session), self.node_of
        node = node_of[ids[start - 1]] if start else ROOT
        for depth in range(start + 1, len(ids) + 1):
            block = ids[depth - 1]
            known = node_of.get(block)
            if known is None:
                known = node_of[block] = len(self.depth)
                self.depth.append(depth)
                self.parent.append(node)
                self.owner.append(session)
            elif self.parent[known] != node:
                raise ValueError(self._conflict(block, depth, known))
            elif self.owner[known] != session:
                self.users.setdefault(known, {self.owner[known]}).add(session)
            node = known
        return node

    def _first_unused(self, ids: Sequence[int], session: int) -> int:
        """How many leading ids `session` has used before, found from the end."""
        owner, users, node_of = self.owner, self.users, self.node_of
        for depth in range(len(ids), 0, -1):
            node = node_of.get(ids[depth - 1])
            if node is not None and (owner[node] == session or session in users.get(node, ())):
                above = node_of.get(ids[depth - 2]) if depth > 1 else ROOT
                if self.parent[node] != above:
                    raise ValueError(self._conflict(ids[depth - 1], depth, node))
                return depth
        return 0

    def _conflict(self, block: int, depth: int, node: int) -> str:
        before = "another prefix" if self.depth[node] == depth else f"block {self.depth[node]}"
        return f"hash id {block} stands at block {depth} here and for {before} before; one id is one whole prefix"


class _Stream:
    """A stream being laid out: the path in front of it, and the last node whose block it holds."""

    __slots__ = ("begun", "head", "name", "shared", "tip")

    def __init__(self, name: int, head: PromptPath, *, shared: bool) -> None:
        self.name = name
        self.head = head
        self.begun = sum(tokens for _, tokens in head)
        self.shared = shared
        self.tip = ROOT

    def path(self, tokens: int) -> PromptPath:
        """The path of the first `tokens` tokens of a prompt that ends in this stream."""
        return (*self.head, (self.name, tokens - self.begun))


class _Tail:
    """What a session wrote behind its last full block: `prompt` and `total` (answer included) tokens of that call."""

    __slots__ = ("exact", "prompt", "stream", "total")

    def __init__(self, stream: _Stream, prompt: int, total: int, *, exact: bool) -> None:
        self.stream = stream
        self.prompt = prompt
        self.total = total
        self.exact = exact


class Layout:
    """Paths for the calls of sessions whose ids are in `chains`. task_of: task number by session number.

    Streams of several tasks are named 0, 1, ...; streams of one task -1, -2, ... (`num_shared`, `num_private` of them).
    `several` holds the names of the streams that more than one session uses.
    """

    def __init__(self, chains: Chains, task_of: Sequence[int]) -> None:
        self._chains = chains
        self._task_of = task_of
        self._stream_of: list[_Stream | None] = [None] * len(chains.depth)
        self._tails: dict[tuple[int, int], _Tail] = {}
        self.num_shared = 0
        self.num_private = 0
        self.several: set[int] = set()

    def new_private(self) -> int:
        """The name of a new stream of one task."""
        self.num_private += 1
        return -self.num_private

    def place(self, session: int, node: int, prompt_tokens: int, output_tokens: int, *, num_ids: int) -> PromptPath:
        """The path of the session's next call, whose full blocks end at `node`. O(blocks new to the layout + streams).

        What lies behind the last full block has no id: it is taken as kept where the next prompt of the session has
        all the full blocks and is long enough for the whole context; else as kept up to the prompt's end. Where a
        prompt is nothing but known blocks its last token is its own, since its answer must not be written into a
        stream that goes on otherwise.
        """
        new = self._unplaced(node)
        at = self._chains.parent[new[0]] if new else node
        own = 0
        while own < len(new) and new[own] in self._chains.users:
            self._place_common(at, new[own])
            at = new[own]
            own += 1
        stream = self._own_stream(session, at, prompt_tokens)
        for block in new[own:]:
            self._stream_of[block] = stream
        exact = num_ids == prompt_tokens // self._chains.block_tokens
        tail = _Tail(stream, prompt_tokens, prompt_tokens + output_tokens, exact=exact)
        self._tails[session, node] = tail
        return stream.path(prompt_tokens)

    def _unplaced(self, node: int) -> list[int]:
        """Nodes up to `node` that lie in no stream yet, first one first."""
        new: list[int] = []
        while node != ROOT and self._stream_of[node] is None:
            new.append(node)
            node = self._chains.parent[node]
        return new[::-1]

    def _place_common(self, at: int, node: int) -> None:
        """Lay a block that several sessions use behind `at`: on in the same stream where that stream ends there."""
        tasks = {self._task_of[session] for session in self._chains.users[node]}
        shared = len(tasks) > 1
        stream = self._stream_of[at] if at != ROOT else None
        if stream is None or stream.tip != at or stream.shared != shared:
            stream = self._begin(self._path_at(at), shared=shared)
            self.several.add(stream.name)
        stream.tip = node
        self._stream_of[node] = stream

    def _own_stream(self, session: int, at: int, prompt_tokens: int) -> _Stream:
        """The stream that takes what only `session` has behind `at`; at least the prompt's last token is in it."""
        boundary = self._boundary(at)
        tail = self._tails.pop((session, at), None)
        if tail is not None and tail.exact:
            if prompt_tokens >= tail.total:
                return tail.stream
            self._tails[session, at] = tail
            kept = min(max(boundary, min(tail.prompt, prompt_tokens - 1)), prompt_tokens - 1)
            return self._begin(cut(tail.stream.path(tail.prompt), kept), shared=False)
        return self._begin(cut(self._path_at(at), min(boundary, prompt_tokens - 1)), shared=False)

    def _begin(self, head: PromptPath, *, shared: bool) -> _Stream:
        if shared:
            self.num_shared += 1
            return _Stream(self.num_shared - 1, head, shared=True)
        return _Stream(self.new_private(), head, shared=False)

    def _path_at(self, node: int) -> PromptPath:
        stream = self._stream_of[node] if node != ROOT else None
        return () if stream is None else stream.path(self._boundary(node))

    def _boundary(self, node: int) -> int:
        return self._chains.depth[node] * self._chains.block_tokens if node != ROOT else 0
