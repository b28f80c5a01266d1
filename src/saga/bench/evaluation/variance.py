"""Tools whose latency varies more and more: completion time, promises kept, evictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from saga.bench.evaluation.cells import Cell, Scale
from saga.bench.evaluation.claims import Claims
from saga.bench.evaluation.comparison import at_load
from saga.bench.evaluation.results import Results
from saga.bench.evaluation.rows import Found, judge, ratio_found
from saga.bench.evaluation.sections import Curve, Lines, Section, claims_table
from saga.bench.evaluation.systems import PAPER
from saga.bench.evaluation.verdicts import of_ratio, of_share
from saga.bench.statistics import Estimate
from saga.bench.tables import Table, write_seconds, write_share
from saga.workloads.catalogue import TOOL_CV

WORKLOAD = "swe_bench"
_BASE = "1.0"
_NAMES = {"workload": WORKLOAD}


def variance_cells(scale: Scale, claims: Claims) -> list[Cell]:
    """The paper's system at every variation that the paper lists."""
    return [_cell(scale, name, load) for load in scale.variation_loads for name in _settings(claims)]


def variance_section(scale: Scale, results: Results, claims: Claims) -> Section:
    """Time over that at a variation of 1, share of promises kept, share evicted."""
    table, settings, here = claims.table("variance"), _settings(claims), scale.variation_loads[0]
    rows = []
    for name in settings:
        if name == _BASE:
            continue
        claim = table.ratio("tct_mean_s", {"setting": name, **_NAMES}, {"setting": _BASE, **_NAMES})
        by_load = {
            load: ratio_found(results, _cell(scale, name, load), _cell(scale, _BASE, load))
            for load in scale.variation_loads
        }
        rows.append(judge(f"CV {name}: time over CV {_BASE}", claim, "ratio", of_ratio, by_load[here], by_load))
    for figure, words in (("holds_kept_share", "TTL kept"), ("evicted_share", "evicted")):
        for name in settings:
            claim = table.value(figure, setting=name, **_NAMES)
            shares = {load: Found(results.estimate(_cell(scale, name, load), figure)) for load in scale.variation_loads}
            rows.append(judge(f"CV {name}: {words}", claim, "share", of_share, shares[here], shares))
    wanted = variance_cells(scale, claims)
    return Section(
        id=table.id,
        title=table.title,
        where=table.where,
        about=(
            f"{PAPER} on `{TOOL_CV}CV`: tools of the same mean latency by class and another coefficient of "
            "variation, log-normal. TTL kept is our reading of TTL accuracy: the share of gaps that ended before "
            "the time for which the prefix was to be kept. Evicted as in the table of queue strategies."
        ),
        rows=rows,
        tables=[
            claims_table("Claimed and ours, at the paper's load", "figure", rows),
            *(_by_setting(scale, results, settings, load) for load in scale.variation_loads),
        ],
        drawings=[_kept(scale, results, claims)],
        reasons=[words for load in scale.variation_loads if (words := _reason(scale, results, settings, load))],
        missing=results.missing(wanted),
        total=results.count(wanted),
    )


def _kept(scale: Scale, results: Results, claims: Claims) -> Lines:
    table = claims.table("variance")
    claimed = [
        (float(name), Estimate(value))
        for name in _settings(claims)
        if (value := table.value("holds_kept_share", setting=name, **_NAMES)) is not None
    ]
    curves = [Curve("claimed", claimed, claimed=True)]
    for load in scale.variation_loads:
        found = [
            (float(name), estimate)
            for name in _settings(claims)
            if (estimate := results.estimate(_cell(scale, name, load), "holds_kept_share")) is not None
        ]
        curves += [Curve(f"{PAPER}, load {load:g}", found)] if found else []
    return Lines("Share of gaps that end before the TTL", "coefficient of variation of tool latency", "share", curves)


def _by_setting(scale: Scale, results: Results, settings: Sequence[str], load: float) -> Table:
    lines = []
    for name in settings:
        cell = _cell(scale, name, load)
        tct_s = results.mean(cell, "tct_mean_s")
        figures = ("holds_kept_share", "evicted_share", "regenerated_time_share")
        shares = (results.mean(cell, figure) for figure in figures)
        lines.append(
            (
                name,
                "-" if tct_s is None else write_seconds(tct_s),
                *("-" if share is None else write_share(share) for share in shares),
            )
        )
    columns = ("CV", "our TCT s", "TTL kept", "evicted", "regenerating")
    return Table(f"{PAPER}, oversubscription {load:g}", columns, tuple(lines))


def _reason(scale: Scale, results: Results, settings: Sequence[str], load: float) -> str:
    times = _means(results, {name: _cell(scale, name, load) for name in settings}, "tct_mean_s")
    kept = _means(results, {name: _cell(scale, name, load) for name in settings}, "holds_kept_share")
    if len(times) < len(settings) or len(kept) < len(settings):
        return ""
    first, last = settings[0], settings[-1]
    return (
        f"At oversubscription {load:g}, from a variation of {first} to one of {last}, completion time goes from "
        f"{write_seconds(times[first])} to {write_seconds(times[last])} s, and the share of gaps that end before the "
        f"TTL from {write_share(kept[first])} to {write_share(kept[last])}: the TTL is a quantile that is learned "
        "from the gaps themselves."
    )


def _means(results: Results, cells: Mapping[str, Cell], figure: str) -> dict[str, float]:
    return {name: mean for name, cell in cells.items() if (mean := results.mean(cell, figure)) is not None}


def _cell(scale: Scale, setting: str, load: float) -> Cell:
    return replace(at_load(scale, PAPER, WORKLOAD, load), workload=f"{TOOL_CV}{float(setting):g}")


def _settings(claims: Claims) -> list[str]:
    """The variations, in the order of the paper."""
    return [claim.setting for claim in claims.table("variance").claims if claim.figure == "tct_mean_s"]
