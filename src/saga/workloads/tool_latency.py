"""How long tools take where a trace does not say: the paper's table, by class of tool.

Source: SAGA, arXiv 2605.00528, table of tool latencies (P50 / P95 / P99). Traces of real agents are heavier-tailed.
This module knows names of tools and seconds; it refuses to know sessions and tokens.
"""

from __future__ import annotations

from saga.workloads.quantiles import Quantiles, through

PAPER_LATENCY_S: dict[str, Quantiles] = {
    "code": through(0.180, 2.400, 28.000),
    "file": through(0.045, 0.320, 1.200),
    "web": through(0.850, 4.500, 45.000),
    "database": through(0.120, 0.890, 3.500),
}
"""Seconds by class of tool."""

_FILE_WORDS = ("open", "edit", "create", "find", "search", "goto", "scroll", "read", "write", "grep", "glob")
_WEB_WORDS = ("web", "http", "browser", "click", "url", "tab", "page", "navigate", "google")
_DATABASE_WORDS = ("get_", "update_", "cancel_", "book_", "list_", "reservation", "sql", "query", "flight")


def tool_class(tool: str) -> str:
    """The class of `tool` in PAPER_LATENCY_S, by words in its name; whatever runs code or is unknown is "code".

    Web words are looked for first, then database words (tool services such as `get_user_details`), then file words.
    """
    name = tool.lower()
    if any(word in name for word in _WEB_WORDS):
        return "web"
    if any(word in name for word in _DATABASE_WORDS):
        return "database"
    if any(word in name for word in _FILE_WORDS):
        return "file"
    return "code"


def tool_latency(tool: str) -> Quantiles:
    """The distribution of seconds that `tool` takes, by its class."""
    return PAPER_LATENCY_S[tool_class(tool)]


USER_GAP_S = Quantiles(
    (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0),
    (0.5, 4.4, 21.9, 32.4, 56.2, 113.1, 261.7, 472.4, 603.2, 1467.9, 3028.2),
)
"""Seconds a person takes before the next turn: measured on mooncake_conversation (kvcache-ai/Mooncake,
FAST25-release/traces/conversation_trace.jsonl, commit 3b5a5941, Apache-2.0); service time there is estimated."""
