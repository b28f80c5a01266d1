"""Laws of the gap model: it is a distribution, conditions like one, and stays robust."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.workflow.gaps import EDGES_S, NUM_BINS, GapModel, bin_of

gaps_s = st.floats(min_value=0.0, max_value=1e7)
samples = st.lists(gaps_s, max_size=60)
times_s = st.floats(min_value=0.0, max_value=9e5)


def taught(gaps: list[float], parent: GapModel | None = None) -> GapModel:
    """A model that has seen these gaps."""
    model = GapModel(parent)
    for gap_s in gaps:
        model.observe(gap_s)
    return model


@given(gaps_s)
def test_a_gap_falls_in_the_bin_that_holds_it(gap_s: float) -> None:
    """Each gap lies between the edges of its bin, those beyond the range in the last one."""
    index = bin_of(gap_s)
    assert 0 <= index < NUM_BINS
    if gap_s < EDGES_S[-1]:
        assert EDGES_S[index] <= gap_s * (1 + 1e-9)
        assert gap_s <= EDGES_S[index + 1] * (1 + 1e-9)


@given(samples)
def test_survival_falls_from_one_to_zero(gaps: list[float]) -> None:
    """The curve never rises, starts at one and ends at nothing, whatever was seen."""
    edges, survival = taught(gaps).curve()
    assert len(edges) == len(survival) == NUM_BINS + 1
    assert survival[0] == 1.0
    assert survival[-1] == 0.0
    assert all(later <= earlier for earlier, later in pairwise(survival))


@given(samples, times_s, times_s)
def test_conditional_survival_is_a_ratio(gaps: list[float], waited_s: float, further_s: float) -> None:
    """P(X > t | X > w) P(X > w) = P(X > t)."""
    model = taught(gaps)
    t_s = waited_s + further_s
    joint = model.survival(t_s, waited_s) * model.survival(waited_s)
    assert joint == pytest.approx(model.survival(t_s), abs=1e-12)


@given(samples, st.floats(min_value=0.0, max_value=1.0), times_s)
def test_quantile_is_the_inverse_of_survival(gaps: list[float], q: float, waited_s: float) -> None:
    """A share 1 - q of the gaps longer than the wait outlasts its q-quantile, which is no earlier than the wait."""
    model = taught(gaps)
    if model.survival(waited_s) < 1e-6:
        return
    quantile_s = model.quantile(q, waited_s)
    assert quantile_s >= waited_s
    assert model.survival(quantile_s, waited_s) == pytest.approx(1.0 - q, abs=1e-6)


@given(samples, times_s, times_s)
def test_expected_min_agrees_with_the_curve(gaps: list[float], waited_s: float, further_s: float) -> None:
    """E[min(X, t) | X > w] lies between w and t and grows with t no faster than t does."""
    model = taught(gaps)
    t_s = waited_s + further_s
    if model.survival(waited_s) < 1e-6:
        return
    held_s = model.expected_min(t_s, waited_s)
    later_s = model.expected_min(t_s + 10.0, waited_s)
    assert waited_s - 1e-6 <= held_s <= t_s + 1e-6 * (1 + t_s)
    assert -1e-6 * (1 + t_s) <= later_s - held_s <= 10.0 + 1e-6 * (1 + t_s)


def test_expected_min_is_the_integral_of_survival() -> None:
    """The closed form equals a fine sum over the survival that the model itself gives."""
    model = taught([0.2, 0.5, 1.0, 3.0, 40.0])
    step_s = 0.001
    total = sum(model.survival((k + 0.5) * step_s) * step_s for k in range(5000))
    assert model.expected_min(5.0) == pytest.approx(total, rel=1e-4)


@given(samples, times_s)
def test_expected_remaining_is_finite_and_not_negative(gaps: list[float], waited_s: float) -> None:
    """Even a heavy tail has a finite truncated mean."""
    assert 0.0 <= taught(gaps).expected_remaining_s(waited_s) < 1e6


def test_waiting_makes_a_heavy_tail_longer() -> None:
    """The longer a heavy-tailed gap has lasted, the longer it still lasts: what ski-rental feeds on."""
    model = taught([0.1] * 80 + [10.0] * 15 + [300.0] * 5)
    assert model.expected_remaining_s(0.0) < model.expected_remaining_s(5.0) < model.expected_remaining_s(30.0)


def test_one_stuck_tool_does_not_move_the_middle() -> None:
    """A single gap of a day among fast ones leaves the median where it was."""
    fast = taught([1.0] * 50)
    stuck = taught([1.0] * 50 + [86_400.0])
    assert stuck.quantile(0.5) == pytest.approx(fast.quantile(0.5), rel=0.05)


def test_the_median_comes_to_what_was_seen() -> None:
    """With much evidence the median lies in the bin of the true one."""
    model = taught([7.0] * 500)
    assert EDGES_S[bin_of(7.0)] <= model.quantile(0.5) <= EDGES_S[bin_of(7.0) + 1]


def test_a_model_without_evidence_is_its_parent() -> None:
    """Back-off: with nothing seen, the broader model answers; it follows when the parent learns."""
    parent = taught([20.0] * 100)
    child = GapModel(parent)
    assert child.quantile(0.5) == pytest.approx(parent.quantile(0.5))
    for _ in range(400):
        parent.observe(0.01)
    assert child.quantile(0.5) == pytest.approx(parent.quantile(0.5))


def test_evidence_outweighs_the_parent() -> None:
    """After forty gaps of its own a model has left its parent."""
    child = taught([0.05] * 40, parent=taught([20.0] * 100))
    assert child.quantile(0.5) < 0.07


def test_old_gaps_fade() -> None:
    """After a change of regime the window is outlived: the median is that of the new one."""
    model = GapModel(window=64.0)
    for gap_s in [10.0] * 500 + [0.1] * 200:
        model.observe(gap_s)
    assert model.quantile(0.5) < 0.2
    assert model.weight <= 64.0


@given(samples)
def test_the_version_tells_when_answers_change(gaps: list[float]) -> None:
    """Equal versions mean equal curves."""
    model = GapModel()
    seen = {model.version: model.curve()[1]}
    for gap_s in gaps:
        model.observe(gap_s)
        survival = model.curve()[1]
        assert seen.setdefault(model.version, survival) == survival


def test_a_hinted_gap_is_its_median() -> None:
    """A model made from a hint is centred on it."""
    assert GapModel.around(30.0).quantile(0.5) == pytest.approx(30.0, rel=0.1)


@given(samples)
def test_a_snapshot_comes_back(gaps: list[float]) -> None:
    """What goes through JSON is learned again, evidence and answers alike."""
    model, copy = taught(gaps), GapModel()
    data = json.loads(json.dumps(model.snapshot()))
    copy.restore(data)
    again = GapModel()
    again.restore(data)
    assert copy.snapshot() == model.snapshot()
    assert copy.curve() == again.curve()
    assert copy.weight == model.weight
