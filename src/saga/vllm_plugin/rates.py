"""How fast this engine computes prompts, from its own steps: what the coordinator else would have to assume.

A step counts where nearly all that it computes is prompts: many tokens, and many for each of its calls. It lasts from
when it was scheduled, or from the end of the step before where they overlap, to its own end. The median of the latest
ones is told, to two digits. It refuses to know the engine.
"""

from __future__ import annotations

from collections import deque
from statistics import median

_LEAST_STEPS = 8
_MOST_STEPS = 64
_LEAST_TOKENS = 256
_LEAST_TOKENS_PER_CALL = 32
_MOST_IN_FLIGHT = 16


class PrefillRate:
    """Steps begin and end in the same order, several at a time. Times in seconds."""

    def __init__(self) -> None:
        self._begun: deque[tuple[object, float, int]] = deque(maxlen=_MOST_IN_FLIGHT)
        self._rates: deque[float] = deque(maxlen=_MOST_STEPS)
        self._ended_s = 0.0
        self._told = 0.0

    @property
    def tokens_per_s(self) -> float:
        """0 where too little has been seen."""
        return self._told

    def began(self, step: object, num_tokens: int, num_calls: int, at_s: float) -> None:
        """A step was scheduled. O(1)."""
        counts = num_tokens >= max(_LEAST_TOKENS, _LEAST_TOKENS_PER_CALL * num_calls)
        self._begun.append((step, at_s, num_tokens if counts else 0))

    def ended(self, step: object, at_s: float) -> None:
        """Its tokens are here. O(1), where it counts O(steps that are kept)."""
        place = next((place for place, begun in enumerate(self._begun) if begun[0] is step), None)
        if place is not None:  # else it was pushed out by newer ones, which are to end still
            for _ in range(place):
                self._begun.popleft()
            _, begin_s, num_tokens = self._begun.popleft()
            seconds = at_s - max(begin_s, self._ended_s)
            if num_tokens and seconds > 0.0:
                self._add(num_tokens / seconds)
        self._ended_s = at_s

    def _add(self, tokens_per_s: float) -> None:
        self._rates.append(tokens_per_s)
        if len(self._rates) >= _LEAST_STEPS:
            self._told = float(f"{median(self._rates):.2g}")
