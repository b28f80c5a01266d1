"""The scheduler's decisions, told as short scenes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from saga import commands as do
from saga import events as ev
from saga.cache.overdue import LongOverdue
from saga.cache.ttl import FixedTtl, Forever
from saga.errors import ProtocolError, UsageError
from saga.presets import preset
from saga.routing.stealing import IdleSteals
from saga.scheduler.composition import Caps
from saga.scheduler.deadlines import Due
from saga.scheduler.sessions import State

from .conftest import dispatched, of

HOLDS_30_S = replace(preset("saga"), retention=FixedTtl(30.0))
GONE_AFTER_60_S = replace(HOLDS_30_S, overdue=LongOverdue(times=0.0, least_s=60.0))


def test_a_first_step_goes_where_fewest_are_at_work(stage):
    """Two new sessions on two workers do not share one of them."""
    at = stage(HOLDS_30_S, workers=2)
    first = dispatched(at.arrive("a", 0, 1_000))
    second = dispatched(at.arrive("b", 0, 1_000))
    assert [first, second] == [[("a/0", "w0")], [("b/0", "w1")]]


def test_a_session_that_returns_within_its_reservation_is_dispatched_at_once(stage):
    """Others fill the worker meanwhile; the place across the gap is kept all the same."""
    at = stage(HOLDS_30_S, kv_tokens=10_000)
    at.arrive("a", 0, 4_000)
    at.finish("a", 0, "w0", 4_000)
    at.arrive("b", 0, 4_000)
    assert of(do.Hold, at.arrive("c", 0, 4_000))
    at.wait(5.0)
    assert dispatched(at.arrive("a", 1, 4_100)) == [("a/1", "w0")]


def test_a_session_that_does_not_fit_waits_and_is_let_in_when_another_ends(stage):
    """Admission holds the third of three; the end of one lets it in, with a reason."""
    at = stage(HOLDS_30_S, kv_tokens=10_000)
    at.arrive("a", 0, 4_500)
    at.arrive("b", 0, 4_500)
    held = at.arrive("c", 0, 4_500)
    assert [(c.step, c.reason) for c in of(do.Hold, held)] == [("c/0", "waits for room on any worker")]
    at.finish("a", 0, "w0", 4_500)
    let_in = at.end("a")
    assert dispatched(let_in) == [("c/0", "w0")]
    assert "room came free" in of(do.Dispatch, let_in)[0].reason


def test_an_expired_reservation_gives_its_room_to_who_waits(stage):
    """After 30 s away the place is gone: the waiting session gets it, the absent one is paused."""
    at = stage(HOLDS_30_S, kv_tokens=10_000)
    at.arrive("a", 0, 6_000)
    at.finish("a", 0, "w0", 6_000)
    at.arrive("b", 0, 6_000)
    commands = at.wait(31.0)
    assert [c.session for c in of(do.Release, commands)] == ["a"]
    assert dispatched(commands) == [("b/0", "w0")]


def test_a_session_is_never_refused_an_empty_worker(stage):
    """A context above alpha of the device still runs, alone."""
    at = stage(HOLDS_30_S, kv_tokens=10_000)
    assert dispatched(at.arrive("a", 0, 9_900)) == [("a/0", "w0")]


def test_a_prompt_that_fits_no_worker_is_rejected_with_the_reason(stage):
    """It would wait for ever: it is told so at once."""
    at = stage(HOLDS_30_S, kv_tokens=10_000)
    rejected = of(do.Reject, at.arrive("a", 0, 10_001))
    assert [c.reason for c in rejected] == ["a prompt of 10001 tokens fits no worker"]


def test_older_tasks_come_first_whoever_asked_first(stage):
    """A returning session of an old task overtakes a new one that waits already."""
    at = stage(HOLDS_30_S, kv_tokens=10_000)
    at.arrive("old", 0, 4_000)
    at.finish("old", 0, "w0", 4_000)
    at.arrive("big", 0, 5_000)
    at.wait(31.0)  # old loses its place
    at.arrive("young", 0, 5_000)
    at.arrive("old", 1, 5_000)
    at.finish("big", 0, "w0", 5_000)
    assert dispatched(at.end("big"))[0] == ("old/1", "w0")


def test_what_sessions_share_is_counted_once(stage):
    """Three sessions of 4,000 tokens fit into 10,000 when 3,000 of each are the same system prompt."""
    at = stage(HOLDS_30_S, kv_tokens=10_000)
    for name in ("a", "b", "c"):
        assert dispatched(at.arrive(name, 0, 4_000, prefix="system", prefix_tokens=3_000)) == [(f"{name}/0", "w0")]
    assert at.scheduler.fleet.get("w0").active_tokens == 3_000 + 3 * 1_000 + sum(
        int(s.expected_output_tokens) for s in at.scheduler.sessions
    )


def test_when_contexts_outgrow_the_device_the_youngest_that_is_away_is_paused(stage):
    """Growth beyond capacity costs the youngest idle session its place, never a running one."""
    at = stage(HOLDS_30_S, kv_tokens=10_000)
    for name in ("a", "b", "c"):
        at.arrive(name, 0, 3_000)
        at.wait(0.1)
    at.finish("b", 0, "w0", 3_000)
    at.finish("c", 0, "w0", 3_000)
    commands = at.finish("a", 0, "w0", 3_000, output_tokens=1_500)
    assert [c.session for c in of(do.Release, commands)] == ["c"]


def test_a_lost_worker_loses_no_step(stage):
    """Its running step goes to the other worker, and nothing points at the lost one."""
    at = stage(HOLDS_30_S, workers=2)
    at.arrive("a", 0, 1_000)
    assert dispatched(at.tell(ev.WorkerLost(at.at_s, "w0"))) == [("a/0", "w1")]


def test_a_failed_step_is_tried_again_and_a_late_answer_of_the_lost_attempt_is_ignored(stage):
    """Exactly one terminal outcome per step."""
    at = stage(HOLDS_30_S, workers=2)
    at.arrive("a", 0, 1_000)
    again = dispatched(at.tell(ev.StepFailed(at.at_s, "a/0", "w0", "connection reset")))
    assert len(again) == 1
    worker = again[0][1]
    at.finish("a", 0, worker, 1_000)
    assert at.finish("a", 0, "w0", 1_000) == []


def test_a_cancelled_step_leaves_its_place_to_the_next(stage):
    """A client that goes away while waiting blocks nobody; one that runs frees its room."""
    at = stage(HOLDS_30_S, kv_tokens=10_000)
    at.arrive("a", 0, 6_000)
    at.arrive("b", 0, 6_000)
    at.arrive("c", 0, 6_000)
    at.tell(ev.StepCancelled(at.at_s, "b/0"))
    assert dispatched(at.tell(ev.StepCancelled(at.at_s, "a/0"))) == [("c/0", "w0")]


def test_steps_of_one_session_do_not_overlap(stage):
    """A second step of a session waits for the first, and runs when it is done."""
    at = stage(HOLDS_30_S)
    at.arrive("a", 0, 1_000)
    assert [c.step for c in of(do.Hold, at.arrive("a", 1, 1_100))] == ["a/1"]
    assert dispatched(at.finish("a", 0, "w0", 1_000)) == [("a/1", "w0")]


def test_a_session_kept_from_home_for_too_long_goes_elsewhere_with_its_prefix(stage):
    """After the patience of 20 s another worker with room takes it, and the move carries the KV."""
    at = stage(HOLDS_30_S, workers=2, kv_tokens=10_000)
    at.arrive("a", 0, 6_000)
    at.arrive("x", 0, 9_000)
    at.finish("a", 0, "w0", 6_000)
    at.wait(31.0)  # a is paused
    at.arrive("b", 0, 9_000)  # takes w0
    assert of(do.Hold, at.arrive("a", 1, 6_100))
    at.finish("x", 0, "w1", 9_000)
    at.end("x")
    commands = at.wait(21.0)
    assert [(c.source, c.target) for c in of(do.Migrate, commands)] == [("w0", "w1")]
    assert dispatched(commands) == [("a/1", "w1")]


@pytest.fixture(params=[True, False], ids=["with its prefix", "without"])
def carries(request):
    """Whether moves take the prefix along."""
    return request.param


def _moved(stage, carries):
    """Session a, taken from w0 to w1, at work there."""
    at = stage(replace(HOLDS_30_S, migrate=carries), workers=2, kv_tokens=10_000)
    at.arrive("a", 0, 6_000)
    at.arrive("x", 0, 9_000)
    at.finish("a", 0, "w0", 6_000)
    at.wait(31.0)
    at.arrive("b", 0, 9_000)
    at.arrive("a", 1, 6_100)
    at.finish("x", 0, "w1", 9_000)
    at.end("x")
    moved = at.wait(21.0)
    assert dispatched(moved) == [("a/1", "w1")]
    assert bool(of(do.Migrate, moved)) == carries
    assert not of(do.Release, moved)
    return at


def test_the_copy_that_a_move_leaves_behind_may_go_once_the_prefix_is_on_the_new_worker(stage, carries):
    """When the call has ended there, and not before, the old one is told; once."""
    at = _moved(stage, carries)
    told = of(do.Release, at.finish("a", 1, "w1", 6_100))
    assert [(c.session, c.worker, c.standing) for c in told] == [("a", "w0", do.Standing.ENDED)]
    at.arrive("a", 2, 6_200)
    assert of(do.Release, at.finish("a", 2, "w1", 6_200)) == []


def test_a_session_that_ends_while_it_moves_leaves_no_copy_behind(stage, carries):
    """Both workers hear that it is over: the one where it is and the one that it came from."""
    at = _moved(stage, carries)
    told = of(do.Release, at.end("a"))
    assert [(c.worker, c.standing) for c in told] == [("w0", do.Standing.ENDED), ("w1", do.Standing.ENDED)]


def test_the_tenant_with_less_service_is_let_in_first(stage):
    """Two tenants wait; the one that has had less goes first although it came later."""
    at = stage(HOLDS_30_S, kv_tokens=10_000)
    at.arrive("h1", 0, 9_000, tenant="heavy")
    at.arrive("l0", 0, 9_000, tenant="light")
    at.arrive("h2", 0, 9_000, tenant="heavy")
    at.finish("h1", 0, "w0", 9_000)
    assert dispatched(at.end("h1")) == [("l0/0", "w0")]


def test_an_open_door_lets_everything_through_to_sticky_workers(stage):
    """The baseline never holds; a session stays with its worker."""
    at = stage("vllm_apc", workers=2, kv_tokens=1_000)
    first = [dispatched(at.arrive(name, 0, 900))[0][1] for name in "abcd"]
    assert first == ["w0", "w1", "w0", "w1"]
    at.finish("a", 0, "w0", 900)
    assert dispatched(at.arrive("a", 1, 950)) == [("a/1", "w0")]


def test_a_session_cap_holds_until_a_session_ends(stage):
    """The hand-tuned cap counts sessions, whatever their size."""
    cap = replace(
        preset("session_cap"), admission=type(preset("session_cap").admission)(max_sessions=1), retention=Forever()
    )
    at = stage(cap)
    at.arrive("a", 0, 10)
    at.arrive("b", 0, 10)
    at.finish("a", 0, "w0", 10)
    assert at.wait(10_000.0) == []
    assert dispatched(at.end("a")) == [("b/0", "w0")]


def test_an_idle_worker_steals_the_last_call_that_waits_elsewhere(stage):
    """T_idle after it fell idle it takes one from a worker with more than R_max times its load."""
    at = stage("saga_paper", workers=2, kv_tokens=1_000_000)
    for name in "abcdef":
        at.arrive(name, 0, 10)
    for name in "bdf":
        at.finish(name, 0, "w1", 10)
    commands = at.wait(0.2)
    assert [(c.step, c.worker) for c in of(do.Preempt, commands)] == [("e/0", "w0")]
    assert dispatched(commands) == [("e/0", "w1")]


def test_a_worker_that_just_joined_steals_as_well(stage):
    """It never worked and never fell idle, and still takes its share of what waits elsewhere."""
    at = stage("saga_paper", workers=1, kv_tokens=1_000_000)
    for name in "abcd":
        at.arrive(name, 0, 10)
    at.tell(ev.WorkerJoined(at.at_s, "w9", 1_000_000))
    at.arrive("a2", 0, 999_999)  # goes to the idle newcomer
    at.finish("a2", 0, "w9", 999_999)
    assert [c.worker for c in of(do.Dispatch, at.wait(0.2))] == ["w9"]


def test_a_gate_and_stealing_exclude_each_other():
    """A session that was given a place on one worker cannot be taken to another."""
    with pytest.raises(UsageError, match="cannot be stolen"):
        replace(preset("saga"), stealing=IdleSteals())


def test_time_does_not_run_back(stage):
    """An event older than the last is refused, and so is one at no time."""
    at = stage()
    at.tell(ev.Tick(5.0))
    with pytest.raises(ProtocolError, match="does not run back"):
        at.scheduler.handle(ev.Tick(4.0))
    with pytest.raises(ProtocolError):
        at.scheduler.handle(ev.Tick(float("nan")))


def test_a_step_id_that_is_live_cannot_arrive_again(stage):
    """Two live steps of one name would make every later fact ambiguous."""
    at = stage()
    at.arrive("a", 0, 10)
    with pytest.raises(ProtocolError, match="a/0"):
        at.arrive("a", 0, 10)


@pytest.mark.parametrize("name", ["prompt_tokens", "common_tokens", "prefix_tokens", "home_tokens"])
def test_every_step_with_an_impossible_count_is_refused(stage, name: str) -> None:
    """The first of a session and those after it: one error that names the count, and nothing of the step remains."""
    s = stage()
    for step in (0, 1):
        facts = {"prompt_tokens": 100, name: -3}
        with pytest.raises(ProtocolError, match=f"{name} -3 of step 'a/{step}': expected at least"):
            s.arrive("a", step, **facts)
        assert not s.scheduler.sessions.steps
        s.arrive("a", step, 100)
        s.finish("a", step, "w0", 100)


def test_what_is_idle_for_too_long_is_forgotten(stage):
    """Ages bound the state: a session that never ends by itself is ended, and released on its worker."""
    at = stage(HOLDS_30_S, caps=Caps(idle_s=60.0))
    at.arrive("a", 0, 10)
    at.finish("a", 0, "w0", 10)
    at.wait(61.5)
    released = at.tell(ev.Tick(at.at_s))
    assert [(c.session, c.standing) for c in of(do.Release, released)] == [("a", do.Standing.ENDED)]
    assert len(at.scheduler.sessions) == 0


def test_the_number_of_sessions_is_capped(stage):
    """The least recently seen idle session makes room."""
    at = stage(HOLDS_30_S, caps=Caps(max_sessions=3))
    for index in range(10):
        at.arrive(f"s{index}", 0, 10)
        at.finish(f"s{index}", 0, "w0", 10)
    assert len(at.scheduler.sessions) <= 4


def test_a_session_at_work_for_long_keeps_no_others(stage):
    """A step that takes longer than everything after it does not switch the cap off."""
    at = stage(HOLDS_30_S, caps=Caps(max_sessions=3))
    at.arrive("long", 0, 10)
    for index in range(10):
        at.arrive(f"s{index}", 0, 10)
        at.finish(f"s{index}", 0, "w0", 10)
    assert len(at.scheduler.sessions) <= 4
    assert at.scheduler.sessions.get("long") is not None


def test_accounts_of_idle_tenants_are_closed_at_the_cap(stage):
    """A client that invents a tenant name per call cannot make the scheduler grow."""
    at = stage(HOLDS_30_S, caps=Caps(max_tenants=3))
    for index in range(20):
        at.arrive(f"s{index}", 0, 10, tenant=f"t{index}")
        at.finish(f"s{index}", 0, "w0", 10)
        at.end(f"s{index}")
    assert len(at.scheduler.accounts.tenants) <= 3


def test_a_late_cancel_of_a_step_in_a_backlog_takes_it_out(stage):
    """A step that waits behind another of its session can be cancelled, and its name used again."""
    at = stage(HOLDS_30_S)
    at.arrive("a", 0, 10)
    at.arrive("a", 1, 20)
    at.tell(ev.StepCancelled(at.at_s, "a/1"))
    assert dispatched(at.finish("a", 0, "w0", 10)) == []
    assert dispatched(at.arrive("a", 1, 20)) == [("a/1", "w0")]


def test_a_session_from_before_a_restart_goes_back_to_its_prefix(stage):
    """A driver that remembers where a new session's prefix lies is believed, unless that worker is gone."""
    at = stage(HOLDS_30_S, workers=3)
    assert dispatched(at.arrive("a", 7, 1_000, home="w2", home_tokens=900)) == [("a/7", "w2")]
    assert dispatched(at.arrive("b", 7, 1_000, home="w9", home_tokens=900)) == [("b/7", "w0")]


def test_a_session_that_waited_for_a_lost_worker_is_sent_elsewhere_once(stage):
    """It was let in elsewhere because its home is gone; it did not run there, so nothing is tried again."""
    at = stage(HOLDS_30_S, kv_tokens=10_000)
    at.arrive("a", 0, 4_000)
    at.finish("a", 0, "w0", 4_000)
    at.wait(31.0)
    at.arrive("b", 0, 8_500)
    assert of(do.Hold, at.arrive("a", 1, 4_200))
    at.tell(ev.WorkerJoined(at.at_s, "w1", 20_000))
    sent = dispatched(at.tell(ev.WorkerLost(at.at_s, "w0")))
    assert sorted(sent) == [("a/1", "w1"), ("b/0", "w1")]


def test_a_long_step_keeps_nobody_from_being_forgotten(stage):
    """Caps and ages count the idle sessions, whoever else is busy."""
    at = stage(HOLDS_30_S, caps=Caps(max_sessions=2, idle_s=60.0))
    at.arrive("long", 0, 10)
    for name in ("x", "y", "z"):
        at.arrive(name, 0, 10)
        at.finish(name, 0, "w0", 10)
    assert {session.session for session in at.scheduler.sessions} == {"long", "z"}
    at.wait(100.0)
    at.tell(ev.Tick(at.at_s))
    assert {session.session for session in at.scheduler.sessions} == {"long"}


@pytest.mark.parametrize("preset_name", ["saga", "vllm_apc"])
def test_a_prompt_that_fits_no_worker_that_came_blocks_nobody(stage, preset_name):
    """It waited for a first worker; the one that came is too small, so it is refused and the next one runs."""
    at = stage(preset_name, workers=0)
    at.arrive("huge", 0, 20_000)
    at.arrive("small", 0, 100)
    commands = at.tell(ev.WorkerJoined(at.at_s, "w0", 10_000))
    assert [c.step for c in of(do.Reject, commands)] == ["huge/0"]
    assert dispatched(commands) == [("small/0", "w0")]


def test_a_large_fleet_finds_its_one_large_worker(stage):
    """The short list of least loaded workers does not hide the only one that can hold the prompt."""
    at = stage(HOLDS_30_S, workers=18, kv_tokens=1_000)
    at.tell(ev.WorkerJoined(at.at_s, "big", 50_000))
    at.arrive("first", 0, 2_000)
    assert dispatched(at.arrive("second", 0, 3_000)) == [("second/0", "big")]


def test_when_the_head_gives_up_who_waits_behind_it_is_asked(stage):
    """A large prompt that is cancelled no longer blocks the small one that would have fitted."""
    at = stage(HOLDS_30_S, kv_tokens=10_000)
    at.arrive("a", 0, 6_000)
    at.arrive("large", 0, 5_000)
    assert of(do.Hold, at.arrive("small", 0, 500))
    assert dispatched(at.tell(ev.StepCancelled(at.at_s, "large/0"))) == [("small/0", "w0")]


def test_a_session_that_ends_refuses_the_steps_it_still_had(stage):
    """A held step always gets a Dispatch or a Reject, also when its session ends."""
    at = stage(HOLDS_30_S, kv_tokens=10_000)
    at.arrive("a", 0, 9_000)
    at.arrive("b", 0, 9_000)
    at.arrive("b", 1, 9_000)
    assert [c.step for c in of(do.Reject, at.end("b"))] == ["b/0", "b/1"]


def test_a_draining_worker_takes_nothing_new(stage):
    """What it has it finishes; its sessions go elsewhere at their next step."""
    at = stage(HOLDS_30_S, workers=2)
    at.arrive("a", 0, 10)
    at.tell(ev.WorkerDraining(at.at_s, "w0"))
    at.finish("a", 0, "w0", 10)
    assert dispatched(at.arrive("a", 1, 20)) == [("a/1", "w1")]
    assert dispatched(at.arrive("b", 0, 20)) == [("b/0", "w1")]


def test_steps_that_come_before_any_worker_wait_for_the_first(stage):
    """An empty fleet loses nothing."""
    for name in ("vllm_apc", "saga"):
        at = stage(name, workers=0)
        assert of(do.Hold, at.arrive("a", 0, 10))
        assert dispatched(at.tell(ev.WorkerJoined(at.at_s, "w9", 10_000))) == [("a/0", "w9")]
        assert at.scheduler.sessions.get("a").state is State.RUNNING


def told_parent(commands: list[do.Command], session: str) -> list[float]:
    """Steps to the session's next use, as its worker was told them."""
    return [c.steps_to_use for c in of(do.Release, commands) if c.session == session]


def test_a_call_goes_where_the_product_is_least(stage):
    """LMetric: a long prompt goes home in spite of the calls there, and away from it when they are too many."""
    at = stage("lmetric", workers=2, kv_tokens=100_000)
    at.arrive("a", 0, 9_000)
    at.finish("a", 0, "w0", 9_000)
    at.arrive("x", 0, 10)
    at.arrive("y", 0, 10)
    at.arrive("z", 0, 10)
    assert at.scheduler.fleet.get("w0").num_running == 2
    assert dispatched(at.arrive("a", 1, 10_000)) == [("a/1", "w0")]  # 990 x 3 at home, 10,000 x 2 away
    at.finish("a", 1, "w0", 10_000)
    at.tell(ev.BlocksRemoved(at.at_s, "w0", "a", 1_000))
    assert dispatched(at.arrive("a", 2, 10_000)) == [("a/2", "w1")]  # 9,000 x 3 at home, 10,000 x 2 away


def test_what_is_cached_while_a_call_waits_is_what_counts(stage):
    """SGLang: the longest match goes first, and an eviction during the wait costs a call its turn."""
    at = stage("sglang", kv_tokens=100_000)
    for name, tokens in (("long", 8_000), ("short", 2_000)):
        at.arrive(name, 0, tokens)
        at.finish(name, 0, "w0", tokens)
    at.arrive("other", 0, 10)
    first = {c.step: c.priority for n in ("long", "short") for c in of(do.Dispatch, at.arrive(n, 1, 9_000))}
    assert first["long/1"] < first["short/1"]
    at.tell(ev.BlocksRemoved(at.at_s, "w0", "long", 500))
    at.at_s += 1.0
    again = {c.step: c.priority for c in of(do.Reprioritize, at.finish("other", 0, "w0", 10))}
    assert list(again) == ["long/1"]  # nothing is told that has not changed
    assert first["short/1"] < again["long/1"]


def test_a_call_waits_no_longer_for_an_overcommitted_worker(stage):
    """Llumnix: when another worker has become free, the last that waits moves there, and nothing moves back."""
    at = stage("llumnix", workers=2, kv_tokens=10_000)
    for name in "abcdef":
        at.arrive(name, 0, 4_000)
    assert [w.num_running for w in at.scheduler.fleet] == [3, 3]
    for name in "ac":
        at.tell(ev.FirstToken(at.at_s, f"{name}/0", "w0"))
    for name in "bdf":
        at.finish(name, 0, "w1", 4_000)
    commands = at.wait(1.0)
    assert [(c.step, c.worker) for c in of(do.Preempt, commands)] == [("e/0", "w0")]
    assert dispatched(commands) == [("e/0", "w1")]
    assert dispatched(at.wait(10.0)) == []


def test_a_parent_is_as_many_steps_away_as_its_sub_agent_still_has(stage):
    """KVFlow: its prefix is further off while a child works, and one step away when that has ended."""
    at = stage("vllm_kvflow")
    for number in range(5):
        at.arrive(f"old{number}", 0, 100, workflow="child")
        for step in range(3):
            at.finish(f"old{number}", step, "w0", 100)
            at.arrive(f"old{number}", step + 1, 110, workflow="child")
        at.finish(f"old{number}", 3, "w0", 110, tool="")
        at.end(f"old{number}")
    at.arrive("parent", 0, 1_000)
    assert told_parent(at.finish("parent", 0, "w0", 1_000), "parent") == [1.0]
    (begun,) = told_parent(at.arrive("child", 0, 100, parent="parent", task="parent", workflow="child"), "parent")
    (later,) = told_parent(at.finish("child", 0, "w0", 100), "parent")
    at.arrive("child", 1, 110, parent="parent", task="parent", workflow="child")
    assert begun > later > 2.0
    assert told_parent(at.end("child"), "parent") == [1.0]


def test_a_forecast_that_is_not_sure_enough_is_as_good_as_none(stage):
    """Below min_confidence no policy sees it: a kind seen once is held like one never seen."""
    unsure = replace(preset("saga_paper"), min_confidence=1.0)
    held_s = []
    for composition in (unsure, replace(unsure, min_confidence=0.0)):
        at = stage(composition)
        for number in range(8):
            at.arrive(f"s{number}", 0, 100)
            at.finish(f"s{number}", 0, "w0", 100)
            at.wait(0.01)
            at.arrive(f"s{number}", 1, 110)
            (retained,) = of(do.Retain, at.finish(f"s{number}", 1, "w0", 110))
        held_s.append(retained.until_s - at.at_s)
    assert held_s[1] < held_s[0]


def test_a_program_is_paused_by_size_and_resumed_by_size(stage):
    """ThunderAgent: over the mark the shortest at a tool is paused; when room comes the shortest that waits is next."""
    at = stage("thunderagent", kv_tokens=10_000)
    for name, tokens in (("small", 1_000), ("middle", 2_000), ("large", 5_000)):
        at.arrive(name, 0, tokens)
        at.wait(0.1)
    at.finish("small", 0, "w0", 1_000, output_tokens=100)
    at.finish("middle", 0, "w0", 2_000, output_tokens=100)
    commands = at.finish("large", 0, "w0", 5_000, output_tokens=2_000)
    assert [c.session for c in of(do.Release, commands)] == ["small", "middle"]
    at.arrive("large", 1, 7_500)
    assert of(do.Hold, at.arrive("new", 0, 3_000))
    assert of(do.Hold, at.arrive("small", 1, 1_150))
    at.finish("large", 1, "w0", 7_500)
    assert dispatched(at.end("large")) == [("small/1", "w0"), ("new/0", "w0")]


def test_a_program_that_is_at_a_tool_for_long_holds_nobody_up(stage):
    """Its claim ends after 300 s, so that a parent cannot wait for a child that waits for its room."""
    at = stage("thunderagent", kv_tokens=10_000)
    at.arrive("parent", 0, 8_000)
    at.finish("parent", 0, "w0", 8_000)
    assert of(do.Hold, at.arrive("child", 0, 5_000, parent="parent"))
    assert dispatched(at.wait(301.0)) == [("child/0", "w0")]


URGENT = {"deadline_s": 20.0}


def crowd(at) -> None:
    """A call that has begun to answer, and behind it one that has not and is far more urgent."""
    for name in ("calm", "urgent"):
        for step in range(40):
            facts = URGENT if name == "urgent" else {"deadline_s": 10_000.0}
            at.arrive(name, step, 100, workflow=name, **facts)
            at.finish(name, step, "w0", 100)
    at.arrive("calm", 40, 100, workflow="calm")
    at.tell(ev.FirstToken(at.at_s, "calm/40", "w0"))
    at.arrive("urgent", 40, 100, workflow="urgent")


PREEMPTS = replace(preset("saga_paper"), min_confidence=0.0)


def test_after_half_a_second_a_blocked_call_takes_the_place_of_a_calmer_one(stage):
    """The calm call is taken back and goes into the same worker's queue, behind the one that it gave way to."""
    at = stage(PREEMPTS)
    crowd(at)
    assert at.wait(0.4) == []
    commands = at.wait(0.2)
    assert [(c.step, c.worker) for c in of(do.Preempt, commands)] == [("calm/40", "w0")]
    assert dispatched(commands) == [("calm/40", "w0")]


def test_a_call_gives_way_once(stage):
    """However long the other is blocked still, the calm call gets done."""
    at = stage(PREEMPTS)
    crowd(at)
    at.wait(0.6)
    at.tell(ev.FirstToken(at.at_s, "calm/40", "w0"))
    assert of(do.Preempt, at.wait(20.0)) == []
    at.finish("calm", 40, "w0", 100)


def test_what_prefills_is_not_blocked(stage):
    """Half a second counts from when its own prefill could have been over."""
    at = stage(PREEMPTS)
    crowd(at)
    at.tell(ev.StepCancelled(at.at_s, "urgent/40"))
    at.arrive("urgent", 41, 5_100, workflow="urgent", **URGENT)
    assert of(do.Preempt, at.wait(1.0)) == []
    assert [c.step for c in of(do.Preempt, at.wait(1.1))] == ["calm/40"]


def test_without_afs_nobody_is_preempted(stage):
    """The ablation leaves what runs alone."""
    at = stage("saga_no_afs")
    crowd(at)
    assert of(do.Preempt, at.wait(20.0)) == []


def tiered(stage):
    """A worker of 10,000 tokens with a host tier of 5,000; who is away for a minute is taken for gone."""
    at = stage(GONE_AFTER_60_S, workers=0)
    at.tell(ev.WorkerJoined(0.0, "w0", 10_000, host_kv_tokens=5_000))
    return at


def test_who_is_gone_without_a_word_keeps_nobody_out(stage):
    """Two contexts fill both tiers; a newcomer waits until one is long overdue, and the engine hears of it."""
    at = tiered(stage)
    at.arrive("gone", 0, 6_000)
    at.finish("gone", 0, "w0", 6_000)
    at.wait(31.0)
    at.arrive("away", 0, 6_000)
    at.finish("away", 0, "w0", 6_000)
    assert of(do.Hold, at.arrive("new", 0, 3_000))
    assert at.wait(28.5) == []
    commands = at.wait(1.0)
    assert [(c.session, c.standing, c.expected_use_s) for c in of(do.Release, commands)] == [("gone", "paused", None)]
    assert dispatched(commands) == [("new/0", "w0")]


def test_who_was_taken_for_gone_comes_home_and_counts_again(stage):
    """It is a newcomer at the gate, knows its home, and is expected as anybody else from then on."""
    at = tiered(stage)
    at.arrive("late", 0, 6_000)
    at.finish("late", 0, "w0", 6_000)
    worker = at.scheduler.fleet.get("w0")
    assert worker.live_tokens == 6_010
    at.wait(61.0)
    assert (worker.live_tokens, worker.num_live) == (0, 0)
    assert at.wait(1_000.0) == []
    (sent,) = of(do.Dispatch, at.arrive("late", 1, 6_100))
    assert "its prefix is here" in sent.reason
    assert worker.live_tokens >= 6_100
    at.finish("late", 1, "w0", 6_100)
    assert [c.reason for c in of(do.Release, at.wait(61.0))][-1:] == ["it is long overdue"]
    assert worker.live_tokens == 0


def test_a_session_that_moves_in_time_is_not_taken_for_gone(stage):
    """Each return, and each step that its client gave up, begins a new wait."""
    at = tiered(stage)
    worker = at.scheduler.fleet.get("w0")
    for step in range(4):
        at.arrive("a", step, 1_000)
        at.finish("a", step, "w0", 1_000)
        at.wait(40.0)
    at.arrive("a", 4, 1_000)
    at.wait(100.0)
    assert worker.num_live == 1
    at.tell(ev.StepCancelled(at.at_s, "a/4"))
    at.wait(59.0)
    assert worker.num_live == 1
    at.wait(2.0)
    assert worker.num_live == 0


def test_one_deadline_a_session_looks_for_the_overdue(stage):
    """Thousands of steps within the wait leave no more behind."""
    at = tiered(stage)
    for step in range(800):
        at.arrive("a", step, 1_000)
        at.finish("a", step, "w0", 1_000)
        at.wait(0.01)
    looks = [entry for entry in at.scheduler.deadlines._heap if entry[2] is Due.OVERDUE]
    assert len(looks) == 1


def test_pinned_memory_lets_nobody_in_until_the_pin_expires(stage):
    """Continuum: a newcomer waits for the room of a session at a quick tool, which is back in time or loses it."""
    at = stage("continuum", kv_tokens=10_000)
    for number in range(60):
        at.arrive("taught", number, 3_000)
        at.tell(ev.FirstToken(at.at_s, f"taught/{number}", "w0"))
        at.finish("taught", number, "w0", 3_000)
        at.wait(0.2)
    at.end("taught")
    at.arrive("a", 0, 8_000)
    at.tell(ev.FirstToken(at.at_s, "a/0", "w0"))
    (pin,) = of(do.Retain, at.finish("a", 0, "w0", 8_000))
    assert 0.2 < pin.until_s - at.at_s < 8_000 / 5_000
    assert of(do.Hold, at.arrive("new", 0, 4_000))
    assert dispatched(at.wait(0.1)) == []
    assert dispatched(at.wait(2.0)) == [("new/0", "w0")]


def test_a_speed_that_a_worker_measured_is_what_its_prefixes_come_back_at(stage):
    """It holds from the first report that has one; reports without one change nothing."""
    scene = stage()
    for number, measured in enumerate((0.0, 50_000.0, 0.0)):
        scene.tell(ev.WorkerReported(scene.at_s, "w0", 0, 0, 0, measured))
        scene.arrive("a", number, 1_000)
        scene.finish("a", number, "w0", 1_000)
        worker = scene.scheduler.fleet.get("w0")
        assert worker.prefill_tokens_per_s == (50_000.0 if number else 5_000.0)
