"""Latencies of tools where a trace has none."""

from __future__ import annotations

import pytest

from saga.workloads.tool_latency import PAPER_LATENCY_S, tool_class, tool_latency


@pytest.mark.parametrize(
    ("tool", "expected"),
    [
        ("python", "code"),
        ("Bash:pytest", "code"),
        ("edit", "file"),
        ("find_file", "file"),
        ("Read", "file"),
        ("get_user_details", "database"),
        ("search_direct_flight", "database"),
        ("click_element", "web"),
        ("WebSearch", "web"),
        ("", "code"),
    ],
)
def test_tools_of_the_traces_have_a_class(tool: str, expected: str) -> None:
    """The documented mapping from names to the paper's classes."""
    assert tool_class(tool) == expected
    assert tool_latency(tool) is PAPER_LATENCY_S[expected]
