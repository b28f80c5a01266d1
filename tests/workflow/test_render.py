"""Drawings of a graph hold what was learned, whatever the names."""

from __future__ import annotations

from xml.dom.minidom import parseString

from hypothesis import given
from hypothesis import strategies as st

from saga.workflow import render
from saga.workflow.graph import END, START, WorkflowGraph


def walked(tools: list[str]) -> WorkflowGraph:
    """A graph of one session."""
    graph = WorkflowGraph('kind <"&\\>')
    history: tuple[str, ...] = (START,)
    graph.node(START)
    for name in tools:
        graph.advance(graph.path(history), name)
        node = graph.node(name)
        node.visits += 1
        node.gap.observe(2.0)
        history = (*history, name)
    graph.advance(graph.path(history), END)
    return graph


def test_shares_of_what_follows_a_node_sum_to_one() -> None:
    """Nothing is left out as long as all edges are shown."""
    shown = render.arrows(walked(["a", "b", "a", "c", "a", "a"]))
    for source in {arrow.source for arrow in shown}:
        assert abs(sum(arrow.share for arrow in shown if arrow.source == source) - 1.0) < 1e-9


def test_only_so_many_edges_are_shown() -> None:
    """The most frequent come first and the rest is left out."""
    shown = render.arrows(walked(["a", "b"] * 10 + ["c"]), max_edges=2)
    assert [(arrow.source, arrow.target) for arrow in shown] == [("a", "b"), ("b", "a")]


def test_text_names_every_node_and_edge() -> None:
    """A reader finds nodes with their gaps, and edges with their shares."""
    text = render.to_text(walked(["Edit", "Bash:git"]))
    for expected in ("Edit", "Bash:git", "start", "-> end", "100.0%"):
        assert expected in text


def test_dot_quotes_what_would_break_it() -> None:
    """Quotes and backslashes in names are escaped."""
    dot = render.to_dot(walked(['say "hi"', "back\\slash"]))
    assert '"say \\"hi\\""' in dot
    assert '"back\\\\slash"' in dot
    assert dot.startswith("digraph ")
    assert dot.endswith("}\n")


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=30), max_size=12))
def test_svg_is_well_formed(tools: list[str]) -> None:
    """Any names give XML that parses, with a box per node and a line per edge."""
    graph = walked(tools)
    tree = parseString(render.to_svg(graph))  # noqa: S318 - our own text
    shown = render.arrows(graph)
    nodes = {name for arrow in shown for name in (arrow.source, arrow.target)}
    assert len(tree.getElementsByTagName("rect")) == len(nodes) + 1
    assert len(tree.getElementsByTagName("path")) == len(shown) + 1  # and the tip
