"""The one truth behind several fronts: what they say becomes identity and scheduling, what is decided goes back.

    Unix socket ─▶ one FrontLink per front ─▶ identity.place ─▶ scheduling.admit ─▶ Granted or Refusal
                                             first_byte, finished, failed, cancelled

A call is known by its front's link and a number. Where a link is lost its calls are cancelled, as if their clients had
left. The socket lies in a folder that only this user can enter, and who connects is asked for its user besides. It
refuses to know bytes of clients, how fronts are started, and policies.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeAlias

from saga import __version__
from saga.errors import PeerError
from saga.gateway import frames
from saga.gateway.addresses import WorkerAddress
from saga.gateway.contracts import Refused, Ticket
from saga.gateway.frames import FarPrompt, FromCoordinator, FromFront, Link, Untold
from saga.gateway.identity import GatewayIdentity
from saga.gateway.journal import say
from saga.gateway.reading import Reading
from saga.gateway.resuming import resumed
from saga.gateway.scheduling import GatewayScheduling
from saga.gateway.settings import Tenant

log = logging.getLogger(__name__)

_MAX_ADDRESSES: Final = 4_096

Answers: TypeAlias = Callable[[str], tuple[int, bytes]]
"""What the gateway answers itself at a path: status and JSON. May raise Refused."""


class Coordinator:
    """Serves fronts until it is closed. Use it on one event loop.

    welcome: what each new front is told first. answers: the gateway's own answers.
    """

    def __init__(
        self,
        identity: GatewayIdentity,
        scheduling: GatewayScheduling,
        answers: Answers,
        welcome: Callable[[], tuple[FromCoordinator, ...]],
    ) -> None:
        self.identity = identity
        self.scheduling = scheduling
        self.answers = answers
        self._welcome = welcome
        self._server: asyncio.AbstractServer | None = None
        self._fronts: dict[Link, FrontLink] = {}
        self._told = asyncio.Event()
        self._drain: frames.Drain | None = None

    async def start(self, path: Path) -> None:
        """Listen at that path. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._accept, str(path))

    def close(self) -> None:
        """Listen no longer; fronts lose their links."""
        if self._server is not None:
            self._server.close()
        for link in list(self._fronts):
            link.close()
            self._lost(link, "the coordinator is closed")

    async def listening(self, num_fronts: int) -> None:
        """Wait until so many fronts take calls. Raises PeerError where one says that it cannot."""
        while True:
            for front in self._fronts.values():
                if front.trouble:
                    raise PeerError(front.trouble)
            if self.num_listening >= num_fronts:
                return
            self._told.clear()
            await self._told.wait()

    def tell_all(self, message: FromCoordinator) -> None:
        """Say it to every front that has been welcomed."""
        if isinstance(message, frames.Drain):
            self._drain = message
        for front in self._fronts.values():
            if front.process:
                front.link.send(message)

    @property
    def num_listening(self) -> int:
        """Fronts that take calls."""
        return sum(front.listens for front in self._fronts.values())

    def silent(self, most: int) -> list[int]:
        """Processes of fronts that take calls and said nothing between the last `most` of these questions.

        Counted in questions, not in seconds: where this process did not run for a while, nobody else has hung.
        """
        found = []
        for front in self._fronts.values():
            front.num_silent += front.listens
            if front.num_silent > most:
                found.append(front.process)
        return found

    @property
    def num_clients(self) -> int:
        """Client connections of all fronts, as they last said."""
        return sum(front.num_clients for front in self._fronts.values())

    @property
    def num_workers(self) -> int:
        """Worker connections of all fronts, as they last said."""
        return sum(front.num_workers for front in self._fronts.values())

    # ------------------------------------------------------------------ links

    def _accept(self) -> Link:
        link = Link(frames.read_front, self._on_message, self._lost)
        self._fronts[link] = FrontLink(self, link)
        return link

    def _on_message(self, link: Link, message: FromFront) -> None:
        front = self._fronts.get(link)
        if front is None:
            return
        front.num_silent = 0
        if isinstance(message, frames.Hello) and not front.process:
            if message.version != __version__:
                raise PeerError(f"a front of version {message.version}; this is {__version__}")
            front.process = message.process or -1
            for said in (*self._welcome(), *((self._drain,) if self._drain is not None else ())):
                link.send(said)
        elif isinstance(message, frames.Listening) and front.process:
            front.listens, front.trouble = not message.why, message.why
            self._told.set()
        else:
            front.told(message)

    def _lost(self, link: Link, why: str) -> None:
        front = self._fronts.pop(link, None)
        if front is not None:
            num_calls = front.leave()
            if front.process:
                level = logging.WARNING if self._drain is None else logging.INFO
                say(level, "front gone", process=front.process, calls_cancelled=num_calls, why=why)


class _Live:
    """A call of a front. reading: while something about its prompt is asked. task: while it waits for a worker.

    work: what the task has not begun to go on with.
    """

    __slots__ = ("reading", "task", "ticket", "work")

    def __init__(self) -> None:
        self.reading: Reading | None = None
        self.task: asyncio.Task[None] | None = None
        self.ticket: Ticket | None = None
        self.work: Coroutine[Any, Any, Ticket | None] | None = None


class FrontLink:
    """One front: its calls, and which addresses it knows. process: 0 until it has said hello.

    num_silent: how often in a row it was found to have said nothing.
    """

    def __init__(self, coordinator: Coordinator, link: Link) -> None:
        self.link = link
        self.process = 0
        self.num_silent = 0
        self.listens = False
        self.trouble = ""
        self.num_clients = 0
        self.num_workers = 0
        self._identity = coordinator.identity
        self._scheduling = coordinator.scheduling
        self._answers = coordinator.answers
        self._loop = asyncio.get_running_loop()
        self._live: dict[int, _Live] = {}
        self._addresses: dict[int, tuple[int, WorkerAddress]] = {}
        self._num_addresses = 0
        self._handlers: dict[type, Callable[[Any], None]] = {
            frames.Place: self._on_place,
            frames.Told: self._on_told,
            frames.Began: self._on_began,
            frames.Finished: self._on_finished,
            frames.Failed: self._on_failed,
            frames.Left: self._on_left,
            frames.Asked: self._on_asked,
            frames.Gauges: self._on_gauges,
        }

    def told(self, message: FromFront) -> None:
        """A message. Raises PeerError for one that cannot be now."""
        handler = self._handlers.get(type(message))
        if handler is None or not self.process:
            raise PeerError(f"a front said {type(message).__name__} out of turn")
        handler(message)

    def leave(self) -> int:
        """The front is gone: so are the clients of its calls. How many calls it had."""
        live, self._live = self._live, {}
        for one in live.values():
            self._cancel(one)
        return len(live)

    # ------------------------------------------------------------------ a call

    def _on_place(self, message: frames.Place) -> None:
        number = message.number
        if number in self._live:
            raise PeerError(f"call {number} is there already")
        try:
            reading = frames.reading(message, self._tenant(message.tenant))
        except Refused as refused:
            self.link.send(frames.refusing(number, refused))
            return
        live = self._live[number] = _Live()
        self._place(number, live, reading)

    def _place(self, number: int, live: _Live, reading: Reading) -> None:
        """Find its session, then its worker; what must be known for that and is not is asked for first."""
        try:
            call = self._identity.place(reading, self._loop.time())
        except Untold as question:
            live.reading = reading
            self.link.send(frames.Question(number, question.what, question.place))
            return
        except Exception as error:  # noqa: BLE001 - the client is answered, the log told
            self._refuse(number, error, "identified")
            return
        live.reading = None
        try:
            ticket = self._scheduling.admit_at_once(call)
        except Exception as error:  # noqa: BLE001 - same
            self._refuse(number, error, "scheduled")
            return
        if ticket is None:
            self._step(number, live, self._scheduling.admit(call))
        else:
            self._answer(number, live, ticket)

    def _on_told(self, message: frames.Told) -> None:
        live = self._live.get(message.number)
        if live is None or live.reading is None:
            return
        assert isinstance(live.reading.digest, FarPrompt)
        live.reading.digest.learn(message)
        self._place(message.number, live, live.reading)

    def _on_began(self, message: frames.Began) -> None:
        live = self._live.get(message.number)
        if live is not None and live.ticket is not None:
            self._scheduling.first_byte(live.ticket)

    def _on_finished(self, message: frames.Finished) -> None:
        live = self._live.get(message.number)
        if live is not None and live.ticket is not None:
            del self._live[message.number]
            self._scheduling.finished(live.ticket, frames.answer(message))

    def _on_failed(self, message: frames.Failed) -> None:
        number = message.number
        live = self._live.get(number)
        if live is None or live.ticket is None:
            return
        ticket, live.ticket = live.ticket, None
        self._step(number, live, self._scheduling.failed(ticket, message.why, retry=message.retry))

    def _on_left(self, message: frames.Left) -> None:
        live = self._live.pop(message.number, None)
        if live is not None:
            self._cancel(live)

    def _cancel(self, live: _Live) -> None:
        if live.task is not None:
            live.task.cancel()
            if live.work is not None:  # a task that is cancelled before its first step takes none, and tells nobody
                live.work.close()
        elif live.ticket is not None:
            self._scheduling.cancelled(live.ticket)

    # ------------------------------------------------------------------ what scheduling answers

    def _step(self, number: int, live: _Live, work: Coroutine[Any, Any, Ticket | None]) -> None:
        """Take the work's first step by hand: as long as nothing has to wait, that is all there is."""
        try:
            waits_for = work.send(None)
        except StopIteration as done:
            self._answer(number, live, done.value)
        except Exception as error:  # noqa: BLE001 - same
            self._refuse(number, error, "scheduled")
        else:
            live.work = work
            live.task = self._loop.create_task(self._wait(number, live, resumed(work, waits_for)))

    async def _wait(self, number: int, live: _Live, work: Awaitable[Ticket | None]) -> None:
        live.work = None
        try:
            ticket = await work
        except Exception as error:  # noqa: BLE001 - same
            self._refuse(number, error, "scheduled")
        else:
            live.task = None
            self._answer(number, live, ticket)

    def _answer(self, number: int, live: _Live, ticket: Ticket | None) -> None:
        if ticket is None:
            self._live.pop(number, None)
            self.link.send(frames.NoMore(number))
            return
        if self._live.get(number) is not live:  # it left in the turn in which it was served
            self._scheduling.cancelled(ticket)
            return
        live.ticket = ticket
        self.link.send(
            frames.Granted(
                number,
                self._address(ticket.address),
                ticket.call.session,
                ticket.queued_s,
                ticket.reason,
                ticket.attempt,
                dict(ticket.extra),
            )
        )

    def _refuse(self, number: int, error: Exception, wanted: str) -> None:
        """Answer what stood in the way; where that is nobody's refusal it is our fault, and said in the log."""
        self._live.pop(number, None)
        if not isinstance(error, Refused):
            log.error("a front's call could not be %s", wanted, exc_info=error)
            error = Refused(500, "the gateway failed; see its log", kind="server_error")
        self.link.send(frames.refusing(number, error))

    def _address(self, address: WorkerAddress) -> int:
        """The number of an address on this link, told before it is first used."""
        known = self._addresses.get(id(address))
        if known is None or known[1] is not address:
            if len(self._addresses) >= _MAX_ADDRESSES:
                self._addresses.clear()
            self._num_addresses += 1
            known = self._addresses[id(address)] = (self._num_addresses, address)
            self.link.send(frames.AddressIs(self._num_addresses, address))
        return known[0]

    def _tenant(self, name: str) -> Tenant:
        """The tenant that the front has found; Refused where its keys are no longer good."""
        tenants = self._identity.tenants
        known = tenants.get(name)
        if known is not None:
            return known
        if tenants.keyed:
            raise Refused(401, "the API key is not known", kind="authentication_error", code="invalid_api_key")
        return self._identity.reader.tenant_named(name)

    # ------------------------------------------------------------------ the rest

    def _on_asked(self, message: frames.Asked) -> None:
        try:
            status, body = self._answers(message.path)
        except Refused as refused:
            self.link.send(frames.refusing(message.number, refused))
            return
        self.link.send(frames.Reply(message.number, status, body))

    def _on_gauges(self, message: frames.Gauges) -> None:
        self.num_clients, self.num_workers = message.num_clients, message.num_workers
