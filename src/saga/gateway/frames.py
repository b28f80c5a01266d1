"""What front processes and their coordinator say to one another, and how it travels.

    Unix socket ─▶ 4 bytes of length, big-endian ─▶ one message, msgpack ─▶ Link ─▶ whoever listens

A front sends what it read of a request (`Place`), never a prompt: messages cross as 8 bytes of hash, 4 of size and a
mark each. What else the coordinator must know of a prompt it asks for (`Question`), which is rare. Of an answer cross
the engine's counts, names of tools and two hashes of its text. Messages of one turn of the event loop are one write.

A frame that is too long or cannot be read ends its link. This module refuses to know what the messages lead to.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from saga.errors import PeerError
from saga.events import Hints
from saga.gateway.addresses import WorkerAddress
from saga.gateway.contracts import Answer, Call, Kind, Refused, Request
from saga.gateway.conversations import Digest, fingerprint
from saga.gateway.journal import say
from saga.gateway.limits import FrontLimits
from saga.gateway.reading import Reading
from saga.gateway.settings import IdentitySettings, Tenant

MAX_FRAME_BYTES: Final = 8 * 2**20
_LENGTH_BYTES: Final = 4
_CREDENTIALS: Final = struct.Struct("3i")
_MAX_QUESTIONS: Final = 16
_NO_REQUEST: Final = Request("", "", "", [], b"")


class _Message(msgspec.Struct, array_like=True, tag=True, gc=False, omit_defaults=True):
    """One thing said."""


# ---------------------------------------------------------------------- what a front says


class Hello(_Message, tag=1):
    """First of all: who is there. version: of the program, which must be the coordinator's own."""

    version: str
    process: int


class Listening(_Message, tag=2):
    """The front takes calls. why: "" if it does, else why it cannot."""

    why: str = ""


class Gauges(_Message, tag=3):
    """How many connections a front has, now and then."""

    num_clients: int
    num_workers: int


class SentPrompt(_Message, tag=4):
    """A `conversations.Prompt`, as far as it is nearly always needed.

    chain: 8 bytes per message, sizes: 4, answers: 1, in the machine's order. answer: the place of the last answer, -1
    for none; said and called are about that one. whole: hash of a plain prompt.
    """

    chain: bytes
    sizes: bytes
    answers: bytes
    end: int
    size: int
    root: int
    prefix: int
    prefix_size: int
    body: int
    plain: bool
    last: int
    whole: int
    answer: int
    said: tuple[int, int] | None
    called: tuple[bytes, ...]


class Place(_Message, tag=5):
    """A call wants a session and a worker: fields of `Call` and `Reading`."""

    number: int
    kind: Kind
    tenant: str
    model: str
    size: int
    stream: bool
    retryable: bool
    gap_kind: str
    final: bool
    previous: str
    prompt: SentPrompt | None
    scope: str = ""
    session: str | None = None
    retrying: bool = False
    workflow: str = ""
    prefix: str = ""
    max_output_tokens: int | None = None
    parent: str | None = None
    task: str | None = None
    deadline_s: float | None = None
    hints: Hints | None = None
    priority: int = 0


class Told(_Message, tag=6):
    """The answer to a `Question`."""

    number: int
    what: str
    place: int
    numbers: tuple[int, ...] | None = None
    names: tuple[bytes, ...] = ()


class Began(_Message, tag=7):
    """The answer's first byte came."""

    number: int


class Finished(_Message, tag=8):
    """The answer is complete: fields of `Answer`, without its text."""

    number: int
    prompt_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    tool_calls: tuple[str, ...]
    num_bytes: int
    fingerprint: tuple[int, int]
    complete: bool
    error: bool = False
    response_id: str | None = None


class Failed(_Message, tag=9):
    """The attempt is lost. `Granted` comes back where it is tried again, else `NoMore`."""

    number: int
    why: str
    retry: bool


class Left(_Message, tag=10):
    """The client went away."""

    number: int


class Asked(_Message, tag=11):
    """A client asked what the gateway answers itself."""

    number: int
    path: str


# ---------------------------------------------------------------------- what the coordinator says


class Welcome(_Message, tag=20):
    """What a front is to be. limits: its own, of what all fronts may take."""

    settings: IdentitySettings
    host: str
    port: int
    drain_s: float
    limits: FrontLimits


class Trust(_Message, tag=21):
    """Certificates to trust for workers, besides the system's."""

    ca_files: tuple[str, ...]


class TenantsAre(_Message, tag=22):
    """All tenants from now on."""

    keyed: bool
    tenants: tuple[Tenant, ...]


class AddressIs(_Message, tag=23):
    """A worker's address, by a number of this link's."""

    place: int
    address: WorkerAddress


class Granted(_Message, tag=24):
    """A ticket; what the client is told besides."""

    number: int
    address: int
    session: str
    queued_s: float
    reason: str
    attempt: int
    extra: dict[str, Any] = {}


class Refusal(_Message, tag=25):
    """A `Refused`."""

    number: int
    status: int
    message: str
    kind: str
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None


class NoMore(_Message, tag=26):
    """There is no other worker to try."""

    number: int


class Question(_Message, tag=27):
    """Something about a prompt: "said" and "called" at a place, its "tail", or the hash of what "begins" it."""

    number: int
    what: str
    place: int


class Reply(_Message, tag=28):
    """What the gateway answers itself: a status and JSON."""

    number: int
    status: int
    body: bytes


class Drain(_Message, tag=29):
    """Take nothing new, let what is under way end, leave."""

    timeout_s: float


FromFront: TypeAlias = Hello | Listening | Gauges | Place | Told | Began | Finished | Failed | Left | Asked
FromCoordinator: TypeAlias = (
    Welcome | Trust | TenantsAre | AddressIs | Granted | Refusal | NoMore | Question | Reply | Drain
)

read_front: Final = msgspec.msgpack.Decoder(FromFront)
read_coordinator: Final = msgspec.msgpack.Decoder(FromCoordinator)
_encode: Final = msgspec.msgpack.Encoder().encode


class Link(asyncio.Protocol):
    """One end of a socket: messages out in batches, messages in one by one.

    reader: decodes what comes. told: called with each message; what it raises of `PeerError` ends the link. lost:
    called once with a reason.
    """

    def __init__(
        self, reader: msgspec.msgpack.Decoder[Any], told: Callable[[Link, Any], None], lost: Callable[[Link, str], None]
    ) -> None:
        self._decode = reader.decode
        self._told = told
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._in = bytearray()
        self._out: list[bytes] = []
        self._why = "the other side closed it"
        self._transport: asyncio.Transport | None = None
        self.is_open = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open, unless the other side is not ours."""
        self._transport = transport  # type: ignore[assignment]  # a stream's
        self.is_open = True
        if not _is_ours(transport.get_extra_info("socket")):
            self.end("the other side runs as another user")

    def data_received(self, data: bytes) -> None:
        """Take whole frames out; what cannot be is no process of ours."""
        buffer = self._in
        buffer += data
        start = 0
        while self.is_open and len(buffer) - start >= _LENGTH_BYTES:
            size = int.from_bytes(buffer[start : start + _LENGTH_BYTES], "big")
            if size > MAX_FRAME_BYTES:
                self.end(f"a frame of {size} bytes; at most {MAX_FRAME_BYTES} are taken")
                break
            stop = start + _LENGTH_BYTES + size
            if stop > len(buffer):
                break
            try:
                self._told(self, self._decode(buffer[start + _LENGTH_BYTES : stop]))
            except (msgspec.MsgspecError, UnicodeError, RecursionError, PeerError) as error:
                self.end(str(error))
            start = stop
        del buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone."""
        if self.is_open:
            self.is_open = False
            self._lost(self, str(exc) if exc is not None else self._why)

    # what its owner calls

    def send(self, message: FromFront | FromCoordinator) -> None:
        """Say it at the end of this turn of the event loop; nothing happens on a link that is closed."""
        self.send_encoded(_encode(message))

    def send_encoded(self, encoded: bytes) -> None:
        """The same for what `encoded` gave."""
        out = self._out
        if not out:
            self._loop.call_soon(self._flush)
        out.append(len(encoded).to_bytes(_LENGTH_BYTES, "big"))
        out.append(encoded)

    def end(self, why: str) -> None:
        """Close it at once."""
        if self.is_open and self._transport is not None:
            say(logging.ERROR, "a link between gateway processes is closed", why=why)
            self._why = why
            self._transport.abort()
            self.connection_lost(None)

    def close(self) -> None:
        """Close it after what was said."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self.is_open and self._transport is not None:
            self._transport.write(b"".join(out))


def encoded(message: FromFront | FromCoordinator) -> bytes:
    """The message as it travels; raises Refused (413) where it is longer than a frame may be."""
    raw = _encode(message)
    if len(raw) > MAX_FRAME_BYTES:
        raise Refused(413, "the conversation has more messages than can be scheduled", code="request_too_large")
    return raw


def _is_ours(sock: Any) -> bool:  # noqa: ANN401  a socket, or uvloop's stand-in for one
    """Whether the other side of a Unix socket runs as this user, where the system says so."""
    if sock is None or sys.platform != "linux":
        return True
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(packed)[1] == os.geteuid())


# ---------------------------------------------------------------------- readings


class Untold(Exception):
    """Something about a prompt is not here; `what` and `place` as in `Question`."""

    def __init__(self, what: str, place: int) -> None:
        super().__init__(what)
        self.what = what
        self.place = place


class FarPrompt:
    """A `conversations.Prompt` whose text is in another process; raises Untold for what has not been told.

    After too many questions, what is not known is taken as unlike anything. Raises PeerError where it cannot be.
    """

    __slots__ = (
        "_answers",
        "_known",
        "_last",
        "_num_questions",
        "body",
        "chain",
        "end",
        "plain",
        "prefix",
        "prefix_size",
        "root",
        "size",
        "sizes",
    )

    chain: Sequence[int]
    sizes: Sequence[int]

    def __init__(self, sent: SentPrompt) -> None:
        num_messages, odd = divmod(len(sent.chain), 8)
        if odd or not 0 <= sent.root <= num_messages:
            raise PeerError(f"a prompt of {len(sent.chain)} bytes of hashes, root {sent.root}")
        if not sent.plain and not (len(sent.sizes) == 4 * num_messages and len(sent.answers) == num_messages):
            raise PeerError(f"a prompt of {num_messages} messages with {len(sent.sizes)} bytes of sizes")
        self.chain = array("Q", sent.chain)
        self.sizes = array("I", sent.sizes)
        self.end = sent.end
        self.size = sent.size
        self.root = sent.root
        self.prefix = sent.prefix
        self.prefix_size = sent.prefix_size
        self.body = sent.body
        self.plain = sent.plain
        self._answers = sent.answers
        self._last = sent.last
        self._num_questions = 0
        self._known: dict[tuple[str, int], Any] = {
            ("said", sent.answer): sent.said,
            ("called", sent.answer): frozenset(sent.called),
            ("begins", sent.size): sent.whole,
        }

    def last(self) -> int:
        """The last message by itself."""
        return self._last

    def tail(self) -> frozenset[int]:
        """The last messages, each by itself."""
        found: frozenset[int] = self._of("tail", 0, frozenset())
        return found

    def is_answer(self, place: int) -> bool:
        """Whether the message at that place is an answer of the model."""
        return place < len(self._answers) and self._answers[place] != 0

    def said(self, place: int) -> tuple[int, int] | None:
        """Fingerprint of an answer's text."""
        found: tuple[int, int] | None = self._of("said", place, None)
        return found

    def called(self, place: int) -> frozenset[bytes]:
        """The tools that an answer calls."""
        found: frozenset[bytes] = self._of("called", place, frozenset())
        return found

    def begins(self, num_bytes: int) -> int:
        """Hash of a plain prompt's first bytes."""
        found: int = self._of("begins", num_bytes, 0)
        return found

    def learn(self, told: Told) -> None:
        """An answer to a question came. Raises PeerError for one that answers nothing."""
        numbers = told.numbers
        known: Any
        match told.what:
            case "said" if numbers is None or len(numbers) == 2:
                known = numbers
            case "called":
                known = frozenset(told.names)
            case "tail" if numbers is not None:
                known = frozenset(numbers)
            case "begins" if numbers is not None and len(numbers) == 1:
                known = numbers[0]
            case _:
                raise PeerError(f"an answer about {told.what!r} that is none")
        self._known[told.what, told.place] = known

    def _of(self, what: str, place: int, unknown: Any) -> Any:  # noqa: ANN401  as different as the questions
        key = (what, place)
        known = self._known
        if key in known:
            return known[key]
        if self._num_questions >= _MAX_QUESTIONS:
            return unknown
        self._num_questions += 1
        raise Untold(what, place)


def sent(digest: Digest) -> SentPrompt:
    """A prompt on its way to the coordinator. O(messages)."""
    plain = digest.plain
    answers = digest.answers()
    answer = answers.rfind(1)
    return SentPrompt(
        array("Q", digest.chain).tobytes(),
        b"" if plain else array("I", digest.sizes).tobytes(),
        answers,
        digest.end,
        digest.size,
        digest.root,
        digest.prefix,
        digest.prefix_size,
        digest.body,
        plain,
        digest.last(),
        digest.begins(digest.size) if plain else 0,
        answer,
        digest.said(answer) if answer >= 0 else None,
        tuple(digest.called(answer)) if answer >= 0 else (),
    )


def placing(number: int, reading: Reading, digest: Digest | None) -> Place:
    """A reading on its way to the coordinator. digest: of its prompt, if it has one. O(messages)."""
    call = reading.call
    return Place(
        number,
        call.kind,
        call.tenant,
        call.model,
        reading.size,
        call.stream,
        call.retryable,
        call.gap_kind,
        call.final,
        reading.previous,
        None if digest is None else sent(digest),
        reading.scope,
        reading.session,
        reading.retrying,
        call.workflow,
        call.prefix,
        call.max_output_tokens,
        reading.parent,
        reading.task,
        reading.deadline_s,
        call.hints,
        call.priority,
    )


def reading(place: Place, tenant: Tenant) -> Reading:
    """A reading that came from a front: a call without its request. Raises PeerError where it cannot be."""
    call = Call(
        kind=place.kind,
        request=_NO_REQUEST,
        tenant=tenant.name,
        session="",
        task="",
        step="",
        model=place.model,
        stream=place.stream,
        workflow=place.workflow,
        prefix=place.prefix,
        gap_kind=place.gap_kind,
        final=place.final,
        hints=place.hints,
        retryable=place.retryable,
        max_output_tokens=place.max_output_tokens,
        priority=place.priority,
    )
    return Reading(
        call,
        tenant,
        place.size,
        place.previous,
        None if place.prompt is None else FarPrompt(place.prompt),
        place.scope,
        place.session,
        place.parent,
        place.task,
        place.deadline_s,
        retrying=place.retrying,
    )


def told(question: Question, digest: Digest) -> Told:
    """What the coordinator asked about a prompt. Raises PeerError for what cannot be asked."""
    number, what, place = question.number, question.what, question.place
    inside = 0 <= place < len(digest.chain)
    match what:
        case "said" if inside:
            return Told(number, what, place, digest.said(place))
        case "called" if inside:
            return Told(number, what, place, None, tuple(digest.called(place)))
        case "tail":
            return Told(number, what, place, tuple(digest.tail()))
        case "begins" if digest.plain and 0 <= place <= digest.size:
            return Told(number, what, place, (digest.begins(place),))
        case _:
            raise PeerError(f"a question about {what!r} at {place}")


def finishing(number: int, answer: Answer) -> Finished:
    """An answer on its way to the coordinator."""
    return Finished(
        number,
        answer.prompt_tokens,
        answer.output_tokens,
        answer.cached_tokens,
        answer.tool_calls,
        len(answer.text) or answer.num_bytes,
        fingerprint(answer.text),
        answer.complete,
        answer.error,
        answer.response_id,
    )


def answer(message: Finished) -> Answer:
    """An answer that came from a front. num_bytes: of its text, where that is what counts."""
    return Answer(
        prompt_tokens=message.prompt_tokens,
        output_tokens=message.output_tokens,
        cached_tokens=message.cached_tokens,
        tool_calls=message.tool_calls,
        response_id=message.response_id,
        error=message.error,
        complete=message.complete,
        num_bytes=message.num_bytes,
        fingerprint=message.fingerprint,
    )


def refusing(number: int, refused: Refused) -> Refusal:
    """A refusal on its way to a front."""
    return Refusal(
        number,
        refused.status,
        refused.message,
        refused.kind,
        refused.code,
        refused.param,
        refused.retry_after_s,
    )


def refused(message: Refusal) -> Refused:
    """A refusal that came from the coordinator."""
    return Refused(
        message.status,
        message.message,
        kind=message.kind,
        code=message.code,
        param=message.param,
        retry_after_s=message.retry_after_s,
    )
