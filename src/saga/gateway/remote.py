"""A front process's side of the coordinator: identity and scheduling that are elsewhere.

    identify  reads the request here (`reading.Reader`)
    admit     sends the reading, waits for a ticket: session, limits, gate and worker in one round trip
    first_byte, finished, failed, cancelled     are said and not waited for, but for a retry

For the relay it is `contracts.Identity` and `contracts.Scheduling`. Where the link is lost, calls that wait and calls
that come are refused (503, with Retry-After) until another link is there; answers under way flow on, and nobody is told
of their end: the coordinator has counted them as cancelled when it lost the link. It refuses to know sockets, policies
and memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from saga.errors import PeerError
from saga.gateway import frames
from saga.gateway.addresses import WorkerAddress
from saga.gateway.contracts import Answer, Call, Refused, Request, Ticket
from saga.gateway.conversations import Digest
from saga.gateway.frames import FromCoordinator, Link
from saga.gateway.reading import Reader, Reading
from saga.gateway.rewriting import Headers

_RETRY_AFTER_S: Final = 1.0
_MAX_ADDRESSES: Final = 10_000
_JSON: Final[Headers] = [(b"content-type", b"application/json")]

_Answered: TypeAlias = tuple[int, Headers, bytes]


class _Waiting:
    """A call whose ticket is asked for. digest: of its prompt, for questions about it."""

    __slots__ = ("call", "digest", "future")

    def __init__(self, call: Call, digest: Digest | None, future: asyncio.Future[Ticket | None]) -> None:
        self.call = call
        self.digest = digest
        self.future = future


class Remote:
    """`contracts.Identity` and `contracts.Scheduling` over a link. Use it on one event loop.

    A call's step is a number of this process, which names it on the link.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._link: Link | None = None
        self._num_calls = 0
        self._readings: dict[str, Reading] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._granted: set[int] = set()
        self._asked: dict[int, asyncio.Future[_Answered]] = {}
        self._addresses: dict[int, WorkerAddress] = {}
        self._handlers: dict[type, Callable[[Any], None]] = {
            frames.Granted: self._on_granted,
            frames.Refusal: self._on_refusal,
            frames.NoMore: self._on_no_more,
            frames.AddressIs: self._on_address,
            frames.Question: self._on_question,
            frames.Reply: self._on_reply,
        }

    # ------------------------------------------------------------------ the link

    def linked(self, link: Link) -> None:
        """A coordinator is there: everything is new."""
        self._link = link

    def unlinked(self) -> None:
        """It is gone: nobody waits for it any more."""
        self._link = None
        self._granted.clear()
        self._addresses.clear()
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            if not one.future.done():
                one.future.set_exception(_alone())
        asked, self._asked = self._asked, {}
        for future in asked.values():
            if not future.done():
                future.set_exception(_alone())

    def told(self, message: FromCoordinator) -> None:
        """A message about a call. Raises PeerError for one that is about none."""
        handler = self._handlers.get(type(message))
        if handler is None:
            raise PeerError(f"a coordinator said {type(message).__name__} to a front at work")
        handler(message)

    def _on_address(self, message: frames.AddressIs) -> None:
        self._addresses[message.place] = message.address
        if len(self._addresses) > _MAX_ADDRESSES:
            del self._addresses[next(iter(self._addresses))]

    def _on_no_more(self, message: frames.NoMore) -> None:
        waiting = self._waiting.pop(message.number, None)
        if waiting is not None and not waiting.future.done():
            waiting.future.set_result(None)

    def _on_question(self, message: frames.Question) -> None:
        waiting = self._waiting.get(message.number)
        if waiting is not None and waiting.digest is not None:
            self._send(frames.told(message, waiting.digest))

    def _on_reply(self, message: frames.Reply) -> None:
        future = self._asked.pop(message.number, None)
        if future is not None and not future.done():
            future.set_result((message.status, _JSON, message.body))

    def _on_granted(self, message: frames.Granted) -> None:
        waiting = self._waiting.pop(message.number, None)
        if waiting is None or waiting.future.done():
            return
        address = self._addresses.get(message.address)
        if address is None:
            raise PeerError(f"a ticket for address {message.address}, which was never told")
        call = waiting.call
        call.session = message.session
        ticket = Ticket(call, address, message.queued_s, message.reason, message.attempt, message.extra)
        self._granted.add(message.number)
        waiting.future.set_result(ticket)

    def _on_refusal(self, message: frames.Refusal) -> None:
        waiting = self._waiting.pop(message.number, None)
        future = waiting.future if waiting is not None else self._asked.pop(message.number, None)
        if future is not None and not future.done():
            future.set_exception(frames.refused(message))

    def _send(self, message: frames.FromFront) -> None:
        if self._link is not None:
            self._link.send(message)

    # ------------------------------------------------------------------ contracts.Identity

    def identify(self, request: Request, at_s: float) -> Call:
        """The call as far as it can be read here; `admit` completes it. Raises Refused (400, 401)."""
        reading = self.reader.read(request)
        self._num_calls += 1
        step = reading.call.step = str(self._num_calls)
        self._readings[step] = reading
        return reading.call

    def answered(self, call: Call, answer: Answer, at_s: float) -> None:
        """The call is over; the coordinator hears it as the scheduler does."""
        self._readings.pop(call.step, None)

    # ------------------------------------------------------------------ contracts.Scheduling

    def admit_at_once(self, call: Call) -> Ticket | None:
        """None: a ticket comes from elsewhere."""
        return None

    async def admit(self, call: Call) -> Ticket:
        """Wait for session and worker; raises Refused (401, 404, 413, 429, 503)."""
        reading = self._readings.pop(call.step)
        number = int(call.step)
        link = self._link
        if link is None:
            raise _alone()
        digest = reading.digest if isinstance(reading.digest, Digest) else None
        link.send_encoded(frames.encoded(frames.placing(number, reading, digest)))
        ticket = await self._answer_about(number, call, digest, link)
        assert ticket is not None
        return ticket

    def first_byte(self, ticket: Ticket) -> None:
        """The answer began."""
        number = int(ticket.call.step)
        if number in self._granted:
            self._send(frames.Began(number))

    def finished(self, ticket: Ticket, answer: Answer) -> None:
        """The answer is complete."""
        number = int(ticket.call.step)
        if self._is_over(number):
            self._send(frames.finishing(number, answer))

    async def failed(self, ticket: Ticket, why: str, *, retry: bool) -> Ticket | None:
        """The attempt is lost; another ticket if it may be tried again elsewhere."""
        number = int(ticket.call.step)
        link = self._link
        if link is None or not self._is_over(number):
            return None
        link.send(frames.Failed(number, why, retry))
        if not retry:
            return None
        try:
            return await self._answer_about(number, ticket.call, None, link)
        except Refused:
            return None

    def cancelled(self, ticket: Ticket) -> None:
        """The client went away."""
        number = int(ticket.call.step)
        if self._is_over(number):
            self._send(frames.Left(number))

    def _is_over(self, number: int) -> bool:
        """Whether the ticket was still good; from now on it is not."""
        if number not in self._granted:
            return False
        self._granted.discard(number)
        return True

    async def _answer_about(self, number: int, call: Call, digest: Digest | None, link: Link) -> Ticket | None:
        future: asyncio.Future[Ticket | None] = asyncio.get_running_loop().create_future()
        self._waiting[number] = _Waiting(call, digest, future)
        try:
            return await future
        except (asyncio.CancelledError, GeneratorExit):  # the latter where its task had not begun
            self._waiting.pop(number, None)
            self._granted.discard(number)
            link.send(frames.Left(number))
            raise

    # ------------------------------------------------------------------ what the gateway answers itself

    async def cold(self, request: Request) -> _Answered:
        """A `relay.Cold`: the coordinator's own words. Raises Refused (401, 404, 503)."""
        if request.path not in {"/health", "/ready"}:
            self.reader.tenants.authenticate(request.header(b"authorization"), request.header(b"x-api-key"))
        if self._link is None:
            raise _alone()
        self._num_calls += 1
        future: asyncio.Future[_Answered] = asyncio.get_running_loop().create_future()
        self._asked[self._num_calls] = future
        self._link.send(frames.Asked(self._num_calls, request.path))
        return await future


def _alone() -> Refused:
    return Refused(
        503,
        "this front has no coordinator at the moment",
        kind="service_unavailable_error",
        code="no_coordinator",
        retry_after_s=_RETRY_AFTER_S,
    )
