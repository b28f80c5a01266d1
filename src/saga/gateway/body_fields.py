"""The fields of a call's body that are read, as msgspec decodes them: shapes without behaviour (`body` reads them).

A file of its own because classes of msgspec stay as they are where the rest is compiled
(`native/build.py`). It refuses to know what any field means.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

NONE: Final = Raw(b"")
"""An absent field."""


class Item(msgspec.Struct, gc=False):
    """A message (chat, Anthropic) or an input item (responses): the parts that make it what it is, raw."""

    role: str = ""
    type: str | None = ""
    content: Raw = NONE
    tool_calls: Raw = NONE
    name: Raw = NONE
    arguments: Raw = NONE
    output: Raw = NONE


class Streaming(msgspec.Struct, gc=False):
    """Options of a stream."""

    include_usage: bool | None = None


class Fields(msgspec.Struct, gc=False):
    """What any kind of call may say. Extension fields stay raw until a convention asks for them."""

    model: str | UnsetType = UNSET
    stream: bool | None = None
    stream_options: Streaming | UnsetType | None = UNSET
    max_tokens: float | None = None
    max_completion_tokens: float | None = None
    max_output_tokens: float | None = None
    tools: Raw = NONE
    previous_response_id: str | None = None
    store: bool | None = None
    # extensions, in the order of their first convention
    saga: Raw = NONE
    nvext: Raw = NONE
    vllm_xargs: Raw = NONE
    agent_hint: Raw = NONE
    metadata: Raw = NONE
    cache_control: Raw = NONE
    litellm_session_id: Raw = NONE
    session_id: Raw = NONE
    cache_salt: Raw = NONE
    priority: Raw = NONE
    session_params: Raw = NONE
    conversation: Raw = NONE
    conversation_id: Raw = NONE
    prompt_cache_key: Raw = NONE
    user: Raw = NONE


class Chat(Fields, gc=False):
    """A chat."""

    messages: list[Item] | UnsetType = UNSET


class Messages(Fields, gc=False):
    """A chat in Anthropic's format."""

    messages: list[Item] | UnsetType = UNSET
    system: Raw = NONE


class Completions(Fields, gc=False):
    """A completion of plain text or of tokens."""

    prompt: Raw = NONE


class Responses(Fields, gc=False):
    """A call of the Responses API."""

    input: Raw = NONE
    instructions: Raw = NONE


class Embeddings(Fields, gc=False):
    """A call for embeddings."""

    input: Raw = NONE
