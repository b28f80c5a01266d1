"""How sessions stand: by their calls' hints, the coordinator's orders, and the clock."""

from __future__ import annotations

from math import inf

import pytest

from saga.commands import Standing
from saga.vllm_plugin.contracts import Outcome, Release, Retain
from saga.vllm_plugin.hints import Hints, Ignored
from saga.vllm_plugin.retention import Retention
from saga.vllm_plugin.sessions import Session, SessionKey


def made(**more):
    """A retention, one session, and whom it told of changes."""
    told: list[Session] = []
    settings = {"factor": 4.0, "max_s": 100.0} | more
    return Retention(told.append, Ignored(lambda: 0.0), **settings), Session(SessionKey("", "", "s"), at_s=7.0), told


def facts(session):
    """What a policy sees."""
    return session.standing, session.expected_use_s


def test_a_waiting_call_makes_its_session_due():
    """Active, expected since ever, as old as its task: it leaves last, the youngest first."""
    retention, session, told = made()
    retention.came(session)
    assert facts(session) == ("active", -inf)
    assert session.task_arrival_s == 7.0
    assert told == [session]


def test_a_session_of_which_nothing_is_said_stays_unknown():
    """As in stock vLLM; its age says nothing then."""
    retention, session, _ = made()
    retention.came(session)
    retention.left(session, Hints(), 10.0)
    assert facts(session) == ("unknown", inf)
    assert session.task_arrival_s == 0.0
    assert not retention.is_retained(session)


@pytest.mark.parametrize(("probability", "expected_s"), [(None, 15.0), (1.0, 15.0), (0.5, 20.0), (0.01, 510.0)])
def test_hints_alone_retain_until_a_multiple_of_the_gap(probability, expected_s):
    """Expected after the gap, later the less likely it is; paused after four gaps."""
    retention, session, _ = made()
    retention.left(session, Hints(continue_probability=probability, expected_gap_s=5.0), 10.0)
    assert facts(session) == ("active", expected_s)
    assert session.until_s == 30.0
    retention.tick(29.9)
    assert retention.retained == (session,)
    retention.tick(30.0)
    assert facts(session) == (Standing.PAUSED, expected_s)
    assert retention.retained == ()


def test_a_session_that_surely_ends_has_ended():
    """Probability 0 is a word."""
    retention, session, _ = made()
    retention.left(session, Hints(continue_probability=0.0, expected_gap_s=5.0), 10.0)
    assert session.standing == Standing.ENDED


def test_the_coordinators_word_is_kept_and_clipped_to_the_engines_bound():
    """Retain without an end lasts as long as the engine allows anybody."""
    retention, session, _ = made()
    assert retention.retain(session, Retain("s", 20.0, 4.0, 0.7), 10.0) == (Outcome.ACCEPTED, "")
    assert (*facts(session), session.until_s, session.reuse_probability) == ("active", 14.0, 30.0, 0.7)
    assert retention.retain(session, Retain("s", 500.0), 10.0)[0] is Outcome.CLIPPED
    assert retention.retain(session, Retain("s"), 10.0) == (Outcome.ACCEPTED, "")
    assert session.until_s == 110.0


def test_a_new_order_replaces_the_old_deadline():
    """The earlier deadline of a session that was retained again does nothing."""
    retention, session, _ = made()
    retention.retain(session, Retain("s", 5.0), 0.0)
    retention.retain(session, Retain("s", 50.0), 1.0)
    retention.tick(20.0)
    assert retention.is_retained(session)
    retention.tick(51.0)
    assert not retention.is_retained(session)


def test_a_deadline_in_the_past_is_refused():
    """Nothing changes by it."""
    retention, session, told = made()
    outcome, why = retention.retain(session, Retain("s", 0.0), 10.0)
    assert (outcome, "in the past" in why, told) == (Outcome.REFUSED, True, [])


def test_a_release_lets_go_at_once():
    """Whatever standing it names, with what is known of its return."""
    retention, session, _ = made()
    retention.retain(session, Retain("s", 50.0), 0.0)
    assert retention.release(session, Release("s", Standing.PAUSED, 30.0), 10.0)[0] is Outcome.ACCEPTED
    assert facts(session) == (Standing.PAUSED, 40.0)
    assert (retention.retained, session.until_s) == ((), inf)


def test_orders_for_a_session_at_work_change_nothing():
    """Its call came first; how it stands is said anew when that ends."""
    retention, session, _ = made()
    session.num_running = 1
    retention.came(session)
    assert retention.retain(session, Retain("s", 5.0), 0.0)[0] is Outcome.ACCEPTED
    assert retention.release(session, Release("s", Standing.ENDED), 0.0)[0] is Outcome.ACCEPTED
    assert facts(session) == ("active", -inf)


def test_a_call_that_comes_ends_the_retention():
    """The deadline of a session that came back is none."""
    retention, session, _ = made()
    retention.retain(session, Retain("s", 5.0), 0.0)
    retention.came(session)
    retention.tick(10.0)
    assert facts(session) == ("active", -inf)


def test_deadlines_do_not_grow_with_orders():
    """A session that is retained ten thousand times has few entries."""
    retention, session, _ = made()
    for at in range(10_000):
        retention.retain(session, Retain("s", 5.0), float(at))
    assert len(retention._deadlines) < 200
