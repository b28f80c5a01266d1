"""The coordinator and what a front may say to it, spoken by hand."""

from __future__ import annotations

import asyncio
import json
import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga import __version__
from saga.errors import PeerError
from saga.gateway import frames
from saga.gateway.contracts import Answer, Request
from saga.gateway.coordinator import FrontLink
from saga.gateway.frames import Link
from saga.gateway.reading import Reader
from saga.gateway.settings import IdentitySettings
from saga.scheduler.invariants import check

from .fakes import run
from .far import chat, far, until

READER = Reader(settings=IdentitySettings(secret=b"s" * 32))
PATH = "/v1/chat/completions"


def place(number, text="task", *, model="m", **more):
    """A call that a front has read."""
    body = chat(("user", text)) | {"model": model}
    reading = READER.read(Request("POST", PATH, PATH, [], json.dumps(body).encode()))
    return msgspec.structs.replace(frames.placing(number, reading, reading.digest), **more)


def plain(number, more=""):
    """A completion that a front has read, and its digest."""
    body = {"model": "m", "prompt": "word " * 300 + more}
    path = "/v1/completions"
    reading = READER.read(Request("POST", path, path, [], json.dumps(body).encode()))
    return frames.placing(number, reading, reading.digest), reading.digest


class Hand:
    """A front's end of a link, moved by hand."""

    def __init__(self):
        self.heard = []
        self.why = None
        self.link = None

    async def open(self, path, *, hello=True):
        loop = asyncio.get_running_loop()
        _, self.link = await loop.create_unix_connection(
            lambda: Link(frames.read_coordinator, lambda _, said: self.heard.append(said), self._on_lost), str(path)
        )
        if hello:
            self.link.send(frames.Hello(__version__, 4_711))
            await self.hears(frames.Welcome)
        return self

    def _on_lost(self, _, why):
        self.why = why

    async def hears(self, kind):
        """The next message of that kind; what came before it is forgotten."""
        await until(lambda: any(isinstance(said, kind) for said in self.heard) or self.why is not None)
        while self.heard:
            said = self.heard.pop(0)
            if isinstance(said, kind):
                return said
        raise AssertionError(f"lost instead: {self.why}")

    async def is_cut_off(self):
        """The coordinator closes the link."""
        await until(lambda: self.why is not None)


def play(work, **fields):
    """`work(gateway, hand)` with a coordinator and no fronts."""

    async def scene():
        async with far(num_fronts=0, **fields) as gateway:
            hand = await Hand().open(gateway.path)
            await work(gateway, hand)
            hand.link.close()
            await until(lambda: gateway.truth.is_idle)

    run(scene())


def test_a_call_is_placed_granted_and_finished():
    """One round trip for session, limits and worker; the address is told once, before the first ticket."""

    async def work(gateway, hand):
        hand.link.send(place(1))
        address = await hand.hears(frames.AddressIs)
        first = await hand.hears(frames.Granted)
        assert (address.place, address.address.worker) == (first.address, "w0")
        assert (first.number, first.attempt) == (1, 1)
        assert address.address.headers == ((b"authorization", b"Bearer own"),)
        hand.link.send(frames.Began(1))
        hand.link.send(frames.finishing(1, Answer(complete=True, prompt_tokens=5, output_tokens=3, text="x")))
        hand.link.send(place(2, "other"))
        assert isinstance(await hand.hears((frames.AddressIs, frames.Granted)), frames.Granted)
        hand.link.send(frames.Left(2))

    play(work)


def test_a_refused_call_is_over():
    """Its number may be used again, nothing of it stays."""

    async def work(gateway, hand):
        for _ in range(2):
            hand.link.send(place(1, model="nobody's"))
            refusal = await hand.hears(frames.Refusal)
            assert (refusal.number, refusal.status, refusal.code) == (1, 404, "model_not_found")

    play(work)


def test_a_call_may_leave_at_any_time():
    """While it is asked about, while it waits, with its ticket, and twice."""

    async def work(gateway, hand):
        (worker,) = gateway.truth.workers
        hand.link.send(place(1))
        await hand.hears(frames.Granted)
        gateway.truth.workers.drain("w0", 0.0)
        hand.link.send(place(2, "waits"))
        await until(lambda: gateway.truth.scheduling.num_waiting == 1)
        for number in (1, 2, 2, 99):
            hand.link.send(frames.Left(number))
        await until(lambda: gateway.truth.is_idle)
        assert worker.num_calls == 0

    play(work)


def test_a_call_that_leaves_in_the_turn_in_which_it_came_leaves_nothing():
    """Its task never takes a step; what waits for a worker is closed all the same."""

    async def work(gateway, hand):
        gateway.truth.workers.drain("w0", 0.0)
        hand.link.send(place(1))
        hand.link.send(frames.Left(1))
        hand.link.send(frames.Asked(2, "/health"))
        await hand.hears(frames.Reply)
        await asyncio.sleep(0)
        assert gateway.truth.is_idle
        assert gateway.truth.scheduling.num_waiting == 0

    play(work)


def test_who_leaves_while_its_prompt_is_asked_about_is_not_scheduled():
    """And an answer to the question that comes after all changes nothing."""

    async def work(gateway, hand):
        first, _ = plain(1)
        hand.link.send(first)
        await hand.hears(frames.Granted)
        hand.link.send(frames.finishing(1, Answer(complete=True, text="ok")))
        second, digest = plain(2, "and more " * 100)
        hand.link.send(second)
        question = await hand.hears(frames.Question)
        assert (question.number, question.what) == (2, "begins")
        hand.link.send(frames.Left(2))
        hand.link.send(frames.told(question, digest))
        hand.link.send(place(3, "something else"))
        assert (await hand.hears(frames.Granted)).number == 3
        hand.link.send(frames.Left(3))

    play(work)


def test_a_lost_link_cancels_its_calls_and_no_others():
    """Waiting, running and half placed ones."""

    async def work(gateway, hand):
        other = await Hand().open(gateway.path)
        other.link.send(place(1, "other"))
        await other.hears(frames.Granted)
        hand.link.send(place(1))
        await hand.hears(frames.Granted)
        gateway.truth.workers.drain("w0", 0.0)
        hand.link.send(place(2, "waits"))
        await until(lambda: gateway.truth.scheduling.num_waiting == 1)
        hand.link._transport.abort()
        await until(lambda: gateway.truth.scheduling.num_waiting == 0)
        assert gateway.truth.scheduling.num_running == 1
        other.link.close()

    play(work)


def test_a_retry_is_granted_or_told_that_there_is_no_more():
    """A failed attempt goes to the other worker once; then it is over."""

    async def scene():
        async with far(b"", b"", num_fronts=0) as gateway:
            hand = await Hand().open(gateway.path)
            hand.link.send(place(1))
            first = await hand.hears(frames.Granted)
            hand.link.send(frames.Failed(1, "lost", retry=True))
            second = await hand.hears(frames.Granted)
            assert (second.attempt, second.address != first.address) == (2, True)
            hand.link.send(frames.Failed(1, "lost again", retry=True))
            assert (await hand.hears(frames.NoMore)).number == 1
            hand.link.close()
            await until(lambda: gateway.truth.is_idle)

    run(scene())


@pytest.mark.parametrize(
    "said",
    [
        frames.Place(*[0] * 0, 1, "chat", "default", "m", 1, False, True, "user", False, "", None),
        frames.Began(1),
        frames.Gauges(1, 1),
        frames.Listening(),
        frames.Hello("0.0.0-other", 1),
    ],
)
def test_who_does_not_say_hello_first_is_cut_off(said):
    """Or is of another version: nothing it says is acted on."""

    async def work(gateway, hand):
        stranger = await Hand().open(gateway.path, hello=False)
        stranger.link.send(said)
        await stranger.is_cut_off()
        assert stranger.heard == []
        assert gateway.coordinator.num_listening == 0

    play(work)


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack(">I", 2**31),
        struct.pack(">I", 4) + b"\xc1abc",
        b"\0\0\0\1\xc0",
        struct.pack(">I", 3) + msgspec.msgpack.encode([24, 1]),
    ],
)
def test_hostile_bytes_cut_off_their_link_only(raw):
    """The calls of another front do not notice."""

    async def work(gateway, hand):
        bad = await Hand().open(gateway.path)
        bad.link._transport.write(raw)
        await bad.is_cut_off()
        hand.link.send(place(1))
        assert (await hand.hears(frames.Granted)).number == 1

    play(work)


@pytest.mark.parametrize(
    "second",
    [
        lambda: place(1, "same number"),
        lambda: frames.Hello(__version__, 1),
        lambda: msgspec.structs.replace(place(2), prompt=msgspec.structs.replace(place(2).prompt, chain=b"odd")),
    ],
)
def test_what_contradicts_itself_cuts_off_its_link(second):
    """A number that is in use, a second hello, a prompt that cannot be: its calls are cancelled."""

    async def work(gateway, hand):
        hand.link.send(place(1))
        await hand.hears(frames.Granted)
        hand.link.send(second())
        await hand.is_cut_off()
        await until(lambda: gateway.truth.is_idle)

    play(work)


def test_gauges_of_all_fronts_are_summed():
    """And a front that is gone counts no more."""

    async def work(gateway, hand):
        other = await Hand().open(gateway.path)
        for one in (hand, other):
            one.link.send(frames.Listening())
            one.link.send(frames.Gauges(3, 2))
        await until(lambda: gateway.coordinator.num_clients == 6)
        assert (gateway.coordinator.num_workers, gateway.coordinator.num_listening) == (4, 2)
        other.link.close()
        await until(lambda: gateway.coordinator.num_clients == 3)
        assert gateway.coordinator.num_listening == 1

    play(work)


def test_a_front_that_cannot_listen_is_an_error_with_its_words():
    """Whoever waits for fronts learns it."""

    async def work(gateway, hand):
        waiting = asyncio.create_task(gateway.coordinator.listening(1))
        hand.link.send(frames.Listening("cannot listen on x:1: the port is in use"))
        with pytest.raises(PeerError, match="cannot listen on x:1"):
            await waiting

    play(work)


def test_a_front_that_says_nothing_any_more_is_found():
    """After so many questions in a row, while it takes calls; one word and it is none of them."""

    async def work(gateway, hand):
        ask = gateway.coordinator.silent
        assert not ask(0)  # it does not listen yet
        hand.link.send(frames.Listening())
        await until(lambda: gateway.coordinator.num_listening == 1)
        assert [ask(2) for _ in range(4)] == [[], [], [4_711], [4_711]]
        hand.link.send(frames.Gauges(1, 1))
        await until(lambda: gateway.coordinator.num_clients == 1)
        assert not ask(2)

    play(work)


def test_many_names_of_tenants_are_one_tenant():
    """Where anybody may name one: the bound holds over all fronts."""

    async def work(gateway, hand):
        gateway.truth.identity.reader.settings = IdentitySettings(max_named_tenants=2)
        for number in range(1, 6):
            hand.link.send(place(number, tenant=f"t{number}"))
            await hand.hears(frames.Granted)
        tenants = {sent.call.tenant for sent in gateway.truth.scheduling._sent.values()}
        assert tenants == {"t1", "t2", "default"}

    play(work)


@pytest.mark.python_core
def test_our_own_fault_is_a_500_and_nothing_stays(monkeypatch, caplog):
    """Logged, answered, forgotten."""

    async def work(gateway, hand):
        def broken(*_):
            raise ZeroDivisionError

        monkeypatch.setattr(gateway.truth.identity, "place", broken)
        hand.link.send(place(1))
        assert (await hand.hears(frames.Refusal)).status == 500
        assert "could not be identified" in caplog.text

    play(work)


def test_a_front_that_comes_while_all_drain_drains_too():
    """One that was just being replaced must not be waited for."""

    async def work(gateway, hand):
        gateway.coordinator.tell_all(frames.Drain(2.0))
        assert (await hand.hears(frames.Drain)).timeout_s == 2.0
        late = await Hand().open(gateway.path)
        assert (await late.hears(frames.Drain)).timeout_s == 2.0
        late.link.close()

    play(work)


numbers = st.integers(1, 4)
said_by_fronts = st.one_of(
    st.builds(place, numbers, st.sampled_from(["task", "other", "third"])),
    st.builds(lambda number, more: plain(number, more)[0], numbers, st.sampled_from(["", "and more " * 80])),
    st.builds(
        frames.Told,
        numbers,
        st.sampled_from(["begins", "said", "tail", "called", "x"]),
        st.integers(0, 2_000),
        st.none() | st.tuples(st.integers(0, 2**64 - 1)),
    ),
    st.builds(frames.Began, numbers),
    st.builds(
        lambda number, complete: frames.finishing(number, Answer(complete=complete, text="ok", prompt_tokens=9)),
        numbers,
        st.booleans(),
    ),
    st.builds(frames.Failed, numbers, st.just("lost"), st.booleans()),
    st.builds(frames.Left, numbers),
    st.builds(frames.Asked, numbers, st.just("/health")),
    st.sampled_from(["drain", "resume", "wait"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(said_by_fronts, max_size=40))
def test_whatever_a_front_says_in_whatever_order_nothing_is_stuck(said):
    """Only its link may suffer; when that is gone no step is anywhere and the scheduler's laws hold."""

    async def scene():
        async with far(b"", b"", num_fronts=0) as gateway:
            (truth, coordinator) = (gateway.truth, gateway.coordinator)
            link = Link(frames.read_front, coordinator._on_message, coordinator._lost)
            front = coordinator._fronts[link] = FrontLink(coordinator, link)
            front.process = 1
            for message in said:
                if message == "drain":
                    truth.workers.drain("w0", 0.0)
                elif message == "resume":
                    truth.workers.passed(truth.workers.resume("w0", 0.0), 0.0)
                elif message == "wait":
                    await asyncio.sleep(0)
                else:
                    try:
                        coordinator._on_message(link, message)
                    except PeerError:
                        break
            coordinator._lost(link, "enough")
            await until(lambda: truth.is_idle)
            assert [worker.num_calls for worker in truth.workers] == [0, 0]
            assert not any(one.step for pool in truth.scheduling.pools for one in pool.scheduler.sessions)
            for pool in truth.scheduling.pools:
                check(pool.scheduler)

    run(scene())
