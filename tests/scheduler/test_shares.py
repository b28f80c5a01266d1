"""The scheduler between tenants: who stands back for whom, and what everything costs, told as short scenes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from saga import commands as do
from saga import events as ev
from saga.cache.ttl import FixedTtl
from saga.fairness.start_time_fair import StartTimeFair
from saga.presets import preset
from saga.scheduler.composition import Caps

from .conftest import dispatched, of

SHARES = StartTimeFair(window_s=2.0, tie_s=0.0, advance_s=0.0)
SOON = replace(preset("saga"), retention=FixedTtl(30.0), tenants=SHARES, forecasts=False)


def finish(at, session, step, seconds):
    """The step is answered, after so many device seconds; 4,000 tokens of prompt."""
    return at.tell(ev.StepFinished(at.at_s, f"{session}/{step}", "w0", 4_000, 10, service_s=seconds))


def crowd(stage, **settings):
    """Two sessions of tenant `greedy` fill the worker."""
    at = stage(SOON, kv_tokens=10_000, **settings)
    for name in ("a", "b"):
        at.arrive(name, 0, 4_000, tenant="greedy")
    return at


def test_a_tenant_within_the_window_keeps_its_places(stage):
    """One second ahead of a tenant that waits, with a window of two: the session is held across its gap."""
    at = crowd(stage)
    at.arrive("c", 0, 4_000, tenant="modest")
    assert of(do.Retain, finish(at, "a", 0, 1.0))


def test_a_tenant_beyond_the_window_gives_a_place_up_to_one_that_waits(stage):
    """Three seconds ahead, its session is not held at the end of the step, and the other tenant's is let in."""
    at = crowd(stage)
    at.arrive("c", 0, 4_000, tenant="modest")
    commands = finish(at, "a", 0, 3.0)
    assert [c.reason for c in of(do.Release, commands)] == ["its tenant is ahead of one that waits"]
    assert dispatched(commands) == [("c/0", "w0")]


def test_who_is_ahead_stands_back_even_where_it_would_fit(stage):
    """A returning session whose prefix is at hand waits while another tenant's, too large for now, waits for room."""
    at = crowd(stage)
    at.arrive("large", 0, 8_000, tenant="modest")
    finish(at, "a", 0, 3.0)
    assert of(do.Hold, at.arrive("a", 1, 4_000, tenant="greedy"))
    commands = finish(at, "b", 0, 1.0)
    assert dispatched(commands) == [("large/0", "w0")]


def test_one_tenant_alone_never_stands_back(stage):
    """However much it was served, its own sessions at the gate do not end its places."""
    at = crowd(stage)
    at.arrive("c", 0, 4_000, tenant="greedy")
    assert of(do.Retain, finish(at, "a", 0, 1_000.0))


def test_who_is_owed_enters_though_the_host_tier_is_full(stage):
    """New sessions wait while live contexts overflow both tiers, but not those that others stand back for."""
    at = stage(SOON, workers=0)
    at.tell(ev.WorkerJoined(0.0, "w0", 10_000, host_kv_tokens=1_000, load_tokens_per_s=50_000.0))
    for name in ("a", "b"):
        at.arrive(name, 0, 4_000, tenant="greedy")
    assert of(do.Hold, at.arrive("c", 0, 4_000, tenant="modest"))
    finish(at, "b", 0, 0.0)
    commands = finish(at, "a", 0, 3.0)
    assert ("c/0", "w0") in dispatched(commands)


def test_memory_kept_across_a_gap_is_charged_for_its_part_of_the_device(stage):
    """4,010 of 10,000 tokens for ten seconds are 4.01 device seconds."""
    at = crowd(stage)
    finish(at, "a", 0, 1.0)
    at.wait(10.0)
    at.arrive("a", 1, 4_000, tenant="greedy")
    assert at.scheduler.accounts.tenants["greedy"].attained_s == pytest.approx(1.0 + 4.01)


@pytest.mark.parametrize("how", ["cancelled", "ended"])
def test_a_step_that_is_broken_off_is_paid_for(stage, how):
    """Cancelling the step or ending the session just before the answer charges prefill and half of the batch."""
    at = crowd(stage)
    at.at_s = 10.0
    if how == "cancelled":
        at.tell(ev.StepCancelled(10.0, "a/0"))
    else:
        at.end("a")
    assert at.scheduler.accounts.tenants["greedy"].attained_s == pytest.approx(4_000 / 5_000 + 10.0 / 2)


def test_a_step_lost_with_its_worker_costs_nothing(stage):
    """What the fleet lost is not the tenant's to pay, and what was charged in advance is given back."""
    at = stage(replace(SOON, tenants=replace(SHARES, advance_s=5.0)), workers=2)
    at.arrive("a", 0, 4_000, tenant="greedy")
    at.at_s = 10.0
    at.tell(ev.WorkerLost(10.0, "w0"))
    tenant = at.scheduler.accounts.tenants["greedy"]
    assert (tenant.attained_s, tenant.advanced_s) == (0.0, 5.0)
    at.tell(ev.WorkerLost(10.0, "w1"))
    assert (tenant.attained_s, tenant.advanced_s) == (0.0, 0.0)


def test_a_flood_does_not_keep_others_from_waiting(stage):
    """With the gate full of one tenant's sessions its next one is rejected, another tenant's is held."""
    at = crowd(stage, caps=Caps(max_waiting=2))
    for name in ("c", "d"):
        at.arrive(name, 0, 4_000, tenant="greedy")
    assert of(do.Reject, at.arrive("e", 0, 4_000, tenant="greedy"))
    assert of(do.Hold, at.arrive("f", 0, 4_000, tenant="modest"))


def test_when_contexts_outgrow_the_device_the_tenant_that_had_most_is_paused(stage):
    """The older task is paused first if its tenant was served more."""
    at = stage(SOON, kv_tokens=10_000)
    at.arrive("old", 0, 3_000, tenant="greedy")
    at.arrive("young", 0, 3_000, tenant="modest")
    at.arrive("grows", 0, 3_000, tenant="modest")
    for name, seconds in (("old", 2.0), ("young", 0.5)):
        at.tell(ev.StepFinished(0.0, f"{name}/0", "w0", 3_000, 10, service_s=seconds))
    commands = at.tell(ev.StepFinished(0.0, "grows/0", "w0", 3_000, 3_000, service_s=0.5))
    commands += at.arrive("grows", 1, 6_500, tenant="modest")
    assert next(c.session for c in of(do.Release, commands)) == "old"


def test_who_is_away_makes_room_for_a_tenant_that_had_less(stage):
    """A session at its tool, of a tenant well ahead, loses its place to one that fits into it, at once."""
    at = stage(replace(SOON, tenants=replace(SHARES, window_s=100.0, away_s=2.0)), kv_tokens=10_000)
    at.arrive("m", 0, 10, tenant="modest")
    for name in ("a", "b"):
        at.arrive(name, 0, 4_000, tenant="greedy")
    finish(at, "a", 0, 3.0)
    commands = at.arrive("c", 0, 4_000, tenant="modest")
    assert [c.session for c in of(do.Release, commands)] == ["a"]
    assert dispatched(commands) == [("c/0", "w0")]


def test_who_is_away_keeps_its_place_where_giving_it_up_would_not_help(stage):
    """Nothing is paused for a session that would not fit all the same, nor for a tenant that is not far behind."""
    at = stage(replace(SOON, tenants=replace(SHARES, window_s=100.0, away_s=2.0)), kv_tokens=10_000)
    at.arrive("m", 0, 10, tenant="modest")
    for name in ("a", "b"):
        at.arrive(name, 0, 4_000, tenant="greedy")
    finish(at, "a", 0, 1.0)
    assert not of(do.Release, at.arrive("near", 0, 4_000, tenant="modest"))
    finish(at, "b", 0, 3.0)
    at.arrive("b", 1, 4_000, tenant="greedy")
    assert not of(do.Release, at.arrive("large", 0, 9_000, tenant="modest"))
