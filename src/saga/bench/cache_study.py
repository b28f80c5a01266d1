"""What cache replays amount to: summaries, tables, sentences, and a page with drawings.

A row is one policy in one replay of one seed, as `saga cache --json` writes it. This module refuses to know how a
replay is made and which policy ought to win: every sentence follows from the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from saga import __version__
from saga.bench.drawing import DASHES, INK, Drawing, as_svg, check_installed, dress, new_figure, series
from saga.bench.files import write_whole
from saga.bench.statistics import Speedup, paired_speedup
from saga.bench.tables import Table, write_count, write_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row: TypeAlias = Mapping[str, object]

BELADY, BOUND = "belady", "bound"
_COLUMNS = ("policy", "pressure", "regenerated", "of input", "/ Belady", "hit", "device s", "/ bound")
_REPLAYS = {
    "pinned": "pinned: calls in flight cannot be evicted, as in an engine",
    "free": "free: anything can be evicted, even what a call in flight uses",
}


def summarise_cache(rows: Sequence[Row]) -> list[dict[str, object]]:
    """One object per replay, pressure and policy, in order of first appearance; means over seeds.

    ratio: geometric mean over seeds of regenerated tokens / Belady's, with its 95 % t-interval (`ratio_low`,
    `ratio_high`, None for one seed); None where it means nothing for some seed. over_bound: regenerated device
    seconds / the bound.
    """
    groups: dict[tuple[object, object, object], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["replay"], row["pressure"], row["policy"]), []).append(row)
    return [_summary(key, group) for key, group in groups.items()]


def _summary(key: tuple[object, object, object], group: Sequence[Row]) -> dict[str, object]:
    ratio = _mean_ratio([row["ratio"] for row in group])
    over_bound = _mean_ratio([row["over_bound"] for row in group])
    return {
        "replay": key[0],
        "pressure": key[1],
        "policy": key[2],
        "hit_share": _mean(group, "hit_share"),
        "regenerated_share": _mean(group, "regenerated_share"),
        "regenerated_tokens": _mean(group, "regenerated_tokens"),
        "regenerated_s": _mean(group, "regenerated_s"),
        "ratio": None if ratio is None else ratio.speedup,
        "ratio_low": None if ratio is None else ratio.low,
        "ratio_high": None if ratio is None else ratio.high,
        "over_bound": None if over_bound is None else over_bound.speedup,
    }


def _mean_ratio(values: Sequence[object]) -> Speedup | None:
    """Geometric mean with its interval; None where a value is missing or zero."""
    ratios = [float(str(value)) for value in values if value is not None]
    if len(ratios) < len(values) or not all(ratio > 0.0 for ratio in ratios):
        return None
    return paired_speedup(ratios, [1.0] * len(ratios))


def _mean(group: Sequence[Row], key: str) -> float | None:
    values = [float(str(row[key])) for row in group if row[key] is not None]
    return sum(values) / len(values) if values else None


def cache_tables(summary: Sequence[Row], num_seeds: int) -> list[Table]:
    """One table per replay: a row per pressure and policy."""
    seeds = (
        f"{num_seeds} seeds, ratios geometric means, the rest arithmetic" if num_seeds > 1 else "one seed: no interval"
    )
    num_columns = len(_COLUMNS) if any(row["policy"] == BOUND for row in summary) else len(_COLUMNS) - 1
    tables = []
    for replay in _distinct(summary, "replay"):
        mine = [row for row in summary if row["replay"] == replay]
        cells = tuple(_cells(row)[:num_columns] for row in mine)
        tables.append(Table(f"simulated, {_REPLAYS[str(replay)]}; {seeds}", _COLUMNS[:num_columns], cells))
    return tables


def _cells(row: Row) -> tuple[str, ...]:
    return (
        str(row["policy"]),
        f"{row['pressure']:g}",
        _write(row["regenerated_tokens"], write_count),
        _write(row["regenerated_share"], write_share),
        _interval(row),
        _write(row["hit_share"], write_share),
        _write(row["regenerated_s"], lambda value: f"{value:,.0f}"),
        _write(row["over_bound"], lambda value: f"{value:.2f}x"),
    )


def _write(value: object, write: Callable[[float], str]) -> str:
    return "-" if value is None else write(float(str(value)))


def _interval(row: Row) -> str:
    """`1.31x (1.29-1.33)`."""
    ratio, low, high = (row[key] for key in ("ratio", "ratio_low", "ratio_high"))
    if ratio is None:
        return "-"
    return f"{ratio:.2f}x" if low is None or row["policy"] == BELADY else f"{ratio:.2f}x ({low:.2f}-{high:.2f})"


def cache_meaning(summary: Sequence[Row], least_share: float) -> list[str]:
    """Plain sentences: who regenerates how much of what the optimum must, and where that cannot be said."""
    sentences = []
    for replay in _distinct(summary, "replay"):
        for pressure in _distinct(summary, "pressure"):
            group = [row for row in summary if row["replay"] == replay and row["pressure"] == pressure]
            sentences += _sentences(f"{replay}, pressure {pressure:g}", group)
    if any(row["policy"] == BELADY and row["ratio"] is None for row in summary):
        sentences.append(
            f'"-" under "/ Belady": the optimum regenerates less than {write_share(least_share)} of the input for some '
            "seed, and a ratio to almost nothing means nothing; compare the shares of the input instead."
        )
    if any(row["policy"] == BOUND for row in summary):
        sentences.append(
            '"/ bound" compares device seconds, which grow with depth: there Belady is not the optimum, and the bound, '
            "which relaxes leaf-first order and lets blocks stay in part, is below whatever any policy can do."
        )
    return sentences


def _sentences(where: str, group: Sequence[Row]) -> list[str]:
    online = [row for row in group if row["policy"] not in (BELADY, BOUND)]
    best = next(row for row in group if row["policy"] == BELADY)
    if not online:
        return []
    leader = min(online, key=lambda row: float(str(row["regenerated_share"])))
    last = max(online, key=lambda row: float(str(row["regenerated_share"])))
    must = write_share(float(str(best["regenerated_share"])))
    words = f"{where}: even the optimum computes {must} of all prompt tokens again"
    if leader["ratio"] is None:
        shares = [f"{row['policy']} {write_share(float(str(row['regenerated_share'])))}" for row in (leader, last)]
        return [f"{words}; {' and '.join(dict.fromkeys(shares))}."]
    said = f"{words}, {leader['policy']} {leader['ratio']:.2f} times as much"
    return [f"{said}." if last is leader else f"{said}, {last['policy']} {last['ratio']:.2f} times."]


def _distinct(rows: Iterable[Row], key: str) -> list[object]:
    return list(dict.fromkeys(row[key] for row in rows))


def write_cache_report(
    path: Path,
    workload: str,
    notes: Sequence[str],
    summary: Sequence[Row],
    *,
    num_seeds: int,
    least_share: float,
) -> None:
    """Write one self-contained page. UsageError where the extra is missing or `path` cannot be written."""
    check_installed()
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("saga.bench", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    section = {
        "workload": workload,
        "notes": notes,
        "sentences": cache_meaning(summary, least_share),
        "tables": cache_tables(summary, num_seeds),
        "drawings": [drawing for drawing in _drawings(summary) if drawing.svg],
    }
    page = environment.get_template("cache.html.j2").render(
        title=f"SAGA: cache replay of {workload}, simulated", sections=[section], version=__version__
    )
    write_whole(path, page)


def _drawings(summary: Sequence[Row]) -> list[Drawing]:
    return [
        _draw(
            summary,
            "regenerated_share",
            "share of input computed again",
            "Prompt tokens computed again; lower is better.",
        ),
        _draw(
            summary,
            "ratio",
            "regenerated / Belady's",
            "Regenerated tokens over the offline optimum's, where it means anything.",
        ),
        _draw(summary, "hit_share", "share of input found", "Prompt tokens found in the cache; higher is better."),
    ]


def _draw(summary: Sequence[Row], key: str, label: str, caption: str) -> Drawing:
    """One panel per replay: a line per policy over the pressures, or a bar each where there is one; else nothing."""
    rows = [row for row in summary if row[key] is not None and row["policy"] != BOUND]
    if not any(row["policy"] != BELADY for row in rows):
        return Drawing("", "")
    replays = _distinct(rows, "replay")
    policies = [str(policy) for policy in _distinct(summary, "policy") if policy != BOUND]
    several = len(_distinct(summary, "pressure")) > 1
    figure = new_figure(3.4 if several else 0.9 + 0.26 * len(policies))
    panels: list[Axes] = list(figure.subplots(1, len(replays), sharey=True, squeeze=False)[0])
    for axes, replay in zip(panels, replays, strict=True):
        mine = [row for row in rows if row["replay"] == replay]
        if several:
            _lines(axes, policies, mine, key)
        else:
            _bars(axes, policies, mine, key)
        axes.set_title(str(replay), loc="left", fontsize=10, color=INK)
        axes.set_xlabel("pressure (simulated)" if several else f"{label} (simulated)")
        dress(axes)
    if several:
        panels[0].set_ylabel(label)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", frameon=False, ncols=4, handlelength=3.0)
    return Drawing(as_svg(figure, f"c{key}"), caption)


def _lines(axes: Axes, policies: Sequence[str], rows: Sequence[Row], key: str) -> None:
    for index, policy in enumerate(policies):
        points = [(float(str(row["pressure"])), float(str(row[key]))) for row in rows if row["policy"] == policy]
        colour = INK if policy == BELADY else series(index)
        xs, ys = [x for x, _ in points], [y for _, y in points]
        axes.plot(xs, ys, DASHES[index % len(DASHES)], color=colour, marker="o", linewidth=1.8, label=policy)


def _bars(axes: Axes, policies: Sequence[str], rows: Sequence[Row], key: str) -> None:
    found = {str(row["policy"]): float(str(row[key])) for row in rows}
    values = [found.get(policy, 0.0) for policy in policies]
    colours = [INK if policy == BELADY else series(1) for policy in policies]
    axes.barh(range(len(policies)), values, height=0.6, color=colours)
    axes.set_yticks(range(len(policies)), list(policies))
    axes.set_ylim(len(policies) - 0.4, -0.6)
