"""The plug-in inside vLLM's own scheduler, in virtual time: what is kept, who goes first, and that nothing is lost."""

from __future__ import annotations

import random
from math import inf

import pytest

from saga.commands import Standing
from saga.errors import UsageError
from saga.vllm_plugin.contracts import Outcome, Prioritize, Release, Retain
from saga.vllm_plugin.rates import PrefillRate

from .standalone import BLOCK, Loop, words

FULL = 1_000 // BLOCK * BLOCK  # of a prompt of 1,000 tokens that comes again with more behind it


class Listener:
    """A link whose coordinator says what the test says."""

    def __init__(self, every_s=0.0) -> None:
        self.report_every_s = every_s
        self.directives, self.answers, self.reports, self.closed = [], {}, [], False

    def poll(self):
        directives, self.directives = self.directives, []
        return directives

    def answer(self, directive, outcome, why=""):
        self.answers[directive] = (outcome, why)

    def report(self, report):
        self.reports.append(report)

    def close(self):
        self.closed = True


def test_a_session_that_is_expected_back_keeps_its_prefix_where_stock_loses_it():
    """The forecast that came with the call is enough: no coordinator."""
    found = {}
    for name in ("StockAsync", "Saga", "SagaSync"):
        loop = Loop(name, blocks=130)
        loop.ask("a", words(1, 1_000), session="a", saga_continue_probability=1.0, saga_expected_gap_s=30.0)
        loop.flood()
        found[name] = loop.ask("a2", words(1, 1_100), session="a")
        loop.check()
    assert found == {"StockAsync": 0, "Saga": FULL, "SagaSync": FULL}


def test_a_retention_ends_with_its_deadline():
    """After factor x gap the session is paused, and sessions that are expected leave after it."""
    loop = Loop(blocks=130)
    loop.ask("a", words(1, 1_000), session="a", saga_expected_gap_s=2.0)
    loop.now_s += 8.1
    loop.ask("b", words(2, 1_000), session="b", saga_expected_gap_s=500.0)
    loop.ask("c", words(3, 900))
    assert loop.saga.sessions.named("a")[0].standing == Standing.PAUSED
    assert loop.ask("b2", words(2, 1_100), session="b") == FULL
    assert loop.ask("a2", words(1, 1_100), session="a") < FULL // 4


def test_an_ended_session_leaves_before_strangers():
    """Knowing that a session has ended frees its blocks for everybody else."""
    loop = Loop(blocks=200)
    loop.ask("stranger", words(1, 1_000))
    loop.ask("ended", words(2, 1_000), session="ended")
    loop.saga.obey(Release("ended", Standing.ENDED))
    loop.ask("new", words(3, 1_700))
    assert loop.ask("stranger2", words(1, 1_100)) == FULL


def test_a_shared_prompt_stays_with_its_most_valuable_owner():
    """The cheap session used it last; the dear one still finds it."""
    loop = Loop(blocks=140)
    shared = words(1, 800)
    loop.ask("dear", shared + words(2, 208), session="dear", saga_expected_gap_s=5.0)
    loop.ask("cheap", shared + words(3, 208), session="cheap", saga_continue_probability=0.0)
    loop.flood(3)
    assert loop.ask("dear2", shared + words(2, 300), session="dear") == 1_008


def test_what_two_calls_of_a_session_share_is_its_own_when_both_have_ended():
    """The first to end leaves what the other still uses; the last one gives all of it to the session."""
    loop = Loop(blocks=200, running=2)
    for name, tokens in (("short", 4), ("long", 40)):
        loop.submit(name, words(1, 1_000), tokens, session="a")
    loop.run()
    loop.check()
    assert loop.queue.num_blocks_of(loop.saga.sessions.named("a")) >= FULL // BLOCK


def test_tail_first_what_is_left_of_a_session_is_its_front():
    """A stranger that needs half of it takes the second half."""
    loop = Loop(blocks=100)
    loop.ask("a", words(1, 1_500), session="a", saga_expected_gap_s=5.0)
    loop.ask("stranger", words(2, 800))
    found = loop.ask("a2", words(1, 1_550), session="a")
    assert 0 < found < 1_500 - 700
    assert found % BLOCK == 0


@pytest.mark.parametrize("queue", ["fcfs", "priority"])
def test_calls_without_a_session_are_treated_as_by_stock(queue):
    """The same calls at the same times: the same order, the same hits, the same preemptions."""
    seen = []
    for name in ("StockAsync", "Saga"):
        dice = random.Random(1)
        loop = Loop(name, blocks=120, queue=queue, running=6, **({"preempt_after_s": 1e9} if name == "Saga" else {}))
        for at in range(150):
            prompt = words(dice.randrange(12), dice.randrange(200, 700))
            loop.submit(f"c{at}", prompt, dice.randrange(4, 60), priority=dice.randrange(3))
            for _ in range(dice.randrange(12)):
                loop.step()
        loop.run()
        loop.check()
        seen.append((loop.order, loop.cached, {call: each.num_preemptions for call, each in loop.requests.items()}))
    assert seen[0] == seen[1]
    assert sum(seen[0][2].values()) > 0, "nobody was preempted: the run shows too little"


@pytest.mark.parametrize(("name", "depth"), [("SagaSync", 1), ("Saga", 1), ("Saga", 2)])
def test_a_running_call_gives_way_after_half_a_second_without_losing_a_token(name, depth):
    """The urgent call waits for its bounded time, not for the end of the long ones; every answer is whole."""
    loop = Loop(name, running=2, depth=depth)
    for at in range(2):
        loop.submit(f"long{at}", words(at, 300), 400, priority=5, session=f"l{at}")
    for _ in range(10):
        loop.step()
    loop.submit("urgent", words(9, 100), 4, priority=-100)
    for _ in range(30):
        loop.step()
    assert "urgent" not in loop.order
    for _ in range(40):
        loop.step()
    assert "urgent" in loop.order
    loop.run()
    loop.check()
    assert sorted(each.num_preemptions for each in loop.requests.values()) == [0, 0, 1]
    assert [len(loop.answers[name]) for name in ("long0", "long1", "urgent")] == [400, 400, 4]


def test_a_call_gives_way_for_room_too_and_not_where_that_is_not_enough():
    """The head of the queue gets blocks from those behind it, if they have enough of them."""
    loop = Loop(blocks=100, running=4)
    loop.submit("small", words(1, 160), 300, priority=5)
    loop.submit("large", words(2, 900), 300, priority=9)
    loop.step()
    loop.submit("urgent", words(3, 700), 4, priority=0)
    for _ in range(60):
        loop.step()
    assert loop.requests["large"].num_preemptions == 1
    assert loop.requests["small"].num_preemptions == 0
    loop.run()
    loop.check()


def test_a_call_gives_way_only_so_often():
    """Whoever comes later, a call that gave way as often as is allowed runs to its end."""
    loop = Loop(running=1, max_preemptions=2)
    loop.submit("meek", words(1, 100), 2_000, priority=9)
    for at in range(5):
        loop.step()
        loop.submit(f"pushy{at}", words(2 + at, 100), 4, priority=0)
        for _ in range(80):
            loop.step()
    assert loop.requests["meek"].num_preemptions == 2
    loop.run()
    loop.check()


def test_first_come_first_served_means_no_places_and_no_preemption():
    """Without --scheduling-policy priority the queue is vLLM's own."""
    loop = Loop(queue="fcfs", running=1)
    loop.submit("first", words(1, 100), 200, priority=9)
    loop.submit("second", words(2, 100), 4, priority=0)
    loop.run()
    assert loop.order == ["first", "second"]
    assert loop.requests["first"].num_preemptions == 0
    assert loop.saga.obey(Prioritize({"x": 1}))[0] is Outcome.REFUSED


def test_the_coordinators_priorities_move_waiting_calls_at_the_next_epoch():
    """The queue is built anew, once; unknown steps are told."""
    loop = Loop(running=1)
    loop.saga.link = Listener(inf)
    loop.submit("now", words(1, 100), 40)
    for at in range(3):
        loop.submit(f"c{at}", words(2 + at, 100), 4, priority=10 + at, saga_step=f"step{at}")
    loop.step()
    loop.saga.link.directives = [(1, Prioritize({"step2": 0, "elsewhere": 3})), (2, Prioritize({"nobody": 1}))]
    loop.run()
    assert loop.order == ["now", "c2", "c0", "c1"]
    assert [outcome for outcome, _ in loop.saga.link.answers.values()] == [Outcome.CLIPPED, Outcome.MISSING]


def test_older_tasks_go_first_among_equals():
    """Two calls of equal priority: the one whose task was first seen earlier, although it arrived later."""
    loop = Loop(running=1)
    loop.ask("old", words(1, 100), session="old", saga_task="old")
    loop.ask("young", words(2, 100), session="young", saga_task="young")
    loop.submit("now", words(3, 100), 30, priority=-1)
    loop.step()
    loop.submit("young2", words(2, 120), session="young", saga_task="young")
    loop.submit("old2", words(1, 120), session="old child", saga_task="old")
    loop.run()
    assert loop.order[-2:] == ["old2", "young2"]


@pytest.mark.parametrize(("tenants", "goes"), [("weighted_service", "among the first"), ("none", "last")])
def test_the_tenant_that_had_less_goes_first(tenants, goes):
    """A heavy tenant's flood holds up a light one's call for a quantum of service, not for all of it."""
    loop = Loop(running=1, tenants=tenants)
    for at in range(12):
        loop.submit(f"heavy{at}", words(at, 1_000), 200, saga_tenant="heavy")
    for _ in range(300):
        loop.step()
    loop.submit("light", words(50, 100), 4, saga_tenant="light", priority=7)
    loop.run()
    assert (loop.order.index("light") < 7) == (goes == "among the first")
    loop.check()


def test_pins_hold_only_their_share_and_never_keep_a_call_from_running():
    """A retained session holds what the bound allows; a call that needs the pool gets it."""
    loop = Loop(blocks=130, pin_share=0.25)
    loop.ask("a", words(1, 1_000), session="a")
    outcome, why = loop.saga.obey(Retain("a", for_s=60.0))
    assert (outcome, loop.saga.pins.num_blocks) == (Outcome.CLIPPED, 32), why
    assert loop.pool.get_num_free_blocks() == 130 - 32
    loop.submit("big", words(2, 2_000), 4)
    loop.run()
    assert (loop.saga.pins.num_blocks, loop.pool.get_num_free_blocks()) == (0, 130)
    loop.check()


def test_pins_end_with_their_deadline_and_with_the_sessions_next_call():
    """Nothing stays held for somebody who does not come."""
    loop = Loop(pin_share=0.5)
    for name in ("a", "b"):
        loop.ask(name, words(ord(name), 1_000), session=name)
        assert loop.saga.obey(Retain(name, for_s=5.0)) == (Outcome.ACCEPTED, "")
    loop.ask("a2", words(ord("a"), 1_050), session="a")
    assert loop.saga.pins.num_blocks == 62
    loop.now_s += 6.0
    loop.ask("c", words(3, 50))
    assert loop.saga.pins.num_blocks == 0
    loop.check()


def test_the_cache_can_be_reset_with_pins():
    """What vLLM does on a change of weights works as without the plug-in."""
    loop = Loop(pin_share=0.5)
    loop.ask("a", words(1, 1_000), session="a")
    loop.saga.obey(Retain("a", for_s=5.0))
    assert loop.scheduler.reset_prefix_cache()
    loop.check()
    assert loop.ask("a2", words(1, 1_050), session="a") == 0


def test_one_session_id_of_two_tenants_is_two_sessions():
    """What one says or has said of it does not touch the other, by tenant and by cache salt."""
    loop = Loop()
    loop.ask("a", words(1, 500), session="s", saga_tenant="one", saga_expected_gap_s=50.0)
    loop.ask("b", words(2, 500), session="s", saga_tenant="two", saga_continue_probability=0.0)
    loop.ask("c", words(3, 500), session="s", salt="secret")
    standings = {(each.key.tenant, each.key.salt): each.standing for each in loop.saga.sessions.named("s")}
    assert standings == {("one", ""): "active", ("two", ""): "ended", ("", "secret"): "unknown"}
    outcome, why = loop.saga.obey(Release("s", Standing.ENDED))
    assert (outcome, "3 tenants" in why) == (Outcome.REFUSED, True)


def test_nonsense_is_counted_and_the_engine_serves_on():
    """Hints from hell, directives for nobody, deadlines in the past, prefixes that are gone."""
    loop = Loop(blocks=130)
    nonsense = {"saga_expected_gap_s": -1, "saga_continue_probability": "often", "saga_step": 7, "saga_mood": "blue"}
    loop.ask("a", words(1, 1_000), session="a", **nonsense)
    loop.ask("b", words(2, 500), session="x" * 10_000, saga_expected_gap_s=float("nan"))
    obey = loop.saga.obey
    assert obey(Retain("nobody"))[0] is Outcome.MISSING
    assert obey(Retain("a", for_s=-3.0))[0] is Outcome.REFUSED
    loop.flood(3)
    assert obey(Retain("a", for_s=3.0))[0] is Outcome.MISSING
    assert sum(loop.saga.ignored.counts.values()) == 8
    loop.check()


def test_a_listener_hears_of_steps_and_of_what_is_held():
    """Finished steps with what they found; what a session still has, when that changes; the last before it sleeps."""
    loop = Loop(blocks=130)
    listener = loop.saga.link = Listener(0.05)
    loop.ask("a", words(1, 1_000), session="a", saga_step="one", saga_expected_gap_s=30.0)
    loop.ask("a2", words(1, 1_100), session="a", saga_step="two")
    finished = {each.step: each for report in listener.reports for each in report.finished}
    assert (finished["one"].cached_tokens, finished["two"].cached_tokens) == (0, FULL)
    assert (finished["two"].prompt_tokens, finished["two"].output_tokens) == (1_100, 8)
    assert listener.reports[-1].sessions[-1].device_tokens == 1_104
    assert (listener.reports[-1].running, listener.reports[-1].waiting, listener.reports[-1].used_blocks) == (0, 0, 0)
    loop.flood(3)
    held = [each for report in listener.reports for each in report.sessions if each.session == "a"]
    assert held[-1].device_tokens == 0
    loop.scheduler.shutdown()
    assert listener.closed


def test_a_listener_that_comes_late_hears_everything():
    """While nobody listens nothing is told; then all that is held."""
    loop = Loop()
    listener = loop.saga.link = Listener(inf)
    loop.ask("a", words(1, 1_000), session="a")
    assert listener.reports == []
    listener.report_every_s = 0.05
    loop.ask("b", words(2, 500), session="b")
    assert {each.session for report in listener.reports for each in report.sessions} == {"a", "b"}


def test_aborts_lose_no_block():
    """Calls that are taken away while they wait, run and have just been preempted."""
    dice = random.Random(5)
    loop = Loop(blocks=100, running=4, depth=2)
    for at in range(200):
        session = f"s{dice.randrange(8)}"
        loop.submit(f"c{at}", words(dice.randrange(8), dice.randrange(50, 600)), 30, session=session)
        for _ in range(dice.randrange(5)):
            loop.step(0.05)
        if dice.random() < 0.4:
            loop.abort(f"c{dice.randrange(at + 1)}")
    loop.run()
    loop.check()
    assert all(each.idle for each in loop.saga.sessions)
    assert len(loop.saga.calls) == 0


def test_nothing_grows_with_the_calls_served():
    """Thousands of sessions later only what fits into the bounds is known, and owners are those of blocks."""
    loop = Loop(blocks=60, max_sessions=50, keep_tokens=2_000)
    for at in range(1_500):
        xargs = {"saga_step": f"x{at}", "saga_task": f"t{at}", "saga_tenant": f"n{at % 7}", "saga_expected_gap_s": 5.0}
        loop.submit(f"c{at}", words(at, 120), 2, session=f"s{at}", **xargs)
        loop.step()
        if at % 10 == 9:
            loop.run()
    loop.run()
    loop.check()
    sessions, queue = loop.saga.sessions, loop.queue
    assert (len(sessions), len(sessions._by_name), len(sessions._tasks)) == (50, 50, 50)
    assert sessions.num_tokens <= 2_000
    assert len(queue.owners) <= 60
    assert len(queue._heap) < 300
    untold = [queue._lossy, queue._losers, loop.saga._reports._changed, loop.saga._reports._finished]
    calls = loop.saga.calls
    assert [len(each) for each in (*untold, calls._by_step, calls._num_calls, calls._quanta)] == [0] * 7
    assert len(loop.saga.retention._deadlines) < 300


def test_stock_order_leaves_vllms_queue_alone():
    """With eviction "stock": places and reports, and not a block moved."""
    loop = Loop(eviction="stock")
    from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue

    assert type(loop.queue) is FreeKVCacheBlockQueue
    loop.ask("a", words(1, 500), session="a", saga_expected_gap_s=5.0)
    loop.check()


@pytest.mark.parametrize("eviction", ["next_use", "workflow_lru", "lru"])
def test_every_policy_of_the_simulator_orders_blocks(eviction):
    """The same objects as in `saga sim`: whatever the policy, blocks are conserved and answers whole."""
    dice = random.Random(3)
    loop = Loop(blocks=150, eviction=eviction)
    for at in range(60):
        number = dice.randrange(6)
        loop.submit(f"c{at}", words(number, 300 + 10 * at), 6, session=f"s{number}", saga_expected_gap_s=number)
        for _ in range(dice.randrange(8)):
            loop.step(0.1)
    loop.run()
    loop.check()


def test_wrong_settings_stop_the_start():
    """The field and what would be right are named."""
    with pytest.raises(UsageError, match=r"evction.*did you mean 'eviction'"):
        Loop(evction="lru")


@pytest.mark.parametrize("depth", [1, 2])
def test_an_engine_learns_how_fast_it_computes_prompts(depth):
    """From steps of prompts alone, also where the next one is scheduled before the last one's tokens come."""
    loop = Loop(blocks=300, depth=depth)
    loop.saga.prefill_rate = PrefillRate()
    for at in range(10):
        loop.ask(f"c{at}", words(at, 500), 4)
    assert loop.saga.prefill_rate.tokens_per_s == 50_000.0 / depth
