"""What identity writes down to outlive its process: shapes without behaviour.

A file of its own because classes of msgspec stay as they are where the rest is compiled
(`native/build.py`). It refuses to know where it is kept.
"""

from __future__ import annotations

import msgspec


class SavedIdentity(msgspec.Struct):
    """What identity remembers. conversations: packed lists of `SavedConversation`."""

    format: int
    bytes_per_token: dict[str, tuple[float, float]]
    responses: list[tuple[str, tuple[str, str]]]
    conversations: list[bytes]


class SavedConversation(msgspec.Struct, array_like=True, gc=False):
    """A conversation as it outlives its process. age_s: since it was last seen; was_live: its last step had no end."""

    session: str
    parent: str | None
    task: str
    root: int
    model: str
    chain: bytes
    end: int
    prefix: int
    last: int
    size: int
    text: int
    body: int
    step: str
    age_s: float
    was_live: bool
    prompt_tokens: int
    output_tokens: int
    answer: int
    ending: int
    tools: tuple[str, ...]
    children: int
