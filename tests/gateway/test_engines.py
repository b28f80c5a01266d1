"""Tests of the coordinator without its port: what engines say becomes, and what they are told."""

from __future__ import annotations

import asyncio
from collections import Counter
from math import inf, nan

import pytest

from saga import commands as do
from saga import events as ev
from saga.errors import UsageError
from saga.gateway import engines
from saga.gateway.engines import Engines
from saga.gateway.worker_config import Capacity, WorkerConfig
from saga.gateway.workers import Workers
from saga.protocol import coordinator_pb2 as wire


class Meter:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.misunderstood_: Counter[str] = Counter()
        self.finished = []

    def answered(self, worker, directive, outcome, seconds):
        self.outcomes[directive, outcome] += 1

    def engine_finished(self, worker, finished):
        self.finished.append((worker, finished.step))

    def misunderstood(self, why):
        self.misunderstood_[why] += 1


class Health:
    """Whom it follows and whom it wakes."""

    def __init__(self) -> None:
        self.followed = []
        self.woken = []

    def follow(self, worker):
        self.followed.append(worker.name)

    def wake(self, worker, wanted):
        self.woken.append((worker.name, wanted))


class Watcher:
    """What the registry tells."""

    def __init__(self) -> None:
        self.log = []

    def worker_up(self, worker):
        self.log.append(("up", worker.name))

    def worker_leaving(self, worker):
        self.log.append(("leaving", worker.name))

    def worker_reported(self, worker):
        self.log.append(("reported", worker.running, worker.waiting, worker.kv_usage))


class World:
    """Engines with fakes around them, and one worker, "w", that is up."""

    def __init__(self, **config) -> None:
        self.now_s = 100.0
        self.meter, self.health, self.watcher = Meter(), Health(), Watcher()
        self.workers = Workers()
        self.workers.watch(self.watcher)
        self.residency: list[ev.Event] = []
        self.worker = self.workers.add(WorkerConfig("http://127.0.0.1:1234", name="w", **config), 0.0)
        self.workers.passed(self.worker, 0.0)
        self.engines = Engines(self.workers, self.health, self.residency.append, self.meter, lambda: self.now_s)
        self.watcher.log.clear()

    def hear(self, link, **message) -> None:
        asyncio.run(self.engines.heard(link, wire.FromEngine(**message)))

    def order(self, *commands: do.Command) -> list[wire.Directive]:
        """What the engine is told of them."""
        link = self.engines.joined(hello())
        for command in commands:
            assert self.engines.order("w", command, self.now_s)
        return list(link.waiting)


def hello(worker="w", **fields):
    """A hello that can be."""
    return wire.Hello(**{"worker": worker, "block_tokens": 32, "num_blocks": 513, "max_running": 64, **fields})


# ---------------------------------------------------------------------- who it is


def test_an_engine_says_what_its_worker_can():
    """The worker comes up anew with its real capacity; saying the same again changes nothing."""
    world = World()
    said = hello(num_host_blocks=100, prefill_tokens_per_s=9e3, load_tokens_per_s=2e5, move_tokens_per_s=1e5)
    link = world.engines.joined(said)
    assert link.worker is world.worker
    assert world.worker.capacity == Capacity(513 * 32, 32, 3_200, 64, 9e3, 2e5, 1e5)
    assert world.worker.kv_tokens == 513 * 32
    assert world.worker.extensions
    assert world.watcher.log == [("leaving", "w"), ("up", "w")]
    world.engines.joined(said)
    assert len(world.watcher.log) == 2


def test_what_an_operator_wrote_down_holds():
    """kv_tokens, and the rate that the engine does not know."""
    world = World(kv_tokens=5_000, prefill_tokens_per_s=7e3, extensions=False)
    world.engines.joined(hello())
    assert (world.worker.kv_tokens, world.worker.capacity.prefill_tokens_per_s) == (5_000, 7e3)
    assert not world.worker.extensions


def test_a_worker_is_found_by_name_else_by_url():
    """An engine need not know what it is called here."""
    world = World()
    assert world.engines.joined(hello("w")).worker is world.worker
    assert world.engines.joined(hello("", url="http://127.0.0.1:1234/v1")).worker is world.worker
    assert world.engines.joined(hello("other", url="http://127.0.0.1:1234")).worker is world.worker
    assert list(world.engines.links) == ["w"]
    assert not world.health.followed


def test_an_unknown_engine_with_a_url_is_a_new_worker():
    """Looked after by the health checks; when it moves, it is the same name elsewhere."""
    world = World()
    link = world.engines.joined(hello("new", url="http://10.0.0.1:8000"))
    assert (link.worker.name, link.worker.config.url) == ("new", "http://10.0.0.1:8000")
    again = world.engines.joined(hello("new", url="http://10.0.0.1:9000"))
    assert world.workers.get("new") is again.worker is not link.worker
    assert (link.is_over, world.health.followed) == (True, ["new", "new"])
    world.engines.joined(hello("w", url="http://10.0.0.9:1"))
    assert world.worker.config.url == "http://127.0.0.1:1234"


def test_engines_that_are_gone_make_room_for_new_ones(monkeypatch):
    """However many names came and went; who is linked or up stays, and without room a new one is refused."""
    monkeypatch.setattr(engines, "_MAX_REGISTERED", 3)
    world = World()
    links = [world.engines.joined(hello(f"e{at}", url=f"http://10.0.0.{at}:1")) for at in range(3)]
    newcomer = hello("e3", url="http://10.0.0.3:1")
    with pytest.raises(UsageError, match="registered themselves already"):
        world.engines.joined(newcomer)
    world.workers.passed(links[0].worker, 0.0)
    for link in links[:2]:
        world.engines.left(link)
    world.engines.joined(newcomer)
    assert [worker.name for worker in world.workers] == ["w", "e0", "e2", "e3"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (hello("nobody"), "says no url"),
        (hello("n", url="ftp://x"), "expected http://host:port"),
        (hello(block_tokens=0), "block_tokens = 0"),
        (hello(num_blocks=2**60), "num_blocks"),
        (hello(num_host_blocks=2**60), "num_host_blocks"),
        (hello(max_running=0), "max_running"),
        (hello(load_tokens_per_s=nan), "load_tokens_per_s"),
        (hello(prefill_tokens_per_s=inf), "prefill_tokens_per_s"),
        (hello(move_tokens_per_s=-1.0), "move_tokens_per_s"),
        (hello("x" * 1_000), "1000 characters"),
        (hello("a\nb"), "printable"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(said, why):
    """With what would be right; nothing is registered."""
    world = World()
    with pytest.raises(UsageError, match=why):
        world.engines.joined(said)
    assert not world.engines.links
    assert len(world.workers) == 1


def test_a_second_link_takes_the_first_ones_place():
    """The older stream may be dead without knowing; what it was asked has no answer."""
    world = World()
    first = world.engines.joined(hello())
    world.engines.order("w", do.Offload("s", "w", ""), 100.0)
    second = world.engines.joined(hello())
    assert (first.is_over, first.ready.is_set(), second.is_over) == (True, True, False)
    assert world.meter.outcomes == {("offload", "unanswered"): 1}
    world.engines.left(first)
    assert world.engines.links == {"w": second}


def test_the_worker_stays_when_its_link_is_lost():
    """Whether it is up is for the health checks; commands are counted as before."""
    world = World()
    world.engines.left(world.engines.joined(hello()))
    assert world.worker.is_up
    assert not world.engines.order("w", do.Offload("s", "w", ""), 100.0)
    assert not world.engines.order("nobody", do.Offload("s", "w", ""), 100.0)


# ---------------------------------------------------------------------- what it says


def test_a_report_is_figures_residency_and_ends_of_steps():
    """In the scheduler's own words."""
    world = World()
    link = world.engines.joined(hello())
    world.watcher.log.clear()
    held = [wire.Held(session="a", device_tokens=64, host_tokens=96), wire.Held(session="b")]
    finished = [wire.Finished(step="1", session="a", prompt_tokens=100, cached_tokens=64, preemptions=2)]
    report = wire.Report(running=3, waiting=2, used_blocks=171, retained_blocks=9, sessions=held, finished=finished)
    report.ignored["a past deadline"] = 4
    report.ignored["bad label\n"] = 1
    world.hear(link, report=report)
    assert world.watcher.log == [("reported", 3, 2, 171 / 513)]
    assert world.residency == [ev.BlocksStored(100.0, "w", "a", 64, 96), ev.BlocksRemoved(100.0, "w", "b", 0, 0)]
    assert world.meter.finished == [("w", "1")]
    assert (link.figures.retained_blocks, dict(link.figures.ignored)) == (9, {"a past deadline": 4})


def test_a_speed_that_an_engine_measured_is_passed_on_and_nonsense_is_not():
    """Until it has measured one, and where it says something that cannot be, the last one stands."""
    world = World()
    link = world.engines.joined(hello())
    for said, stands in ((0.0, 0.0), (12_000.0, 12_000.0), (0.0, 12_000.0)):
        world.hear(link, report=wire.Report(prefill_tokens_per_s=said))
        assert world.worker.measured_prefill_tokens_per_s == stands
    assert not world.meter.misunderstood_
    for said in (-1.0, float("nan"), inf, 1e-6, 9.0, 1e8):
        world.hear(link, report=wire.Report(prefill_tokens_per_s=said))
        assert world.worker.measured_prefill_tokens_per_s == 12_000.0
    assert world.meter.misunderstood_ == {"prefill rate": 6}


@pytest.mark.parametrize("says_goodbye", [True, False])
def test_a_speed_goes_with_the_engine_that_measured_it(says_goodbye):
    """Who comes next, or nobody, is as fast as was said of it."""
    world = World(prefill_tokens_per_s=7e3)
    link = world.engines.joined(hello(prefill_tokens_per_s=9e3))
    world.hear(link, report=wire.Report(prefill_tokens_per_s=12_000.0))
    assert world.worker.prefill_tokens_per_s == 12_000.0
    if says_goodbye:
        world.engines.left(link)
        assert world.worker.prefill_tokens_per_s == 9e3
    world.engines.joined(hello(prefill_tokens_per_s=4e3))
    world.engines.left(link)
    assert world.worker.prefill_tokens_per_s == 4e3


def test_what_a_report_says_beyond_measure_is_not_taken():
    """Bounded work per message, counted."""
    world = World()
    link = world.engines.joined(hello())
    sessions = [wire.Held(session=str(place), device_tokens=1) for place in range(3_000)]
    world.hear(link, report=wire.Report(sessions=sessions, used_blocks=2**40))
    assert len(world.residency) == 1_000
    world.hear(link, report=wire.Report(sessions=[wire.Held(), wire.Held(session="x" * 1_000)]))
    assert len(world.residency) == 1_000
    assert world.meter.misunderstood_ == {"long report": 1, "session name": 2}
    assert world.worker.kv_usage == 0.0


def test_answers_are_counted_by_outcome_once():
    """One that was not asked for, or says nothing known, is counted as misunderstood."""
    world = World()
    link = world.engines.joined(hello())
    for _ in range(5):
        world.engines.order("w", do.Prefetch("s", "w", ""), 100.0)
    ids = [directive.id for directive in link.waiting]
    for number, outcome in zip(ids, range(5), strict=True):
        world.hear(link, answer=wire.Answer(id=number, outcome=outcome))
    world.hear(link, answer=wire.Answer(id=ids[1], outcome=wire.OUTCOME_ACCEPTED))
    outcomes = ("accepted", "clipped", "missing", "refused")
    assert world.meter.outcomes == {("prefetch", outcome): 1 for outcome in outcomes}
    assert world.meter.misunderstood_ == {"answer": 2}


def test_a_message_that_says_nothing_and_a_second_hello_are_counted():
    """The stream goes on."""
    world = World()
    link = world.engines.joined(hello())
    world.hear(link)
    world.hear(link, hello=hello("nobody"))
    assert world.meter.misunderstood_ == {"unreadable": 1, "second hello": 1}
    assert world.engines.links == {"w": link}


# ---------------------------------------------------------------------- what it is told


def test_commands_become_directives_with_times_from_now():
    """Unknown times are negative, a deadline that has passed is a short one: 0 would be none."""
    told = World().order(
        do.Retain("s", "w", 102.5, 101.0, "", 0.75),
        do.Retain("s", "w", None, inf, ""),
        do.Retain("s", "w", 90.0, 90.0, ""),
        do.Release("s", "w", do.Standing.PAUSED, "", 103.0),
        do.Release("s", "w", do.Standing.ENDED, ""),
        do.Offload("s", "w", ""),
        do.Migrate("s", "w", "v", 100, ""),
        do.Prefetch("s", "w", ""),
    )
    assert len({directive.id for directive in told}) == len(told)
    for directive in told:
        directive.ClearField("id")
    retain, release = wire.Retain, wire.Release
    assert told == [
        wire.Directive(retain=retain(session="s", for_s=2.5, expected_use_s=1.0, reuse_probability=0.75)),
        wire.Directive(retain=retain(session="s", for_s=0.0, expected_use_s=-1.0, reuse_probability=1.0)),
        wire.Directive(retain=retain(session="s", for_s=0.001, expected_use_s=0.0, reuse_probability=1.0)),
        wire.Directive(release=release(session="s", standing=wire.STANDING_PAUSED, expected_use_s=3.0)),
        wire.Directive(release=release(session="s", standing=wire.STANDING_ENDED, expected_use_s=-1.0)),
        wire.Directive(offload=wire.Offload(session="s")),
        wire.Directive(offload=wire.Offload(session="s")),
        wire.Directive(prefetch=wire.Prefetch(session="s")),
    ]


def test_priorities_that_are_ordered_together_go_together():
    """In one directive, the latest of each step; what comes between keeps its place."""
    told = World().order(
        do.Reprioritize("a", "w", 5, ""),
        do.Reprioritize("b", "w", -(2**62), ""),
        do.Reprioritize("a", "w", 2**62, ""),
        do.Offload("s", "w", ""),
        do.Reprioritize("a", "w", 7, ""),
    )
    assert [directive.WhichOneof("what") for directive in told] == ["prioritize", "offload", "prioritize"]
    assert dict(told[0].prioritize.priority_by_step) == {"a": 2**62, "b": -(2**62)}


def test_no_engine_is_told_to_give_a_call_back():
    """The wire has no word for it; the command is counted, not sent."""
    world = World()
    world.engines.joined(hello())
    assert not world.engines.order("w", do.Preempt("a", "w", ""), 100.0)


def test_an_engine_that_does_not_read_loses_the_oldest_directives():
    """Counted, and bounded."""
    world = World()
    link = world.engines.joined(hello())
    for number in range(5_000):
        world.engines.order("w", do.Offload(f"s{number}", "w", ""), 100.0)
    assert [directive.offload.session for directive in link.waiting] == [f"s{n}" for n in range(5_000 - 4_096, 5_000)]
    assert world.meter.outcomes == {("offload", "dropped"): 5_000 - 4_096}
    assert len(link.asked) == 4_096


def test_answers_that_never_come_are_not_waited_for_for_ever():
    """An engine that reads and does not answer costs bounded memory."""
    world = World()
    link = world.engines.joined(hello())
    for _ in range(10_000):
        world.engines.order("w", do.Offload("s", "w", ""), 100.0)
        link.waiting.clear()
    assert len(link.asked) == 8_192
    assert world.meter.outcomes == {("offload", "unanswered"): 10_000 - 8_192}


def test_a_prefetch_wakes_an_engine_until_it_is_answered():
    """What nobody waits for is of no use to an engine without calls."""
    world = World()
    world.order(do.Offload("s", "w", ""), do.Release("s", "w", do.Standing.ENDED, ""))
    assert world.health.woken == []
    (directive,) = world.order(do.Prefetch("s", "w", ""))
    ((name, wanted),) = world.health.woken
    assert (name, wanted()) == ("w", True)
    world.hear(world.engines.links["w"], answer=wire.Answer(id=directive.id, outcome=wire.OUTCOME_ACCEPTED))
    assert not wanted()


def test_a_move_is_done_with_its_answer_or_the_link():
    """The source is woken for it; without a link there is nobody to wait for."""

    async def scene():
        world = World()
        move = do.Migrate("s", "w", "v", 100, "")
        assert world.engines.move("w", move, 100.0) is None
        link = world.engines.joined(hello())
        answered, lost = world.engines.move("w", move, 100.0), world.engines.move("w", move, 100.0)
        assert [directive.offload.session for directive in link.waiting] == ["s", "s"]
        (_, wanted), _ = world.health.woken
        answer = wire.Answer(id=link.waiting[0].id, outcome=wire.OUTCOME_MISSING)
        await world.engines.heard(link, wire.FromEngine(answer=answer))
        assert (answered.done(), lost.done(), wanted()) == (True, False, True)
        world.engines.left(link)
        assert (lost.done(), wanted()) == (True, False)
        assert world.meter.outcomes == {("offload", "missing"): 1, ("offload", "unanswered"): 1}

    asyncio.run(scene())
