"""Start-time fair shares between tenants, with a bound: docs/fairness.md states it and proves it.

A tenant's tag is what it was served plus what its places were charged in advance, per weight. The lowest tag gets the
next place; no step of a tenant is dispatched while another one, more than `window_s` behind it, waits for any worker.
The policy refuses to know queues and time: it compares two numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

from saga.views import TenantView


@dataclass(frozen=True)
class StartTimeFair:
    """SFQ(D) over sessions' places (Jin, Chase and Kaur, SIGMETRICS 2004, for requests), device seconds per weight.

    window_s: how far ahead of one that waits a tenant may go on where its prefixes are. away_s: how far, until its
    sessions that are away make room for that one, if this lets it in. tie_s: tags are compared in
    steps of this much; within one the composition's ordering decides (task age, urgency, deadlines). advance_s: charged
    when a session gets a place, so that the places that come free before any work is known go round.
    """

    window_s: float = 200.0
    away_s: float = 10.0
    tie_s: float = 0.0
    advance_s: float = 10.0

    @property
    def slack_s(self) -> float:
        """By how much per weight a tenant that is given a step may be ahead of one that waits: B of the theorem."""
        return self.window_s + self.tie_s

    def rank(self, tenant: TenantView) -> float:
        """The tag, rounded down to a whole number of tie_s."""
        tag_s = (tenant.attained_s + tenant.advanced_s) / tenant.weight
        return floor(tag_s / self.tie_s) * self.tie_s if self.tie_s else tag_s

    def stands_back(self, mine: float, waiting: float) -> bool:
        """More than the window ahead."""
        return mine > waiting + self.window_s

    def gives_way(self, mine: float, waiting: float) -> bool:
        """More than away_s ahead."""
        return mine > waiting + self.away_s
