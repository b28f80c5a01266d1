"""From prompt paths to messages: text with the prefix structure of a workload.

Theory of operation. Every stream of a path (`saga.views.PromptPath`) is written down once, as *pieces*: a role, a text
and how many tokens it stands for. A prompt is the pieces of its streams, cut where the path leaves them; what a stream
lacks is written when a prompt first needs it, in words drawn from (salt, stream, place); a server's answer becomes the
next piece of the stream that it extends. So prompts share exactly the bytes whose streams they share, and a history
that a workload rewrites is rewritten in its text.

A word is 4 bytes and stands for one token. It refuses to know HTTP and time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from random import Random
from typing import Any

import xxhash

from saga.workloads.plan import Call, Task

WORD_BYTES = 4
MARKUP_TOKENS = 4
"""Tokens that chat templates add to a message, about; new text is shorter by as much."""

_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"
WORDS = tuple(f"{a}{b}{c} " for a in _CONSONANTS for b in _VOWELS for c in "dlmnrst")
"""What all texts are made of."""


class Piece:
    """Part of a stream. tokens: it stands for; calls: of tools, in an answer (OpenAI's `tool_calls`)."""

    __slots__ = ("calls", "role", "text", "tokens")

    def __init__(self, role: str, text: str, tokens: int, calls: list[dict[str, Any]] | None = None) -> None:
        self.role = role
        self.text = text
        self.tokens = tokens
        self.calls = calls or []


class Texts:
    """What all streams of a run say. salt: another salt, other words. Memory is dropped task by task.

    scale: of all lengths. kept: streams that several tasks use; they stay.
    """

    def __init__(self, salt: str, *, scale: float = 1.0, kept: Iterable[int] = ()) -> None:
        self._salt = salt
        self._scale = scale
        self._kept = frozenset(kept)
        self._streams: dict[int, list[Piece]] = {}

    @property
    def num_streams(self) -> int:
        """Streams that are remembered."""
        return len(self._streams)

    def tokens(self, count: int) -> int:
        """A length of the workload at this scale; 1 at least."""
        return max(1, int(count * self._scale))

    def messages(self, call: Call, *, tools_were_called: bool, head_tokens: int = 0) -> list[dict[str, Any]]:
        """The prompt of a call as OpenAI messages. O(streams + pieces).

        tools_were_called: by the answer before it, so what is new is a tool's result. head_tokens: of tool definitions,
        which a server puts before the messages.
        """
        shown: list[Piece] = []
        for index, (stream, length) in enumerate(call.path):
            tokens = int(length * self._scale)
            first = index == 0 and len(call.path) > 1
            role = "system" if first else "tool" if tools_were_called and shown else "user"
            self._write(stream, tokens, role, head_tokens if index == 0 else 0)
            shown += _cut(self._streams[stream], tokens)
        return _as_messages(shown)

    def _write(self, stream: int, tokens: int, role: str, head_tokens: int) -> None:
        """Let the stream be `tokens` long at least."""
        pieces = self._streams.setdefault(stream, [])
        known = sum(piece.tokens for piece in pieces)
        if known < tokens:
            markup = MARKUP_TOKENS * (2 if pieces and pieces[-1].role == "assistant" else 1)
            num_words = max(1, tokens - known - markup - (0 if pieces else head_tokens))
            pieces.append(Piece(role, self._words(stream, known, num_words), tokens - known))

    def _words(self, stream: int, place: int, count: int) -> str:
        seed = xxhash.xxh3_64_intdigest(f"{self._salt}/{stream}/{place}".encode())
        return "".join(Random(seed).choices(WORDS, k=count))

    def answered(self, call: Call, text: str, output_tokens: int, tool_calls: list[dict[str, Any]]) -> None:
        """The server's answer extends the call's last stream, unless somebody has gone on there already."""
        stream = call.path[-1][0]
        end = int(call.path[-1][1] * self._scale)
        pieces = self._streams.get(stream)
        if pieces is not None and sum(piece.tokens for piece in pieces) == end:
            tokens = min(output_tokens, int((call.path[-1][1] + call.output_tokens) * self._scale) - end)
            if tokens > 0 and (text or tool_calls):
                pieces.append(Piece("assistant", text, tokens, tool_calls))

    def forget(self, task: Task) -> None:
        """The task is over: drop what nobody else reads."""
        for session in task.sessions:
            for call in session.calls:
                for stream, _ in call.path:
                    if stream not in self._kept:
                        self._streams.pop(stream, None)


def shared_streams(tasks: Iterable[Task]) -> set[int]:
    """Streams that more than one of the tasks uses. O(calls x streams)."""
    once: set[int] = set()
    several: set[int] = set()
    for task in tasks:
        mine = {stream for session in task.sessions for call in session.calls for stream, _ in call.path}
        several |= mine & once
        once |= mine
    return several


def tool_name(name: str) -> str:
    """A tool's name as the protocol allows it: at most 64 letters, digits, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "tool"


def tool_definition(name: str) -> dict[str, Any]:
    """A function that a chat request offers."""
    parameters = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


def _cut(pieces: list[Piece], tokens: int) -> list[Piece]:
    """The first `tokens` tokens; a piece cut in two loses its tool calls and what text goes with the rest."""
    shown: list[Piece] = []
    for piece in pieces:
        if tokens <= 0:
            break
        if piece.tokens <= tokens:
            shown.append(piece)
        else:
            kept = len(piece.text) * tokens // piece.tokens // WORD_BYTES * WORD_BYTES
            if kept:
                shown.append(Piece(piece.role, piece.text[:kept], tokens))
        tokens -= piece.tokens
    return shown


def _as_messages(pieces: list[Piece]) -> list[dict[str, Any]]:
    """Pieces as messages; neighbours of one role are one message, a tool's result needs its call before it."""
    messages: list[dict[str, Any]] = []
    pending: list[str] = []  # ids of tool calls without a result
    for piece in pieces:
        if piece.role == "assistant":
            message: dict[str, Any] = {"role": "assistant", "content": piece.text}
            if piece.calls:
                message["tool_calls"] = piece.calls
            pending = [call["id"] for call in piece.calls]
            messages.append(message)
            continue
        if pending:
            messages.append({"role": "tool", "tool_call_id": pending.pop(0), "content": piece.text})
            messages += [{"role": "tool", "tool_call_id": call_id, "content": "done"} for call_id in pending]
            pending = []
            continue
        last = messages[-1] if messages else {"role": ""}
        role = "system" if piece.role == "system" and not messages else "user"
        if last["role"] == role or (last["role"] == "tool" and piece.role == "tool"):
            last["content"] += piece.text
        else:
            messages.append({"role": role, "content": piece.text})
    if len(messages) == 1 and messages[0]["role"] == "system":
        messages[0]["role"] = "user"
    return messages
