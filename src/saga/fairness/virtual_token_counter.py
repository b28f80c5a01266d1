"""Virtual token counters: tenants are served in the order of the tokens that they have had (VTC, OSDI '24).

Two halves: what a step costs its tenant, in weighted tokens, and whose turn it is. That a tenant which comes back is
lifted to the least counter at work is the accounts' rule for every share policy. The paper's bound for two tenants that
both have calls waiting: counters differ by at most 2 max(input weight x longest prompt, output weight x KV tokens).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from saga.events import StepFinished
from saga.views import SessionView


class Billing(Protocol):
    """What a step costs its tenant, in the units in which the share policy compares."""

    def sent(self, session: SessionView) -> float:
        """Charged when the session's step is dispatched, each attempt anew. O(1)."""
        ...

    def finished(self, event: StepFinished, service_s: float) -> float:
        """Charged when its answer is complete; `service_s` device seconds went into it. O(1)."""
        ...

    def unanswered(self, service_s: float) -> float:
        """Charged for device seconds of a step that was broken off, or of memory kept across a gap. O(1)."""
        ...


@dataclass(frozen=True)
class DeviceSeconds:
    """What it took, once that is known."""

    def sent(self, session: SessionView) -> float:
        """Nothing yet."""
        return 0.0

    def finished(self, event: StepFinished, service_s: float) -> float:
        """Device seconds."""
        return service_s

    def unanswered(self, service_s: float) -> float:
        """Device seconds."""
        return service_s


@dataclass(frozen=True)
class TokenCosts:
    """VTC's weights: an output token counts as two input tokens; cached ones count like all others."""

    input_weight: float = 1.0
    output_weight: float = 2.0

    def sent(self, session: SessionView) -> float:
        """The prompt, tokens."""
        return self.input_weight * session.prompt_tokens

    def finished(self, event: StepFinished, service_s: float) -> float:
        """The answer, tokens (VTC counts them as they come, one by one)."""
        return self.output_weight * event.output_tokens

    def unanswered(self, service_s: float) -> float:
        """Nothing: VTC counts tokens of prompts, when they are sent, and of answers."""
        return 0.0
