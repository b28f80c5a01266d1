"""Two orders in one: classes by the first, and the second decides inside a class.

The paper names a queue strategy (breadth first, depth first, Hybrid) and an urgency (AFS) and does not say how they
meet; this is our reading: tasks whose urgency lies within a factor of two are equally urgent, and the strategy decides
between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log2

from saga.ordering.order import Ordering
from saga.views import SessionView

_SPAN = 1 << 32
_FEWEST, _MOST = -30, 30


@dataclass(frozen=True)
class UrgencyClasses:
    """Classes are powers of two of the first rank's size: the more negative that rank, the earlier the class.

    by: its rank is minus an urgency >= 0. within: ranks of less than 2^31 in size.
    """

    by: Ordering
    within: Ordering
    static: bool = False

    def rank(self, session: SessionView, at_s: float) -> float:
        """Class x 2^32 + rank within."""
        urgency = -self.by.rank(session, at_s)
        level = _FEWEST if urgency <= 0.0 else max(_FEWEST, min(_MOST, floor(log2(urgency))))
        return -level * float(_SPAN) + self.within.rank(session, at_s)
