"""One self-contained HTML page that a person can read: tables, sentences and drawings of simulated and measured runs.

Drawings are SVG inside the page; their colours are CSS variables, so that one page reads well on a light and on a dark
screen. Colours are told apart by people who see few of them (Okabe and Ito), and line styles and heights repeat what
they say. Needs the extra `report` (matplotlib, jinja2). Refuses to know how runs came about and who should win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from saga import __version__
from saga.bench.drawing import (
    DASHES,
    INK,
    KIND_COLOURS,
    KINDS,
    Drawing,
    as_svg,
    check_installed,
    dress,
    new_figure,
    plain_number,
    series,
)
from saga.bench.files import write_whole
from saga.bench.statistics import ecdf, thin
from saga.bench.tables import RunObject, SummaryObject, Table, meaning, preset_table, tenant_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Segment = tuple[str, str, str, str, float, float]
"""(worker, session, task, kind, start_s, end_s)."""

_HEIGHTS = {"queued": 0.45, "prefill": 0.9, "decode": 0.9, "gap": 0.12, "paused": 0.3}
_MAX_SAMPLES = 300  # points of a curve over time
_MAX_ROWS = 32  # sessions in a time line
_SHORTEST = 1 / 3_000  # of the window: a bar that is shorter cannot be seen


class Detail(Protocol):
    """What a run remembers beyond its figures."""

    @property
    def tct_s(self) -> Sequence[float]:
        """Completion times of its tasks, seconds."""
        ...

    @property
    def occupancy(self) -> Sequence[tuple[float, float, float]]:
        """(at_s, share of the fleet's KV memory used by running calls, share that holds anything)."""
        ...

    @property
    def timeline(self) -> Sequence[Segment]:
        """What sessions of a worker did when."""
        ...


@dataclass(frozen=True)
class ReportGroup:
    """One workload under several presets. details: by preset, of one seed; may lack some.

    kind: whether the runs are a simulator's or a replay's (`saga.bench.measured`); it is said wherever figures are.
    """

    workload: str
    notes: Sequence[str]
    runs: Sequence[RunObject]
    summary: Sequence[SummaryObject]
    details: Mapping[str, Detail]
    kind: Literal["simulated", "measured"] = "simulated"


def write_report(path: Path, title: str, groups: Sequence[ReportGroup]) -> None:
    """Write the page in one step. UsageError where the extra is missing or `path` cannot be written."""
    write_whole(path, render_report(title, groups))


def render_report(title: str, groups: Sequence[ReportGroup]) -> str:
    """The page as text; the same runs give the same page. UsageError where the extra is missing."""
    check_installed()
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("saga.bench", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    sections = [_section(group, f"g{index}") for index, group in enumerate(groups)]
    said = {kind: any(group.kind == kind for group in groups) for kind in ("simulated", "measured")}
    template = environment.get_template("report.html.j2")
    return template.render(title=title, sections=sections, version=__version__, **said)


def _section(group: ReportGroup, salt: str) -> dict[str, object]:
    """What the template shows of one workload."""
    drawings: list[Drawing] = []
    if group.details:
        drawings = [_draw_tct(group, salt), _draw_occupancy(group, salt), _draw_timeline(group, salt)]
    tables: list[Table | None] = [preset_table(group.runs, group.summary), tenant_table(group.runs)]
    sentences = meaning(group.runs, group.summary)
    if group.kind == "measured":
        from saga.bench.measured import measured_meaning, measured_table, measured_tenants

        tables = [measured_table(group.runs, group.summary), measured_tenants(group.runs)]
        sentences = measured_meaning(group.runs, group.summary)
    return {
        "workload": group.workload,
        "notes": group.notes,
        "sentences": sentences,
        "tables": [table for table in tables if table is not None],
        "drawings": [drawing for drawing in drawings if drawing.svg],
    }


def _draw_tct(group: ReportGroup, salt: str) -> Drawing:
    """Share of tasks completed within a time, one curve per preset; logarithmic time."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure = new_figure(3.2)
    axes = figure.add_subplot()
    for index, (preset, detail) in enumerate(group.details.items()):
        xs, ys = ecdf(detail.tct_s)
        style = DASHES[index % len(DASHES)]
        axes.step(xs, ys, where="post", color=series(index), linestyle=style, linewidth=2, label=preset)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(plain_number)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel=f"task completion time, s ({group.kind})", ylabel="share of tasks", ylim=(0, 1.02))
    dress(axes)
    axes.legend(loc="lower right", frameon=False)
    return Drawing(
        as_svg(figure, f"{salt}t"), "How many tasks were complete within a time; further left is faster. First seed."
    )


def _draw_occupancy(group: ReportGroup, salt: str) -> Drawing:
    """KV memory over time, one panel per preset on one scale."""
    names = [name for name, detail in group.details.items() if detail.occupancy]
    if not names:
        return Drawing("", "")
    figure = new_figure(0.6 + 1.15 * len(names))
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    order = list(group.details)
    for axes, name in zip(panels, names, strict=True):
        at_s, used, resident = zip(*thin(group.details[name].occupancy, _MAX_SAMPLES), strict=True)
        colour = series(order.index(name))
        axes.fill_between(at_s, resident, color=colour, alpha=0.25, linewidth=0, label="holds a prefix")
        axes.plot(at_s, used, color=colour, linewidth=1.3, label="used by running calls")
        axes.axhline(1.0, color=INK, linewidth=0.8, linestyle=":")
        axes.set_ylim(0, max(1.05, *used, *resident))
        axes.set_title(name, loc="left", fontsize=10, color=INK)
        dress(axes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", frameon=False, ncols=2)
    panels[-1].set_xlabel("time, s (simulated)")
    return Drawing(
        as_svg(figure, f"{salt}o"),
        "Share of the fleet's KV memory over time: the line is what running calls use, the area all that is kept, "
        "dotted is all there is. First seed.",
    )


def _draw_timeline(group: ReportGroup, salt: str) -> Drawing:
    """What sessions of one worker did in the same stretch of time, one panel per preset."""
    timelines = {name: detail.timeline for name, detail in group.details.items() if detail.timeline}
    if not timelines:
        return Drawing("", "")
    window = _window(list(timelines.values()))
    rows = {name: _rows(segments, *window) for name, segments in timelines.items()}
    heights = [0.5 + 0.07 * max(8, len(sessions)) for sessions in rows.values()]
    figure = new_figure(0.9 + sum(heights))
    panels = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, sessions) in zip(panels, rows.items(), strict=True):
        for kind in KINDS:
            _draw_bars(axes, kind, sessions)
        axes.set(xlim=window, ylim=(max(8, len(sessions)), -0.8), yticks=())
        axes.set_title(f"{name}: {len(sessions)} sessions of one worker", loc="left", fontsize=10, color=INK)
        dress(axes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", frameon=False, ncols=len(KINDS))
    panels[-1].set_xlabel("time, s (simulated)")
    return Drawing(
        as_svg(figure, f"{salt}l"),
        "What sessions of one worker did in the middle of the run, a row each: waiting (queued), reading the prompt "
        "(prefill), writing the answer (decode), away with its place kept (gap) or without one (paused). "
        "First seed.",
    )


def _window(timelines: Sequence[Sequence[Segment]]) -> tuple[float, float]:
    """A fifth of the time that all of them cover, past the middle: the fleet is full by then, and not yet drained."""
    last_s = min(max(segment[5] for segment in segments) for segments in timelines)
    return 0.5 * last_s, 0.7 * last_s


def _rows(segments: Sequence[Segment], first_s: float, last_s: float) -> list[list[Segment]]:
    """What the first sessions that are served within the window do in it, without what is too short to see."""
    shortest_s = (last_s - first_s) * _SHORTEST
    sessions: dict[str, list[Segment]] = {}
    for worker, session, task, kind, start_s, end_s in sorted(segments, key=lambda segment: segment[4]):
        left_s, right_s = max(start_s, first_s), min(end_s, last_s)
        if right_s - left_s > shortest_s:
            sessions.setdefault(session, []).append((worker, session, task, kind, left_s, right_s))
    served = (row for row in sessions.values() if any(segment[3] in {"prefill", "decode"} for segment in row))
    return list(islice(served, _MAX_ROWS))


def _draw_bars(axes: Axes, kind: str, sessions: Sequence[Sequence[Segment]]) -> None:
    """All bars of one kind as one shape, which keeps the page small."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    half = _HEIGHTS[kind] / 2
    corners: list[tuple[float, float]] = []
    for row, session in enumerate(sessions):
        for *_, this, left, right in session:
            if this == kind:
                corners += [(left, row - half), (right, row - half), (right, row + half), (left, row + half)]
                corners.append((left, row - half))
    codes = [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY]
    outline = Outline(corners or [(0.0, -9.0)] * 5, codes * max(1, len(corners) // 5))
    axes.add_patch(PathPatch(outline, facecolor=KIND_COLOURS[kind], linewidth=0, label=kind))
