"""Laws of the workflow model: what it learns, that it is bounded, deterministic and survives a restart."""

from __future__ import annotations

import json
import random
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.errors import UsageError
from saga.events import Hints
from saga.workflow.forecast import Forecast
from saga.workflow.graph import CHILD, END
from saga.workflow.model import Track, WorkflowModel, WorkflowSettings


def arrive(
    model: WorkflowModel,
    track: Track,
    *,
    gap_s: float | None = 1.0,
    prompt: int = 1000,
    common: int | None = None,
    hints: Hints | None = None,
) -> None:
    """One call arrives."""
    model.step_arrived(
        track,
        gap_s=gap_s if track.steps else None,
        gap_kind="tool",
        prompt_tokens=prompt,
        common_tokens=common,
        hints=hints,
    )


def finish(model: WorkflowModel, track: Track, *tools: str, prompt: int = 1000, output: int = 50) -> None:
    """It is answered."""
    model.step_finished(track, tool_calls=tools, output_tokens=output, prompt_tokens=prompt)


def run(model: WorkflowModel, kind: str, walk: list[str], *, gap_s: float = 1.0, end: bool = True) -> Track:
    """A whole session whose answers call these tools; "" answers the user."""
    track = model.open(kind)
    for name in walk:
        arrive(model, track, gap_s=gap_s)
        finish(model, track, *([name] if name else []))
    if end:
        model.session_ended(track)
    return track


def test_a_session_goes_on_after_a_tool_and_ends_after_its_answer() -> None:
    """The graph learns where its sessions end."""
    model = WorkflowModel()
    for _ in range(40):
        run(model, "coder", ["Read", "Edit", "Bash", ""])
    assert model.forecast(run(model, "coder", ["Read", "Edit"], end=False)).continue_probability > 0.9
    assert model.forecast(run(model, "coder", ["Read", "Edit", "Bash", ""], end=False)).continue_probability < 0.1


def test_a_stranger_that_called_a_tool_is_expected_back() -> None:
    """With nothing learned, a tool's answer is awaited; a human is a coin toss."""
    model = WorkflowModel()
    after_tool = model.forecast(run(model, "new", ["Read"], end=False))
    after_answer = model.forecast(run(model, "new", [""], end=False))
    assert after_tool.continue_probability > 0.85
    assert after_answer.continue_probability < after_tool.continue_probability
    assert after_tool.confidence < 0.1


def test_a_cold_kind_borrows_from_the_others() -> None:
    """A kind never seen knows from all kinds how long a tool takes and that its answer ends a session."""
    model = WorkflowModel()
    for _ in range(60):
        run(model, "old", ["Bash", "Bash", ""], gap_s=30.0)
    forecast = model.forecast(run(model, "new", ["Bash"], end=False))
    assert 15.0 < forecast.expected_gap_s < 60.0
    ending = model.forecast(run(model, "new", ["Bash", "Bash", ""], end=False))
    assert ending.continue_probability < 0.2


def test_a_busy_kind_does_not_drown_the_average() -> None:
    """What a stranger is expected to do does not depend on how often one of two kinds ran."""
    fair, busy = WorkflowModel(), WorkflowModel()
    for model, times in ((fair, 30), (busy, 300)):
        for _ in range(times):
            run(model, "slow", ["Bash", ""], gap_s=60.0)
        for _ in range(30):
            run(model, "quick", ["Bash", ""], gap_s=0.1)
    usual = [model.forecast(run(model, "new", ["Bash"], end=False)) for model in (fair, busy)]
    assert usual[0].gap.quantile(0.25) == pytest.approx(usual[1].gap.quantile(0.25))
    assert usual[0].gap.quantile(0.25) < 1.0


def test_confidence_passes_the_threshold_after_the_cold_start() -> None:
    """theta_conf is not reached with few sessions, and is with the cold start behind us."""
    model = WorkflowModel()
    for _ in range(5):
        run(model, "coder", ["Read", ""])
    cold = model.forecast(run(model, "coder", ["Read"], end=False)).confidence
    for _ in range(40):
        run(model, "coder", ["Read", ""])
    warm = model.forecast(run(model, "coder", ["Read"], end=False)).confidence
    assert cold < model.settings.confidence <= warm


def test_waiting_speaks_for_an_end_and_never_shortens_the_gap() -> None:
    """The longer a session stays away, the less likely it returns; the expected gap grows with the wait."""
    model = WorkflowModel()
    for k in range(60):
        run(model, "chat", ["", ""] if k % 2 else [""], gap_s=20.0)
    track = run(model, "chat", [""], end=False)
    forecasts = [model.forecast(track, waited_s) for waited_s in (0.0, 5.0, 30.0, 100.0, 1000.0)]
    chances = [forecast.continue_probability for forecast in forecasts]
    gaps = [forecast.expected_gap_s for forecast in forecasts]
    assert chances == sorted(chances, reverse=True)
    assert chances[-1] < chances[0]
    assert gaps == sorted(gaps)
    assert gaps[-1] >= 1000.0


def test_rewritten_history_is_found_out_in_two_calls() -> None:
    """A session of an unknown kind that reuses 0.3 of its context is expected to do so again; others stay at one."""
    model = WorkflowModel()
    appends, rewrites = model.open("a"), model.open("b")
    for track, common in ((appends, 1050), (rewrites, 315)):
        for _ in range(3):
            arrive(model, track, common=common)
            finish(model, track, "Read")
    assert model.forecast(rewrites).overlap == pytest.approx(0.3, abs=0.1)
    assert model.forecast(appends).overlap > 0.85


def test_one_compaction_is_forgiven() -> None:
    """An append-only session that once lost its history is believed again at once."""
    model = WorkflowModel()
    track = model.open("a")
    for common in [1050] * 10 + [100, 1050]:
        arrive(model, track, common=common)
        finish(model, track, "Read")
    assert model.forecast(track).overlap > 0.75


def test_remaining_steps_count_down() -> None:
    """With sessions of ten steps, what remains falls step by step to nothing, and tokens with it."""
    model = WorkflowModel()
    walk = ["Read"] * 9 + [""]
    for _ in range(60):
        run(model, "ten", walk)
    track, left = model.open("ten"), []
    for name in walk:
        arrive(model, track)
        finish(model, track, *([name] if name else []))
        left.append(model.forecast(track).remaining_steps)
    assert left == sorted(left, reverse=True)
    assert left[0] == pytest.approx(9.0, abs=1.0)
    assert left[-1] < 0.5


def test_growth_and_output_are_learned() -> None:
    """A tool whose results are long is expected to add long results."""
    model = WorkflowModel()
    for _ in range(40):
        track = model.open("coder")
        arrive(model, track, prompt=1000)
        finish(model, track, "Read", prompt=1000, output=50)
        arrive(model, track, prompt=4050)
        finish(model, track, prompt=4050, output=200)
        model.session_ended(track)
    forecast = model.forecast(run(model, "coder", ["Read"], end=False))
    assert forecast.new_tokens == pytest.approx(3000, rel=0.1)
    assert forecast.output_tokens == pytest.approx(200, rel=0.1)
    assert forecast.remaining_tokens > 0


def test_slow_sessions_stay_slow() -> None:
    """A session whose gaps were long among their like is expected back later than one whose gaps were short."""
    model = WorkflowModel()
    for gap_s in (0.5, 1.0, 2.0, 4.0, 8.0) * 10:
        run(model, "coder", ["Read"] * 4, gap_s=gap_s)
    slow = model.forecast(run(model, "coder", ["Read"] * 8, gap_s=7.5, end=False))
    quick = model.forecast(run(model, "coder", ["Read"] * 8, gap_s=0.5, end=False))
    assert slow.expected_gap_s > 2.0 * quick.expected_gap_s


def test_a_forecast_while_the_step_runs_speaks_of_what_follows_it() -> None:
    """During the last step of a ten-step kind no further step is expected, during the ninth one is."""
    model = WorkflowModel()
    for _ in range(60):
        run(model, "ten", ["Read"] * 9 + [""])
    eight = run(model, "ten", ["Read"] * 8, end=False)
    arrive(model, eight)
    assert model.forecast(eight).continue_probability > 0.8
    finish(model, eight, "Read")
    arrive(model, eight)
    assert model.forecast(eight).continue_probability < 0.2


def test_a_sub_agent_is_a_kind_of_its_own() -> None:
    """Children do not mix with their parents' statistics; a parent that waits on a human's turn waits on a child."""
    model = WorkflowModel()
    parent = run(model, "coder", [""], end=False)
    child = model.open("coder", parent=parent)
    assert child.kind == "coder/child"
    assert parent.node.name == CHILD
    assert model.open("coder/child", parent=child).kind == "coder/child"


def test_a_session_given_up_while_it_ran_teaches_no_end() -> None:
    """A cancelled call is not how such sessions end."""
    model = WorkflowModel()
    track = run(model, "coder", ["Read"], end=False)
    arrive(model, track)
    model.session_ended(track)
    assert model.graph("coder").tasks == 0


def test_next_symbols_sum_to_one() -> None:
    """Cold or warm, the symbols known to any kind and one unseen share one."""
    model = WorkflowModel(WorkflowSettings(cold_start_tasks=10))
    for _ in range(20):
        run(model, "old", ["Read", "Edit", ""])
    for sessions in range(12):
        track = run(model, "new", ["Read", "Bash"], end=False)
        known = {*model.graph("new").symbols(), *model.graph("old").symbols()}
        total = sum(model.next_probability(track, name) for name in (*sorted(known), "never seen"))
        assert END in known
        assert total == pytest.approx(1.0), sessions
        model.session_ended(track)


events = st.lists(
    st.tuples(
        st.integers(0, 7),
        st.sampled_from(["arrive", "finish", "end", "ask"]),
        st.sampled_from(["a", "b", "c/child", ""]),
        st.lists(st.sampled_from(["Read", "Bash:git", "Bash", ""]), max_size=2),
        st.floats(min_value=0.0, max_value=1e7),
        st.integers(0, 200_000),
    ),
    max_size=120,
)


def play(model: WorkflowModel, story: list[Any]) -> list[Forecast]:
    """Any legal sequence of facts; returns the forecasts asked on the way."""
    tracks: dict[int, Track] = {}
    asked: list[Forecast] = []
    for slot, what, kind, tools, gap_s, tokens in story:
        track = tracks.get(slot)
        if track is None:
            track = tracks[slot] = model.open(kind)
        if what == "end":
            model.session_ended(tracks.pop(slot))
        elif what == "ask":
            asked.append(model.forecast(track, min(gap_s, 1e5)))
        else:
            common = tokens // 2 if tokens % 2 else None
            arrive(model, track, gap_s=gap_s, prompt=tokens, common=common)
            if what == "finish":
                finish(model, track, *tools, prompt=tokens, output=1 + tokens % 999)
            asked.append(model.forecast(track))
    return asked


def plain(forecast: Forecast) -> tuple[Any, ...]:
    """A forecast by value."""
    values = {each.name: getattr(forecast, each.name) for each in fields(forecast)}
    return tuple(value.curve() if name == "gap" else value for name, value in values.items())


@given(events)
def test_forecasts_stay_in_range(story: list[Any]) -> None:
    """Whatever happens, shares lie in 0..1, amounts are finite and not negative."""
    for forecast in play(WorkflowModel(), story):
        for share in (forecast.continue_probability, forecast.overlap, forecast.confidence):
            assert 0.0 <= share <= 1.0
        for amount in (
            forecast.expected_gap_s,
            forecast.new_tokens,
            forecast.output_tokens,
            forecast.remaining_steps,
            forecast.remaining_tokens,
        ):
            assert 0.0 <= amount < float("inf")


@given(events)
def test_the_same_facts_give_the_same_forecasts(story: list[Any]) -> None:
    """No hidden state, no clock, no chance."""
    first, second = play(WorkflowModel(), story), play(WorkflowModel(), story)
    assert [plain(forecast) for forecast in first] == [plain(forecast) for forecast in second]


@given(events)
def test_a_snapshot_comes_back(story: list[Any]) -> None:
    """What was learned survives JSON, and two models restored from it agree."""
    model = WorkflowModel()
    play(model, story)
    data = json.loads(json.dumps(model.snapshot()))
    one, two = WorkflowModel(), WorkflowModel()
    one.restore(data)
    two.restore(data)
    assert one.snapshot() == model.snapshot()
    after = [plain(forecast) for forecast in play(one, story)]
    assert after == [plain(forecast) for forecast in play(two, story)]


def test_a_restored_model_forecasts_like_the_original() -> None:
    """A restart loses nothing that matters: forecasts agree closely."""
    model, copy = WorkflowModel(), WorkflowModel()
    for gap_s in (0.5, 1.0, 2.0) * 20:
        run(model, "coder", ["Read", "Bash:git", ""], gap_s=gap_s)
    copy.restore(model.snapshot())
    old = model.forecast(run(model, "coder", ["Read"], end=False))
    new = copy.forecast(run(copy, "coder", ["Read"], end=False))
    assert new.continue_probability == pytest.approx(old.continue_probability, abs=0.01)
    assert new.expected_gap_s == pytest.approx(old.expected_gap_s, rel=0.1)
    assert new.remaining_steps == pytest.approx(old.remaining_steps, rel=0.05)


def test_a_foreign_snapshot_is_refused() -> None:
    """Another format is an error that names what was found and what would be right."""
    with pytest.raises(UsageError, match=r"format = 99 .* reads 1"):
        WorkflowModel().restore({"format": 99})


def test_state_stays_bounded() -> None:
    """Thousands of kinds and tools leave no more than the settings allow."""
    settings = WorkflowSettings(max_kinds=8, max_nodes=16, max_contexts=64)
    model, dice = WorkflowModel(settings), random.Random(7)
    for k in range(400):
        run(model, f"kind{k % 50}", [f"tool{dice.randrange(500)}" for _ in range(6)])
    assert len(model.kinds()) <= settings.max_kinds
    for kind in model.kinds():
        assert len(model.graph(kind).nodes) <= settings.max_nodes + 1
    text = json.dumps(model.snapshot())
    for k in range(400):
        run(model, f"kind{k % 50}", [f"tool{dice.randrange(500)}" for _ in range(6)])
    assert len(json.dumps(model.snapshot())) < 2 * len(text)


def test_a_declared_graph_is_a_prior() -> None:
    """Declared edges are followed at once, and yield to what is seen."""
    model = WorkflowModel(WorkflowSettings(cold_start_tasks=1))
    model.declare("flow", [{"from": "Plan", "to": "Act", "weight": 20}, {"from": "Act", "to": "end"}])
    run(model, "flow", [""])
    track = run(model, "flow", ["Plan"], end=False)
    before = model.next_probability(track, "Act")
    assert before > 0.5
    for _ in range(200):
        run(model, "flow", ["Plan", "Other", ""])
    assert model.next_probability(run(model, "flow", ["Plan"], end=False), "Act") < before


@pytest.mark.parametrize(
    ("field", "value"), [("cold_start_tasks", 0), ("confidence", 1.5), ("order", -1), ("max_nodes", 2)]
)
def test_settings_that_cannot_be_are_refused(field: str, value: float) -> None:
    """The error names the field, the value and the range."""
    with pytest.raises(UsageError, match=rf"workflow\.{field} = {value} must lie between"):
        WorkflowSettings(**{field: value})  # type: ignore[arg-type]
