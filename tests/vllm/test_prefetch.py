"""Prefetch on a real engine: an idle session's prefix is on the device again before its call comes."""

from __future__ import annotations

from saga.vllm_plugin.contracts import Outcome, Prefetch
from saga.vllm_plugin.tier import MAX_ERRANDS

from .engines import tiered, tokens


class ScriptedLink:
    """Directives that come as if over the wire, and what was answered."""

    report_every_s = float("inf")

    def __init__(self) -> None:
        self.waiting: list = []
        self.answers: list = []

    def poll(self):
        directives, self.waiting = list(enumerate(self.waiting)), []
        return directives

    def answer(self, number, outcome, why=""):
        self.answers.append((outcome, why))

    def report(self, report):
        """Nobody listens."""

    def close(self):
        """Nothing is open."""


def in_the_tier_only(engine, name, seed, num_tokens=1_000):
    """A session whose prefix has left the device."""
    answer = engine.ask(tokens(seed, num_tokens), session=name)
    engine.flood()
    session = engine.scheduler.saga.sessions.named(name)[0]
    assert engine.scheduler.saga.device_tokens(session) == 0
    return session, answer


def test_a_prefetched_prefix_is_hit_on_the_device(engines):
    """After Prefetch the call loads nothing: all it finds is on the device, and its answer is the same."""
    engine = tiered(engines)
    saga = engine.scheduler.saga
    session, before = in_the_tier_only(engine, "a", 11)
    answered = len(engine.answers)
    assert saga.obey(Prefetch("a")) == (Outcome.ACCEPTED, "")
    engine.run()
    assert saga.device_tokens(session) == 992
    assert len(engine.answers) == answered, "an errand is answered to nobody"
    name = engine.submit(tokens(11, 1_000), session="a")
    engine.step()
    call = next(iter(saga.calls))
    assert (call.cached_tokens, call.host_tokens) == (992, 0)
    engine.run()
    assert engine.find(name).token_ids == before.token_ids
    engine.check_conserved()


def test_a_prefetched_prefix_is_the_sessions_own_again(engines):
    """Its blocks leave the device when the session may go, not as nobody's."""
    engine = tiered(engines)
    saga = engine.scheduler.saga
    session, _ = in_the_tier_only(engine, "a", 12)
    saga.obey(Prefetch("a"))
    engine.run()
    assert engine.pool.free_block_queue.num_blocks_of([session]) >= 992 // 32
    engine.pool.free_block_queue.check()


def test_what_cannot_be_prefetched_is_said(engines):
    """Already there, gone everywhere, partly gone, unknown, forgotten: each is answered as it is."""
    engine = tiered(engines)
    saga = engine.scheduler.saga
    engine.ask(tokens(13, 1_000), session="a")
    assert saga.obey(Prefetch("a")) == (Outcome.ACCEPTED, "")
    assert not engine.scheduler.has_requests() or not engine.scheduler.waiting
    in_the_tier_only(engine, "a", 14)
    session = saga.sessions.named("a")[0]
    session.token_ids = ()
    assert saga.obey(Prefetch("a")) == (Outcome.REFUSED, "its tokens are forgotten")
    engine.scheduler.connector.reset_cache()
    assert saga.obey(Prefetch("a")) == (Outcome.MISSING, "the tier does not hold it")
    assert saga.obey(Prefetch("never seen"))[0] is Outcome.MISSING


def test_no_prefetch_while_a_call_waits(engines):
    """Calls that are there go before what may come."""
    engine = tiered(engines)
    saga = engine.scheduler.saga
    in_the_tier_only(engine, "a", 15)
    engine.submit(tokens(16, 100))
    assert saga.obey(Prefetch("a")) == (Outcome.REFUSED, "calls wait for the device")
    engine.run()


def test_a_wake_lets_an_idle_engine_hear_a_directive(engines, monkeypatch):
    """A call of one token that says saga_wake makes the engine poll at once, and prefetch before it sleeps again."""
    engine = tiered(engines)
    saga = engine.scheduler.saga
    session, _ = in_the_tier_only(engine, "a", 17)
    link = ScriptedLink()
    monkeypatch.setattr(saga, "link", link)
    saga.next_epoch_s = float("inf")  # nothing but the wake makes it listen
    link.waiting = [Prefetch("a")]
    engine.ask([300], 1, saga_wake=1)
    assert link.answers == [(Outcome.ACCEPTED, "")]
    assert saga.device_tokens(session) == 992
    assert "unknown hint" not in saga.ignored.counts


def test_errands_are_few(engines):
    """However many prefetches are ordered at once, only a few are under way; the others are refused with a reason."""
    engine = tiered(engines)
    saga = engine.scheduler.saga
    names = [f"s{i}" for i in range(MAX_ERRANDS + 3)]
    for at, name in enumerate(names):
        engine.ask(tokens(20 + at, 200), session=name)
    engine.flood()
    outcomes = [saga.obey(Prefetch(name)) for name in names]
    refused = [why for outcome, why in outcomes if outcome is Outcome.REFUSED]
    assert refused == [f"{MAX_ERRANDS} errands are under way"] * 3
    engine.run()
    assert sum(saga.device_tokens(saga.sessions.named(name)[0]) > 0 for name in names) == MAX_ERRANDS
    engine.check_conserved()
