"""Runs in, words and tables out: the same ones on a terminal, in a report and in a README.

A run is the JSON object that a driver writes (`preset`, `seed`, `tct_mean_s`, ...); a figure that is missing shows as
"-". Presets keep the order they were run in, and the first is what the others are compared with. This module refuses to
know how things are drawn and which preset ought to win: every sentence follows from the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from saga.bench.statistics import paired_speedup

RunObject: TypeAlias = Mapping[str, object]
SummaryObject: TypeAlias = Mapping[str, object]


@dataclass(frozen=True)
class Table:
    """Text in rows and columns; the first column is a name, the others are figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class _Column:
    """One figure: where it is found in a run, how it is headed, how it is written."""

    key: str
    header: str
    write: Callable[[float], str]


def write_seconds(value: float) -> str:
    """Three digits that matter, with thousands separated."""
    if value >= 100.0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10.0 else f"{value:.2f}"


def write_share(value: float) -> str:
    """Percent, one decimal; two where it would read 0.0."""
    percent = 100.0 * value
    return f"{percent:.2f} %" if 0.0 < percent < 0.1 else f"{percent:.1f} %"


def write_count(value: float) -> str:
    """A count in units that keep it short: 950, 12.3k, 4.56M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.0f}{unit}" if scaled >= 100 else f"{scaled:.1f}{unit}"
    return f"{value:.0f}"


_RUN_COLUMNS = (
    _Column("tct_mean_s", "TCT mean s", write_seconds),
    _Column("tct_p50_s", "TCT p50 s", write_seconds),
    _Column("tct_p95_s", "TCT p95 s", write_seconds),
    _Column("tct_p99_s", "TCT p99 s", write_seconds),
    _Column("tasks_completed", "tasks measured", write_count),
    _Column("tasks_per_min", "tasks/min", write_seconds),
    _Column("regenerated_tokens", "tokens regenerated", write_count),
    _Column("regenerated_share", "  of all input", write_share),
    _Column("prefix_hit_share", "hit on device", write_share),
    _Column("host_hit_share", "hit on host", write_share),
    _Column("kv_used_mean_share", "KV in use", write_share),
    _Column("moves", "moves", write_count),
    _Column("preemptions", "preemptions", write_count),
    _Column("within_1_5x_share", "within 1.5x", write_share),
    _Column("within_2x_share", "within 2x", write_share),
    _Column("within_2_5x_share", "within 2.5x", write_share),
)
_TENANT_COLUMNS = (
    _Column("tasks_completed", "tasks", write_count),
    _Column("tct_mean_s", "TCT mean s", write_seconds),
    _Column("tct_p50_s", "p50 s", write_seconds),
    _Column("tct_p95_s", "p95 s", write_seconds),
    _Column("tct_p99_s", "p99 s", write_seconds),
    _Column("service_s", "device s", write_seconds),
    _Column("within_1_5x_share", "within 1.5x", write_share),
    _Column("within_2x_share", "2x", write_share),
    _Column("within_2_5x_share", "2.5x", write_share),
)


def presets_of(runs: Iterable[RunObject]) -> list[str]:
    """Names of presets in order of first appearance."""
    return list(dict.fromkeys(str(run["preset"]) for run in runs))


def mean_figure(runs: Iterable[RunObject], key: str) -> float | None:
    """Mean over runs of one figure, None where no run has it. `regenerated_share` is derived from the totals."""
    values = [value for run in runs if (value := _figure(run, key)) is not None]
    return sum(values) / len(values) if values else None


def summarise(runs: Sequence[RunObject]) -> list[dict[str, object]]:
    """How much faster each preset is than the first one, by mean TCT paired by seed: `speedup`, `_low`, `_high`.

    All None where a preset lacks a positive mean TCT (nothing was completed). With one seed the interval is None.
    """
    presets = presets_of(runs)
    by_preset = {preset: _tct_by_seed(runs, preset) for preset in presets}
    return [_compare(preset, by_preset[presets[0]], by_preset[preset]) for preset in presets]


def preset_table(runs: Sequence[RunObject], summary: Sequence[SummaryObject]) -> Table:
    """One column per preset, one row per figure, mean over seeds. Figures that no run has are left out."""
    presets = presets_of(runs)
    speedups = {str(row["preset"]): write_speedup(row) for row in summary}
    columns = [column for column in _RUN_COLUMNS if mean_figure(runs, column.key) is not None]
    cells = [_cells(_runs_of(runs, preset), columns) for preset in presets]
    figures = [(column.header, *texts) for column, *texts in zip(columns, *cells, strict=True)]
    seeds = _num_seeds(runs)
    title = f"simulated, mean over {seeds} seeds" if seeds > 1 else "simulated, one seed: no interval"
    return Table(title, ("", *presets), (("speed-up", *(speedups[name] for name in presets)), *figures))


def tenant_table(runs: Sequence[RunObject]) -> Table | None:
    """One row per preset and tenant, mean over seeds; None where all runs together name fewer than two tenants."""
    tenants = sorted({tenant for run in runs for tenant in _tenants(run)})
    if len(tenants) < 2:
        return None
    groups = {
        (preset, tenant): [_tenants(run)[tenant] for run in _runs_of(runs, preset) if tenant in _tenants(run)]
        for preset in presets_of(runs)
        for tenant in tenants
    }
    everybody = [figures for group in groups.values() for figures in group]
    columns = [column for column in _TENANT_COLUMNS if mean_figure(everybody, column.key) is not None]
    rows = tuple((preset, tenant, *_cells(group, columns)) for (preset, tenant), group in groups.items())
    return Table("simulated, by tenant", ("preset", "tenant", *(column.header for column in columns)), rows)


def write_speedup(row: SummaryObject) -> str:
    """`2.41x (2.30-2.53)`; without the interval where there is none, or nothing to compare it with."""
    speedup, low, high = (_as_number(row.get(key)) for key in ("speedup", "speedup_low", "speedup_high"))
    if speedup is None:
        return "-"
    return f"{speedup:.2f}x" if low is None or high is None or low == high else f"{speedup:.2f}x ({low:.2f}-{high:.2f})"


def best_rival(runs: Sequence[RunObject], summary: Sequence[SummaryObject], *, bound: str) -> SummaryObject | None:
    """The row of the fastest preset but the first one and `bound`; None where there is nothing to compare."""
    base = presets_of(runs)[0]
    rivals = [row for row in summary if row["preset"] not in (base, bound)]
    ranked = sorted(rivals, key=lambda row: -(_as_number(row["speedup"]) or 0.0))
    return ranked[0] if ranked and _as_number(ranked[0]["speedup"]) is not None else None


def meaning(runs: Sequence[RunObject], summary: Sequence[SummaryObject], *, bound: str = "infinite_kv") -> list[str]:
    """Two plain sentences: what happened to completion time, and where the work went.

    Compares the first preset with the fastest of the others; `bound` is no competitor but the limit that memory sets.
    Empty where there is nothing to compare.
    """
    base = presets_of(runs)[0]
    row = best_rival(runs, summary, bound=bound)
    if row is None:
        return []
    limit = next((row for row in summary if row["preset"] == bound and bound != base), None)
    return [time_sentence(runs, base, row, kind="simulated"), _work_sentence(runs, base, row, limit)]


def open_loop_caveat(runs: Sequence[RunObject], arrivals_s: float) -> str | None:
    """A warning where tasks arrive for `arrivals_s` seconds and a preset is not done with them in reasonable time.

    In an open loop beyond the tipping point the queue grows for as long as tasks come: a mean TCT above a quarter of
    that time says more about the length of the run than about the preset.
    """
    means = {preset: mean_figure(_runs_of(runs, preset), "tct_mean_s") or 0.0 for preset in presets_of(runs)}
    late = [preset for preset, tct_s in means.items() if tct_s > arrivals_s / 4]
    if not late:
        return None
    return (
        f"Tasks arrive for {write_seconds(arrivals_s)} s only, and {', '.join(late)} did not keep up: these times, and "
        "every ratio with them, would change with the number of tasks; try a lower rate or more tasks."
    )


def first_wave_caveat(runs: Sequence[RunObject]) -> str | None:
    """A warning where a closed loop had no more tasks than agents, and so no load that was steady to measure."""
    runs = [run for run in runs if run.get("first_wave_measured")]
    if not runs:
        return None
    return (
        f"There are no more tasks than agents ({runs[0].get('agents')}): the first wave itself is measured, in a fleet "
        "that fills and empties; more tasks would leave it out and measure a steady load."
    )


def time_sentence(runs: Sequence[RunObject], base: str, row: SummaryObject, *, kind: str) -> str:
    """Completion time of the row's preset against the first one's, with the interval in words."""
    best = str(row["preset"])
    before = write_seconds(mean_figure(_runs_of(runs, base), "tct_mean_s") or 0.0)
    after = write_seconds(mean_figure(_runs_of(runs, best), "tct_mean_s") or 0.0)
    speedup, low, high = (_as_number(row[key]) for key in ("speedup", "speedup_low", "speedup_high"))
    means = f"With {best} a task takes {after} s on average, with {base} {before} s ({kind})"
    if low is None or high is None:
        return f"{means}: {_factor(speedup or 1.0)}, from one seed and so without an interval."
    interval = f"95 % interval {low:.2f}x to {high:.2f}x"
    if low <= 1.0 <= high:
        return f"{means}: no difference that {_num_seeds(runs)} seeds can show ({interval})."
    return f"{means}: {_factor(speedup or 1.0)} ({interval}, {_num_seeds(runs)} seeds)."


def _work_sentence(runs: Sequence[RunObject], base: str, row: SummaryObject, limit: SummaryObject | None) -> str:
    """What was computed twice, and how near the bound of endless KV memory is."""
    best = str(row["preset"])
    again = [mean_figure(_runs_of(runs, preset), "regenerated_share") for preset in (base, best)]
    shares = [write_share(share) if share is not None else "an unknown share" for share in again]
    words = (
        f"{base} computed {shares[0]} of all prompt tokens again because they had left the cache, {best} {shares[1]}"
    )
    most, mine = _as_number(limit["speedup"]) if limit else None, _as_number(row["speedup"])
    if most is None or mine is None:
        return f"{words}."
    reached = f"{best} has {100 * mine / most:.0f} % of that"
    return f"{words}; with endless KV memory it would be {_factor(most)}, and {reached}."


def _factor(speedup: float) -> str:
    """A ratio in words, in the direction that it has."""
    if 0.995 <= speedup < 1.005:
        return "as fast"
    return f"{speedup:.2f} times as fast" if speedup > 1 else f"{1 / speedup:.2f} times as slow"


def _compare(preset: str, base: Mapping[int, float], mine: Mapping[int, float]) -> dict[str, object]:
    """Summary object of one preset."""
    seeds = sorted(base.keys() & mine.keys())
    if not seeds or len(seeds) < len(base):
        return {"preset": preset, "speedup": None, "speedup_low": None, "speedup_high": None}
    answer = paired_speedup([base[seed] for seed in seeds], [mine[seed] for seed in seeds])
    return {"preset": preset, "speedup": answer.speedup, "speedup_low": answer.low, "speedup_high": answer.high}


def _tct_by_seed(runs: Iterable[RunObject], preset: str) -> dict[int, float]:
    """Mean TCT by seed, seconds, of the runs that completed something."""
    found = {int(str(run["seed"])): _figure(run, "tct_mean_s") for run in _runs_of(runs, preset)}
    return {seed: tct_s for seed, tct_s in found.items() if tct_s is not None and tct_s > 0.0}


def _runs_of(runs: Iterable[RunObject], preset: str) -> list[RunObject]:
    """Runs of one preset, in their order."""
    return [run for run in runs if run["preset"] == preset]


def _num_seeds(runs: Iterable[RunObject]) -> int:
    """Number of different seeds."""
    return len({run["seed"] for run in runs})


def _tenants(run: RunObject) -> Mapping[str, RunObject]:
    """Figures by tenant; empty where the run has none."""
    tenants = run.get("tenants")
    return tenants if isinstance(tenants, Mapping) else {}


def _cells(runs: Sequence[RunObject], columns: Iterable[_Column]) -> list[str]:
    """The written figures of one row."""
    means = [(column, mean_figure(runs, column.key)) for column in columns]
    return ["-" if value is None else column.write(value) for column, value in means]


def _figure(run: RunObject, key: str) -> float | None:
    """One figure of one run."""
    if key != "regenerated_share":
        return _as_number(run.get(key))
    again, total = _as_number(run.get("regenerated_tokens")), _as_number(run.get("input_tokens"))
    return None if again is None or not total else again / total


def _as_number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < float("inf") else None
