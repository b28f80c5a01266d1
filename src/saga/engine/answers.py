"""What a modelled model says: how long, which words, which tools. The same prompt gets the same answer.

A script names the tool calls turn by turn; without one, `Chance` calls a random tool of those offered. It refuses to
know formats of requests and answers (`dialects.py`) and when a token comes (`realtime.py`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Protocol

import msgspec

from saga.engine.filler import BYTES_PER_TOKEN, filler
from saga.errors import UsageError

LEAST_TOKENS, MOST_TOKENS = 16, 256
"""Tokens of an answer that nobody bounds: drawn evenly between these."""

_COMMANDS = ("git status", "ls -la", "pytest -q", "cat setup.py", "grep -rn main .", "python run.py")


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that a request offers; parameters: its JSON schema."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool called with arguments, as JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What bounds an answer.

    num_turns: answers in the conversation so far. tool_choice: "auto", "none", "required" or a tool's name.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    num_turns: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer as it is streamed: text; or call number `call` begins; or more of its arguments."""

    kind: str
    text: str = ""
    call: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer. finish_reason: "stop", "length" or "tool_calls". Text and arguments are ASCII."""

    text: str
    calls: tuple[ToolCall, ...]
    output_tokens: int
    finish_reason: str

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        """What becomes visible between byte `start` and byte `end` of the rendered answer."""
        if start < len(self.text):
            yield Piece("text", self.text[start:end])
        at = len(self.text)
        for index, call in enumerate(self.calls):
            at += len(render_call(call)) - len(call.arguments)
            if start < at <= end:
                yield Piece("call", call=index)
            shown = call.arguments[max(0, start - at) : max(0, end - at)]
            if shown:
                yield Piece("arguments", shown, index)
            at += len(call.arguments)


def render_call(call: ToolCall) -> str:
    """A tool call as it stands in a prompt."""
    return f"<|call|>{call.name} {call.arguments}"


def render_answer(text: str, calls: tuple[ToolCall, ...]) -> bytes:
    """An answer as it stands in the prompt of the next turn."""
    return (text + "".join([render_call(call) for call in calls])).encode("utf-8", "surrogatepass")


class Caller(Protocol):
    """Decides about tool calls."""

    def call(self, wanted: Wanted, rng: Random) -> ToolCall | None:
        """The call that the next answer makes, None for an answer in words."""
        ...


@dataclass(frozen=True)
class Chance:
    """Calls a random one of the tools offered with this probability; always where a call is required."""

    probability: float = 0.0

    def call(self, wanted: Wanted, rng: Random) -> ToolCall | None:
        """See Caller."""
        tools = [tool for tool in wanted.tools if wanted.tool_choice in ("auto", "required", tool.name)]
        if not tools or (wanted.tool_choice == "auto" and rng.random() >= self.probability):
            return None
        tool = rng.choice(tools)
        return ToolCall(tool.name, random_arguments(tool.parameters, rng))


NEVER = Chance()
"""Answers in words only, unless a call is required."""


class Turn(msgspec.Struct, forbid_unknown_fields=True):
    """One turn of a script: a tool with its arguments, or words."""

    tool: str = ""
    arguments: dict[str, Any] = {}
    answer: str = ""


class _Turns(msgspec.Struct, forbid_unknown_fields=True):
    turns: list[Turn]


@dataclass(frozen=True)
class Script:
    """Turn k of every conversation goes as turns[k]; after the last, and where the tool is not offered, words."""

    turns: tuple[Turn, ...]

    def call(self, wanted: Wanted, rng: Random) -> ToolCall | None:
        """See Caller."""
        turn = self.turns[wanted.num_turns] if wanted.num_turns < len(self.turns) else Turn()
        if wanted.tool_choice == "none" or turn.tool not in {tool.name for tool in wanted.tools}:
            return None
        return ToolCall(turn.tool, msgspec.json.encode(turn.arguments).decode())

    def words(self, wanted: Wanted) -> str:
        """The words that the script wants said in this turn, "" for filler."""
        return self.turns[wanted.num_turns].answer if wanted.num_turns < len(self.turns) else ""


def load_script(path: Path) -> Script:
    """Read a script: `turns`, a list of {tool, arguments} or {answer}, JSON or TOML by the file's ending.

    Raises UsageError naming the file and what is wrong in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"script {path}: cannot be read: {error}") from error
    try:
        table = tomllib.loads(text) if path.suffix == ".toml" else msgspec.json.decode(text)
        turns = msgspec.convert(table if isinstance(table, dict) else {"turns": table}, _Turns).turns
    except (tomllib.TOMLDecodeError, msgspec.MsgspecError) as error:
        right = 'turns = [{tool = "name", arguments = {...}}, {answer = "words"}]'
        raise UsageError(f"script {path}: {error}; right is {right}") from error
    return Script(tuple(turns))


def random_arguments(schema: dict[str, Any], rng: Random) -> str:
    """JSON text that fits the common part of a JSON schema: an object with its required properties. O(properties)."""
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return "{}"
    required = schema.get("required")
    names = required if isinstance(required, list) and required else list(properties)
    values = {str(name): _value(str(name), properties.get(name), rng) for name in names}
    return msgspec.json.encode(values).decode()


def _value(name: str, schema: object, rng: Random) -> Any:  # noqa: ANN401 - any JSON value
    kind = schema.get("type") if isinstance(schema, dict) else None
    if isinstance(schema, dict) and isinstance(schema.get("enum"), list) and schema["enum"]:
        return rng.choice(schema["enum"])
    match kind:
        case "integer" | "number":
            return rng.randint(1, 100)
        case "boolean":
            return rng.random() < 0.5
        case "array":
            return []
        case "object":
            return {}
        case _:
            return rng.choice(_COMMANDS) if name in ("command", "cmd") else filler(rng.getrandbits(32), 3).strip()


def compose(wanted: Wanted, seed: int, caller: Caller, room_tokens: int) -> Answer:
    """The answer to the prompt with this seed; at most `room_tokens` (>= 1) tokens. O(tokens).

    A tool call that does not fit into max_tokens is not made.
    """
    rng = Random(seed)
    limit = min(room_tokens, wanted.max_tokens or room_tokens)
    natural = max(rng.randint(LEAST_TOKENS, MOST_TOKENS), wanted.min_tokens)
    words = caller.words(wanted) if isinstance(caller, Script) else ""
    call = caller.call(wanted, rng)
    call_tokens = -(-len(render_call(call)) // BYTES_PER_TOKEN) if call is not None else 0
    if call is not None and call_tokens <= limit:
        to_say = limit if wanted.ignore_eos and wanted.max_tokens else min(limit, max(call_tokens, wanted.min_tokens))
        return Answer(filler(seed, to_say - call_tokens), (call,), to_say, "tool_calls")
    if words:
        natural = max(-(-len(words) // BYTES_PER_TOKEN), wanted.min_tokens)
    num_tokens = limit if wanted.ignore_eos and wanted.max_tokens else min(natural, limit)
    cut = num_tokens < natural or (wanted.ignore_eos and wanted.max_tokens is not None)
    text = (words + filler(seed, num_tokens))[: num_tokens * BYTES_PER_TOKEN] if words else filler(seed, num_tokens)
    return Answer(words if words and not cut else text, (), num_tokens, "length" if cut else "stop")
