"""Tables and sentences follow from the runs, whichever way they turn out."""

from __future__ import annotations

import math

import pytest

from saga.bench.tables import (
    first_wave_caveat,
    mean_figure,
    meaning,
    open_loop_caveat,
    preset_table,
    presets_of,
    summarise,
    tenant_table,
    write_count,
    write_seconds,
    write_share,
)


def run(preset: str, seed: int, tct_s: float, **more: object) -> dict[str, object]:
    """A run with one figure and whatever else is asked for."""
    return {"preset": preset, "seed": seed, "tct_mean_s": tct_s, **more}


def test_the_first_preset_is_the_measure_of_the_others() -> None:
    """Its own speed-up is 1 without width; half the time is 2."""
    runs = [run("old", 0, 10.0), run("new", 0, 5.0), run("old", 1, 20.0), run("new", 1, 10.0)]
    old, new = summarise(runs)
    assert (old["speedup"], old["speedup_low"], old["speedup_high"]) == pytest.approx((1.0, 1.0, 1.0))
    assert (new["preset"], new["speedup"]) == ("new", pytest.approx(2.0))


def test_pairs_are_by_seed_and_not_by_place() -> None:
    """The order in which runs arrive does not change the summary."""
    runs = [run("old", 0, 10.0), run("old", 1, 99.0), run("new", 0, 5.0), run("new", 1, 33.0)]
    swapped = [runs[1], runs[0], runs[2], runs[3]]
    assert summarise(runs) == summarise(swapped)


def test_a_run_that_completed_nothing_has_no_speedup() -> None:
    """No mean TCT in one seed: the comparison is left open rather than made from the seeds that suit."""
    runs = [run("old", 0, 10.0), run("old", 1, 10.0), run("new", 0, 5.0), run("new", 1, math.nan)]
    assert summarise(runs)[1]["speedup"] is None
    assert meaning(runs, summarise(runs)) == []


def test_table_has_a_column_per_preset_and_drops_unknown_figures() -> None:
    """Presets keep their order; a figure that nobody has makes no row, one that some lack shows as a dash."""
    runs = [run("z", 0, 10.0, moves=3), run("a", 0, 5.0)]
    table = preset_table(runs, summarise(runs))
    assert table.columns == ("", "z", "a")
    assert ("moves", "3", "-") in table.rows
    assert "hit on host" not in {row[0] for row in table.rows}
    assert "one seed" in table.title


def test_regenerated_share_is_of_the_runs_own_input() -> None:
    """Share = regenerated / input, and no share without input."""
    runs = [run("a", 0, 1.0, regenerated_tokens=25, input_tokens=100)]
    assert mean_figure(runs, "regenerated_share") == 0.25
    assert mean_figure([run("a", 0, 1.0, regenerated_tokens=0, input_tokens=0)], "regenerated_share") is None


def test_tenants_show_only_where_there_are_several() -> None:
    """One tenant needs no table; two make a row per preset and tenant."""
    alone = [run("a", 0, 1.0, tenants={"t": {"tct_mean_s": 1.0}})]
    assert tenant_table(alone) is None
    both = [run(name, 0, 1.0, tenants={"t": {"tct_mean_s": 1.0}, "u": {"tct_mean_s": 2.0}}) for name in "ab"]
    table = tenant_table(both)
    assert table is not None
    assert table.rows == (("a", "t", "1.00"), ("a", "u", "2.00"), ("b", "t", "1.00"), ("b", "u", "2.00"))


@pytest.mark.parametrize(
    ("after", "words"), [(5.0, "2.00 times as fast"), (20.0, "2.00 times as slow"), (10.0, "as fast")]
)
def test_the_sentence_turns_with_the_numbers(after: float, words: str) -> None:
    """Faster, slower and equal each say so: no conclusion is built in."""
    runs = [run("old", 0, 10.0), run("new", 0, after)]
    assert words in meaning(runs, summarise(runs))[0]


def test_a_difference_within_the_noise_is_called_none() -> None:
    """An interval that holds 1 is no difference."""
    runs = [run("old", 0, 10.0), run("old", 1, 5.0), run("new", 0, 5.0), run("new", 1, 10.0)]
    assert "no difference" in meaning(runs, summarise(runs))[0]


def test_the_bound_is_no_competitor() -> None:
    """The unreachable preset sets the scale in the second sentence and never wins the first."""
    runs = [run("old", 0, 10.0), run("new", 0, 5.0), run("infinite_kv", 0, 4.0)]
    first, second = meaning(runs, summarise(runs))
    assert "With new" in first
    assert "2.50 times as fast" in second
    assert "new has 80 %" in second


def test_numbers_are_short() -> None:
    """Enough digits to compare, not more."""
    assert [write_seconds(x) for x in (0.5, 12.34, 1234.5)] == ["0.50", "12.3", "1,234"]
    assert [write_share(x) for x in (0.0, 0.0004, 0.5)] == ["0.0 %", "0.04 %", "50.0 %"]
    assert [write_count(x) for x in (950, 12_345, 4_560_000, 123e6)] == ["950", "12.3k", "4.6M", "123M"]
    assert presets_of([run("b", 0, 1.0), run("a", 0, 1.0), run("b", 1, 1.0)]) == ["b", "a"]


def test_an_open_loop_that_is_not_kept_up_with_is_called_so() -> None:
    """Only the presets whose tasks last long against the arrivals are named; a calm run has no caveat."""
    runs = [run("old", 0, 900.0), run("new", 0, 30.0)]
    caveat = open_loop_caveat(runs, 1_000.0)
    assert caveat is not None
    assert "old did not keep up" in caveat
    assert "new" not in caveat
    assert open_loop_caveat(runs, 10_000.0) is None


def test_a_closed_loop_without_a_steady_load_is_called_so() -> None:
    """Where the first wave was measured because there was nothing else; not for other runs, nor where nobody says."""
    assert first_wave_caveat([run("a", 0, 1.0)]) is None
    assert first_wave_caveat([{**run("a", 0, 1.0), "first_wave_measured": False, "agents": 12}]) is None
    caveat = first_wave_caveat([{**run("a", 0, 1.0), "first_wave_measured": True, "agents": 12}])
    assert caveat is not None
    assert "no more tasks than agents (12)" in caveat
