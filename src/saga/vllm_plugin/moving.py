"""Whether KV is carried from one worker to another, or computed again: arithmetic, no engine.

A prefix that lies in a tier that both workers reach is loaded at the rate of the link between them and the tier; the
same tokens can be prefilled. It refuses to know sessions, tiers and who asks.
"""

from __future__ import annotations

from dataclasses import dataclass

from saga.errors import UsageError


@dataclass(frozen=True, slots=True)
class Link:
    """The way from the tier to a worker. bytes_per_s: 0 where unknown; setup_s: per transfer."""

    bytes_per_s: float
    setup_s: float = 0.0

    def __post_init__(self) -> None:
        """Raises UsageError for what cannot be."""
        if not self.bytes_per_s >= 0 or not self.setup_s >= 0:
            raise UsageError(
                f"link = {self.bytes_per_s:g} bytes/s, {self.setup_s:g} s: should be numbers of at least 0"
            )


def carry_s(num_tokens: int, bytes_per_token: int, link: Link) -> float:
    """Seconds until the KV of so many tokens is there; infinity where the link's rate is unknown."""
    return link.setup_s + num_tokens * bytes_per_token / link.bytes_per_s if link.bytes_per_s else float("inf")


def pays(num_tokens: int, bytes_per_token: int, link: Link, prefill_tokens_per_s: float) -> bool:
    """Whether carrying is cheaper than prefilling. An unknown prefill rate (0) is slower than any known link."""
    if num_tokens <= 0:
        return False
    prefill_s = num_tokens / prefill_tokens_per_s if prefill_tokens_per_s > 0 else float("inf")
    return carry_s(num_tokens, bytes_per_token, link) < prefill_s
