"""A front's identity and scheduling, with a coordinator that the test plays."""

from __future__ import annotations

import asyncio
import json

import pytest

from saga.errors import PeerError
from saga.gateway import frames
from saga.gateway.addresses import WorkerAddress
from saga.gateway.contracts import Answer, Refused, Request
from saga.gateway.reading import Reader
from saga.gateway.remote import Remote
from saga.gateway.settings import IdentitySettings

from .fakes import run
from .far import chat

ADDRESS = WorkerAddress("w", "127.0.0.1", 1)
PATH = "/v1/chat/completions"


class Played:
    """A link that writes down what is sent."""

    def __init__(self):
        self.said = []

    def send(self, message):
        self.said.append(message)

    def send_encoded(self, raw):
        self.said.append(frames.read_front.decode(raw))

    def kinds(self):
        """What was sent, by kind."""
        return [type(message) for message in self.said]


def remote(*, linked=True):
    """A remote with a link that is played."""
    made = Remote(Reader(settings=IdentitySettings(secret=b"s")))
    link = Played()
    if linked:
        made.linked(link)
        made.told(frames.AddressIs(1, ADDRESS))
    return made, link


def identified(made):
    """A call."""
    return made.identify(Request("POST", PATH, PATH, [], json.dumps(chat(("user", "x"))).encode()), 0.0)


def grant(made, call, attempt=1):
    """The coordinator grants it."""
    made.told(frames.Granted(int(call.step), 1, "t/s", 0.25, "why", attempt, {"priority": 3}))


async def admitted(made):
    """A call and its ticket."""
    call = identified(made)
    waiting = asyncio.create_task(made.admit(call))
    await asyncio.sleep(0)
    grant(made, call)
    return call, await waiting


def test_a_ticket_is_what_the_coordinator_says():
    """Session, address, waiting time, reason, extra fields; then each event is said once."""

    async def work():
        made, link = remote()
        call, ticket = await admitted(made)
        assert (call.session, ticket.address, ticket.queued_s, ticket.reason) == ("t/s", ADDRESS, 0.25, "why")
        assert (ticket.attempt, ticket.extra) == (1, {"priority": 3})
        made.first_byte(ticket)
        made.finished(ticket, Answer(complete=True))
        made.finished(ticket, Answer(complete=True))
        made.first_byte(ticket)
        made.cancelled(ticket)
        assert link.kinds() == [frames.Place, frames.Began, frames.Finished]

    run(work())


def test_a_refusal_is_raised_as_it_was():
    """Status and words are the coordinator's."""

    async def work():
        made, _ = remote()
        call = identified(made)
        waiting = asyncio.create_task(made.admit(call))
        await asyncio.sleep(0)
        made.told(frames.Refusal(int(call.step), 429, "later", "rate_limit_error", "queue_full", None, 3.0))
        with pytest.raises(Refused, match="later") as refused:
            await waiting
        assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (429, "queue_full", 3.0)

    run(work())


def test_a_client_that_leaves_is_said_whether_or_not_the_ticket_has_come():
    """A ticket that comes after all is nobody's."""

    async def work():
        for granted in (False, True):
            made, link = remote()
            call = identified(made)
            waiting = asyncio.create_task(made.admit(call))
            await asyncio.sleep(0)
            if granted:
                grant(made, call)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            grant(made, call)
            assert link.kinds() == [frames.Place, frames.Left]
            assert not made._waiting
            assert not made._granted

    run(work())


def test_a_client_that_leaves_before_its_task_has_begun_is_said_too():
    """Who took the first step by hand closes the call without ever cancelling a task."""

    async def work():
        made, link = remote()
        call = identified(made)
        admission = made.admit(call)
        admission.send(None)
        admission.close()
        grant(made, call)
        assert link.kinds() == [frames.Place, frames.Left]
        assert not made._waiting
        assert not made._granted

    run(work())


def test_a_failed_attempt_waits_only_where_it_may_be_tried_again():
    """Another ticket, or none; what must not be repeated is only said."""

    async def work():
        made, link = remote()
        call, ticket = await admitted(made)
        retrying = asyncio.create_task(made.failed(ticket, "lost", retry=True))
        await asyncio.sleep(0)
        grant(made, call, 2)
        second = await retrying
        assert second.attempt == 2
        again = asyncio.create_task(made.failed(second, "lost", retry=True))
        await asyncio.sleep(0)
        made.told(frames.NoMore(int(call.step)))
        assert await again is None
        _, other = await admitted(made)
        assert await made.failed(other, "lost", retry=False) is None
        assert link.said[-1] == frames.Failed(2, "lost", retry=False)

    run(work())


def test_without_a_link_calls_are_refused_and_old_tickets_are_over():
    """Those that wait when it breaks too; nothing of them is said on the next link."""

    async def work():
        made, _ = remote(linked=False)
        with pytest.raises(Refused, match="no coordinator"):
            await made.admit(identified(made))
        link = Played()
        made.linked(link)
        made.told(frames.AddressIs(1, ADDRESS))
        _, ticket = await admitted(made)
        _, lost = await admitted(made)
        retrying = asyncio.create_task(made.failed(lost, "lost", retry=True))
        waiting = asyncio.create_task(made.admit(identified(made)))
        await asyncio.sleep(0)
        made.unlinked()
        assert await retrying is None
        with pytest.raises(Refused) as refused:
            await waiting
        assert (refused.value.status, refused.value.retry_after_s) == (503, 1.0)
        after = Played()
        made.linked(after)
        made.first_byte(ticket)
        made.finished(ticket, Answer(complete=True))
        assert await made.failed(ticket, "late", retry=True) is None
        assert after.said == []

    run(work())


def test_a_call_that_was_never_admitted_leaves_nothing():
    """The relay tells identity of its end."""
    made, link = remote()
    call = identified(made)
    made.answered(call, Answer(), 0.0)
    assert (made._readings, link.said) == ({}, [])


@pytest.mark.parametrize("said", [frames.Granted(1, 9, "s", 0.0, "r", 1), frames.Drain(1.0)])
def test_what_a_coordinator_cannot_mean_is_an_error(said):
    """A ticket for a worker that was never named; a message that is not about calls."""

    async def work():
        made, _ = remote()
        waiting = asyncio.create_task(made.admit(identified(made)))
        await asyncio.sleep(0)
        with pytest.raises(PeerError):
            made.told(said)
        waiting.cancel()

    run(work())


def test_addresses_are_bounded():
    """The oldest are forgotten."""
    made, _ = remote()
    for place in range(2, 10_100):
        made.told(frames.AddressIs(place, ADDRESS))
    assert len(made._addresses) == 10_000
