"""Drawings that live in a page: SVG whose colours are CSS variables, so that one page reads on light and dark screens.

Colours are told apart by people who see few of them (Okabe and Ito); line styles repeat what they say. Needs the extra
`report` (matplotlib, jinja2). Refuses to know what is drawn.
"""

from __future__ import annotations

import importlib.util
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saga.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("queued", "prefill", "decode", "gap", "paused")
DASHES = ("-", "--", "-.", ":")
_NUM_SERIES = 7

# A drawing is made in stand-in colours, which the page then replaces by CSS variables.
INK, FAINT = "#010203", "#010204"
_SERIES = tuple(f"#0102{16 + index:02x}" for index in range(_NUM_SERIES))
KIND_COLOURS = {kind: f"#0102{32 + index:02x}" for index, kind in enumerate(KINDS)}
_VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(_SERIES)},
    **{colour: f"var(--{kind})" for kind, colour in KIND_COLOURS.items()},
}


@dataclass(frozen=True)
class Drawing:
    """An SVG element with what is said below it."""

    svg: str
    caption: str


def check_installed() -> None:
    """UsageError that says how to get them where matplotlib or jinja2 is missing."""
    missing = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"a report needs {' and '.join(missing)}; install with: pip install 'saga-sched[report]'")


def new_figure(height_in: float) -> Figure:
    """An empty drawing, as wide as the page."""
    from matplotlib.figure import Figure

    return Figure(figsize=(8.4, height_in), layout="constrained")


def dress(axes: Axes) -> None:
    """Frame, ticks and grid in ink that follows the page."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(which="both", color=FAINT, labelcolor=INK, labelsize=9)
    axes.grid(visible=True, color=FAINT, linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)


def series(index: int) -> str:
    """Stand-in colour of a preset."""
    return _SERIES[index % _NUM_SERIES]


def plain_number(value: float, _position: float) -> str:
    """1000 rather than 10^3."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def as_svg(figure: Figure, salt: str) -> str:
    """The drawing as an SVG element: fluid width, CSS colours, text as text, no ids but those it refers to."""
    import matplotlib as mpl

    legends = [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]
    for text in (text for legend in legends for text in legend.get_texts()):
        text.set_color(INK)
    page = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "path.simplify_threshold": 0.2}):
        figure.savefig(page, format="svg", transparent=True, metadata={"Date": None})
    svg = page.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg
