"""Watches the bytes of an answer on their way to the client: usage, tool calls, how it ended.

Nothing is changed and nothing is held up. A stream is read event by event, however its bytes are cut; a unary body
is kept up to a bound, and of a larger one only its end, where the usage is. What is odd is skipped, never an error: the
client is served either way.

It refuses to know sessions, workers and sockets.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

import msgspec

from saga.gateway.answer_fields import (
    Chat,
    ChatMessage,
    Message,
    MessageEvent,
    OutputItem,
    Response,
    ResponseEvent,
    Usage,
)
from saga.gateway.contracts import Answer, AnswerWatcher, Call, Kind
from saga.gateway.tools import MAX_ARGUMENT_CHARS, label

MAX_UNARY_BYTES: Final = 4 * 2**20
_TAIL_BYTES: Final = 65_536
_MAX_LINE_BYTES: Final = 4 * 2**20
_MAX_TOOL_CALLS: Final = 64
_EDGE_CHARS: Final = 2_048


_READ_CHAT: Final = msgspec.json.Decoder(Chat)
_READ_RESPONSE: Final = msgspec.json.Decoder(Response)
_READ_RESPONSE_EVENT: Final = msgspec.json.Decoder(ResponseEvent)
_READ_MESSAGE: Final = msgspec.json.Decoder(Message)
_READ_MESSAGE_EVENT: Final = msgspec.json.Decoder(MessageEvent)
_READ_USAGE: Final = msgspec.json.Decoder(Usage)
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeError, RecursionError)


class _Seen:
    """What was seen so far, within bounds: the two ends of the text, the first arguments of each tool call."""

    __slots__ = ("_arguments", "_ending", "_names", "_text", "_text_chars", "answer")

    def __init__(self, *, error: bool) -> None:
        self.answer = Answer(error=error)
        self._text: list[str] = []
        self._text_chars = 0
        self._ending = ""
        self._names: dict[int, str] = {}
        self._arguments: dict[int, str] = {}

    def text(self, part: str) -> None:
        """More of the answer's text."""
        if self._text_chars < _EDGE_CHARS:
            self._text.append(part)
            self._text_chars += len(part)
        else:
            self._ending += part
            if len(self._ending) > 4 * _EDGE_CHARS:
                self._ending = self._ending[-_EDGE_CHARS:]

    def tool(self, place: int, name: str | None, arguments: str | None) -> None:
        """More of the tool call at that place."""
        if place not in self._names:
            if len(self._names) >= _MAX_TOOL_CALLS or name is None:
                return
            self._names[place] = name
        if arguments:
            known = self._arguments.get(place, "")
            if len(known) < MAX_ARGUMENT_CHARS:
                self._arguments[place] = known + arguments[:MAX_ARGUMENT_CHARS]

    def whole_tool(self, name: str | None, arguments: str | None) -> None:
        """A tool call seen at once."""
        self.tool(len(self._names), name, arguments)

    def usage(self, usage: Usage) -> None:
        """The engine's own count, in whichever words."""
        answer = self.answer
        prompt = usage.prompt_tokens if usage.prompt_tokens is not None else usage.input_tokens
        output = usage.completion_tokens if usage.completion_tokens is not None else usage.output_tokens
        details = usage.prompt_tokens_details or usage.input_tokens_details
        cached = details.cached_tokens if details is not None else None
        if usage.cache_read_input_tokens is not None:
            cached = usage.cache_read_input_tokens
            if prompt is not None:
                prompt += cached
        if prompt is not None:
            prompt += usage.cache_creation_input_tokens or 0
        answer.prompt_tokens = _sane(prompt, answer.prompt_tokens)
        answer.output_tokens = _sane(output, answer.output_tokens)
        answer.cached_tokens = _sane(cached, answer.cached_tokens)

    def close(self) -> Answer:
        """The answer as it was seen."""
        answer = self.answer
        text = "".join(self._text) + self._ending
        answer.text = text if len(text) <= 2 * _EDGE_CHARS else text[:_EDGE_CHARS] + text[-_EDGE_CHARS:]
        if self._names:
            answer.tool_calls = tuple(
                label(name, self._arguments.get(place, "")) for place, name in sorted(self._names.items())
            )
        return answer


def _sane(count: int | None, before: int | None) -> int | None:
    return count if count is not None and 0 <= count < 2**40 else before


def _see_chat(chunk: Chat, seen: _Seen) -> None:
    if chunk.error is not None or chunk.object == "error":
        seen.answer.error = True
    if chunk.usage is not None:
        seen.usage(chunk.usage)
    for choice in chunk.choices:
        if choice.index != 0:
            continue
        if choice.finish_reason is not None:
            seen.answer.finish_reason = choice.finish_reason
        if choice.text:
            seen.text(choice.text)
        said = choice.delta if choice.delta is not None else choice.message
        if said is not None:
            _see_chat_message(said, seen)


def _see_chat_message(said: ChatMessage, seen: _Seen) -> None:
    if said.content:
        seen.text(said.content)
    for place, call in enumerate(said.tool_calls or ()):
        if call.function is not None:
            at = call.index if call.index is not None else place
            seen.tool(at, call.function.name, call.function.arguments)
    if said.function_call is not None:
        seen.tool(0, said.function_call.name, said.function_call.arguments)


def _see_item(item: OutputItem, seen: _Seen) -> None:
    if item.type in ("function_call", "custom_tool_call"):
        seen.whole_tool(item.name, item.arguments)
    elif item.type == "local_shell_call":
        seen.whole_tool("local_shell", bytes(item.action).decode("utf-8", "replace"))


def _see_response(response: Response, seen: _Seen, *, items: bool) -> None:
    answer = seen.answer
    answer.response_id = response.id or answer.response_id
    if response.usage is not None:
        seen.usage(response.usage)
    if response.status in ("completed", "incomplete", "failed", "cancelled"):
        answer.finish_reason = response.status
    if response.error is not None or response.status == "failed":
        answer.error = True
    for item in response.output or () if items else ():
        _see_item(item, seen)
        for part in item.content or () if item.type == "message" else ():
            seen.text(part.text or "")


def _see_message(message: Message, seen: _Seen) -> None:
    seen.answer.response_id = message.id or seen.answer.response_id
    if message.error is not None or message.type == "error":
        seen.answer.error = True
    if message.usage is not None:
        seen.usage(message.usage)
    if message.stop_reason is not None:
        seen.answer.finish_reason = message.stop_reason
    for block in message.content or ():
        if block.type == "text":
            seen.text(block.text or "")
        elif block.type == "tool_use":
            seen.whole_tool(block.name, bytes(block.input).decode("utf-8", "replace"))


class StreamWatcher:
    """Watches a stream of server-sent events. done: its end marker was seen.

    Cost: about 2 us per event; memory bounded by the longest event (4 MB, longer ones are skipped).
    """

    __slots__ = ("_kind", "_open", "_seen", "_skipping", "done")

    def __init__(self, kind: Kind, *, error: bool = False) -> None:
        self._kind = kind
        self._seen = _Seen(error=error)
        self._open = b""
        self._skipping = False
        self.done = False

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the body."""
        self._seen.answer.num_bytes += len(chunk)
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r", b"\n")
        lines = chunk.split(b"\n")
        if len(lines) == 1:
            if not self._skipping:
                self._open += chunk
                if len(self._open) > _MAX_LINE_BYTES:
                    self._open, self._skipping = b"", True
            return
        if self._skipping:
            self._skipping = False
        else:
            self._line(self._open + lines[0])
        for line in lines[1:-1]:
            if line:
                self._line(line)
        self._open = lines[-1]

    def close(self) -> Answer:
        """No more bytes come; what they said."""
        if self._open and not self._skipping:
            self._line(self._open)
            self._open = b""
        answer = self._seen.close()
        answer.complete = not answer.error and (self.done or answer.finish_reason is not None)
        return answer

    def _line(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            self.done = True
            return
        try:
            if self._kind is Kind.RESPONSES:
                self._response_event(_READ_RESPONSE_EVENT.decode(data))
            elif self._kind is Kind.MESSAGES:
                self._message_event(_READ_MESSAGE_EVENT.decode(data))
            else:
                _see_chat(_READ_CHAT.decode(data), self._seen)
        except _UNREADABLE:
            return

    def _response_event(self, event: ResponseEvent) -> None:
        seen = self._seen
        if event.type == "response.output_text.delta":
            seen.text(event.delta or "")
        elif event.type == "response.output_item.done":
            if event.item is not None:
                _see_item(event.item, seen)
        elif event.type == "error" or event.error is not None:
            seen.answer.error = True
        elif event.response is not None:
            _see_response(event.response, seen, items=False)
            self.done = event.type in ("response.completed", "response.incomplete", "response.failed")

    def _message_event(self, event: MessageEvent) -> None:
        seen = self._seen
        if event.delta is not None:
            if event.delta.text:
                seen.text(event.delta.text)
            if event.delta.partial_json:
                seen.tool(event.index, None, event.delta.partial_json)
            if event.delta.stop_reason is not None:
                seen.answer.finish_reason = event.delta.stop_reason
        if event.content_block is not None and event.content_block.type == "tool_use":
            seen.tool(event.index, event.content_block.name, None)
        if event.message is not None:
            _see_message(event.message, seen)
        if event.usage is not None:
            seen.usage(event.usage)
        if event.type == "message_stop":
            self.done = True
        elif event.type == "error" or event.error is not None:
            seen.answer.error = True


class UnaryWatcher:
    """Watches an answer that comes at once. Memory: at most 4 MB, of embeddings and larger bodies the last 64 KB."""

    __slots__ = ("_kept", "_kind", "_parts", "_seen", "_whole")

    def __init__(self, kind: Kind, *, error: bool = False) -> None:
        self._kind = kind
        self._seen = _Seen(error=error)
        self._parts: list[bytes] = []
        self._kept = 0
        self._whole = kind not in (Kind.EMBEDDINGS, Kind.OTHER)

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the body."""
        self._seen.answer.num_bytes += len(chunk)
        self._parts.append(chunk)
        self._kept += len(chunk)
        if self._kept > MAX_UNARY_BYTES or (not self._whole and self._kept > 4 * _TAIL_BYTES):
            self._whole = False
            self._parts = [b"".join(self._parts)[-_TAIL_BYTES:]]
            self._kept = len(self._parts[0])

    def close(self) -> Answer:
        """No more bytes come; what they said."""
        body = b"".join(self._parts) if len(self._parts) != 1 else self._parts[0]
        self._parts = []
        answer = self._seen.answer
        if not self._whole:
            self._end_of(body)
            answer.complete = not answer.error
        else:
            try:
                self._see(body)
                answer.complete = not answer.error
            except _UNREADABLE:
                self._end_of(body)
        return self._seen.close()

    def _see(self, body: bytes) -> None:
        if self._kind is Kind.RESPONSES:
            _see_response(_READ_RESPONSE.decode(body), self._seen, items=True)
        elif self._kind is Kind.MESSAGES:
            _see_message(_READ_MESSAGE.decode(body), self._seen)
        else:
            _see_chat(_READ_CHAT.decode(body), self._seen)

    def _end_of(self, body: bytes) -> None:
        """The usage near the end of a body that cannot be read whole."""
        start = body.rfind(b'"usage"')
        opening = body.find(b"{", start) if start >= 0 else -1
        if opening < 0:
            return
        depth = 0
        for place in range(opening, min(len(body), opening + 4_096)):
            depth += {0x7B: 1, 0x7D: -1}.get(body[place], 0)
            if depth == 0:
                try:
                    self._seen.usage(_READ_USAGE.decode(body[opening : place + 1]))
                except _UNREADABLE:
                    return
                return


def watch(kind: Kind, *, stream: bool, status: int = 200) -> AnswerWatcher:
    """A watcher for an answer. stream: it is a stream of server-sent events (say so by its content type)."""
    error = status >= 400
    return StreamWatcher(kind, error=error) if stream and not error else UnaryWatcher(kind, error=error)


class TokenEstimator:
    """Bytes of a prompt per token, learned per model from what engines count. O(1); at most 256 models are kept."""

    def __init__(self, bytes_per_token: float = 4.0, weight: float = 0.02, max_models: int = 256) -> None:
        self._default = bytes_per_token
        self._weight = weight
        self._max_models = max_models
        self._ratios: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def bytes_per_token(self, model: str) -> float:
        """The learned ratio; 4 where nothing was learned."""
        known = self._ratios.get(model)
        return known[0] / known[1] if known is not None else self._default

    def snapshot(self) -> dict[str, tuple[float, float]]:
        """(bytes, tokens) by model, as plain data."""
        return dict(self._ratios)

    def restore(self, ratios: Mapping[str, tuple[float, float]]) -> None:
        """Take over what `snapshot` gave. Raises ValueError where a ratio cannot be."""
        for model, (num_bytes, num_tokens) in ratios.items():
            if not 0.5 * num_tokens <= num_bytes <= 64.0 * num_tokens or not num_tokens > 0.0:
                raise ValueError(f"{num_bytes} bytes are no {num_tokens} tokens of {model!r}")
            self._ratios[model] = (num_bytes, num_tokens)

    def tokens(self, model: str, num_bytes: float) -> int:
        """Tokens in so many bytes of prompt; at least 1."""
        return max(1, round(num_bytes / self.bytes_per_token(model)))

    def learn(self, model: str, num_bytes: int, num_tokens: int) -> None:
        """An engine counted num_tokens in num_bytes; under 1/2 or over 64 bytes a token is left out as absurd."""
        if num_tokens <= 0 or not 0.5 <= num_bytes / num_tokens <= 64.0:
            return
        known = self._ratios.get(model)
        if known is None:
            self._ratios[model] = (float(num_bytes), float(num_tokens))
            if len(self._ratios) > self._max_models:
                self._ratios.popitem(last=False)
            return
        weight = self._weight
        self._ratios[model] = (
            known[0] * (1.0 - weight) + weight * num_bytes,
            known[1] * (1.0 - weight) + weight * num_tokens,
        )
        self._ratios.move_to_end(model)


def watch_answer(call: Call, status: int, headers: list[tuple[bytes, bytes]]) -> AnswerWatcher:
    """A watcher for the answer to a call; header names are lower-case."""
    for name, value in headers:
        if name == b"content-type":
            return watch(call.kind, stream=value.strip().lower().startswith(b"text/event-stream"), status=status)
    return watch(call.kind, stream=False, status=status)
