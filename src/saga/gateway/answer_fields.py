"""The fields of answers that are read, as msgspec decodes them: shapes that `answers` and `sse` look at.

A file of its own because classes of msgspec stay as they are where the rest is compiled
(`native/build.py`). It refuses to know what any field means.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw


class Details(msgspec.Struct, gc=False):
    """Of the prompt, what was cached."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct, gc=False):
    """Usage in the words of all three formats."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: Details | None = None
    input_tokens_details: Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class Function(msgspec.Struct, gc=False):
    """What a tool call calls."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, gc=False):
    """A tool call of a chat, or a part of one."""

    index: int | None = None
    function: Function | None = None


class ChatMessage(msgspec.Struct, gc=False):
    """A message of a chat, or a part of one."""

    content: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None


class Choice(msgspec.Struct, gc=False):
    """One of the answers of a chat or completion."""

    index: int = 0
    delta: ChatMessage | None = None
    message: ChatMessage | None = None
    text: str | None = None
    finish_reason: str | None = None


class Chat(msgspec.Struct, gc=False):
    """A chat or text completion, or a chunk of one."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None
    object: str = ""


class Part(msgspec.Struct, gc=False):
    """A part of a message of the Responses API."""

    type: str = ""
    text: str | None = None


class OutputItem(msgspec.Struct, gc=False):
    """An item of the Responses API."""

    type: str = ""
    name: str | None = None
    arguments: str | None = None
    action: Raw = Raw(b"")
    content: list[Part] | None = None


class Response(msgspec.Struct, gc=False):
    """An answer of the Responses API."""

    id: str | None = None
    status: str | None = None
    usage: Usage | None = None
    output: list[OutputItem] | None = None
    error: Any = None


class ResponseEvent(msgspec.Struct, gc=False):
    """An event of its stream."""

    type: str = ""
    delta: str | None = None
    item: OutputItem | None = None
    response: Response | None = None
    error: Any = None


class BlockDelta(msgspec.Struct, gc=False):
    """More of a block, or of the message (Anthropic)."""

    text: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class Block(msgspec.Struct, gc=False):
    """A block of content (Anthropic)."""

    type: str = ""
    text: str | None = None
    name: str | None = None
    input: Raw = Raw(b"")


class Message(msgspec.Struct, gc=False):
    """An answer in Anthropic's format."""

    type: str = ""
    id: str | None = None
    content: list[Block] | None = None
    stop_reason: str | None = None
    usage: Usage | None = None
    error: Any = None


class MessageEvent(msgspec.Struct, gc=False):
    """An event of its stream."""

    type: str = ""
    index: int = 0
    message: Message | None = None
    content_block: Block | None = None
    delta: BlockDelta | None = None
    usage: Usage | None = None
    error: Any = None


class UsageChunk(msgspec.Struct):
    """As much of a chat or completion chunk as tells whether it carries usage and nothing else."""

    choices: list[msgspec.Raw]
    usage: dict[str, Any]
