"""A learned graph for the eye: text, Graphviz DOT, or an SVG drawn here, so that no other program is needed.

Shown are the most frequent edges with their share and, at each node, the middle and the 95th percentile of the gap
that leads to it. The module refuses to learn, to print and to open files: it returns strings.
"""

from __future__ import annotations

from math import cos, hypot, pi, sin
from typing import NamedTuple
from xml.sax.saxutils import escape

from saga.workflow.graph import END, START, Node, WorkflowGraph

_FACE = "ui-sans-serif, system-ui, sans-serif"
_NODE_WIDTH, _NODE_HEIGHT = 150.0, 46.0
_MIN_RADIUS, _RADIUS_PER_NODE = 190.0, 34.0
_MARGIN = 110.0
_BEND = 0.14
_TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9" '
    'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" fill="#57606a"/></marker></defs>'
)
_LABEL_STYLES = ('fill="#1f2328" font-weight="600"', 'fill="#57606a"')


class Arrow(NamedTuple):
    """One edge as shown: share of what follows `source`, seen `times` times."""

    source: str
    target: str
    times: float
    share: float


def arrows(graph: WorkflowGraph, max_edges: int = 40) -> list[Arrow]:
    """The most frequent edges, most frequent first."""
    found: list[Arrow] = []
    for source, target, count in graph.edges():
        if len(found) == max_edges:
            break
        found.append(Arrow(source, target, count, count / graph.root.longer[source].total))
    return found


def to_text(graph: WorkflowGraph, max_edges: int = 40) -> str:
    """Nodes with what is known of them, then edges; one per line."""
    shown = arrows(graph, max_edges)
    names = _names(shown)
    width = max((len(name) for name in names), default=5)
    lines = [f"{graph.kind}: {graph.tasks} sessions, {len(graph.nodes)} nodes", ""]
    lines.append(
        f"{'node':{width}}  {'calls':>7}  {'gap p50':>9}  {'gap p95':>9}  {'new tok':>8}  {'out tok':>8}  overlap"
    )
    lines += [_node_line(graph.nodes[name], width) for name in names if name in graph.nodes]
    lines += ["", f"{'from':{width}}    {'to':{width}}  {'share':>6}  {'count':>7}"]
    lines += [
        f"{arrow.source:{width}} -> {arrow.target:{width}}  {arrow.share:6.1%}  {arrow.times:7.0f}" for arrow in shown
    ]
    return "\n".join(lines) + "\n"


def to_dot(graph: WorkflowGraph, max_edges: int = 40) -> str:
    """Graphviz source of the most frequent edges."""
    shown = arrows(graph, max_edges)
    lines = [
        f"digraph {_quoted(graph.kind)} {{",
        "  rankdir=LR;",
        '  node [shape=box, style=rounded, fontname="sans"];',
    ]
    for name in _names(shown):
        label = "\n".join(_label(graph, name))
        lines.append(f"  {_quoted(name)} [label={_quoted(label)}];")
    lines += [
        f'  {_quoted(arrow.source)} -> {_quoted(arrow.target)} [label="{arrow.share:.0%}", penwidth={_pen(arrow):.1f}];'
        for arrow in shown
    ]
    return "\n".join([*lines, "}"]) + "\n"


def to_svg(graph: WorkflowGraph, max_edges: int = 40) -> str:
    """A drawing with the nodes on a circle, start on the left, clockwise; edges bend to the right of their way."""
    shown = arrows(graph, max_edges)
    names = _names(shown)
    places, side = _places(names)
    size = f'viewBox="0 0 {side:.0f} {side:.0f}" width="{side:.0f}" height="{side:.0f}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{_FACE}" font-size="12">',
        f"<title>{escape(graph.kind)}</title>",
        _TIP,
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    parts += [_svg_arrow(arrow, places, side) for arrow in reversed(shown)]
    parts += [_svg_node(_label(graph, name), places[name]) for name in names]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _names(shown: list[Arrow]) -> list[str]:
    """Nodes of the edges: start first, end last, the others as they appear."""
    seen = dict.fromkeys(name for arrow in shown for name in (arrow.source, arrow.target))
    return sorted(seen, key=lambda name: (name == END, name != START))


def _node_line(node: Node, width: int) -> str:
    gap = f"{_seconds(node.gap.quantile(0.5)):>9}  {_seconds(node.gap.quantile(0.95)):>9}"
    gap = gap if node.gap.weight else f"{'-':>9}  {'-':>9}"
    overlap = f"{node.overlap.mean:.2f}" if node.overlap.count else "-"
    tokens = f"{node.growth.mean:8.0f}  {node.output.mean:8.0f}"
    return f"{node.name:{width}}  {node.visits:7d}  {gap}  {tokens}  {overlap:>7}"


def _label(graph: WorkflowGraph, name: str) -> list[str]:
    node = graph.nodes.get(name)
    if node is None or not node.gap.weight:
        return [name]
    return [name, f"{_seconds(node.gap.quantile(0.5))} / p95 {_seconds(node.gap.quantile(0.95))}"]


def _seconds(value: float) -> str:
    """Two digits with a unit that fits."""
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1000.0:.2g} ms" if value < 0.1 else f"{value:.2g} s"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _pen(arrow: Arrow) -> float:
    return 0.6 + 2.4 * arrow.share


def _places(names: list[str]) -> tuple[dict[str, tuple[float, float]], float]:
    """Centre of each node on a circle that has room for them, and the side of the drawing."""
    radius = max(_MIN_RADIUS, _RADIUS_PER_NODE * len(names))
    side = 2.0 * (radius + _MARGIN)
    turn = 2.0 * pi / max(1, len(names))
    places = {
        name: (side / 2.0 - radius * cos(k * turn), side / 2.0 - radius * sin(k * turn)) for k, name in enumerate(names)
    }
    return places, side


def _svg_node(label: list[str], place: tuple[float, float]) -> str:
    x, y = place
    box = (
        f'<rect x="{x - _NODE_WIDTH / 2:.1f}" y="{y - _NODE_HEIGHT / 2:.1f}" width="{_NODE_WIDTH:.0f}" '
        f'height="{_NODE_HEIGHT:.0f}" rx="9" fill="#f6f8fa" stroke="#57606a"/>'
    )
    first = y + (4.0 if len(label) == 1 else -4.0)
    texts = [
        f'<text x="{x:.1f}" y="{first + 17.0 * k:.1f}" text-anchor="middle" {style}>{escape(_short(text))}</text>'
        for k, (text, style) in enumerate(zip(label, _LABEL_STYLES, strict=False))
    ]
    return box + "".join(texts)


def _short(text: str, most: int = 22) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _svg_arrow(arrow: Arrow, places: dict[str, tuple[float, float]], side: float) -> str:
    """A bent line between the borders of two boxes, with its share beside the bend; a loop leans outwards."""
    start, end = places[arrow.source], places[arrow.target]
    if arrow.source == arrow.target:
        path, x, y = _loop(start, side)
    else:
        dx, dy = end[0] - start[0], end[1] - start[1]
        bend = ((start[0] + end[0]) / 2.0 - dy * _BEND, (start[1] + end[1]) / 2.0 + dx * _BEND)
        a, b = _border(start, bend), _border(end, bend)
        path = f"M{a[0]:.1f} {a[1]:.1f}Q{bend[0]:.1f} {bend[1]:.1f} {b[0]:.1f} {b[1]:.1f}"
        x, y = (0.25 * (a[0] + b[0]) + 0.5 * bend[0], 0.25 * (a[1] + b[1]) + 0.5 * bend[1])
    return (
        f'<path d="{path}" fill="none" stroke="#57606a" stroke-opacity="{0.25 + 0.75 * arrow.share:.2f}" '
        f'stroke-width="{_pen(arrow):.1f}" marker-end="url(#tip)"><title>{escape(arrow.source)} to '
        f"{escape(arrow.target)}: {arrow.times:.0f}</title></path>"
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" fill="#0969da" font-size="11" '
        f'stroke="#ffffff" stroke-width="3" paint-order="stroke">{arrow.share:.0%}</text>'
    )


def _loop(place: tuple[float, float], side: float) -> tuple[str, float, float]:
    x, y = place
    down = 1.0 if y > side / 2.0 else -1.0
    edge, far = y + down * _NODE_HEIGHT / 2.0, y + down * (_NODE_HEIGHT / 2.0 + 44.0)
    path = f"M{x - 22:.1f} {edge:.1f}C{x - 40:.1f} {far:.1f} {x + 40:.1f} {far:.1f} {x + 22:.1f} {edge:.1f}"
    return path, x, edge + down * 28.0 + 4.0


def _border(centre: tuple[float, float], towards: tuple[float, float]) -> tuple[float, float]:
    """Where the straight line from a box's centre leaves the box."""
    dx, dy = towards[0] - centre[0], towards[1] - centre[1]
    if hypot(dx, dy) == 0.0:
        return centre
    scale = min(
        _NODE_WIDTH / 2.0 / abs(dx) if dx else float("inf"), _NODE_HEIGHT / 2.0 / abs(dy) if dy else float("inf"), 1.0
    )
    return centre[0] + dx * scale, centre[1] + dy * scale
