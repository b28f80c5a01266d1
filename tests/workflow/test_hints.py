"""Hints: followed while they come true, unlearned when they do not, trusted again slowly."""

from __future__ import annotations

import pytest

from saga.errors import UsageError
from saga.events import Hints
from saga.workflow.forecast import Forecast
from saga.workflow.hints import (
    FIELDS,
    FINAL,
    GAP,
    NEXT_TOOLS,
    REMAINING,
    TRUSTED_FROM,
    HintTrust,
    declared_edges,
    near,
    near_gap,
    near_steps,
)
from saga.workflow.model import WorkflowModel


def session(model: WorkflowModel, hints: Hints | None, *, gap_s: float = 1.0, num_steps: int = 3) -> None:
    """A session whose every step carries the same hints, and calls Read until its last."""
    track = model.open("coder")
    for step in range(num_steps):
        model.step_arrived(
            track,
            gap_s=gap_s if step else None,
            gap_kind="tool",
            prompt_tokens=1000,
            common_tokens=None,
            hints=hints,
        )
        tools = ("Read",) if step < num_steps - 1 else ()
        model.step_finished(track, tool_calls=tools, output_tokens=50, prompt_tokens=1000)
    model.session_ended(track)


def asked(model: WorkflowModel, hints: Hints | None, *, running: bool = False) -> Forecast:
    """The forecast after the first step of a session with these hints."""
    track = model.open("coder")
    model.step_arrived(track, gap_s=None, gap_kind="tool", prompt_tokens=1000, common_tokens=None, hints=hints)
    if not running:
        model.step_finished(track, tool_calls=("Read",), output_tokens=50, prompt_tokens=1000)
    return model.forecast(track)


def taught(num_sessions: int = 40) -> WorkflowModel:
    """A model that knows the kind without hints."""
    model = WorkflowModel()
    for _ in range(num_sessions):
        session(model, None)
    return model


def test_a_trusted_hint_overrides() -> None:
    """A client that never lied is believed: about the gap, the end, what remains."""
    model = taught()
    assert asked(model, None).expected_gap_s < 3.0
    assert asked(model, Hints(gap_s=200.0)).expected_gap_s == pytest.approx(200.0, rel=0.2)
    assert asked(model, Hints(final=True)).continue_probability < 0.2
    assert asked(model, Hints(remaining_steps=17)).remaining_steps == 17.0


def test_tools_said_in_advance_give_the_gap_while_the_step_runs() -> None:
    """Before the answer is there, hinted tools say which gap follows."""
    model = WorkflowModel()
    for _ in range(40):
        track = model.open("coder")
        for tool, gap_s in (("Read", None), ("Bash", 0.1), ("Read", 60.0)):
            model.step_arrived(track, gap_s=gap_s, gap_kind="tool", prompt_tokens=1000, common_tokens=None, hints=None)
            model.step_finished(track, tool_calls=(tool,), output_tokens=50, prompt_tokens=1000)
        model.session_ended(track)
    assert asked(model, Hints(next_tools=("Bash",)), running=True).expected_gap_s > 30.0
    assert asked(model, Hints(next_tools=("Read",)), running=True).expected_gap_s < 1.0


def test_wrong_hints_lose_their_say() -> None:
    """After a few wrong gaps and ends the learned forecast is back."""
    model = taught()
    for _ in range(10):
        session(model, Hints(gap_s=500.0, final=True, next_tools=("Grep",), remaining_steps=50))
    for name in (GAP, FINAL, NEXT_TOOLS, REMAINING):
        assert model.trust("coder", name) < TRUSTED_FROM
    plain = asked(model, None)
    hinted = asked(model, Hints(gap_s=500.0, final=True, remaining_steps=50))
    assert hinted.expected_gap_s == pytest.approx(plain.expected_gap_s, rel=1e-3)
    assert hinted.continue_probability == pytest.approx(plain.continue_probability, rel=1e-3)
    assert hinted.remaining_steps == pytest.approx(plain.remaining_steps, rel=1e-3)


def test_true_hints_keep_their_say() -> None:
    """A client that is right stays believed."""
    model = taught()
    for _ in range(20):
        session(model, Hints(gap_s=1.5))
    assert model.trust("coder", GAP) > 0.9


def test_a_false_end_is_discounted_in_its_session() -> None:
    """Within one session, "final" that was followed by a step is not believed the second time."""
    model = taught()
    track = model.open("coder")
    chances = []
    for step in range(3):
        model.step_arrived(
            track,
            gap_s=1.0 if step else None,
            gap_kind="tool",
            prompt_tokens=1000,
            common_tokens=None,
            hints=Hints(final=True),
        )
        model.step_finished(track, tool_calls=("Read",), output_tokens=50, prompt_tokens=1000)
        chances.append(model.forecast(track).continue_probability)
    assert chances[0] < 0.2 < chances[1]


def test_a_hint_speaks_of_its_own_step_only() -> None:
    """A gap hinted for one step says nothing about the next step's gap."""
    model = taught()
    track = model.open("coder")
    for step, hints in enumerate((Hints(gap_s=200.0), None)):
        model.step_arrived(
            track,
            gap_s=200.0 if step else None,
            gap_kind="tool",
            prompt_tokens=1000,
            common_tokens=None,
            hints=hints,
        )
        model.step_finished(track, tool_calls=("Read",), output_tokens=50, prompt_tokens=1000)
    assert model.forecast(track).expected_gap_s < 20.0


def test_trust_is_lost_faster_than_regained() -> None:
    """The misses that lost it need several times as many hits to be forgiven."""
    trust, misses, hits = HintTrust(), 0, 0
    while trust.trust(GAP) >= TRUSTED_FROM:
        trust.judge(GAP, right=False)
        misses += 1
    for _ in range(10):
        trust.judge(GAP, right=False)
    while trust.trust(GAP) < TRUSTED_FROM:
        trust.judge(GAP, right=True)
        hits += 1
    assert misses <= 4
    assert hits > 2 * misses


def test_trust_goes_by_field() -> None:
    """Wrong gaps do not cost the client its word about tools."""
    trust = HintTrust()
    for _ in range(10):
        trust.judge(GAP, right=False)
    assert trust.trust(GAP) < TRUSTED_FROM < trust.trust(NEXT_TOOLS)


def test_a_record_comes_back() -> None:
    """Trust survives a snapshot."""
    trust, copy = HintTrust(), HintTrust()
    for name in FIELDS:
        trust.judge(name, right=name == GAP)
    copy.restore(trust.snapshot())
    assert [copy.trust(name) for name in FIELDS] == [trust.trust(name) for name in FIELDS]


def test_what_counts_as_right() -> None:
    """Factor three for amounts, two steps or a factor of 1.5 for lengths, tiny gaps always."""
    assert near(100, 290)
    assert not near(100, 310)
    assert near_gap(0.001, 0.04)
    assert not near_gap(1.0, 4.0)
    assert near_steps(5, 7)
    assert near_steps(30, 20)
    assert not near_steps(31, 20)


@pytest.mark.parametrize(
    ("edge", "complaint"),
    [
        ("Edit", "edge 0: 'Edit' is no edge"),
        ({"from": "Edit"}, "edge 0: to = None must be the name of a node"),
        ({"from": "", "to": "x"}, "edge 0: from = '' must be the name"),
        ({"from": "a", "to": "b", "weight": 0}, "edge 0: weight = 0 must be a number from 1"),
        ({"from": "a", "to": "b", "p": 1}, "edge 0: unknown field 'p'"),
    ],
)
def test_a_bad_edge_is_named(edge: object, complaint: str) -> None:
    """The error says which kind, which edge, which field and what would be right."""
    with pytest.raises(UsageError, match=complaint):
        declared_edges("flow", [edge])
