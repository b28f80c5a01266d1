"""One conversation as it grows, is cut and grows again: from lengths to prompt paths.

It knows how content streams follow each other (`saga.views.PromptPath`) and keeps their law: a stream always follows
the same content and never says two things at one place. It refuses to know where the lengths come from.
"""

from __future__ import annotations

from collections.abc import Iterator

from saga.views import PromptPath


class Conversation:
    """The context of one session: prompt and answer of its last call, as streams.

    shared: what it begins with that others begin with too. streams: gives a new name for each stream of its own.
    """

    __slots__ = ("_begun", "_head", "_stream", "_streams", "context_tokens")

    def __init__(self, streams: Iterator[int], shared: PromptPath = ()) -> None:
        self._head = shared
        self._begun = sum(tokens for _, tokens in shared)
        self._streams = streams
        self._stream = next(streams)
        self.context_tokens = self._begun

    def ask(self, prompt_tokens: int, output_tokens: int, kept_tokens: int | None = None) -> tuple[PromptPath, int]:
        """The path of the next prompt, and how many leading tokens it has in common with the context so far.

        kept_tokens: how much of the context the prompt still begins with, None for all. At least the prompt's last
        token is its own, as an engine computes at least one. O(1), or O(streams) where the context is cut.
        """
        kept = self.context_tokens if kept_tokens is None else min(kept_tokens, self.context_tokens)
        if kept < self.context_tokens or kept > prompt_tokens or prompt_tokens <= self._begun:
            kept = min(kept, prompt_tokens - 1)
            self._cut(kept)
        self.context_tokens = prompt_tokens + output_tokens
        return (*self._head, (self._stream, prompt_tokens - self._begun)), kept

    def _cut(self, kept: int) -> None:
        """Forget all but the first `kept` tokens and go on in a new stream."""
        self._head = cut((*self._head, (self._stream, self.context_tokens - self._begun)), kept)
        self._begun = kept
        self._stream = next(self._streams)


def cut(path: PromptPath, tokens: int) -> PromptPath:
    """The first `tokens` tokens of `path`. O(streams)."""
    kept: list[tuple[int, int]] = []
    for stream, length in path:
        if tokens <= 0:
            break
        kept.append((stream, min(length, tokens)))
        tokens -= length
    return tuple(kept)


def common_tokens(one: PromptPath, other: PromptPath) -> int:
    """How many leading tokens two paths share. O(streams)."""
    common = 0
    for (stream, length), (other_stream, other_length) in zip(one, other, strict=False):
        if stream != other_stream:
            break
        common += min(length, other_length)
        if length != other_length:
            break
    return common
