"""From the text of prompts to streams (`views.PromptPath`): who shares how much of a prefix with whom.

Theory of operation. A prompt's bytes are cut into blocks that stand for one KV block each (4 bytes per token), and
hashed as a chain, so that a block's digest names everything up to it. A *run* is a stream of consecutive blocks. A
prompt follows known digests from the front; where it diverges it begins a run of its own, and where it stops at the end
of a run that nobody else writes, it goes on in that run. The answer extends the prompt's last run. A run is written by
one live call at a time, so a stream never says two things at one place; a run whose call was given up before its answer
was complete is never extended again.

Runs are forgotten least recently used first, beyond `max_blocks` in all. The index refuses to know engines and what
the bytes mean. Digests are xxh3, not adversary-safe: it stands beside a model, not beside real caches.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import xxhash

from saga.engine.filler import BYTES_PER_TOKEN
from saga.views import PromptPath

_RUN_COST = 4
"""Blocks that a run counts for beside its own: it has a name, neighbours and a place in the order of use."""


class _Run:
    """Blocks first, first + 1, ... of one stream behind `parent`. open: the next call may extend it."""

    __slots__ = ("digests", "first", "name", "open", "parent")

    def __init__(self, name: int, first: int, parent: _Run | None) -> None:
        self.name = name
        self.first = first
        self.parent = parent
        self.digests: list[int] = []
        self.open = True


class Placed(NamedTuple):
    """A prompt's place. path: as streams; prompt_tokens: their sum; digest: names the whole prompt.

    run, state and rest belong to the index: the run that the answer extends, the hash up to the last whole block, and
    the bytes after it.
    """

    path: PromptPath
    prompt_tokens: int
    digest: int
    run: Any
    state: Any
    rest: bytes


class PromptIndex:
    """Remembers at most about max_blocks blocks of block_tokens tokens (some 150 bytes each)."""

    def __init__(self, block_tokens: int, max_blocks: int) -> None:
        self._block_tokens = block_tokens
        self._block_bytes = block_tokens * BYTES_PER_TOKEN
        self._max_blocks = max_blocks
        self._runs: OrderedDict[int, _Run] = OrderedDict()  # by name, least recently used first
        self._run_of: dict[int, _Run] = {}
        self._num_blocks = 0
        self._num_names = 0

    @property
    def num_blocks(self) -> int:
        """Blocks remembered now, each run counted as `_RUN_COST` more."""
        return self._num_blocks

    def place(self, root: bytes, prompt: bytes) -> Placed:
        """Where the prompt stands; its last run is then being written until `answered` or `abandoned`.

        root: what keeps prompts apart that must not share (model, cache salt). O(bytes), about 0.5 us a block.
        """
        size = self._block_bytes
        state = xxhash.xxh3_64(root)
        whole = len(prompt) // size
        digests = self._chain(state, memoryview(prompt)[: whole * size])
        rest = prompt[whole * size :]
        last = state.copy()
        last.update(rest)
        counts = self._follow(digests)
        matched = sum(count for _, count in counts)
        run = self._writable(counts, matched)
        self._append(run, digests[matched:])
        if not counts or counts[-1][0] is not run:
            counts.append((run, 0))
        run.open = False
        self._touch(run)
        prompt_tokens = max(1, len(prompt) // BYTES_PER_TOKEN)
        path = [(one.name, count * self._block_tokens) for one, count in counts[:-1]]
        path.append((run.name, prompt_tokens - sum(tokens for _, tokens in path)))
        return Placed(tuple(path), prompt_tokens, last.intdigest(), run, state, rest)

    def answered(self, placed: Placed, answer: bytes) -> None:
        """The prompt has been answered with these bytes: what extends both is known from now on. O(bytes)."""
        run: _Run = placed.run
        if run.name not in self._runs:
            return
        text = placed.rest + answer
        whole = len(text) // self._block_bytes * self._block_bytes
        self._append(run, self._chain(placed.state, memoryview(text)[:whole]))
        run.open = True
        self._forget_if_empty(run)

    def abandoned(self, placed: Placed) -> None:
        """The answer will never be complete; the run stays closed, later prompts fork from what is known of it."""
        placed.run.open = False
        self._forget_if_empty(placed.run)

    def _chain(self, state: Any, data: memoryview) -> list[int]:  # noqa: ANN401 - xxhash has no public type
        """The digest after each block of `data`."""
        size = self._block_bytes
        digests = []
        for start in range(0, len(data), size):
            state.update(data[start : start + size])
            digests.append(state.intdigest())
        return digests

    def _follow(self, digests: list[int]) -> list[tuple[_Run, int]]:
        """(run, its blocks) of the known leading blocks."""
        counts: list[tuple[_Run, int]] = []
        current: _Run | None = None
        count = 0
        for position, digest in enumerate(digests):
            run = self._run_of.get(digest)
            if run is not current or run is None:
                if run is None or run.first != position or run.parent is not current:
                    break
                if current is not None:
                    counts.append((current, count))
                current, count = run, 0
            count += 1
        if current is not None:
            counts.append((current, count))
        return counts

    def _writable(self, counts: list[tuple[_Run, int]], matched: int) -> _Run:
        """The last run of what is known where it ends there and nobody writes it, else a new one."""
        parent = counts[-1][0] if counts else None
        if parent is not None and parent.open and parent.first + len(parent.digests) == matched:
            return parent
        self._num_names += 1
        run = _Run(self._num_names, matched, parent)
        self._runs[run.name] = run
        self._num_blocks += _RUN_COST
        return run

    def _forget_if_empty(self, run: _Run) -> None:
        """A run without a whole block can never be found again."""
        if not run.digests and self._runs.pop(run.name, None) is not None:
            self._num_blocks -= _RUN_COST

    def _append(self, run: _Run, digests: list[int]) -> None:
        run.digests += digests
        self._num_blocks += len(digests)
        for digest in digests:
            self._run_of[digest] = run

    def _touch(self, run: _Run | None) -> None:
        """Used now, the front last of all; forget what is too much."""
        while run is not None:
            if run.name in self._runs:
                self._runs.move_to_end(run.name)
            run = run.parent
        while self._num_blocks > self._max_blocks and len(self._runs) > 1:
            _, oldest = self._runs.popitem(last=False)
            self._num_blocks -= len(oldest.digests) + _RUN_COST
            for digest in oldest.digests:
                if self._run_of.get(digest) is oldest:
                    del self._run_of[digest]
            oldest.digests, oldest.parent = [], None
