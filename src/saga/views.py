"""Read-only shapes that policies see: what a policy may know, and nothing else.

Policies never see the scheduler's tables. The scheduler fills these views; they refuse to know how.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

PromptPath: TypeAlias = tuple[tuple[int, int], ...]
"""A prompt as content: ((stream, num_tokens), ...).

A *stream* is a sequence of tokens with an identity; it always follows the same content, so equal
(stream, n) at equal place means equal prompts up to there. An append-only session is one growing stream
behind the streams it shares; rewriting history from token t on keeps the streams up to t and begins a
new one. This is a prefix tree with one name per branch.
"""


class CacheOwner:
    """What an eviction policy may know about the session that owns a cached prefix.

    standing: "active", "paused", "ended" or "unknown" (never directed); times in seconds; tokens of context;
    capacity_tokens: of the cache it lies in.
    """

    __slots__ = (
        "capacity_tokens",
        "context_tokens",
        "expected_use_s",
        "last_use_s",
        "reuse_probability",
        "session",
        "standing",
        "task_arrival_s",
    )

    def __init__(self, session: str, *, capacity_tokens: int = 1, task_arrival_s: float = 0.0) -> None:
        self.session = session
        self.standing = "unknown"
        self.last_use_s = 0.0
        self.expected_use_s = float("inf")
        self.reuse_probability = 1.0
        self.context_tokens = 0
        self.capacity_tokens = capacity_tokens
        self.task_arrival_s = task_arrival_s
