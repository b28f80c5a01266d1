"""A serial transfer link in virtual time: host DRAM to device, or worker to worker.

One transfer at a time in the order of asking, at a constant rate. It refuses to know what is transferred.
"""

from __future__ import annotations


class Link:
    """tokens_per_s: its rate, > 0. busy_until_s: when the last transfer asked for ends."""

    __slots__ = ("busy_until_s", "tokens_per_s")

    def __init__(self, tokens_per_s: float) -> None:
        self.tokens_per_s = tokens_per_s
        self.busy_until_s = 0.0

    def transfer(self, tokens: int, at_s: float) -> float:
        """Queue a transfer asked for at `at_s`; returns when it ends, seconds. O(1)."""
        self.busy_until_s = max(self.busy_until_s, at_s) + tokens / self.tokens_per_s
        return self.busy_until_s
