"""`saga workflow`: words, JSON, files, and errors of one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Saga = Callable[..., Any]
SMALL = ("workflow", "web_arena", "--tasks", 12)


def test_words_hold_graph_and_scores(saga: Saga) -> None:
    """A reader finds nodes, edges, figures beside the naive guess and the reliability table."""
    answer = saga(*SMALL)
    assert answer.code == 0
    for expected in ("web_arena", "start", "->", "naive guess", "will the session go on?", "95th percentile"):
        assert expected in answer.out


def test_json_holds_the_same(saga: Saga) -> None:
    """One object with scores and edges; the same command gives the same bytes."""
    answer = saga(*SMALL, "--json")
    whole = json.loads(answer.out)
    assert whole["schema"] == 1
    assert whole["scores"]["num_tasks_taught"] == whole["scores"]["num_tasks_scored"] == 6
    assert {edge["source"] for edge in whole["graph"]["edges"]} >= {"start"}
    assert saga(*SMALL, "--json").out == answer.out


def test_drawings_are_written(saga: Saga, tmp_path: Path) -> None:
    """DOT and SVG, both whole."""
    dot, svg = tmp_path / "g.dot", tmp_path / "g.svg"
    assert saga(*SMALL, "--dot", dot, "--svg", svg, "--edges", 5).code == 0
    assert dot.read_text().startswith("digraph ")
    assert svg.read_text().rstrip().endswith("</svg>")


def test_what_cannot_be_is_one_line(saga: Saga, tmp_path: Path) -> None:
    """A name nobody knows, a folder that is not there, a count that makes no sense."""
    assert "did you mean 'web_arena'" in saga("workflow", "web_aren").complaint
    assert "no folder" in saga(*SMALL, "--svg", tmp_path / "none" / "g.svg").complaint
    assert "--tasks 1: must be at least 2" in saga("workflow", "web_arena", "--tasks", 1).complaint
    assert "--edges 0: must be at least 1" in saga(*SMALL, "--edges", 0).complaint
    assert "unknown kind of workflow" in saga(*SMALL, "--kind", "other").complaint
