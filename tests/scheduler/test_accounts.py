"""Accounts of tenants: level, weighted, bounded."""

from __future__ import annotations

import pytest

from saga.events import StepFinished
from saga.scheduler.accounts import Accounts, service_s
from saga.views import WorkerView


def test_an_idle_tenant_rejoins_level_with_the_least_served():
    """A tenant that slept while others worked does not get all of that time back at once."""
    accounts = Accounts({}, 10)
    accounts.join("sleeper")
    accounts.leave("sleeper")
    for name, seconds in (("busy", 100.0), ("busier", 300.0)):
        accounts.join(name)
        accounts.charge(name, seconds)
    accounts.join("sleeper")
    assert accounts.tenants["sleeper"].attained_s == 100.0


def test_to_rejoin_level_is_measured_per_weight():
    """A tenant of weight 3 is level at three times the seconds."""
    accounts = Accounts({"big": 3.0}, 10)
    accounts.join("small")
    accounts.charge("small", 10.0)
    accounts.join("big")
    assert accounts.tenants["big"].attained_s == 30.0


def test_nobody_is_set_back_by_sleeping():
    """A tenant that had more than all others keeps its debt."""
    accounts = Accounts({}, 10)
    accounts.join("greedy")
    accounts.charge("greedy", 500.0)
    accounts.leave("greedy")
    accounts.join("other")
    accounts.join("greedy")
    assert accounts.tenants["greedy"].attained_s == 500.0


def test_using_an_empty_fleet_is_no_debt():
    """A tenant that worked alone for long is level with one that comes when it is gone."""
    accounts = Accounts({}, 10)
    accounts.join("first")
    accounts.charge("first", 1e6)
    accounts.leave("first")
    accounts.join("second")
    accounts.join("first")
    assert accounts.tenants["second"].attained_s == accounts.tenants["first"].attained_s


def test_open_accounts_are_never_closed_by_the_cap():
    """Only tenants without a session go."""
    accounts = Accounts({}, 2)
    for name in "abcd":
        accounts.join(name)
    assert set(accounts.tenants) == set("abcd")


def test_measured_seconds_win_over_the_estimate():
    """Where the engine says what a step cost, that is charged; else new and written tokens are."""
    worker = WorkerView("w", 0, 1_000)
    worker.prefill_tokens_per_s = 100.0
    step = StepFinished(0.0, "s/0", "w", 1_000, 10, cached_tokens=700, host_tokens=100)
    assert service_s(step, worker) == pytest.approx((200 + 8 * 10) / 100.0)
    assert service_s(StepFinished(0.0, "s/0", "w", 1_000, 10, service_s=1.5), worker) == 1.5


def test_who_asks_for_little_banks_nothing():
    """A tenant whose one session stays open is level with the least served at its next step, not behind it for ever."""
    accounts = Accounts({}, 10)
    for name in ("patient", "busy"):
        accounts.join(name)
    accounts.charge("busy", 100.0)
    accounts.serve("busy", ())
    accounts.level("patient")
    assert accounts.tenants["patient"].attained_s == 100.0


def test_time_does_not_pass_the_least_served_that_waits():
    """While a tenant waits, serving another one costs it none of what it is owed."""
    accounts = Accounts({"waiting": 2.0}, 10)
    for name in ("waiting", "served"):
        accounts.join(name)
    accounts.charge("served", 100.0)
    accounts.charge("waiting", 20.0)
    accounts.serve("served", [accounts.tenants["waiting"]])
    accounts.level("waiting")
    assert accounts.tenants["waiting"].attained_s == 20.0
    accounts.join("newcomer")
    assert accounts.tenants["newcomer"].attained_s == 10.0


def test_the_cap_forgives_last_who_had_more_than_others():
    """Of the idle accounts those are closed that would rejoin level; the others only where there are none such."""
    accounts = Accounts({}, 3)
    for name in ("level", "ahead", "worker"):
        accounts.join(name)
    accounts.charge("ahead", 500.0)
    accounts.leave("ahead")
    accounts.leave("level")
    accounts.join("new")
    assert sorted(accounts.tenants) == ["ahead", "new", "worker"]
    accounts.join("newer")
    assert "ahead" not in accounts.tenants


def test_new_weights_count_as_if_they_had_always_been_so():
    """Nobody falls behind, or gets ahead of, those that wait because its weight was changed."""
    accounts = Accounts({"t": 1.0}, 10)
    accounts.join("t")
    accounts.charge("t", 100.0)
    accounts.reweigh({"t": 4.0, "later": 2.0})
    assert (accounts.tenants["t"].attained_s, accounts.tenants["t"].weight) == (400.0, 4.0)
    accounts.join("later")
    assert accounts.tenants["later"].weight == 2.0
