"""The report for people: one self-contained page, claim and result side by side, with drawings.

Needs the extra `report` (matplotlib, jinja2). Refuses to know how sections came about: it draws what they hold.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from saga import __version__
from saga.bench.drawing import DASHES, INK, Drawing, as_svg, check_installed, dress, new_figure, plain_number, series
from saga.bench.evaluation.document import STATISTICS, Report
from saga.bench.evaluation.sections import Forest, Lines, Row, Section
from saga.bench.evaluation.verdicts import RULES

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

_CLAIMED, _OURS = 0, 1  # series of the page's palette


def render_page(report: Report) -> str:
    """The page as text. UsageError where the extra is missing."""
    check_installed()
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("saga.bench", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["code"] = _code
    sections = [(section, _drawings(section, f"e{index}")) for index, section in enumerate(report.sections)]
    return environment.get_template("evaluation.html.j2").render(
        report=report,
        title=report.title,
        sections=sections,
        judged=[section for section in report.sections if section.judged],
        rules=RULES,
        statistics=STATISTICS,
        version=__version__,
    )


def _code(text: str) -> Markup:
    """What stands between backticks, as the Markdown has it, in the letters of code."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped before


def _drawings(section: Section, salt: str) -> list[Drawing]:
    drawn = [
        _forest(drawing, f"{salt}d{index}") if isinstance(drawing, Forest) else _lines(drawing, f"{salt}d{index}")
        for index, drawing in enumerate(section.drawings)
    ]
    return [drawing for drawing in drawn if drawing.svg]


def _forest(forest: Forest, salt: str) -> Drawing:
    """A line per row: the claim as a hollow diamond, ours as a dot with its interval."""
    rows = [row for row in forest.rows if row.claim is not None or row.ours is not None]
    if not any(row.ours for row in rows):
        return Drawing("", "")
    figure = new_figure(0.9 + 0.27 * len(rows))
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        _forest_row(axes, place, row)
    if forest.one is not None:
        axes.axvline(forest.one, color=INK, linewidth=0.8, linestyle=":")
        if _wide(rows):
            axes.set_xscale("log")
            _plain_log(axes)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(forest.axis)
    dress(axes)
    if any(row.claim is not None for row in rows):
        axes.scatter(
            [], [], marker="D", facecolors="none", edgecolors=series(_CLAIMED), linewidths=1.6, label="claimed"
        )
    axes.scatter([], [], marker="o", color=series(_OURS), label="ours, 95 % interval")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", frameon=False, ncols=2)
    return Drawing(as_svg(figure, salt), forest.caption)


def _forest_row(axes: Axes, place: int, row: Row) -> None:
    if row.claim is not None:
        axes.scatter(
            [row.claim],
            [place],
            marker="D",
            s=42,
            facecolors="none",
            edgecolors=series(_CLAIMED),
            linewidths=1.6,
            zorder=4,
        )
    if row.ours is not None:
        if row.ours.low is not None and row.ours.high is not None:
            axes.plot([row.ours.low, row.ours.high], [place, place], color=series(_OURS), linewidth=2, zorder=2)
        axes.scatter([row.ours.value], [place], marker="o", s=24, color=series(_OURS), zorder=3)


def _lines(lines: Lines, salt: str) -> Drawing:
    """A curve per system, with its interval as a band."""
    if not any(curve.points and not curve.claimed for curve in lines.curves):
        return Drawing("", "")
    figure = new_figure(3.6)
    axes = figure.add_subplot()
    for index, curve in enumerate(lines.curves):
        xs = [x for x, _ in curve.points]
        ys = [estimate.value for _, estimate in curve.points]
        style = ":" if curve.claimed else DASHES[(index // 2) % len(DASHES)]
        marker = "D" if curve.claimed else "o"
        axes.plot(
            xs, ys, color=series(index), linestyle=style, linewidth=1.8, marker=marker, markersize=4, label=curve.name
        )
        lows = [estimate.value if estimate.low is None else estimate.low for _, estimate in curve.points]
        highs = [estimate.value if estimate.high is None else estimate.high for _, estimate in curve.points]
        if lines.log:
            lows = [max(low, 0.05 * y) for low, y in zip(lows, ys, strict=True)]
        axes.fill_between(xs, lows, highs, color=series(index), alpha=0.15, linewidth=0)
    if lines.log:
        axes.set_yscale("log")
        _plain_log(axes, upright=True)
    axes.set(xlabel=lines.x_axis, ylabel=lines.y_axis)
    dress(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    return Drawing(as_svg(figure, salt), lines.caption)


def _wide(rows: list[Row]) -> bool:
    """Whether the values are so far apart that a logarithmic axis shows them better."""
    values = [row.claim for row in rows if row.claim] + [row.ours.value for row in rows if row.ours is not None]
    positive = [value for value in values if value > 0.0]
    return len(positive) == len(values) and max(positive) > 4.0 * min(positive)


def _plain_log(axes: Axes, *, upright: bool = False) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axis = axes.yaxis if upright else axes.xaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(plain_number)
    axis.set_minor_locator(NullLocator())
