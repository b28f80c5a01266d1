"""Every table follows from the runs: what it needs, what it says when they are made up, and when they are missing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from saga.bench.evaluation.cells import FULL, QUICK, SCALES, Scale
from saga.bench.evaluation.claims import paper_claims
from saga.bench.evaluation.experiments import EXPERIMENTS, cells_of, choose
from saga.bench.evaluation.results import Results
from saga.bench.evaluation.slo import class_share
from saga.bench.evaluation.systems import system
from saga.errors import UnknownName, UsageError

Build = Callable[..., Results]
MakeUp = Callable[..., dict[str, object]]
CLAIMS = paper_claims()


def test_the_tables_of_the_report_are_those_of_the_paper() -> None:
    """None is forgotten, none invented."""
    assert EXPERIMENTS.keys() == {table.id for table in CLAIMS.tables}


@pytest.mark.parametrize("size", SCALES.values(), ids=SCALES)
def test_every_cell_names_a_system_that_exists(size: Scale) -> None:
    """A preset that is renamed fails here, not after an hour; equal cells are run once."""
    cells = cells_of(list(EXPERIMENTS), size, CLAIMS)
    assert len(set(cells)) == len(cells)
    for cell in cells:
        assert (cell.kind == "cache") == (not cell.system)
        if cell.system:
            system(cell.system)
        assert (cell.oversubscription is None) != (cell.rate_per_worker_s is None)


def test_the_full_scale_is_the_papers() -> None:
    """Seeds and workers as the paper has them; the quick one is smaller in every respect."""
    assert (FULL.seeds, FULL.cluster) == (CLAIMS.setup.seeds, CLAIMS.setup.instances)
    assert QUICK.seeds < FULL.seeds
    assert len(cells_of(list(EXPERIMENTS), QUICK, CLAIMS)) < len(cells_of(list(EXPERIMENTS), FULL, CLAIMS))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_made_up_runs_make_a_whole_section(name: str, results: Build, scale: Scale) -> None:
    """Each claim has a row, each row that can be compared a verdict, and nothing is missing."""
    section = EXPERIMENTS[name].section(scale, results(), CLAIMS)
    assert section.id == name
    assert section.missing == 0
    assert section.tables
    assert "Incomplete" not in section.statement
    compared = [row for row in section.rows if row.claim is not None]
    assert compared
    assert all((row.verdict == "open") == (row.ours is None or not row.comparable) for row in compared)
    for table in section.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_without_any_run_every_table_says_so(name: str, scale: Scale) -> None:
    """A report that was interrupted at once is a valid report without statements."""
    section = EXPERIMENTS[name].section(scale, Results(3), CLAIMS)
    assert section.verdict == "open"
    assert section.missing == section.total
    assert section.skipped or "Incomplete" in section.statement


def test_the_verdict_turns_with_the_figures(results: Build, scale: Scale) -> None:
    """The claimed times are reproduced, equal times are not: no conclusion is built in."""
    main = EXPERIMENTS["main"]
    swe = {claim.system: claim.value for claim in CLAIMS.table("main").claims[:7]}
    rows = {row.name: row.verdict for row in main.section(scale, results(**swe), CLAIMS).rows}
    assert {name: verdict for name, verdict in rows.items() if "swe_bench" in name and verdict != "open"} == {
        f"{system} (swe_bench)": "reproduced" for system in swe if system != "saga_paper"
    }
    assert main.section(scale, results(), CLAIMS).verdict == "not"
    assert main.section(scale, results(saga_paper=200.0), CLAIMS).verdict == "not"


def test_the_reason_is_drawn_from_the_figures(results: Build, scale: Scale) -> None:
    """Whether the claim could be reached at all depends on the bound, and where it is reached on the sweep."""
    equal = " ".join(EXPERIMENTS["main"].section(scale, results(), CLAIMS).reasons)
    assert "beyond what endless KV memory gains" in equal
    assert "reached at none of its loads" in equal
    assert "no strict bound" in equal
    fast = " ".join(EXPERIMENTS["main"].section(scale, results(saga_paper=50.0, infinite_kv=40.0), CLAIMS).reasons)
    assert "beyond what endless KV memory gains" not in fast
    assert "reached first at oversubscription 0.1" in fast


def test_ablations_are_over_their_own_whole(results: Build, scale: Scale) -> None:
    """Twice as long without it is 2x; the default's ablations are not the paper's."""
    section = EXPERIMENTS["ablation"].section(scale, results(saga_no_ttl=200.0, saga_no_dram=300.0), CLAIMS)
    ours = {row.name: row.ours for row in section.rows}
    assert ours["saga_no_ttl"] is not None
    assert ours["saga_no_ttl"].value == pytest.approx(2.0)
    assert "saga_no_dram" not in ours
    assert {row[0]: row[-1][:5] for row in section.tables[-1].rows}["saga_no_dram"] == "3.00x"


def test_sensitivity_is_the_larger_change_up_or_down(results: Build, scale: Scale) -> None:
    """4 % faster at one end and 2 % slower at the other is a change of 4 %."""
    changed = {"saga_paper~alpha=0.2": 96.0, "saga_paper~alpha=0.4": 102.0}
    rows = EXPERIMENTS["sensitivity"].section(scale, results(**changed), CLAIMS).rows
    assert rows[0].ours is not None
    assert rows[0].ours.value == pytest.approx(0.04)
    assert rows[0].verdict == "reproduced"


def test_the_largest_change_is_as_uncertain_as_the_widest_one(scale: Scale, make_up: MakeUp) -> None:
    """A bound is not kept for sure where the end that changes less on average may still break it."""
    found = Results(3)
    for cell in EXPERIMENTS["sensitivity"].cells(scale, CLAIMS):
        for seed in range(3):
            wild = 20.0 * (seed - 1) if cell.system == "saga_paper~alpha=0.4" else 0.0
            tct_s = 96.0 if cell.system == "saga_paper~alpha=0.2" else 100.0
            found.add(cell, seed, make_up(cell, seed, tct_s + wild))
    row = EXPERIMENTS["sensitivity"].section(scale, found, CLAIMS).rows[0]
    assert row.ours is not None
    assert row.ours.value == pytest.approx(0.04)
    assert row.verdict == "partly"


def test_a_decision_is_no_round_trip(results: Build, scale: Scale) -> None:
    """The two stand side by side without a verdict, and the text says on what the decision was timed."""
    section = EXPERIMENTS["overheads"].section(scale, results(), CLAIMS)
    assert [row.name for row in section.rows if not row.comparable] == ["decision p99, at most (measured; no verdict)"]
    assert section.tables[0].rows[0][-1] == "-"
    assert "without a verdict" in section.about
    assert section.tables[1].title == "decisions, measured on an abacus, core native"


def test_slo_shares_are_of_tasks_not_of_tenants() -> None:
    """A class is all of its tenants' tasks, and `all` is every tenant's; a class without tasks has no share."""
    tenants = {
        "heavy-0": {"tasks_completed": 10, "within": 0.5},
        "heavy-1": {"tasks_completed": 30, "within": 1.0},
        "light-0": {"tasks_completed": 10, "within": 0.0},
    }
    shares = {name: class_share({"tenants": tenants}, name, "within") for name in ("heavy", "light", "all", "medium")}
    assert shares == {"heavy": 0.875, "light": 0.0, "all": 0.7, "medium": None}


def test_tables_are_chosen_by_name() -> None:
    """In the order of the report; none and unknown ones are refused."""
    assert choose(None) == list(EXPERIMENTS)
    assert choose("slo, main") == ["main", "slo"]
    with pytest.raises(UnknownName, match="did you mean 'main'"):
        choose("mian")
    with pytest.raises(UsageError, match="names no table"):
        choose(" ,")
