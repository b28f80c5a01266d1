"""Who calls, in the words of many systems: the only file that knows header and body-field names.

One ordered list of conventions, each a declarative entry: where a system says what, and how its value is to be read.
The first convention that names a session also speaks for task, parent and root (two systems' names are never mixed
into one identity, except that ours complete any); everything else is taken from the first that says it. What cannot
be read is ignored with a counted reason, never an error. Priorities are **lower first** here, as in vLLM; systems that
count the other way are turned round in their own entry.

It refuses to know sockets, API keys, and content.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, TypeAlias

import msgspec

from saga.errors import UnknownName
from saga.events import Hints

MAX_NAME_BYTES: Final = 256
_MAX_NESTED_BYTES: Final = 16_384
_MAX_NUMBER: Final = 2**53

Value: TypeAlias = str | int | float | bool | tuple[str, ...] | None
Reader: TypeAlias = Callable[[object], Value]


class Unreadable(ValueError):
    """A value that a convention cannot use; the message is the counted reason."""


def text(value: object) -> str:
    """A name: 1 to 256 bytes of printable UTF-8; numbers are taken by their digits."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Unreadable("wrong type")
    name = str(value).strip() if isinstance(value, str) else f"{value:d}" if abs(value) < _MAX_NUMBER else ""
    if not name:
        raise Unreadable("empty")
    if len(name) > MAX_NAME_BYTES or len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise Unreadable("too long")
    if not name.isprintable():
        raise Unreadable("control characters")
    return name


def number(value: object) -> float:
    """A finite number, also where it is written as a string."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Unreadable("wrong type")
    if isinstance(value, str) and len(value) > 32:
        raise Unreadable("too long")
    try:
        read = float(value)
    except (ValueError, OverflowError):
        raise Unreadable("not a number") from None
    if not abs(read) <= _MAX_NUMBER:
        raise Unreadable("out of range")
    return read


def positive(value: object) -> float:
    """A number above zero."""
    read = number(value)
    if read <= 0:
        raise Unreadable("not positive")
    return read


def count(value: object) -> int:
    """A whole number, zero or above."""
    read = number(value)
    if read < 0 or read != int(read):
        raise Unreadable("not a count")
    return int(read)


def lower_first(value: object) -> int:
    """A priority of a system in which the lower number runs first."""
    read = number(value)
    if abs(read) > 2**31:
        raise Unreadable("out of range")
    return int(read)


def higher_first(value: object) -> int:
    """A priority of a system in which the higher number runs first: turned round."""
    return -lower_first(value)


_SMG_CLASSES = {"system": -2, "interactive": -1, "default": 0, "bulk": 1}


def smg_class(value: object) -> int:
    """SMG's service class; unknown ones count as `default` there, and are ignored here."""
    try:
        return _SMG_CLASSES[text(value).lower()]
    except KeyError:
        raise Unreadable("unknown class") from None


def yes(value: object) -> bool:
    """A truth: true, 1, yes, on (or their opposites)."""
    word = str(value).strip().lower() if isinstance(value, str | bool | int) else ""
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise Unreadable("not true or false")


def no(value: object) -> bool:
    """The opposite of a truth, for fields that say that the session goes on."""
    return not yes(value)


def names(value: object) -> tuple[str, ...]:
    """Up to 16 names: a list, or a string separated by commas."""
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    if not isinstance(value, list) or len(value) > 16:
        raise Unreadable("wrong type")
    return tuple(text(part) for part in value)


def milliseconds(value: object) -> float:
    """Milliseconds, as seconds."""
    return positive(value) / 1000.0


_TTL: Final = re.compile(r"(\d{1,6})([smh])")


def duration(value: object) -> float:
    """Anthropic's `5m` or `1h`, as seconds."""
    found = _TTL.fullmatch(text(value))
    if found is None:
        raise Unreadable("not a duration")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


_CLAUDE_USER: Final = re.compile(r".*_session_([0-9A-Za-z-]{8,64})", re.DOTALL)


def claude_user(value: object) -> str:
    """The session in Claude Code's `metadata.user_id`: a JSON string with session_id, or `user_.._session_<uuid>`."""
    if not isinstance(value, str) or len(value) > 1024:
        raise Unreadable("wrong type")
    if value.startswith("{"):
        try:
            return text(msgspec.json.decode(value, type=dict[str, Any]).get("session_id"))
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise Unreadable("malformed JSON") from None
    found = _CLAUDE_USER.fullmatch(value)
    if found is None:
        raise Unreadable("names no session")
    return text(found[1])


@dataclass(frozen=True, slots=True)
class Field:
    """One thing a convention may say.

    what: a field of `Named` or of its hints (`hints.gap_s`), or what a session's name is made of where the system has
    no single one: `group` (a whole run: the task), `agent`, `parent_agent`. header: lower-case name; path: keys into
    the body (a JSON object written as a string counts as an object). read: turns the value into ours.
    """

    what: str
    header: str = ""
    path: tuple[str, ...] = ()
    read: Reader = text


@dataclass(frozen=True, slots=True)
class Convention:
    """How one system names things. Fields are tried in order.

    weak: its session is often shared by many conversations (a user, an application's cache key), so it only bounds
    the search by content.
    """

    name: str
    fields: tuple[Field, ...]
    weak: bool = False


def _saga() -> Convention:
    said: tuple[tuple[str, str, Reader], ...] = (
        ("session", "session", text),
        ("parent", "parent_session", text),
        ("task", "task", text),
        ("workflow", "workflow", text),
        ("tenant", "tenant", text),
        ("deadline_s", "deadline_s", positive),
        ("final", "final", yes),
        ("priority", "priority", lower_first),
        ("hints.next_tools", "next_tools", names),
        ("hints.gap_s", "gap_s", positive),
        ("hints.remaining_steps", "remaining_steps", count),
        ("hints.output_tokens", "output_tokens", count),
    )
    return Convention(
        "saga",
        tuple(
            field
            for what, name, read in said
            for field in (
                Field(what, header="x-saga-" + name.replace("_", "-"), read=read),
                Field(what, path=("saga", name), read=read),
            )
        ),
    )


def _headers(*said: tuple[str, str], read: Reader = text) -> tuple[Field, ...]:
    return tuple(Field(what, header=header, read=read) for what, header in said)


def _body(root: tuple[str, ...], *said: tuple[str, str, Reader]) -> tuple[Field, ...]:
    return tuple(Field(what, path=(*root, name), read=read) for what, name, read in said)


_AGENTIC = ("vllm_xargs", "agentic_context")
_HINT = ("vllm_xargs", "agent_hint")
_NVEXT = ("nvext", "agent_context")
_NVHINT = ("nvext", "agent_hints")

DEFAULT: Final[tuple[Convention, ...]] = (
    _saga(),
    Convention(
        "dynamo",
        (
            *_headers(("session", "x-dynamo-session-id"), ("parent", "x-dynamo-parent-session-id")),
            *_headers(("final", "x-dynamo-session-final"), read=yes),
            *_body(
                _NVEXT,
                ("session", "trajectory_id", text),
                ("group", "session_id", text),
                ("parent", "parent_trajectory_id", text),
                ("parent", "parent_session_id", text),
                ("workflow", "session_type_id", text),
                ("final", "trajectory_final", yes),
                ("final", "session_final", yes),
            ),
            *_body(
                _NVHINT,
                ("priority", "strict_priority", higher_first),
                ("priority", "priority", higher_first),
                ("hints.output_tokens", "osl", count),
            ),
        ),
    ),
    Convention(
        "agentic_context",
        _body(
            _AGENTIC,
            ("session", "program_id", text),
            ("group", "session_id", text),
            ("group", "task_id", text),
            ("agent", "agent_id", text),
            ("parent", "parent_program_id", text),
            ("parent_agent", "parent_agent_id", text),
            ("task", "task_id", text),
            ("root", "root_program_id", text),
            ("workflow", "agent_role", text),
            ("final", "expected_resume", no),
            ("priority", "priority", lower_first),
            ("deadline_s", "deadline_seconds", positive),
            ("hints.output_tokens", "expected_output_length", count),
            ("retention_s", "kv_retention_ttl_seconds", positive),
        ),
    ),
    Convention(
        "agent_hint",
        (
            *_body(("agent_hint",), ("session", "session_id", text), ("parent", "parent_session_id", text)),
            *_body(_HINT, ("session", "session_id", text), ("parent", "parent_session_id", text)),
        ),
    ),
    Convention(
        "claude-code",
        (
            *_headers(
                ("group", "x-claude-code-session-id"),
                ("agent", "x-claude-code-agent-id"),
                ("parent_agent", "x-claude-code-parent-agent-id"),
            ),
            Field("group", path=("metadata", "user_id"), read=claude_user),
            Field("retention_s", path=("cache_control", "ttl"), read=duration),
        ),
    ),
    Convention(
        "codex",
        (
            *_headers(
                ("session", "thread-id"),
                ("group", "session-id"),
                ("group", "session_id"),
                ("parent", "x-codex-parent-thread-id"),
            ),
        ),
    ),
    Convention(
        "litellm",
        (
            *_headers(("session", "x-litellm-session-id")),
            Field("session", path=("litellm_session_id",)),
            Field("session", path=("metadata", "litellm_session_id")),
        ),
    ),
    Convention("grok", _headers(("session", "x-grok-conv-id"))),
    Convention(
        "session-headers",  # OpenCode, vLLM, llm-d and AIPerf share these names and mean the same by them
        _headers(
            ("session", "x-opencode-session"),
            ("session", "x-session-id"),
            ("session", "x-session-affinity"),
            ("parent", "x-parent-session-id"),
        ),
    ),
    Convention(
        "vllm",
        (
            *_body((), ("session", "session_id", text), ("cache_salt", "cache_salt", text)),
            *_headers(("priority", "x-vllm-priority"), read=lower_first),
            *_body((), ("priority", "priority", lower_first)),
        ),
    ),
    Convention(
        "llm-d",
        (
            *_headers(
                ("routing_key", "x-session-token"),  # names a server, not a session
                ("tenant", "x-llm-d-inference-fairness-id"),
                ("objective", "x-llm-d-inference-objective"),
            ),
            *_headers(("ttft_s", "x-llm-d-slo-ttft-ms"), ("tpot_s", "x-llm-d-slo-tpot-ms"), read=milliseconds),
        ),
    ),
    Convention(
        "sglang",
        (
            *_body(("session_params",), ("session", "id", text)),
            *_headers(("priority", "x-smg-priority"), read=smg_class),
            *_headers(("tenant", "x-smg-tenant-id")),
        ),
    ),
    Convention(
        "openai",
        (
            *_body(("conversation",), ("session", "id", text)),
            *_body(
                (),
                ("session", "conversation", text),
                ("session", "conversation_id", text),
            ),
            *_body(
                ("metadata",),
                ("session", "session_id", text),
                ("session", "conversation_id", text),
                ("session", "thread_id", text),
                ("workflow", "workflow", text),
            ),
        ),
    ),
    Convention(
        "smg-routing-key",
        _headers(("session", "x-smg-routing-key"), ("routing_key", "x-smg-routing-key")),
        weak=True,
    ),
    Convention("prompt_cache_key", _body((), ("session", "prompt_cache_key", text)), weak=True),
    Convention(
        "user",
        (*_body((), ("session", "user", text)), *_body(("metadata",), ("session", "user_id", text))),
        weak=True,
    ),
)
BODY_FIELDS: Final = frozenset(field.path[0] for convention in DEFAULT for field in convention.fields if field.path)


def select(order: Sequence[str], known: Iterable[Convention] = DEFAULT) -> tuple[Convention, ...]:
    """The named conventions in that order; raises UnknownName."""
    table = {convention.name: convention for convention in known}
    for name in order:
        if name not in table:
            raise UnknownName("wire convention", name, table)
    return tuple(table[name] for name in order)


class Named:
    """What a call says about itself; None (or "") where it says nothing.

    session, task, parent, root: names as the client wrote them, not yet inside a tenant. weak: the session only bounds
    the search by content. source: the convention that named the session. deadline_s: seconds from now. priority: lower
    first. retention_s: how long the client wants its prefix kept. ttft_s, tpot_s, objective: service levels, carried
    for whoever acts on them. ignored: (convention, field, reason) of what could not be read.
    """

    __slots__ = (
        "cache_salt",
        "deadline_s",
        "final",
        "hints",
        "ignored",
        "objective",
        "parent",
        "priority",
        "retention_s",
        "root",
        "routing_key",
        "session",
        "source",
        "task",
        "tenant",
        "tpot_s",
        "ttft_s",
        "weak",
        "workflow",
    )

    def __init__(self) -> None:
        self.session: str | None = None
        self.task: str | None = None
        self.parent: str | None = None
        self.root: str | None = None
        self.workflow: str | None = None
        self.tenant: str | None = None
        self.deadline_s: float | None = None
        self.final: bool | None = None
        self.priority: int | None = None
        self.hints: Hints | None = None
        self.cache_salt: str | None = None
        self.routing_key: str | None = None
        self.retention_s: float | None = None
        self.ttft_s: float | None = None
        self.tpot_s: float | None = None
        self.objective: str | None = None
        self.source = ""
        self.weak = False
        self.ignored: tuple[tuple[str, str, str], ...] = ()


_IDENTITY: Final = frozenset({"session", "task", "parent", "root", "group", "agent", "parent_agent"})
_NOTHING: Final[Mapping[str, Any]] = {}
_rank_of = itemgetter(0)


class _Entry:
    """A field of a convention, as it is looked up. rank: its place among all fields of all conventions."""

    __slots__ = ("convention", "is_header", "is_identity", "order", "rank", "read", "what", "where")

    def __init__(self, rank: int, order: int, convention: str, field: Field) -> None:
        self.rank = rank
        self.order = order
        self.convention = convention
        self.what = field.what
        self.where = ".".join(field.path) or field.header
        self.read = field.read
        self.is_header = bool(field.header)
        self.is_identity = field.what in _IDENTITY


class _Branch:
    """Fields of bodies by their paths' next key: only keys that a body has are looked at."""

    __slots__ = ("_below", "_first", "_here")

    def __init__(self) -> None:
        self._here: dict[str, list[_Entry]] = {}
        self._below: dict[str, _Branch] = {}
        self._first: list[_Entry] = []

    def add(self, path: tuple[str, ...], entry: _Entry) -> None:
        """A field at `path`; fields are added by rank."""
        self._first = self._first or [entry]
        if len(path) == 1:
            self._here.setdefault(path[0], []).append(entry)
        else:
            self._below.setdefault(path[0], _Branch()).add(path[1:], entry)

    def find(self, value: object, found: list[tuple[int, _Entry, Any]]) -> None:
        """Add (rank, field, value) of all fields in an object. A JSON object written as a string counts as an object.

        Where it is malformed, its first field has the reason as its value. O(keys of this branch or of the object).
        """
        try:
            values = _object(value)
        except Unreadable as why:
            found += [(entry.rank, entry, why) for entry in self._first]
            return
        for key in self._here.keys() & values.keys():
            found += [(entry.rank, entry, values[key]) for entry in self._here[key]]
        for key in self._below.keys() & values.keys():
            self._below[key].find(values[key], found)


class Resolver:
    """Reads who calls from headers and body fields, by an ordered list of conventions.

    ignored: how often a value could not be read, by (convention, field, reason); as bounded as the table itself.
    """

    def __init__(self, conventions: tuple[Convention, ...] = DEFAULT) -> None:
        self.conventions = conventions
        self.ignored: Counter[tuple[str, str, str]] = Counter()
        self._headers: dict[bytes, list[_Entry]] = {}
        self._body = _Branch()
        rank = 0
        for order, convention in enumerate(conventions):
            for field in convention.fields:
                entry = _Entry(rank, order, convention.name, field)
                rank += 1
                if field.header:
                    self._headers.setdefault(field.header.encode(), []).append(entry)
                else:
                    self._body.add(field.path, entry)

    def heard(self, headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
        """Those headers that any convention reads. O(headers)."""
        known = self._headers
        return tuple([header for header in headers if header[0] in known])

    def resolve(self, headers: Iterable[tuple[bytes, bytes]], body_fields: Mapping[str, Any] = _NOTHING) -> Named:
        """What the call says about itself. headers: lower-case names; body_fields: top-level fields, decoded.

        Never raises. Cost: O(headers + body fields), independent of the number of conventions that say nothing.
        """
        found: list[tuple[int, _Entry, Any]] = []
        known = self._headers
        for name, value in headers:
            if name in known:
                found += [(entry.rank, entry, value) for entry in known[name]]
        if body_fields:
            self._body.find(body_fields, found)
        named = Named()
        if found:
            if len(found) > 1:
                found.sort(key=_rank_of)
            self._read(found, named)
        return named

    def _read(self, found: list[tuple[int, _Entry, Any]], named: Named) -> None:
        said: dict[str, Value] = {}
        identities: dict[int, dict[str, str]] = {}
        ignored: list[tuple[str, str, str]] = []
        for _, entry, raw in found:
            into: dict[str, Any] = identities.setdefault(entry.order, {}) if entry.is_identity else said
            if type(raw) is Unreadable:
                ignored.append((entry.convention, entry.where, str(raw)))
                continue
            if entry.what in into:
                continue
            try:
                if entry.is_header:
                    into[entry.what] = entry.read(raw.decode("utf-8"))
                elif raw is not None:
                    into[entry.what] = entry.read(raw)
            except Unreadable as why:
                ignored.append((entry.convention, entry.where, str(why)))
            except UnicodeDecodeError:
                ignored.append((entry.convention, entry.where, "not UTF-8"))
        if ignored:
            named.ignored = tuple(ignored)
            self.ignored.update(ignored)
        self._name(identities, named)
        _spread(said, named)

    def _name(self, identities: dict[int, dict[str, str]], named: Named) -> None:
        """Take the identity of the first convention with a session; ours completes any other."""
        ours = next((identities[order] for order in identities if self.conventions[order].name == "saga"), {})
        for order in sorted(identities):
            session, parent, task = _composed(identities[order])
            if session is not None:
                named.session, named.parent, named.task = session, parent, task
                named.root = identities[order].get("root")
                named.source = self.conventions[order].name
                named.weak = self.conventions[order].weak
                break
        named.parent = ours.get("parent") or named.parent
        named.task = ours.get("task") or named.task


def _composed(said: dict[str, str]) -> tuple[str | None, str | None, str | None]:
    """(session, parent, task); a sub-agent is `group/agent`, under its parent agent or the group's own session."""
    group, agent, above = said.get("group"), said.get("agent"), said.get("parent_agent")
    session, parent = said.get("session"), said.get("parent")
    if session is None and group is not None:
        session = f"{group}/{agent}" if agent else group
        if parent is None and agent:
            parent = f"{group}/{above}" if above else group
    return session, parent if parent != session else None, said.get("task") or group


def _spread(said: dict[str, Value], named: Named) -> None:
    hints: dict[str, Any] = {}
    for what, value in said.items():
        if what.startswith("hints."):
            hints[what[6:]] = value
        else:
            setattr(named, what, value)
    if named.final is not None:
        hints["final"] = named.final
    if hints:
        named.hints = Hints(**hints)


def _object(value: object) -> Mapping[str, Any]:
    if isinstance(value, str):
        if not value.startswith("{") or len(value) > _MAX_NESTED_BYTES:
            return _NOTHING
        try:
            value = msgspec.json.decode(value)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise Unreadable("malformed JSON") from None
    return value if isinstance(value, dict) else _NOTHING
