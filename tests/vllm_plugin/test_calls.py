"""Who goes before whom: tenants by quanta of service, then priorities, then ages."""

from __future__ import annotations

from saga.fairness.agent_fair_share import NoShares, WeightedService
from saga.vllm_plugin.calls import Call, Calls
from saga.vllm_plugin.hints import Hints
from saga.vllm_plugin.sessions import Session, SessionKey


def add(calls, name, *, tenant="", step="", priority=0, at_s=0.0, session=None):
    """A call in the queue."""
    call = Call(name, Hints(tenant=tenant, step=step), session, priority, at_s)
    calls.add(call)
    return call


def test_priority_then_arrival_of_the_task():
    """Negative, large and equal priorities; a session's calls are as old as its task."""
    calls = Calls(NoShares(), {})
    old = Session(SessionKey("", "", "old"), at_s=1.0)
    ordered = [
        add(calls, "urgent", priority=-(10**30), at_s=9.0),
        add(calls, "negative", priority=-1, at_s=9.0),
        add(calls, "old", at_s=9.0, session=old),
        add(calls, "young", at_s=2.0),
        add(calls, "late", priority=1),
        add(calls, "never", priority=10**30),
    ]
    places = [calls.place(call) for call in ordered]
    assert places == sorted(places)
    assert len(set(places)) == 6


def test_a_tenant_that_is_a_quantum_ahead_goes_behind():
    """Whatever the priorities; by weight; and places move only when it is settled."""
    calls = Calls(WeightedService(), {"heavy": 1.0, "paying": 10.0})
    heavy, paying, light = (
        add(calls, name, tenant=name, priority=at) for at, name in enumerate(["heavy", "paying", "light"])
    )
    for call in (heavy, paying):
        calls.charge(call, 25_000, 0)
    before = [calls.place(call) for call in (heavy, paying, light)]
    assert before == sorted(before)
    assert calls.settle()
    after = {call.name: calls.place(call) for call in (heavy, paying, light)}
    assert sorted(after, key=after.__getitem__) == ["paying", "light", "heavy"]
    assert not calls.settle()


def test_a_single_tenant_has_no_quanta():
    """However much it had: new calls and old ones compare by priority and age."""
    calls = Calls(WeightedService(), {})
    first = add(calls, "first", at_s=1.0)
    place = calls.place(first)
    calls.charge(first, 10**9, 10**6)
    assert not calls.settle()
    assert calls.place(first) == place < calls.place(add(calls, "second", at_s=2.0))


def test_the_coordinators_priorities_replace_the_calls_own():
    """Known steps only, and only the last word."""
    calls = Calls(NoShares(), {})
    call = add(calls, "a", step="x", priority=5)
    assert calls.order({"x": -3, "y": 1}) == 1
    assert (call.priority, calls.settle(), calls.settle()) == (-3, True, False)
    assert calls.order({"y": 1}) == 0


def test_a_call_that_ended_leaves_nothing():
    """Not its step, unless another call of that name took it over, nor its tenant's quanta."""
    calls = Calls(WeightedService(), {})
    first, again = add(calls, "a", step="x", tenant="t"), add(calls, "b", step="x", tenant="t")
    other = add(calls, "c", tenant="o")
    calls.charge(first, 50_000, 0)
    calls.settle()
    calls.end(first)
    assert calls.order({"x": 1}) == 1
    calls.end(again)
    calls.end(other)
    assert len(calls) == 0
    assert list(calls) == []
    assert (calls._by_step, calls._num_calls, calls._quanta) == ({}, {}, {})
