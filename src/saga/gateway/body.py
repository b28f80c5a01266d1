"""The body of a call, read only as far as scheduling needs.

Messages are split into a few raw parts and never decoded; what the gateway does not use it does not look at, so that
an engine's newest field passes through unseen. Wrong types in the few fields that are read are refused here, in
OpenAI's words, before a worker is bothered. Equal keys count as JSON parsers of engines count them: the last one wins.

It refuses to know tenants, sessions and workers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw, UnsetType

from saga.gateway.body_fields import (
    NONE,
    Chat,
    Completions,
    Embeddings,
    Fields,
    Item,
    Messages,
    Responses,
    Streaming,
)
from saga.gateway.contracts import Kind, Refused
from saga.wire import BODY_FIELDS

MAX_ITEMS: Final = 50_000
MAX_MODEL_CHARS: Final = 512
_MAX_EXTENSION_BYTES: Final = 65_536

_FIELDS = TypeVar("_FIELDS", bound=Fields)
_EXTENSIONS: Final = tuple(sorted(BODY_FIELDS & set(Fields.__struct_fields__)))
_CHAT: Final = msgspec.json.Decoder(Chat)
_MESSAGES: Final = msgspec.json.Decoder(Messages)
_COMPLETIONS: Final = msgspec.json.Decoder(Completions)
_RESPONSES: Final = msgspec.json.Decoder(Responses)
_EMBEDDINGS: Final = msgspec.json.Decoder(Embeddings)
_ITEMS: Final = msgspec.json.Decoder(list[Item])
_JSON_SPACE: Final = b" \t\n\r"


class Body:
    """A call's body.

    items: messages or input items. system: the raw system prompt where the format has a place of its own for it (b""
    if none). tools: raw. prompt: raw text or tokens of a completion (b"" otherwise). extensions: (name, raw JSON) of
    fields in which conventions speak; those too large to hold anybody's names are left out. max_output_tokens: as asked
    for. asks_usage: whether a stream will carry usage; None where its options are not said.
    size: bytes of the prompt (messages, system and tools). single: whether it is one prompt (not a batch).
    """

    __slots__ = (
        "asks_usage",
        "extensions",
        "items",
        "max_output_tokens",
        "model",
        "previous_response_id",
        "prompt",
        "single",
        "size",
        "store",
        "stream",
        "system",
        "tools",
    )

    def __init__(self, said: Fields, size: int) -> None:
        self.model = _model(said.model)
        self.stream = bool(said.stream)
        self.asks_usage = (
            None if not isinstance(said.stream_options, Streaming) else bool(said.stream_options.include_usage)
        )
        self.max_output_tokens = _limit(said)
        self.tools = bytes(said.tools)
        self.previous_response_id = said.previous_response_id
        self.store = said.store
        self.items: list[Item] = []
        self.system = b""
        self.prompt = b""
        self.single = True
        self.size = size
        self.extensions = _extensions(said)

    @property
    def fields(self) -> Mapping[str, Any]:
        """The extensions, decoded; those too deep to hold anybody's names are left out."""
        found: dict[str, Any] = {}
        for name, raw in self.extensions:
            try:
                found[name] = msgspec.json.decode(raw)
            except (msgspec.DecodeError, RecursionError):
                continue
        return found


def parse(kind: Kind, body: bytes) -> Body:
    """The body of a call of that kind (not OTHER); raises Refused (400), naming the parameter.

    Cost: O(bytes); about 60 us for 200 KB in 100 messages.
    """
    if not body.isascii():
        try:
            body.decode("utf-8")
        except UnicodeDecodeError as why:
            raise _bad(f"the body is not UTF-8 (byte {why.start})", code="invalid_json") from None
    if kind is Kind.CHAT:
        return _with_items(_decoded(_CHAT, body), body, "messages")
    if kind is Kind.MESSAGES:
        said = _decoded(_MESSAGES, body)
        read = _with_items(said, body, "messages")
        read.system = _content(said.system)
        return read
    if kind is Kind.RESPONSES:
        return _response(_decoded(_RESPONSES, body), body)
    if kind is Kind.COMPLETIONS:
        return _completion(_decoded(_COMPLETIONS, body), body)
    asked = _decoded(_EMBEDDINGS, body)
    if not asked.input:
        raise _missing("input")
    read = Body(asked, len(body))
    read.single = False
    return read


def _with_items(said: Chat | Messages, body: bytes, name: str) -> Body:
    if isinstance(said.messages, UnsetType):
        raise _missing(name)
    if not said.messages:
        raise _bad(f"'{name}' is empty: at least one message is needed", param=name)
    _check_count(said.messages, name)
    for place, item in enumerate(said.messages):
        if not item.role:
            raise _missing(f"{name}[{place}].role")
    read = Body(said, len(body))
    read.items = said.messages
    return read


def _response(said: Responses, body: bytes) -> Body:
    raw = _content(said.input)
    if not raw and said.previous_response_id is None:
        raise _missing("input")
    read = Body(said, len(body))
    read.system = _content(said.instructions)
    if raw[:1] == b'"':
        read.items = [Item(role="user", content=said.input)]
    elif raw[:1] == b"[":
        try:
            read.items = _ITEMS.decode(said.input)
        except msgspec.ValidationError as why:
            raise _invalid(str(why), "input") from None
        except RecursionError:
            raise _bad("the body is nested too deeply", code="invalid_json") from None
        _check_count(read.items, "input")
    elif raw:
        raise _bad("'input' must be a string or an array of items", param="input")
    return read


def _completion(said: Completions, body: bytes) -> Body:
    raw = _content(said.prompt)
    if not raw:
        raise _missing("prompt")
    read = Body(said, len(body))
    read.prompt = raw
    if raw[:1] == b'"':
        return read
    if raw[:1] != b"[":
        raise _bad("'prompt' must be a string, an array of strings, or an array of tokens", param="prompt")
    read.single = raw[1:].lstrip(_JSON_SPACE)[:1].isdigit()
    return read


def _check_count(items: list[Item], name: str) -> None:
    if len(items) > MAX_ITEMS:
        raise _bad(f"'{name}' has {len(items)} entries; at most {MAX_ITEMS} are taken", param=name)


def _decoded(decoder: msgspec.json.Decoder[_FIELDS], body: bytes) -> _FIELDS:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as why:
        raise _invalid(str(why), "") from None
    except msgspec.DecodeError as why:
        raise _bad(f"the body is no valid JSON: {why}", code="invalid_json") from None
    except RecursionError:
        raise _bad("the body is nested too deeply", code="invalid_json") from None


_PLACE: Final = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<where>[^`]*)`)?$", re.DOTALL)


def _invalid(why: str, root: str) -> Refused:
    """A complaint of msgspec ("Expected `str`, got `int` - at `$.model`") in OpenAI's words."""
    found = _PLACE.match(why)
    where = found["where"] or "" if found else ""
    what = found["what"] if found else why
    param = f"{root}{where}" if where.startswith("[") or not root else f"{root}.{where}".rstrip(".")
    if not param:
        return _bad(f"the body must be a JSON object: {what}", code="invalid_type")
    return _bad(f"invalid type for '{param}': {what}", code="invalid_type", param=param)


def _bad(message: str, *, code: str | None = "invalid_value", param: str | None = None) -> Refused:
    return Refused(400, message, code=code, param=param)


def _missing(param: str) -> Refused:
    return _bad(f"missing required parameter: '{param}'", code="missing_required_parameter", param=param)


def _model(said: str | UnsetType) -> str:
    if isinstance(said, UnsetType) or not said:
        raise _missing("model")
    if len(said) > MAX_MODEL_CHARS or not said.isprintable():
        raise _bad("'model' is no name of a model", param="model")
    return said


def _limit(said: Fields) -> int | None:
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        limit: float | None = getattr(said, name)
        if limit is not None:
            if not 0 <= limit <= 2**31 or limit != int(limit):
                raise _bad(f"'{name}' must be a whole number of tokens", param=name)
            return int(limit)
    return None


def _content(raw: Raw) -> bytes:
    """The bytes of a field, b"" where it is absent or null."""
    value = bytes(raw)
    return b"" if value == b"null" else value


def _extensions(said: Fields) -> tuple[tuple[str, bytes], ...]:
    found: list[tuple[str, bytes]] = []
    for name in _EXTENSIONS:
        raw: Raw = getattr(said, name)
        if raw is not NONE and len(raw) <= _MAX_EXTENSION_BYTES:
            found.append((name, bytes(raw)))
    return tuple(found)
