"""What is told: changes only, bounded, each once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from saga.vllm_plugin.contracts import Finished, Held
from saga.vllm_plugin.reports import Reporter, leading_blocks
from saga.vllm_plugin.sessions import Session, SessionKey, SessionTable


def session(number):
    """A session that holds as many tokens as its number."""
    made = Session(SessionKey("", "", str(number)))
    made.context_tokens = number
    return made


def reporter():
    """Device tokens are the session's context, host tokens twice that."""
    return Reporter(lambda each: each.context_tokens, lambda each: 2 * each.context_tokens)


@given(total=st.integers(0, 300), held=st.integers(0, 300))
def test_a_front_is_counted_in_few_questions(total, held):
    """Binary search finds where what is resident ends."""
    held = min(held, total)
    asked = []

    def resident(at):
        asked.append(at)
        return at < held

    assert leading_blocks(total, resident) == held
    assert len(asked) <= 9


def test_only_what_changed_is_told_and_once():
    """A session of which the same is held as was told is not told again."""
    reports, one = reporter(), session(5)
    reports.changed([one, one])
    assert reports.take_held() == (Held("5", 5, 10),)
    reports.changed([one])
    assert reports.take_held() == ()
    one.context_tokens = 0
    reports.changed([one])
    assert reports.take_held() == (Held("5", 0, 0),)


def test_nothing_is_said_of_a_session_whose_hashes_were_dropped():
    """Not that its prefix is gone, which nobody knows; with its next call it is known again."""
    sessions = SessionTable(max_sessions=10, max_tokens=100, max_hashes=10, capacity_tokens=1_000)
    reports = Reporter(lambda each: len(each.block_hashes), lambda _: 0)
    one, two = (sessions.use(SessionKey("", "", name), 0.0) for name in ("one", "two"))
    sessions.remember(one, [], [b"h"] * 6)
    reports.changed([one])
    assert reports.take_held() == (Held("one", 6, 0),)
    sessions.remember(two, [], [b"h"] * 6)
    reports.changed([one])
    assert reports.take_held() == ()
    sessions.remember(one, [], [b"h"] * 11)
    reports.changed([one])
    assert reports.take_held() == ()
    sessions.remember(one, [], [b"h"] * 3)
    reports.changed([one])
    assert reports.take_held() == (Held("one", 3, 0),)
    sessions.forget(one)
    reports.changed([one])
    assert reports.take_held() == (Held("one", 0, 0),)


def test_a_report_is_bounded_and_the_rest_follows():
    """Thousands of changes at once do not make a long step."""
    reports = reporter()
    reports.changed(session(at + 1) for at in range(600))
    assert [len(reports.take_held()) for _ in range(4)] == [256, 256, 88, 0]


def test_steps_are_told_once_and_a_deaf_coordinator_costs_no_memory():
    """The oldest go where nobody takes them."""
    reports = reporter()
    for at in range(25_000):
        reports.finished(Finished(str(at), "s", 1, 1))
    steps = reports.take_finished()
    assert 5_000 <= len(steps) <= 10_000
    assert steps[-1].step == "24999"
    assert reports.take_finished() == ()


def test_clearing_leaves_nothing():
    """For when nobody listens any more."""
    reports = reporter()
    reports.changed([session(1)])
    reports.finished(Finished("x", "s", 1, 1))
    reports.clear()
    assert (reports.take_held(), reports.take_finished()) == ((), ())
