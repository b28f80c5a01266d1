"""Words, tables and drawings of cache replays follow from their figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from saga.bench.cache_study import cache_meaning, cache_tables, summarise_cache, write_cache_report


def row(
    policy: str, ratio: float | None, *, seed: int = 0, pressure: float = 1.5, replay: str = "free"
) -> dict[str, object]:
    """One policy in one replay: Belady regenerates 100 of 1,000 tokens."""
    again = 100.0 * (ratio or 0.01)
    return {
        "policy": policy,
        "replay": replay,
        "pressure": pressure,
        "seed": seed,
        "regenerated_tokens": again,
        "regenerated_share": again / 1_000,
        "hit_share": 0.5,
        "regenerated_s": again / 10,
        "ratio": ratio,
        "over_bound": None if ratio is None else 1.1 * ratio,
    }


ROWS = [
    row(name, ratio, seed=seed) for seed in (0, 1) for name, ratio in (("lru", 4.0), ("next_use", 1.2), ("belady", 1.0))
]


def test_a_ratio_is_the_geometric_mean_over_seeds_with_its_interval() -> None:
    """Two seeds of 2x and 8x are 4x, and the interval is around it."""
    summary = summarise_cache([row("lru", 2.0), row("lru", 8.0, seed=1)])
    assert len(summary) == 1
    assert summary[0]["ratio"] == pytest.approx(4.0)
    assert summary[0]["ratio_low"] < 4.0 < summary[0]["ratio_high"]  # type: ignore[operator]


def test_one_seed_without_a_ratio_leaves_none() -> None:
    """A mean over the seeds that happen to have one would mislead."""
    assert summarise_cache([row("lru", 2.0), row("lru", None, seed=1)])[0]["ratio"] is None


def test_tables_hold_every_policy_by_replay() -> None:
    """One table per replay; what cannot be said is a dash."""
    tables = cache_tables(summarise_cache([*ROWS, row("lru", None, replay="pinned")]), 2)
    assert [table.title.split(":")[0] for table in tables] == ["simulated, free", "simulated, pinned"]
    assert [line[0] for line in tables[0].rows] == ["lru", "next_use", "belady"]
    assert tables[0].rows[0][4].startswith("4.00x (4.00-4.00)")
    assert tables[1].rows[0][4] == "-"


def test_sentences_name_best_and_worst_whoever_they_are() -> None:
    """Who regenerates least and most, in multiples of the optimum."""
    words = cache_meaning(summarise_cache(ROWS), 0.005)
    optimum = "free, pressure 1.5: even the optimum computes 10.0 % of all prompt tokens again"
    assert words == [f"{optimum}, next_use 1.20 times as much, lru 4.00 times."]


def test_a_meaningless_ratio_is_said_to_be_one() -> None:
    """The reason for the dash is in words, with the limit."""
    words = cache_meaning(summarise_cache([row("lru", None), row("belady", None)]), 0.005)
    assert any('"-"' in sentence and "0.5 %" in sentence for sentence in words)


def test_the_page_is_whole_and_stands_alone(tmp_path: Path) -> None:
    """Tables, sentences and drawings in one file that asks for nothing else."""
    page = tmp_path / "cache.html"
    rows = [row(name, ratio, pressure=p) for p in (1.0, 2.0) for name, ratio in (("lru", 3.0), ("belady", 1.0))]
    write_cache_report(page, "tiny", ["a note"], summarise_cache(rows), num_seeds=1, least_share=0.005)
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 3
    assert "a note" in text
    assert "Every figure on this page is simulated" in text
    assert not re.search(r'(src|href)="https?:', text)


def test_one_pressure_is_drawn_as_bars(tmp_path: Path) -> None:
    """A line over a single point says nothing: policies stand beside each other, and the figure is on the axis."""
    page = tmp_path / "cache.html"
    write_cache_report(page, "tiny", [], summarise_cache(ROWS), num_seeds=2, least_share=0.005)
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 3
    assert "share of input computed again (simulated)" in text
    assert "pressure (simulated)" not in text
