"""Prefetch: bring a prefix back from the host tier before its session returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from saga.workflow.gaps import GapModel


class Prefetching(Protocol):
    """A frozen dataclass that says when to begin, if at all."""

    def begin_s(self, gap: GapModel, waited_s: float, confidence: float) -> float | None:
        """Seconds after the start of the gap at which to begin; None: not at all."""
        ...


@dataclass(frozen=True)
class NoPrefetch:
    """Prefixes come back when they are asked for."""

    def begin_s(self, gap: GapModel, waited_s: float, confidence: float) -> float | None:
        """None."""
        return None


@dataclass(frozen=True)
class BeforeReturn:
    """At a quantile of the time that the gap still has, for sessions of which anything is known (see `Composition`)."""

    quantile: float = 0.25

    def begin_s(self, gap: GapModel, waited_s: float, confidence: float) -> float | None:
        """Seconds from the start of the gap, at least `waited_s`."""
        return gap.quantile(self.quantile, waited_s) if confidence > 0.0 else None
