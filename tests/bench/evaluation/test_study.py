"""A study of one's own workload: parts, loads, tenants, without any claim."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from saga.bench.evaluation.cells import Cell
from saga.bench.evaluation.results import Results
from saga.bench.evaluation.study import PARTS, StudyPlan, choose_parts, parse_loads
from saga.bench.evaluation.systems import system
from saga.errors import UnknownName, UsageError

PLAN = StudyPlan(Cell("mine.jsonl"), ("vllm_apc", "saga", "infinite_kv"), (0.8, 1.5, 3.0))
MakeUp = Callable[..., dict[str, object]]


def runs(make_up: MakeUp, **times_s: float) -> Results:
    """Every cell of every part, under two seeds."""
    found = Results(2)
    for part in PARTS.values():
        for cell in part.cells(PLAN):
            for seed in range(2):
                found.add(cell, seed, make_up(cell, seed, times_s.get(cell.system, 100.0)))
    return found


@pytest.mark.parametrize("name", PARTS)
def test_every_part_is_whole_and_judges_nothing(name: str, make_up: MakeUp) -> None:
    """Tables as wide as their heads, systems that exist, no statement about claims, nothing missing."""
    section = PARTS[name].section(PLAN, runs(make_up))
    assert section.missing == 0
    assert section.statement == ""
    assert section.tables
    for table in section.tables:
        assert "claimed" not in table.columns
        assert all(len(row) == len(table.columns) for row in table.rows)
    for cell in PARTS[name].cells(PLAN):
        assert cell.workload == "mine.jsonl"
        if cell.system:
            system(cell.system)


@pytest.mark.parametrize("name", PARTS)
def test_nothing_has_been_run_yet(name: str) -> None:
    """Every part can be shown empty."""
    section = PARTS[name].section(PLAN, Results(2))
    assert section.missing == section.total > 0


def test_sentences_turn_with_the_figures(make_up: MakeUp) -> None:
    """The fastest is named, whoever it is, and the bound is no competitor."""
    reasons = PARTS["comparison"].section(PLAN, runs(make_up, saga=50.0, infinite_kv=40.0)).reasons
    assert all("the fastest of the others is saga, 2.00x as fast" in reason for reason in reasons)
    assert all("endless KV memory would be 2.50x" in reason for reason in reasons)
    slow = PARTS["comparison"].section(PLAN, runs(make_up, saga=200.0)).reasons
    assert all("saga, 0.50x as fast" in reason for reason in slow)


def test_nobody_is_the_fastest_while_others_wait(make_up: MakeUp) -> None:
    """An interrupted study names no winner among those that happen to be done."""
    found = runs(make_up)
    for load in PLAN.loads:
        del found.runs[PLAN.at("saga", load)]
    assert PARTS["comparison"].section(PLAN, found).reasons == []


def test_shares_in_time_stand_beside_completion_times(make_up: MakeUp) -> None:
    """Of every system at every load, by all three multiples of the isolated time; of every tenant too."""
    tables = PARTS["comparison"].section(PLAN, runs(make_up)).tables
    in_time = next(table for table in tables if "isolated" in table.title)
    assert in_time.rows[0] == ("vllm_apc", *["40.0 % / 80.0 % / 90.0 %"] * 3)
    titles = [table.title for table in PARTS["tenants"].section(PLAN, runs(make_up)).tables]
    assert titles == ["TCT mean s", "within 1.5x", "within 2x", "within 2.5x"]


def test_one_tenant_needs_no_table(make_up: MakeUp) -> None:
    """And says so; several are named, the worst served among them."""
    alone = Results(1)
    for cell in PARTS["tenants"].cells(PLAN):
        alone.add(cell, 0, {**make_up(cell, 0), "tenants": {"default": {"within_2x_share": 1.0}}})
    section = PARTS["tenants"].section(PLAN, alone)
    assert not section.tables
    assert "one tenant" in section.notes[0]
    assert "worst served tenant" in PARTS["tenants"].section(PLAN, runs(make_up)).reasons[0]


def test_loads_are_numbers_in_order() -> None:
    """Each once; an empty sweep and what cannot be a load are refused."""
    assert parse_loads("3, 1,1.5,1") == (1.0, 1.5, 3.0)
    for text, words in (
        ("", "names no load"),
        (" , ", "names no load"),
        ("1,x", "'x'"),
        ("0", "above 0"),
        ("nan", "nan"),
    ):
        with pytest.raises(UsageError, match=words):
            parse_loads(text)


def test_the_crowded_load_is_one_of_the_sweep() -> None:
    """1.5 or the next above it, else the largest there is."""
    assert PLAN.crowded_load == 1.5
    assert dataclasses.replace(PLAN, loads=(0.5, 0.9)).crowded_load == 0.9


def test_a_sweep_below_one_has_no_cache_replay() -> None:
    """Nothing ever has to leave; the section says that instead of showing an empty table."""
    calm = dataclasses.replace(PLAN, loads=(0.5,))
    assert PARTS["cache"].cells(calm) == []
    assert "nothing would ever have to leave" in PARTS["cache"].section(calm, Results(1)).notes[0]


def test_parts_are_chosen_by_name() -> None:
    """In the order of the report; none and unknown ones are refused."""
    assert choose_parts("cache,comparison") == ["comparison", "cache"]
    assert choose_parts(None) == list(PARTS)
    with pytest.raises(UnknownName, match="tenants"):
        choose_parts("tenant")
    with pytest.raises(UsageError, match="names no table"):
        choose_parts("")
