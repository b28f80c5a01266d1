"""Finds the session of a call by what it says, where nobody names it.

A prompt is a chain: the hash of each message is seeded with the hash of what comes before it. A conversation remembers
the end of its last prompt, a few bytes per message, and its first messages (its *root*: system prompt and first user
message). A new prompt then is one of these, tried in this order:

    retry      the same body again, while the first attempt is marked as retried by the client, or soon after it failed
    extends    a known prompt is its beginning, longest first, and what follows is the answer that was given
    edited     it shares the root, differs in the middle, and the known conversation's last message is still in it
    compacted  it shares the root with exactly one idle conversation, and is shorter than that was
    fork       it shares more than the root with a conversation, which goes on without it: a child session
    new        anything else; a shared system prompt or a shared first message makes nobody related

What is normalised before hashing: order, spacing and unknown keys of a message's fields; `cache_control` marks; null
and empty content; one text block or a plain string. The text itself is not.

Hashes are seeded with a secret and the scope (tenant, and key if there is one): nobody can aim at another's session.
What it asks of a prompt is the `Prompt` protocol: a `Digest` here, or what another process tells of its own.
It refuses to know tokenizers, workers, and what a session is worth. State is capped, and ages.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

import msgspec
from xxhash import xxh3_64_intdigest as xxh3

from saga.gateway.body import Body
from saga.gateway.body_fields import Item
from saga.gateway.contracts import Answer
from saga.gateway.saved import SavedConversation
from saga.gateway.tools import MAX_NAME_CHARS

_NULL: Final = msgspec.Raw(b"null")
_ROLES: Final = {role: xxh3(role.encode()) for role in ("user", "assistant", "system", "developer", "tool", "function")}
_INSTRUCTING: Final = frozenset({"system", "developer"})
_ANSWERING: Final = frozenset({"assistant", "model"})
_ANSWER_ITEMS: Final = frozenset({"function_call", "reasoning", "custom_tool_call", "local_shell_call"})
_CHUNK: Final = 512
_FINE: Final = 64
_MAX_SHARERS: Final = 64
_TAIL_ITEMS: Final = 64
_ANSWER_CHARS: Final = 1_024
_ENDING_CHARS: Final = 64
_LOW_HALF: Final = 0 if sys.byteorder == "little" else 1


_CALLED: Final = re.compile(rb'"name"\s*:\s*"([^"\\]{1,256})')
_MAX_CALLED: Final = 256


class Prompt(Protocol):
    """A prompt, hashed, and what may be asked of it besides.

    chain[i]: hash of everything up to message i; end: of all. sizes[i]: bytes up to there, system and tools included.
    root: how many messages the first user message ends. prefix: hash of system prompt and tools, `prefix_size` their
    bytes; seeded apart, because sessions share it. body: hash of the whole body. plain: it is a completion's text, not
    messages.
    """

    chain: Sequence[int]
    sizes: Sequence[int]
    end: int
    size: int
    root: int
    prefix: int
    prefix_size: int
    body: int
    plain: bool

    def last(self) -> int:
        """The last message by itself."""
        ...

    def tail(self) -> frozenset[int]:
        """The last messages, each by itself."""
        ...

    def is_answer(self, place: int) -> bool:
        """Whether the message at that place is an answer of the model; False where there is none."""
        ...

    def said(self, place: int) -> tuple[int, int] | None:
        """Fingerprint of the text of the answer at that place; None where its text is elsewhere."""
        ...

    def called(self, place: int) -> frozenset[bytes]:
        """The tools that the answer at that place calls (at least; names in their arguments may be among them)."""
        ...

    def begins(self, num_bytes: int) -> int:
        """Hash of so many bytes of a plain prompt, from its beginning."""
        ...


class Digest:
    """A `Prompt` made from a body that is here. Cost: O(bytes); what is asked later, O(bytes asked about)."""

    __slots__ = ("_items", "_text", "body", "chain", "end", "plain", "prefix", "prefix_size", "root", "size", "sizes")

    chain: Sequence[int]
    sizes: Sequence[int]

    def __init__(self, body: Body, raw: bytes, seed: int, prefix_seed: int) -> None:
        self.body = xxh3(raw, seed)
        self._items = body.items
        self._text = b""
        self.plain = False
        system, tools = _canonical(body.system), _canonical(body.tools)
        start = xxh3(system, seed)
        self.prefix_size = len(system) + len(tools)
        if body.prompt:
            text = self._text = body.prompt[:-1]
            self.plain = bool(text)
            self.chain, self.sizes = _chunks(text, start)
            self.end = self.chain[-1] if self.chain else xxh3(text, self.body)
            self.root = 0
            self.prefix = 0
            self.size = len(text)
            return
        self.chain, self.sizes = _chained(body.items, start, self.prefix_size)
        self.end = self.chain[-1] if self.chain else xxh3(b"", self.body)
        num_leading = 0
        for item in body.items:
            if item.role not in _INSTRUCTING:
                break
            num_leading += 1
        self.root = num_leading
        for item in body.items[num_leading:]:
            self.root += 1
            if item.role == "user":
                break
        self.prefix = xxh3(tools, xxh3(system, prefix_seed))
        if num_leading:
            self.prefix = _chained(body.items[:num_leading], self.prefix, 0)[0][-1]
            self.prefix_size = self.sizes[num_leading - 1]
        self.size = self.sizes[-1] if self.sizes else self.prefix_size

    def last(self) -> int:
        """The last message by itself."""
        return _alone(self._items[-1]) if self._items else 0

    def tail(self) -> frozenset[int]:
        """The last messages, each by itself."""
        return frozenset(_alone(item) for item in self._items[-_TAIL_ITEMS:])

    def is_answer(self, place: int) -> bool:
        """Whether the message at that place is an answer of the model."""
        if place >= len(self._items):
            return False
        item = self._items[place]
        return item.role in _ANSWERING or item.type in _ANSWER_ITEMS

    def answers(self) -> bytes:
        """What `is_answer` says of every message, a byte each."""
        return bytes([item.role in _ANSWERING or item.type in _ANSWER_ITEMS for item in self._items])

    def said(self, place: int) -> tuple[int, int] | None:
        """Fingerprint of an answer's text."""
        item = self._items[place]
        return None if item.type in _ANSWER_ITEMS else fingerprint(_text_of(bytes(item.content)))

    def called(self, place: int) -> frozenset[bytes]:
        """Names of the tools in an answer: of a chat's calls, of an item that is a call, of content blocks."""
        item = self._items[place]
        calls = bytes(item.tool_calls)
        if not calls and (name := bytes(item.name)):
            return frozenset((_first_part(name.strip(b'"')),))
        found = _CALLED.finditer(calls or bytes(item.content))
        return frozenset(_first_part(match[1]) for match, _ in zip(found, range(_MAX_CALLED), strict=False))

    def begins(self, num_bytes: int) -> int:
        """Hash of a plain prompt's first bytes."""
        return xxh3(memoryview(self._text)[:num_bytes])


def _first_part(name: bytes) -> bytes:
    """A tool's name as far as its first colon (what follows in a label is the gateway's), cut as labels are."""
    return name[:MAX_NAME_CHARS].partition(b":")[0]


def ends_with_tool(body: Body) -> bool:
    """Whether the last message is the result of a tool."""
    if not body.items:
        return False
    last = body.items[-1]
    if last.role in ("tool", "function") or (last.type or "").endswith("_output"):
        return True
    return last.role == "user" and (content := bytes(last.content)).startswith(b"[") and b'"tool_result"' in content


def _chained(items: list[Item], link: int, size: int) -> tuple[list[int], list[int]]:
    """Hash and cumulative bytes of each message."""
    chain: list[int] = []
    sizes: list[int] = []
    roles = _ROLES
    for item in items:
        content = bytes(item.content)
        role = item.role or item.type or ""
        seed = link ^ (roles.get(role) or xxh3(role.encode()))
        if content[:1] == b"[":
            content = _canonical(content)
        elif content in (b"null", b'""'):
            content = b""
        link = xxh3(content, seed)
        size += len(content)
        if item.tool_calls or item.arguments or item.output:
            for part in (item.tool_calls, item.arguments, item.output):
                if part and part != _NULL:
                    raw = _canonical(bytes(part))
                    link = xxh3(raw, link)
                    size += len(raw)
        chain.append(link)
        sizes.append(size)
    return chain, sizes


def _alone(item: Item) -> int:
    return _chained([item], 0, 0)[0][0]


def _chunks(text: bytes, link: int) -> tuple[list[int], list[int]]:
    """Hash and cumulative bytes at fixed places of a plain prompt: every 64 bytes at first, then every 512."""
    bounds = [*range(_FINE, min(len(text), _CHUNK) + 1, _FINE), *range(2 * _CHUNK, len(text) + 1, _CHUNK)]
    chain: list[int] = []
    view = memoryview(text)
    start = 0
    for bound in bounds:
        link = xxh3(view[start:bound], link)
        chain.append(link)
        start = bound
    return chain, bounds


_A_MARK: Final = rb'"cache_control"\s*:\s*(?:\{[^{}]*\}|null)'
_MARK: Final = re.compile(rb",\s*" + _A_MARK + rb"|" + _A_MARK + rb"\s*,")
_ONE_TEXT: Final = re.compile(rb'\[\s*\{\s*"type"\s*:\s*"(?:input_|output_)?text"\s*,\s*"text"\s*:\s*(?=")')
_ONE_TEXT_END: Final = re.compile(rb'"\s*\}\s*\]\s*\Z')


def _canonical(raw: bytes) -> bytes:
    """Without cache marks, and one text block as the string it is."""
    if not raw:
        return raw
    if b'"cache_control"' in raw:
        raw = _MARK.sub(b"", raw)
    start = _ONE_TEXT.match(raw)
    if start is not None:
        end = _ONE_TEXT_END.search(raw, max(start.end(), len(raw) - 64))
        if end is not None:
            inner = raw[start.end() + 1 : end.start()]
            if inner.count(b'"') == inner.count(b'\\"'):
                return raw[start.end() : end.start() + 1]
    return raw


class Conversation:
    """What is remembered of a session: its last prompt as hashes, and the answer that was given to it.

    prompt_tokens: of the last prompt; output_tokens: of its answer (estimated until the engine has counted).
    step: the last one; live_until_s: until when it counts as running; failed_s: when it failed, -inf if it did not.
    """

    __slots__ = (
        "answer",
        "at_s",
        "body",
        "chain",
        "children",
        "end",
        "ending",
        "failed_s",
        "last",
        "live_until_s",
        "model",
        "output_tokens",
        "parent",
        "prefix",
        "prompt_tokens",
        "root",
        "session",
        "size",
        "step",
        "task",
        "text",
        "tools",
    )

    def __init__(self, session: str, parent: str | None, task: str) -> None:
        self.session = session
        self.parent = parent
        self.task = task
        self.root = 0
        self.model = ""
        self.chain = b""
        self.end = 0
        self.prefix = 0
        self.last = 0
        self.size = 0
        self.text = 0
        self.body = 0
        self.step = ""
        self.at_s = 0.0
        self.live_until_s = _NEVER
        self.failed_s = _NEVER
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.answer = 0
        self.ending = 0
        self.tools: tuple[str, ...] = ()
        self.children = 0


_NEVER: Final = float("-inf")


_SAVED: Final = msgspec.msgpack.Decoder(list[SavedConversation])


@dataclass(slots=True, init=False)
class Placement:
    """Where a prompt belongs. common_tokens: None where nothing is known. why: one of the words of this module."""

    conversation: Conversation
    why: str
    prompt_tokens: int
    common_tokens: int | None
    retry_of: str

    def __init__(
        self,
        conversation: Conversation,
        why: str,
        prompt_tokens: int,
        common_tokens: int | None = None,
        retry_of: str = "",
    ) -> None:
        self.conversation = conversation
        self.why = why
        self.prompt_tokens = prompt_tokens
        self.common_tokens = common_tokens
        self.retry_of = retry_of

    @property
    def session(self) -> str:
        """The session's name."""
        return self.conversation.session


@dataclass(frozen=True, slots=True)
class ConversationSettings:
    """Bounds.

    max_idle_s: a conversation is forgotten after that; retry_s: how long after a failure the same body is a retry;
    max_live_s: a step that nobody ended stops counting as live.
    """

    max_conversations: int = 200_000
    max_idle_s: float = 7_200.0
    retry_s: float = 30.0
    max_live_s: float = 3_600.0


class Conversations:
    """All known conversations. Not thread-safe; every method is O(messages) or less, and never blocks."""

    def __init__(self, settings: ConversationSettings | None = None) -> None:
        self.settings = settings if settings is not None else ConversationSettings()
        self._table: OrderedDict[str, Conversation] = OrderedDict()
        self._ends: dict[int, Conversation | list[Conversation]] = {}
        self._roots: dict[int, Conversation | list[Conversation]] = {}

    def __len__(self) -> int:
        return len(self._table)

    def get(self, session: str) -> Conversation | None:
        """The conversation of that name."""
        return self._table.get(session)

    def place(
        self,
        digest: Prompt,
        *,
        scope: str,
        at_s: float,
        named: str | None = None,
        parent: str | None = None,
        model: str = "",
        bytes_per_token: float = 4.0,
        retrying: bool = False,
        after: str | None = None,
    ) -> Placement:
        """The conversation of a prompt, made if there is none; call `began` next.

        scope: what content-found names begin with. named: the session that the client names, parent its parent;
        retrying: the client says that it repeats itself. after: the session whose last context the engine itself puts
        before this prompt. Cost: O(messages).
        """
        self._age(at_s)
        before = self._table.get(after) if after is not None else None
        if before is not None:
            return self._following(before, digest, at_s, bytes_per_token)
        if named is not None:
            conversation, why = self._of_name(digest, named, parent, model, at_s, retrying=retrying)
        else:
            conversation, why = self._of_content(digest, scope, model, at_s, retrying=retrying)
        placement = self._measured(conversation, why, digest, bytes_per_token)
        if why == "retry":
            placement.retry_of = conversation.step
        return placement

    def began(self, placement: Placement, digest: Prompt, step: str, model: str, at_s: float) -> None:
        """The step of that placement begins: the conversation now ends with this prompt."""
        conversation = placement.conversation
        self._unlink(self._ends, conversation.end, conversation)
        conversation.end = digest.end
        _link(self._ends, conversation.end, conversation)
        if digest.chain and digest.root:
            root = digest.chain[digest.root - 1]
            if root != conversation.root or conversation.root not in self._roots:
                self._unlink(self._roots, conversation.root, conversation)
                conversation.root = root
                _link(self._roots, root, conversation)
        conversation.chain = _packed(digest.chain)
        conversation.prefix = digest.prefix
        conversation.last = digest.last()
        conversation.size = digest.size
        conversation.text = digest.begins(digest.size) if digest.plain else 0
        conversation.body = digest.body
        conversation.model = sys.intern(model)
        conversation.step = step
        conversation.at_s = at_s
        conversation.live_until_s = at_s + self.settings.max_live_s
        conversation.failed_s = _NEVER
        conversation.prompt_tokens = placement.prompt_tokens
        conversation.output_tokens = 0
        conversation.answer = conversation.ending = 0
        conversation.tools = ()
        self._table.move_to_end(conversation.session)

    def answered(self, session: str, step: str, answer: Answer, at_s: float) -> None:
        """The step is over; only the session's latest is learned from."""
        conversation = self._table.get(session)
        if conversation is None or conversation.step != step:
            return
        conversation.live_until_s = _NEVER
        conversation.at_s = at_s
        if answer.error or not answer.complete:
            conversation.failed_s = at_s
            return
        if answer.prompt_tokens:
            conversation.prompt_tokens = answer.prompt_tokens
        if answer.output_tokens:
            conversation.output_tokens = answer.output_tokens
        conversation.answer, conversation.ending = answer.fingerprint or fingerprint(answer.text)
        conversation.tools = answer.tool_calls

    def snapshots(
        self, at_s: float, most: int = 50_000, max_chain_bytes: int = 32 * 2**20, batch: int = 500
    ) -> Iterator[list[bytes]]:
        """The latest conversations, packed, growing by a batch at a time (about 2 ms of work each); oldest last."""
        packed: list[bytes] = []
        latest = list(islice(reversed(self._table.values()), most))
        for start in range(0, len(latest), batch):
            some = latest[start : start + batch]
            max_chain_bytes -= sum(len(one.chain) for one in some)
            if max_chain_bytes < 0:
                return
            packed.append(msgspec.msgpack.encode([_saved(one, at_s) for one in some]))
            yield packed

    def restore(self, packed: Sequence[bytes], at_s: float, away_s: float) -> None:
        """Take over what `snapshots` gave, before the first call. away_s: how long ago that was.

        What was live then has failed now, so that the client's retry is one. Raises msgspec.MsgspecError for what
        cannot be read, and then takes nothing over.
        """
        found = [saved for batch in packed for saved in _SAVED.decode(batch)]
        for saved in reversed(found):
            if saved.age_s + away_s <= self.settings.max_idle_s and len(self._table) < self.settings.max_conversations:
                self._revive(saved, at_s, away_s)

    def _revive(self, saved: SavedConversation, at_s: float, away_s: float) -> None:
        conversation = Conversation(saved.session, saved.parent, saved.task)
        for name in _KEPT:
            setattr(conversation, name, getattr(saved, name))
        conversation.model = sys.intern(saved.model)
        conversation.at_s = at_s - away_s - saved.age_s
        conversation.failed_s = at_s if saved.was_live else _NEVER
        self._table[saved.session] = conversation
        _link(self._ends, conversation.end, conversation)
        if conversation.root:
            _link(self._roots, conversation.root, conversation)

    def _following(self, before: Conversation, digest: Prompt, at_s: float, per_token: float) -> Placement:
        """A prompt that the engine appends to a context it has kept."""
        common = before.prompt_tokens + before.output_tokens
        prompt_tokens = max(1, common + round(digest.size / per_token))
        if _live(before, at_s):
            return Placement(self._child(before), "fork", prompt_tokens)
        return Placement(before, "extends", prompt_tokens, common)

    def _of_name(
        self, digest: Prompt, named: str, parent: str | None, model: str, at_s: float, *, retrying: bool
    ) -> tuple[Conversation, str]:
        """A named session is one conversation, as long as its calls do not overlap and ask one model.

        Calls beside it are its children: one for each other model, one for each that overlaps; those are found again
        by their content.
        """
        again = self._retried(digest, at_s, retrying=retrying)
        if again is not None:
            return again, "retry"
        main = self._table.get(named)
        if main is None:
            return self._add(named, parent), "new"
        for conversation, depth in self._extended(digest):
            if conversation.model == model and (not _live(conversation, at_s) or digest.is_answer(depth)):
                return conversation, "extends"
        if main.model != model:
            name = f"{named}~{model}"
            side = self._table.get(name)
            if side is None:
                return self._add(name, named), "new"
            main = side
        if not _live(main, at_s):
            return main, "named"
        return self._child(main), "fork"

    def _of_content(
        self, digest: Prompt, scope: str, model: str, at_s: float, *, retrying: bool
    ) -> tuple[Conversation, str]:
        again = self._retried(digest, at_s, retrying=retrying)
        if again is not None:
            return again, "retry"
        if not digest.chain:
            return self._add(self._fresh_name(scope, digest.body), None), "new"
        found = self._continued(digest, model, at_s) or self._related(digest, model, at_s)
        if found is not None:
            return found
        root = digest.chain[digest.root - 1] if digest.root else digest.end
        return self._add(self._fresh_name(scope, root), None), "new"

    def _retried(self, digest: Prompt, at_s: float, *, retrying: bool) -> Conversation | None:
        """The conversation whose last call this is a retry of."""
        for conversation in _members(self._ends, digest.end) if digest.end in self._ends else ():
            if conversation.body != digest.body:
                continue
            if at_s - conversation.failed_s <= self.settings.retry_s or (retrying and _live(conversation, at_s)):
                return conversation
        return None

    def _extended(self, digest: Prompt) -> Iterator[tuple[Conversation, int]]:
        """Conversations whose whole prompt this one begins with (and goes on), longest first, with their depth."""
        ends = self._ends
        depth = len(digest.chain)
        for link in reversed(digest.chain):
            if link in ends and (depth < len(digest.chain) or digest.plain):
                for conversation in _members(ends, link):
                    if not digest.plain or _begins_with(digest, conversation):
                        yield conversation, depth
            depth -= 1

    def _continued(self, digest: Prompt, model: str, at_s: float) -> tuple[Conversation, str] | None:
        best: Conversation | None = None
        best_depth = 0
        best_rank = (-1, False, -1, False, 0.0)
        for conversation, depth in self._extended(digest):
            if best is not None and depth < best_depth:
                break
            idle = not _live(conversation, at_s) or digest.is_answer(depth)
            match = _matches(conversation, digest, depth)
            if conversation.model != model or (match is False and depth <= digest.root):
                continue
            rank = (
                depth if not digest.plain else conversation.size,
                idle,
                {True: 2, None: 1, False: 0}[match],
                conversation.prefix == digest.prefix,
                -conversation.at_s,
            )
            if rank > best_rank:
                best, best_rank, best_depth = conversation, rank, depth
        if best is None:
            return None
        return (best, "extends") if best_rank[1] else (self._child(best), "fork")

    def _related(self, digest: Prompt, model: str, at_s: float) -> tuple[Conversation, str] | None:
        """An edited, compacted or forked conversation, by a shared root and more."""
        if len(digest.chain) <= digest.root or not digest.root or digest.plain:  # nobody has answered in it yet
            return None
        sharers = [
            (self._depth(conversation, digest), conversation)
            for conversation in _members(self._roots, digest.chain[digest.root - 1])
            if conversation.model == model and conversation.prefix == digest.prefix
        ]
        if not sharers:
            return None
        depth = max(depth for depth, _ in sharers)
        nearest = [conversation for shared, conversation in sharers if shared == depth]
        if depth < len(digest.chain) and (depth > digest.root or len(sharers) == 1):
            edited = [one for one in nearest if depth * 4 < len(one.chain) and one.last in digest.tail()]
            if len(edited) == 1 and not _live(edited[0], at_s):
                return edited[0], "edited"
        latest = max(nearest, key=lambda one: one.at_s)
        if depth > digest.root:
            if depth == len(digest.chain) and not _live(latest, at_s) and latest.end == digest.end:
                return latest, "again"
            return self._child(latest), "fork"
        only = sharers[0][1]
        if len(sharers) == 1 and digest.size < only.size and not _live(only, at_s):
            return only, "compacted"
        return None

    @staticmethod
    def _depth(conversation: Conversation, digest: Prompt) -> int:
        """How many messages the two prompts share; chains that part never meet again. Cost: O(log messages)."""
        known = memoryview(conversation.chain).cast("I")
        chain = digest.chain
        low, high = 0, min(len(known), len(chain))
        if high and known[high - 1] == chain[high - 1] & 0xFFFFFFFF:
            return high  # nearly always: one goes on where the other ends
        while low < high:
            middle = (low + high + 1) // 2
            if known[middle - 1] == chain[middle - 1] & 0xFFFFFFFF:
                low = middle
            else:
                high = middle - 1
        return low

    def _measured(self, conversation: Conversation, why: str, digest: Prompt, per_token: float) -> Placement:
        """How much of the prompt the session's worker has seen; counted tokens where the engine has counted them."""
        whole = max(1, round(digest.size / per_token))
        if conversation.prompt_tokens == 0:
            return Placement(conversation, why, whole)
        if conversation.prefix != digest.prefix:
            return Placement(conversation, why, whole, 0)
        shared, answer = self._shared(conversation, why, digest)
        if answer is None:
            return Placement(conversation, why, whole, min(round(shared / per_token), conversation.prompt_tokens))
        common = conversation.prompt_tokens
        if answer:
            common += conversation.output_tokens or round(answer / per_token)
        beyond = max(0.0, digest.size - shared - answer) / per_token
        return Placement(conversation, why, max(1, common + round(beyond)), common)

    def _shared(self, conversation: Conversation, why: str, digest: Prompt) -> tuple[int, int | None]:
        """(bytes shared with the last prompt, bytes of its answer in this one).

        None for the answer: not even the last prompt is there whole. 0: it is, its answer is not.
        """
        if digest.plain:
            return (conversation.size, 0) if why in ("extends", "retry") else (0, None)
        depth = self._depth(conversation, digest)
        size = digest.sizes[depth - 1] if depth else 0
        if depth == 0 or depth * 4 != len(conversation.chain):
            return size, None
        if not digest.is_answer(depth) or _matches(conversation, digest, depth) is False:
            return size, 0
        return size, digest.sizes[depth] - size

    def _fresh_name(self, scope: str, root: int) -> str:
        """A name that comes from the content, so that other processes and later lives give it too."""
        name = f"{scope}~{root:016x}"
        first = self._table.get(name)
        if first is None:
            return name
        return self._child_name(first)

    def _child_name(self, conversation: Conversation) -> str:
        while True:
            conversation.children += 1
            name = f"{conversation.session}~{conversation.children + 1}"
            if name not in self._table:
                return name

    def _child(self, conversation: Conversation) -> Conversation:
        return self._add(self._child_name(conversation), conversation.session)

    def _add(self, session: str, parent: str | None) -> Conversation:
        above = self._table.get(parent) if parent is not None else None
        conversation = Conversation(session, parent, above.task if above is not None else parent or session)
        self._table[session] = conversation
        return conversation

    def _age(self, at_s: float) -> None:
        """Forget what is too old or too much; a few at a time, so that no call pays for all."""
        horizon_s = at_s - self.settings.max_idle_s
        for _ in range(4):
            if not self._table:
                return
            oldest = next(iter(self._table.values()))
            if len(self._table) < self.settings.max_conversations and oldest.at_s >= horizon_s:
                return
            if _live(oldest, at_s) and len(self._table) < 2 * self.settings.max_conversations:
                self._table.move_to_end(oldest.session)
                continue
            self.forget(oldest.session)

    def forget(self, session: str) -> None:
        """Forget a session; nothing happens if it is not known."""
        conversation = self._table.pop(session, None)
        if conversation is not None:
            self._unlink(self._ends, conversation.end, conversation)
            self._unlink(self._roots, conversation.root, conversation)

    @staticmethod
    def _unlink(index: dict[int, Conversation | list[Conversation]], link: int, conversation: Conversation) -> None:
        members = index.get(link)
        if members is conversation:
            del index[link]
        elif isinstance(members, list) and conversation in members:
            members.remove(conversation)
            if len(members) == 1:
                index[link] = members[0]


_KEPT: Final = tuple(
    name
    for name in SavedConversation.__struct_fields__
    if name not in ("session", "parent", "task", "model", "age_s", "was_live")
)
"""Fields that are the same in a conversation and in what is saved of it."""


def _saved(conversation: Conversation, at_s: float) -> SavedConversation:
    return SavedConversation(
        session=conversation.session,
        parent=conversation.parent,
        task=conversation.task,
        model=conversation.model,
        age_s=max(0.0, at_s - conversation.at_s),
        was_live=_live(conversation, at_s),
        **{name: getattr(conversation, name) for name in _KEPT},
    )


def _link(index: dict[int, Conversation | list[Conversation]], link: int, conversation: Conversation) -> None:
    members = index.get(link)
    if members is None:
        index[link] = conversation
    elif isinstance(members, list):
        members.append(conversation)
        if len(members) > _MAX_SHARERS:
            del members[0]
    elif members is not conversation:
        index[link] = [members, conversation]


def _members(index: dict[int, Conversation | list[Conversation]], link: int) -> tuple[Conversation, ...]:
    members = index.get(link)
    if members is None:
        return ()
    return tuple(members) if isinstance(members, list) else (members,)


def _live(conversation: Conversation, at_s: float) -> bool:
    return at_s < conversation.live_until_s


def _begins_with(digest: Prompt, conversation: Conversation) -> bool:
    """Whether a plain prompt goes on from the whole of the conversation's last one."""
    size = conversation.size
    return 0 < size < digest.size and digest.begins(size) == conversation.text


def _matches(conversation: Conversation, digest: Prompt, depth: int) -> bool | None:
    """Whether the message after the first `depth` is the answer that was given; None where that cannot be said."""
    if digest.plain or not digest.is_answer(depth) or not (conversation.answer or conversation.tools):
        return None
    if conversation.tools:
        called = digest.called(depth)
        return all(_first_part(name.encode()) in called for name in conversation.tools)
    said = digest.said(depth)
    return None if said is None else said[0] == conversation.answer or said[1] == conversation.ending


def _packed(chain: Sequence[int]) -> bytes:
    """Four bytes per message: enough to find where two prompts part."""
    if isinstance(chain, array):  # of 8 bytes each, from another process
        return memoryview(chain).cast("B").cast("I")[_LOW_HALF::2].tobytes()
    return array("I", [link & 0xFFFFFFFF for link in chain]).tobytes()


def seed_of(scope: str, secret: int) -> int:
    """The seed of a scope's hashes (a tenant, or a tenant's key). secret: hash of what seeds all of them.

    The same secret gives the same session names in another process and after a restart.
    """
    return xxh3(scope.encode("utf-8", "surrogatepass"), secret)


def fingerprint(text: str) -> tuple[int, int]:
    """(beginning, ending) of a text, so that one survives where a client drops the thoughts before an answer."""
    text = text.strip()
    if not text:
        return 0, 0
    beginning = text[:_ANSWER_CHARS].encode("utf-8", "surrogatepass")
    return xxh3(beginning), xxh3(text[-_ENDING_CHARS:].encode("utf-8", "surrogatepass"))


def _text_of(content: bytes) -> str:
    """The text of a message's content: a string, or its text blocks."""
    try:
        decoded = msgspec.json.decode(content) if content else ""
    except (msgspec.MsgspecError, RecursionError):
        return ""
    if isinstance(decoded, str):
        return decoded
    if not isinstance(decoded, list):
        return ""
    texts = [block.get("text") for block in decoded if isinstance(block, dict)]
    return "".join(text for text in texts if isinstance(text, str))
