"""Small agents for small real engines: what the benchmarks of vLLM on a CPU live, and nothing of how it is served.

Sizes are for 512 blocks of 32 tokens: nine of B's agents want 1.3 times what an engine holds, twelve of A's 1.5 times,
five of B07's 0.7 times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from saga.workloads import plan as shapes


@dataclass(frozen=True)
class Agents:
    """Agents whose contexts grow. Ranges are uniform; tokens, seconds."""

    name: str
    agents: int
    calls: int
    first_tokens: int
    more_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    gap_s: tuple[float, float]
    provenance: str = "made for this benchmark"
    tenants: dict[str, float] = field(default_factory=lambda: {"default": 1.0})
    skipped: shapes.Skipped = field(default_factory=shapes.Skipped)

    @property
    def first_context_tokens(self) -> float:
        """Of a first call."""
        return self.first_tokens + sum(self.output_tokens) / 2

    @property
    def mean_context_tokens(self) -> float:
        """Mean over calls of prompt and answer."""
        growth = (sum(self.more_tokens) + sum(self.output_tokens)) / 2
        return self.first_context_tokens + growth * (self.calls - 1) / 2

    def tasks(self, num_tasks: int, seed: int) -> Iterator[shapes.Task]:
        """The same for the same seed."""
        for index in range(num_tasks):
            dice = Random(f"{self.name}/{seed}/{index}")
            calls: list[shapes.Call] = []
            tokens, kept = self.first_tokens, 0
            for _ in range(self.calls):
                output = dice.randint(*self.output_tokens)
                gap_s = dice.uniform(*self.gap_s) if calls else 0.0
                calls.append(shapes.Call(((index, tokens),), tokens, output, gap_s, common_tokens=kept))
                kept = tokens + output
                tokens = kept + dice.randint(*self.more_tokens)
            name = f"{self.name}-{seed}-{index}"
            yield shapes.Task(name, "default", self.name, name, (shapes.SessionPlan(name, tuple(calls)),))


WORKLOADS = {
    "B": Agents("B", 9, 10, 2_000, (40, 120), (12, 20), (0.02, 0.3)),
    "A": Agents("A", 12, 14, 900, (80, 220), (16, 32), (0.02, 0.3)),
    "B07": Agents("B07", 5, 10, 2_000, (40, 120), (12, 20), (0.02, 0.3)),
}
