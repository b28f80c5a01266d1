"""The four ways to ask for an answer, as vLLM 0.32 speaks them: chat, completions, responses, messages.

Each dialect reads a request's JSON into an `Ask` and writes an `Answer` as one JSON object or as a stream of events.
The conversation is rendered to bytes so that a request which repeats an answer and goes on begins with the very bytes
of that answer's prompt and text. Dialects refuse to know HTTP, engines and time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from saga.engine.answers import Answer, Piece, Tool, ToolCall, Wanted, render_answer

JsonObject = dict[str, Any]
_encode = msgspec.json.encode


class Invalid(Exception):
    """A request that vLLM would refuse. status: HTTP; kind: `type` of the error body; param: the field."""

    def __init__(
        self, message: str, *, status: int = 400, kind: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.param = param

    def body(self) -> JsonObject:
        """The error body of vLLM."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}}


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation, whatever the dialect it came in."""

    role: str
    text: str
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of an answer."""

    prompt: int
    output: int
    cached: int


@dataclass(slots=True)
class Ask:
    """A request as the model sees it. prompt: rendered. cache_salt: keeps caches apart.

    turns, previous: of stored responses, the conversation and the one it continues.
    """

    model: str | None
    prompt: bytes
    wanted: Wanted
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    session: str = ""
    priority: int = 0
    cache_salt: str = ""
    turns: list[Turn] = field(default_factory=list)
    previous: str = ""


@dataclass(slots=True)
class Reply:
    """What the envelope of an answer needs. created: Unix seconds; call_ids: one for each tool call."""

    id: str
    model: str
    created: int
    ask: Ask
    answer: Answer
    usage: Usage
    call_ids: tuple[str, ...] = ()


class Dialect(Protocol):
    """One API."""

    prefix: str
    """Of the ids it gives."""

    def parse(self, body: JsonObject, recall: Callable[[str], list[Turn]]) -> Ask:
        """Read a request; raises Invalid. recall: the turns up to a stored response."""
        ...

    def unary(self, reply: Reply) -> JsonObject:
        """The whole answer."""
        ...

    def begin(self, reply: Reply) -> Iterator[bytes]:
        """Events before the first token."""
        ...

    def piece(self, reply: Reply, piece: Piece) -> Iterator[bytes]:
        """Events of a part of the answer."""
        ...

    def end(self, reply: Reply) -> Iterator[bytes]:
        """Events after the last token."""
        ...


# Reading fields


def _get(body: JsonObject, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:  # noqa: ANN401
    """A field of that JSON type, the default where it is absent or null."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise Invalid(f"{name} must be of type {names}, not {type(value).__name__}: {str(value)[:60]!r}", param=name)
    return value


def _max_tokens(body: JsonObject, *names: str) -> int | None:
    for name in names:
        value = _get(body, name, int)
        if value is not None:
            if value < 1:
                raise Invalid(f"{name} must be at least 1, got {value}.", param=name)
            return int(value)
    return None


def _common(body: JsonObject, ask: Ask) -> Ask:
    """The fields that all dialects have."""
    if _get(body, "n", int, 1) != 1:
        raise Invalid("n must be 1: this engine gives one answer to a call", param="n")
    ask.stream = _get(body, "stream", bool, default=False)
    options = _get(body, "stream_options", dict, {})
    ask.include_usage = bool(options.get("include_usage"))
    ask.continuous_usage = bool(options.get("continuous_usage_stats"))
    ask.priority = _get(body, "priority", int, 0)
    ask.cache_salt = _get(body, "cache_salt", str, "")
    xargs = _get(body, "vllm_xargs", dict, {})
    flat = (str, int, float)
    for key, value in xargs.items():
        if not isinstance(value, flat) and not (isinstance(value, list) and all(isinstance(x, flat) for x in value)):
            raise Invalid(f"vllm_xargs.{key} must be a string, a number or a list of them", param="vllm_xargs")
    ask.session = _get(body, "session_id", str, "") or str(xargs.get("session_id", ""))
    return ask


def _plain_text(content: Any, where: str) -> str:  # noqa: ANN401 - JSON
    """Content as text: a string, or a list of parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Invalid(f"{where} must be a string or a list of parts", param=where)
    texts = []
    for part in content:
        if not isinstance(part, dict):
            raise Invalid(f"{where} must be a list of objects", param=where)
        text = part.get("text")
        texts.append(text if isinstance(text, str) else _encode(part).decode())
    return "".join(texts)


def _objects(body: JsonObject, name: str, *, needed: bool) -> list[JsonObject]:
    value = _get(body, name, list, [])
    if not all(isinstance(one, dict) for one in value):
        raise Invalid(f"{name} must be a list of objects", param=name)
    if needed and not value:
        raise Invalid(f"{name} must be a list of at least one object", param=name)
    return value  # type: ignore[no-any-return]


def _arguments(value: Any) -> str:  # noqa: ANN401 - JSON
    return value if isinstance(value, str) else _encode(value).decode()


def _render(turns: list[Turn], tools: list[JsonObject]) -> bytes:
    """The conversation as bytes, ready for the next answer. O(bytes)."""
    parts = [b"<|tools|>\n" + _encode(tools) + b"<|end|>\n"] if tools else []
    for turn in turns:
        parts.append(f"<|{turn.role}|>\n".encode("utf-8", "surrogatepass"))
        parts.append(render_answer(turn.text, turn.calls))
        parts.append(b"<|end|>\n")
    parts.append(b"<|assistant|>\n")
    return b"".join(parts)


def _conversation(body: JsonObject, turns: list[Turn], tools: list[JsonObject], offered: list[Tool], most: str) -> Ask:
    """An Ask for an answer to these turns."""
    wanted = Wanted(
        max_tokens=_max_tokens(body, "max_completion_tokens", most),
        min_tokens=_get(body, "min_tokens", int, 0),
        ignore_eos=_get(body, "ignore_eos", bool, default=False),
        tools=tuple(offered),
        tool_choice=_choice(body.get("tool_choice")),
        num_turns=sum(turn.role == "assistant" for turn in turns),
    )
    ask = Ask(_get(body, "model", str), _render(turns, tools), wanted, turns=turns)
    return _common(body, ask)


def _choice(value: Any) -> str:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        function = value.get("function")
        name = value.get("name") or (function.get("name") if isinstance(function, dict) else None)
        if name:
            return str(name)
        value = value.get("type")
    return {"any": "required", None: "auto"}.get(value, str(value))


def _tools(body: JsonObject, schema: str) -> tuple[list[JsonObject], list[Tool]]:
    """(as given, as offered). schema: the key of the parameters."""
    tools = _objects(body, "tools", needed=False)
    offered = []
    for tool in tools:
        function = tool.get("function") if isinstance(tool.get("function"), dict) else tool
        assert isinstance(function, dict)
        name, parameters = function.get("name"), function.get(schema)
        if isinstance(name, str) and name:
            offered.append(Tool(name, parameters if isinstance(parameters, dict) else {}))
    return tools, offered


def _event(data: JsonObject) -> bytes:
    return b"data: " + _encode(data) + b"\n\n"


def _named(data: JsonObject) -> bytes:
    return b"event: " + str(data["type"]).encode() + b"\n" + _event(data)


def _usage(usage: Usage) -> JsonObject:
    return {
        "prompt_tokens": usage.prompt,
        "total_tokens": usage.prompt + usage.output,
        "completion_tokens": usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


class _OpenAiStream:
    """What chat and completions streams have in common."""

    object = ""

    def _chunk(self, reply: Reply, choices: list[JsonObject]) -> bytes:
        chunk: JsonObject = {
            "id": reply.id,
            "object": self.object,
            "created": reply.created,
            "model": reply.model,
            "choices": choices,
        }
        if reply.ask.continuous_usage and choices:
            chunk["usage"] = _usage(reply.usage)
        return _event(chunk)

    def _tail(self, reply: Reply) -> Iterator[bytes]:
        if reply.ask.include_usage:
            chunk = msgspec.json.decode(self._chunk(reply, [])[6:])
            yield _event(chunk | {"usage": _usage(reply.usage)})
        yield b"data: [DONE]\n\n"


class Chat(_OpenAiStream):
    """/v1/chat/completions."""

    prefix = "chatcmpl-"
    object = "chat.completion.chunk"

    def parse(self, body: JsonObject, recall: Callable[[str], list[Turn]]) -> Ask:
        """See Dialect."""
        turns = []
        for message in _objects(body, "messages", needed=True):
            role = _get(message, "role", str)
            if not role:
                raise Invalid("every message needs a role", param="messages")
            calls = []
            for call in _objects(message, "tool_calls", needed=False):
                function = _get(call, "function", dict, {})
                calls.append(ToolCall(str(function.get("name", "")), _arguments(function.get("arguments", ""))))
            turns.append(Turn(role, _plain_text(message.get("content"), "messages.content"), tuple(calls)))
        tools, offered = _tools(body, "parameters")
        return _conversation(body, turns, tools, offered, "max_tokens")

    def unary(self, reply: Reply) -> JsonObject:
        """See Dialect."""
        answer = reply.answer
        calls = [
            {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call_id, call in zip(reply.call_ids, answer.calls, strict=True)
        ]
        content = answer.text if answer.text or not calls else None
        message = {"role": "assistant", "content": content, "refusal": None, "tool_calls": calls}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": answer.finish_reason,
            "stop_reason": None,
        }
        return {
            "id": reply.id,
            "object": "chat.completion",
            "created": reply.created,
            "model": reply.model,
            "choices": [choice],
            "usage": _usage(reply.usage),
        }

    def _delta(self, reply: Reply, delta: JsonObject, finish_reason: str | None = None) -> bytes:
        choice: JsonObject = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        if finish_reason is not None:
            choice["stop_reason"] = None
        return self._chunk(reply, [choice])

    def begin(self, reply: Reply) -> Iterator[bytes]:
        """See Dialect."""
        yield self._delta(reply, {"role": "assistant", "content": ""})

    def piece(self, reply: Reply, piece: Piece) -> Iterator[bytes]:
        """See Dialect."""
        if piece.kind == "text":
            yield self._delta(reply, {"content": piece.text})
            return
        call: JsonObject = {"index": piece.call}
        if piece.kind == "call":
            name = reply.answer.calls[piece.call].name
            call |= {"id": reply.call_ids[piece.call], "type": "function", "function": {"name": name, "arguments": ""}}
        else:
            call |= {"function": {"arguments": piece.text}}
        yield self._delta(reply, {"tool_calls": [call]})

    def end(self, reply: Reply) -> Iterator[bytes]:
        """See Dialect."""
        yield self._delta(reply, {"content": ""}, reply.answer.finish_reason)
        yield from self._tail(reply)


class Completions(_OpenAiStream):
    """/v1/completions."""

    prefix = "cmpl-"
    object = "text_completion"

    def parse(self, body: JsonObject, recall: Callable[[str], list[Turn]]) -> Ask:
        """See Dialect."""
        wanted = Wanted(
            max_tokens=_max_tokens(body, "max_tokens") or 16,
            min_tokens=_get(body, "min_tokens", int, 0),
            ignore_eos=_get(body, "ignore_eos", bool, default=False),
        )
        return _common(body, Ask(_get(body, "model", str), self._prompt(body.get("prompt")), wanted))

    def _prompt(self, prompt: Any) -> bytes:  # noqa: ANN401 - JSON
        """A prompt as text or as token ids (4 bytes each); a list of one prompt counts as that prompt."""
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if isinstance(prompt, str) and prompt:
            return prompt.encode("utf-8", "surrogatepass")
        if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
            return b"".join([(token & 0xFFFFFFFF).to_bytes(4, "little") for token in prompt])
        raise Invalid("prompt must be one non-empty string or one list of token ids", param="prompt")

    def _choice(self, text: str, finish_reason: str | None) -> JsonObject:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason, "stop_reason": None}

    def unary(self, reply: Reply) -> JsonObject:
        """See Dialect."""
        return {
            "id": reply.id,
            "object": self.object,
            "created": reply.created,
            "model": reply.model,
            "choices": [self._choice(reply.answer.text, reply.answer.finish_reason)],
            "usage": _usage(reply.usage),
        }

    def begin(self, reply: Reply) -> Iterator[bytes]:
        """See Dialect."""
        return iter(())

    def piece(self, reply: Reply, piece: Piece) -> Iterator[bytes]:
        """See Dialect."""
        yield self._chunk(reply, [self._choice(piece.text, None)])

    def end(self, reply: Reply) -> Iterator[bytes]:
        """See Dialect."""
        yield self._chunk(reply, [self._choice("", reply.answer.finish_reason)])
        yield from self._tail(reply)


class Responses:
    """/v1/responses: what agents use of it."""

    prefix = "resp_"

    def parse(self, body: JsonObject, recall: Callable[[str], list[Turn]]) -> Ask:
        """See Dialect."""
        previous = _get(body, "previous_response_id", str, "")
        turns = list(recall(previous)) if previous else []
        instructions = _get(body, "instructions", str, "")
        if instructions:
            turns = [Turn("system", instructions), *(turn for turn in turns if turn.role != "system")]
        given = body.get("input")
        if isinstance(given, str) and given:
            turns.append(Turn("user", given))
        else:
            for item in _objects(body, "input", needed=True):
                self._add(turns, item)
        tools, offered = _tools(body, "parameters")
        ask = _conversation(body, turns, tools, offered, "max_output_tokens")
        ask.include_usage = True
        ask.previous = previous
        return ask

    def _add(self, turns: list[Turn], item: JsonObject) -> None:
        """An item of the input; an answer's words and calls are one turn."""
        match item.get("type", "message"):
            case "message":
                role = _get(item, "role", str, "user")
                turns.append(Turn(role, _plain_text(item.get("content"), "input.content")))
            case "function_call":
                call = ToolCall(str(item.get("name", "")), _arguments(item.get("arguments", "")))
                if turns and turns[-1].role == "assistant":
                    last = turns.pop()
                    turns.append(Turn("assistant", last.text, (*last.calls, call)))
                else:
                    turns.append(Turn("assistant", "", (call,)))
            case "function_call_output":
                output = item.get("output")
                turns.append(Turn("tool", output if isinstance(output, str) else _encode(output).decode()))
            case "reasoning":
                pass
            case other:
                raise Invalid(f"input items of type {other!r} are not supported", param="input")

    def _items(self, reply: Reply, status: str = "completed") -> list[JsonObject]:
        answer = reply.answer
        items: list[JsonObject] = []
        if answer.text or not answer.calls:
            items.append(self._message(reply, answer.text, status))
        items += [self._function_call(reply, index, call.arguments, status) for index, call in enumerate(answer.calls)]
        return items

    def _message(self, reply: Reply, text: str, status: str) -> JsonObject:
        content: list[JsonObject] = (
            [{"type": "output_text", "text": text, "annotations": [], "logprobs": None}] if text else []
        )
        return {
            "id": f"msg_{reply.id[5:]}",
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _function_call(self, reply: Reply, index: int, arguments: str, status: str) -> JsonObject:
        return {
            "id": f"fc_{reply.call_ids[index]}",
            "type": "function_call",
            "call_id": reply.call_ids[index],
            "name": reply.answer.calls[index].name,
            "arguments": arguments,
            "status": status,
        }

    def unary(self, reply: Reply) -> JsonObject:
        """See Dialect."""
        cut = reply.answer.finish_reason == "length"
        return self._response(reply, "incomplete" if cut else "completed", self._items(reply)) | {
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": reply.usage.prompt,
                "input_tokens_details": {"cached_tokens": reply.usage.cached},
                "output_tokens": reply.usage.output,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": reply.usage.prompt + reply.usage.output,
            },
        }

    def _response(self, reply: Reply, status: str, output: list[JsonObject]) -> JsonObject:
        return {
            "id": reply.id,
            "object": "response",
            "created_at": reply.created,
            "model": reply.model,
            "status": status,
            "output": output,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": None,
            "parallel_tool_calls": True,
            "previous_response_id": reply.ask.previous or None,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": None,
        }

    def begin(self, reply: Reply) -> Iterator[bytes]:
        """See Dialect."""
        empty = self._response(reply, "in_progress", [])
        for kind in ("response.created", "response.in_progress"):
            yield _named({"type": kind, "response": empty})
        if reply.answer.text or not reply.answer.calls:
            item = self._message(reply, "", "in_progress")
            yield _named({"type": "response.output_item.added", "output_index": 0, "item": item})
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield _named(
                {"type": "response.content_part.added", **self._at(reply, 0), "content_index": 0, "part": part}
            )

    def _at(self, reply: Reply, index: int) -> JsonObject:
        return {"output_index": index, "item_id": self._items(reply)[index]["id"]}

    def piece(self, reply: Reply, piece: Piece) -> Iterator[bytes]:
        """See Dialect."""
        if piece.kind == "text":
            text = {"content_index": 0, "delta": piece.text, "logprobs": []}
            yield _named({"type": "response.output_text.delta", **self._at(reply, 0), **text})
            return
        index = piece.call + bool(reply.answer.text)
        if piece.kind == "call":
            item = self._function_call(reply, piece.call, "", "in_progress")
            yield _named({"type": "response.output_item.added", "output_index": index, "item": item})
        else:
            at = self._at(reply, index)
            yield _named({"type": "response.function_call_arguments.delta", **at, "delta": piece.text})

    def end(self, reply: Reply) -> Iterator[bytes]:
        """See Dialect."""
        for index, item in enumerate(self._items(reply)):
            at = self._at(reply, index)
            if item["type"] == "message":
                text = reply.answer.text
                done = {"content_index": 0, "text": text, "logprobs": []}
                yield _named({"type": "response.output_text.done", **at, **done})
                part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
                yield _named({"type": "response.content_part.done", **at, "content_index": 0, "part": part})
            else:
                done = {"name": item["name"], "arguments": item["arguments"]}
                yield _named({"type": "response.function_call_arguments.done", **at, **done})
            yield _named({"type": "response.output_item.done", "output_index": index, "item": item})
        whole = self.unary(reply)
        yield _named({"type": f"response.{whole['status']}", "response": whole})


class Messages:
    """/v1/messages."""

    prefix = "msg_"

    def parse(self, body: JsonObject, recall: Callable[[str], list[Turn]]) -> Ask:
        """See Dialect."""
        if body.get("max_tokens") is None:
            raise Invalid("max_tokens: Field required", param="max_tokens")
        turns = []
        if body.get("system"):
            turns.append(Turn("system", _plain_text(body["system"], "system")))
        for message in _objects(body, "messages", needed=True):
            turns += self._turns(message)
        tools, offered = _tools(body, "input_schema")
        return _conversation(body, turns, tools, offered, "max_tokens")

    def _turns(self, message: JsonObject) -> Iterator[Turn]:
        """A message; tool results are turns of their own."""
        role, content = _get(message, "role", str), message.get("content")
        if role not in ("user", "assistant", "system"):
            raise Invalid(f"messages.role must be user or assistant, not {role!r}", param="messages")
        blocks = (
            [{"type": "text", "text": content}]
            if isinstance(content, str)
            else _objects(message, "content", needed=True)
        )
        calls = tuple(
            ToolCall(str(block.get("name", "")), _arguments(block.get("input", {})))
            for block in blocks
            if block.get("type") == "tool_use"
        )
        for block in blocks:
            if block.get("type") == "tool_result":
                yield Turn("tool", _plain_text(block.get("content"), "messages.content"))
        texts = [block for block in blocks if block.get("type") not in ("tool_use", "tool_result", "thinking")]
        if texts or calls:
            yield Turn(role, _plain_text(texts, "messages.content"), calls)

    def _usage(self, reply: Reply, output: int) -> JsonObject:
        usage = reply.usage
        return {
            "input_tokens": usage.prompt - usage.cached,
            "output_tokens": output,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached,
        }

    def _stop_reason(self, reply: Reply) -> str:
        return {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}[reply.answer.finish_reason]

    def _message(self, reply: Reply) -> JsonObject:
        return {
            "id": reply.id,
            "type": "message",
            "role": "assistant",
            "model": reply.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(reply, 0),
        }

    def unary(self, reply: Reply) -> JsonObject:
        """See Dialect."""
        answer = reply.answer
        content: list[JsonObject] = [{"type": "text", "text": answer.text}] if answer.text or not answer.calls else []
        for call_id, call in zip(reply.call_ids, answer.calls, strict=True):
            arguments = msgspec.json.decode(call.arguments)
            content.append({"type": "tool_use", "id": call_id, "name": call.name, "input": arguments})
        return self._message(reply) | {
            "content": content,
            "stop_reason": self._stop_reason(reply),
            "usage": self._usage(reply, reply.usage.output),
        }

    def begin(self, reply: Reply) -> Iterator[bytes]:
        """See Dialect."""
        yield _named({"type": "message_start", "message": self._message(reply)})
        if reply.answer.text or not reply.answer.calls:
            block = {"type": "text", "text": ""}
            yield _named({"type": "content_block_start", "index": 0, "content_block": block})

    def piece(self, reply: Reply, piece: Piece) -> Iterator[bytes]:
        """See Dialect."""
        index = 0 if piece.kind == "text" else piece.call + bool(reply.answer.text)
        if piece.kind == "call":
            if index:
                yield _named({"type": "content_block_stop", "index": index - 1})
            name = reply.answer.calls[piece.call].name
            block = {"type": "tool_use", "id": reply.call_ids[piece.call], "name": name, "input": {}}
            yield _named({"type": "content_block_start", "index": index, "content_block": block})
            return
        text = piece.kind == "text"
        delta = {"type": "text_delta", "text": piece.text}
        if not text:
            delta = {"type": "input_json_delta", "partial_json": piece.text}
        yield _named({"type": "content_block_delta", "index": index, "delta": delta})

    def end(self, reply: Reply) -> Iterator[bytes]:
        """See Dialect."""
        last = bool(reply.answer.text) + len(reply.answer.calls) - 1
        yield _named({"type": "content_block_stop", "index": max(0, last)})
        delta = {"stop_reason": self._stop_reason(reply), "stop_sequence": None}
        yield _named({"type": "message_delta", "delta": delta, "usage": self._usage(reply, reply.usage.output)})
        yield _named({"type": "message_stop"})
