"""Tests of the engine's end of the link, against a coordinator that says what it is told to, bytes included."""

from __future__ import annotations

import queue
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import inf, nan

import grpc
import pytest

from saga.commands import Standing
from saga.errors import UsageError
from saga.protocol import METHOD, SERVICE, read_from_engine, write
from saga.protocol import coordinator_pb2 as wire
from saga.vllm_plugin.contracts import (
    EngineFacts,
    Finished,
    Held,
    LinkConfig,
    NoLink,
    Offload,
    Outcome,
    Prefetch,
    Prioritize,
    Release,
    Report,
    Retain,
)
from saga.vllm_plugin.link import connect

FACTS = EngineFacts("m", 32, 513, num_host_blocks=100, load_tokens_per_s=1e5, engine_version="0.32.0")


class Coordinator:
    """A server of raw bytes. say: what goes to the engine (None ends the stream). heard: what came, decoded."""

    def __init__(self, port: int = 0) -> None:
        self.say: queue.Queue[bytes | None] = queue.Queue()
        self.heard: queue.Queue[wire.FromEngine] = queue.Queue()
        self.metadata: dict[str, str] = {}
        self.num_streams = 0
        self.listen = threading.Event()
        self.listen.set()
        self._server = grpc.server(ThreadPoolExecutor(4), options=(("grpc.so_reuseport", 0),))
        handler = grpc.stream_stream_rpc_method_handler(self._connect)  # bytes in, bytes out
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    def _connect(self, messages, context):
        self.metadata = dict(context.invocation_metadata())
        self.num_streams += 1
        say = self.say = queue.Queue()

        def read() -> None:
            try:
                for data in messages:
                    self.listen.wait()
                    self.heard.put(read_from_engine(data))
            except grpc.RpcError:
                pass
            say.put(None)

        threading.Thread(target=read, daemon=True).start()
        return iter(say.get, None)

    def welcome(self, every_s: float = 0.05) -> None:
        self.say.put(write(wire.ToEngine(welcome=wire.Welcome(report_every_s=every_s))))

    def order(self, **directive) -> None:
        self.say.put(write(wire.ToEngine(directive=wire.Directive(**directive))))

    def hear(self, kind: str):
        """The next message of that kind."""
        while True:
            message = self.heard.get(timeout=10.0)
            if message.WhichOneof("message") == kind:
                return getattr(message, kind)

    def stop(self) -> None:
        self.listen.set()
        self._server.stop(0).wait(5.0)


def until(true):
    """What `true()` says once it is true, or of truth; 10 s at most."""
    end_s = time.monotonic() + 10.0
    while not (found := true()):
        assert time.monotonic() < end_s, "it did not come true"
        time.sleep(0.002)
    return found


@contextmanager
def linked(key: str = "", *, welcome: bool = True):
    """(coordinator, link) that have met."""
    coordinator = Coordinator()
    link = connect(LinkConfig(f"127.0.0.1:{coordinator.port}", "w", "http://w:1", key), FACTS)
    try:
        coordinator.hello = coordinator.hear("hello")
        if welcome:
            coordinator.welcome()
            until(lambda: link.report_every_s < inf)
        yield coordinator, link
    finally:
        link.close()
        coordinator.stop()


def polled(link, number: int):
    """The next `number` directives."""
    got = []
    until(lambda: got.extend(link.poll()) or len(got) >= number)
    return got


def test_no_coordinator_is_no_thread():
    """An engine without the link decides for itself."""
    assert isinstance(connect(LinkConfig(), FACTS), NoLink)


@pytest.mark.parametrize("address", ["host", "host:", ":1", "host:x", "host:0", "host:70000"])
def test_an_address_that_cannot_be_is_refused(address):
    """At once, with what would be right."""
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        connect(LinkConfig(address), FACTS)


def test_the_hello_says_who_the_engine_is():
    """And its key is in the metadata, nowhere else."""
    with linked("secret") as (coordinator, _):
        hello = coordinator.hello
        assert (hello.worker, hello.url, hello.model, hello.block_tokens) == ("w", "http://w:1", "m", 32)
        assert (hello.num_blocks, hello.num_host_blocks, hello.load_tokens_per_s) == (513, 100, 1e5)
        assert coordinator.metadata["authorization"] == "Bearer secret"
        assert "secret" not in str(hello)


def test_every_directive_arrives_as_it_was_meant():
    """In order; numbers that stand for "unknown" become None."""
    with linked() as (coordinator, link):
        coordinator.order(id=1, retain=wire.Retain(session="s", for_s=2.0, expected_use_s=1.0, reuse_probability=0.5))
        coordinator.order(id=2, retain=wire.Retain(session="s", expected_use_s=-1.0, reuse_probability=1.0))
        for number, standing in enumerate(Standing, 3):
            said = wire.Standing.Value(f"STANDING_{standing.name}")
            coordinator.order(id=number, release=wire.Release(session="s", standing=said, expected_use_s=-1.0))
        coordinator.order(id=6, offload=wire.Offload(session="s"))
        coordinator.order(id=7, prefetch=wire.Prefetch(session="s"))
        coordinator.order(id=8, prioritize=wire.Prioritize(priority_by_step={"a": -(2**62), "b": 2**62}))
        (one, retain), *others = polled(link, 8)
        assert one == 1
        assert retain == Retain("s", pytest.approx(2.0, abs=0.5), pytest.approx(1.0, abs=0.5), 0.5)
        assert others == [
            (2, Retain("s")),
            (3, Release("s", Standing.ACTIVE)),
            (4, Release("s", Standing.PAUSED)),
            (5, Release("s", Standing.ENDED)),
            (6, Offload("s")),
            (7, Prefetch("s")),
            (8, Prioritize({"a": -(2**62), "b": 2**62})),
        ]
        for outcome in Outcome:
            link.answer(6, outcome, "why")
        heard = [coordinator.hear("answer") for _ in Outcome]
        assert [(a.id, wire.Outcome.Name(a.outcome), a.why) for a in heard] == [
            (6, f"OUTCOME_{outcome.name}", "why") for outcome in Outcome
        ]


def test_what_waited_for_an_idle_engine_is_shorter_by_that(monkeypatch):
    """Times count from the receipt, not from when the engine woke; a deadline that passed meanwhile is at once."""
    with linked() as (coordinator, link):
        coordinator.order(id=1, retain=wire.Retain(session="s", for_s=20.0, expected_use_s=5.0, reuse_probability=1.0))
        coordinator.order(id=2, retain=wire.Retain(session="s", for_s=5.0, expected_use_s=-1.0, reuse_probability=1.0))
        release = wire.Release(session="s", standing=wire.STANDING_PAUSED, expected_use_s=20.0)
        coordinator.order(id=3, release=release)
        until(lambda: len(link._directives) == 3)
        now_s = time.monotonic()
        monkeypatch.setattr("saga.vllm_plugin.link.monotonic", lambda: now_s + 10.0)
        (_, long), (_, short), (_, paused) = link.poll()
        assert (long.for_s, long.expected_use_s) == (pytest.approx(10.0, abs=0.5), 0.0)
        assert (short.for_s, short.expected_use_s) == (0.001, None)
        assert paused.expected_use_s == pytest.approx(10.0, abs=0.5)


@pytest.mark.parametrize(
    "directive",
    [
        {},
        {"offload": wire.Offload()},
        {"prefetch": wire.Prefetch(session="x" * 5_000)},
        {"retain": wire.Retain(session="s", for_s=-1.0, reuse_probability=1.0)},
        {"retain": wire.Retain(session="s", for_s=nan, reuse_probability=1.0)},
        {"retain": wire.Retain(session="s", expected_use_s=inf, reuse_probability=1.0)},
        {"retain": wire.Retain(session="s", reuse_probability=1.5)},
        {"release": wire.Release(session="s")},
        {"release": wire.Release(session="s", standing=99)},
        {"prioritize": wire.Prioritize()},
    ],
    ids=str,
)
def test_nonsense_is_refused_and_counted(directive):
    """The engine never sees it, and the next directive arrives."""
    with linked() as (coordinator, link):
        coordinator.order(id=7, **directive)
        coordinator.order(id=8, offload=wire.Offload(session="s"))
        refused = coordinator.hear("answer")
        assert (refused.id, refused.outcome) == (7, wire.OUTCOME_REFUSED)
        assert refused.why
        assert polled(link, 1) == [(8, Offload("s"))]
        link.report(Report())
        assert coordinator.hear("report").ignored["link_nonsense"] == 1


def test_bytes_that_mean_nothing_do_not_end_the_stream():
    """Whatever they are; a welcome that cannot be is a usual one."""
    chance = random.Random(1)
    with linked(welcome=False) as (coordinator, link):
        for _ in range(200):
            coordinator.say.put(chance.randbytes(chance.randrange(40)))
        coordinator.welcome(nan)
        until(lambda: link.report_every_s == 0.1)
        coordinator.welcome(-1.0)
        coordinator.welcome(1e9)
        until(lambda: link.report_every_s == 60.0)
        coordinator.order(id=8, offload=wire.Offload(session="s"))
        assert polled(link, 1)[-1] == (8, Offload("s"))
        link.report(Report())
        assert coordinator.hear("report").ignored["link_unreadable"] > 0
        assert coordinator.num_streams == 1


def test_a_coordinator_that_restarts_is_found_again():
    """On the same port; what it ordered before is forgotten, the new one is told who the engine is."""
    with linked() as (coordinator, link):
        coordinator.order(id=1, offload=wire.Offload(session="s"))
        until(lambda: link._directives)
        coordinator.stop()
        until(lambda: link.report_every_s == inf)
        assert link.poll() == []
        link.report(Report(running=1))
        link.answer(1, Outcome.ACCEPTED)
        again = Coordinator(coordinator.port)
        try:
            assert again.hear("hello").worker == "w"
            again.welcome()
            until(lambda: link.report_every_s < inf)
            link.report(Report(running=2))
            assert again.heard.get(timeout=10.0).report.running == 2
        finally:
            link.close()
            again.stop()


def test_a_stream_that_is_ended_is_opened_again():
    """The coordinator lives, and wants the engine no more for now."""
    with linked() as (coordinator, link):
        coordinator.say.put(None)
        coordinator.hear("hello")
        coordinator.welcome()
        until(lambda: link._report_every_s < inf)
        assert (link.report_every_s, link.report_every_s) == (inf, 0.05), "who has slept learns that it is another"
        assert coordinator.num_streams == 2


def test_nobody_there_costs_nothing_and_can_be_closed():
    """The link waits in its own thread."""
    link = connect(LinkConfig("127.0.0.1:9", "w"), FACTS)
    for number in range(20_000):
        link.report(Report(finished=(Finished("a", "s", 1, 1),)))
        link.answer(number, Outcome.ACCEPTED)
        assert link.poll() == []
    assert link.report_every_s == inf
    assert not link._outbox._finished
    assert not link._outbox._answers
    link.close()
    until(lambda: not link._thread.is_alive())


def test_reports_are_merged_while_the_coordinator_is_slow():
    """Figures are the latest, sessions the latest of each, finished steps all of them, none twice; all is bounded."""
    with linked() as (coordinator, link):
        coordinator.listen.clear()
        number = 30_000
        for place in range(number):
            link.report(
                Report(
                    running=place,
                    sessions=(Held(f"s{place % 7}", place),),
                    finished=(Finished(f"step{place}", "s", 10, 1, cached_tokens=5, preemptions=1),),
                )
            )
        assert len(link._outbox._finished) <= 10_000
        coordinator.listen.set()
        steps, sessions, running, dropped = [], {}, 0, 0
        while running != number - 1 or sessions.get("s0") != number - 1 - (number - 1) % 7:
            report = coordinator.hear("report")
            steps += [step.step for step in report.finished]
            sessions.update({held.session: held.device_tokens for held in report.sessions})
            running, dropped = report.running, report.ignored.get("link_finished_dropped", 0)
            assert len(report.finished) <= 500
        until(lambda: not link._outbox._finished)
        link.report(Report(running=-1))
        while (report := coordinator.hear("report")).running != 0:
            steps += [step.step for step in report.finished]
        dropped = report.ignored.get("link_finished_dropped", 0)
        assert len(set(steps)) == len(steps) == number - dropped
        assert sessions == {f"s{place % 7}": place for place in range(number - 7, number)}


def test_of_too_many_directives_the_oldest_are_refused():
    """Where the engine does not poll; each has an answer or is there."""
    with linked() as (coordinator, link):
        for number in range(1, 5_001):
            coordinator.order(id=number, offload=wire.Offload(session="s"))
        refused = [coordinator.hear("answer").id for _ in range(5_000 - 4_096)]
        kept = [number for number, _ in polled(link, 4_096)]
        assert refused + kept == list(range(1, 5_001))


def test_names_that_cannot_be_said_stay_here():
    """A client chose them; the rest of the report arrives."""
    with linked() as (coordinator, link):
        link.report(Report(sessions=(Held("\ud800", 1), Held("s" * 5_000, 1), Held("s", 2))))
        assert [held.session for held in coordinator.hear("report").sessions] == ["s"]
        link.report(Report(running=3))
        assert coordinator.hear("report").ignored["link_unsayable"] == 2


def test_a_key_that_no_header_can_carry_is_refused():
    """Before anything is sent."""
    with pytest.raises(UsageError, match="no header can carry"):
        connect(LinkConfig("127.0.0.1:9", "w", key="k\n"), FACTS)
