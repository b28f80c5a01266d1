"""Retention: how long a session keeps its reservation, and its prefix, while a tool runs.

The question is the ski-rental one: memory held for a session that is away costs others their place, a prefix
let go costs its regeneration. Policies refuse to know clocks, sessions and caches: numbers in, seconds out.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import inf, nextafter
from typing import Final, Protocol

from saga.workflow.gaps import GapModel


@dataclass(slots=True, init=False)
class GapFacts:
    """What is known when a gap begins.

    gap: model of its length. continue_probability: that there is a next step at all. overlap: share of the
    prefix that the next step will use. capacity_tokens: of the worker; return_tokens_per_s: rate at which a
    lost prefix comes back (prefill, or the host link). pressure: share of the device that is spoken for, 0..1.
    context_tokens: of the session; wait_s: how long calls have lately waited on the worker, seconds.
    """

    gap: GapModel
    continue_probability: float
    overlap: float
    capacity_tokens: int
    return_tokens_per_s: float
    pressure: float
    context_tokens: int
    wait_s: float

    def __init__(
        self,
        gap: GapModel,
        continue_probability: float,
        overlap: float,
        capacity_tokens: int,
        return_tokens_per_s: float,
        pressure: float,
        context_tokens: int = 0,
        wait_s: float = 0.0,
    ) -> None:
        self.gap = gap
        self.continue_probability = continue_probability
        self.overlap = overlap
        self.capacity_tokens = capacity_tokens
        self.return_tokens_per_s = return_tokens_per_s
        self.pressure = pressure
        self.context_tokens = context_tokens
        self.wait_s = wait_s


class Retention(Protocol):
    """A frozen dataclass with this one question."""

    def hold_s(self, facts: GapFacts) -> float:
        """Seconds from the start of the gap for which the session is held; 0 lets go at once, inf never."""
        ...


@dataclass(frozen=True)
class NoTtl:
    """Nothing is held: stock engines."""

    def hold_s(self, facts: GapFacts) -> float:
        """0."""
        return 0.0


@dataclass(frozen=True)
class Forever:
    """Held until the session ends; a baseline that shows what deadlines are worth."""

    def hold_s(self, facts: GapFacts) -> float:
        """Always inf."""
        return inf


@dataclass(frozen=True)
class FixedTtl:
    """The same time for everybody (prompt-cache style)."""

    ttl_s: float = 90.0

    def hold_s(self, facts: GapFacts) -> float:
        """ttl_s."""
        return self.ttl_s


@dataclass(frozen=True)
class P95Ttl:
    """The paper's rule: p95 of the tool's log-normal latency, halved as pressure goes from soft to hard.

    ttl = p95 x (1 - 0.5 x pressure), at most TTL_max; our reading of pressure: 0 below `soft`, 1 above `hard`.
    """

    quantile: float = 0.95
    max_s: float = 300.0
    soft: float = 0.7
    hard: float = 0.9

    def hold_s(self, facts: GapFacts) -> float:
        """At most max_s."""
        squeeze = min(1.0, max(0.0, (facts.pressure - self.soft) / (self.hard - self.soft)))
        return min(self.max_s, facts.gap.quantile(self.quantile) * (1.0 - 0.5 * squeeze))


@dataclass(frozen=True)
class UtilityTtl:
    """Pin for the T that maximises P(X <= T) x (reload + wait) - T (Continuum, arXiv 2511.02230; our reading of it).

    X is the forecast gap. A session that returns in time saves bringing its prefix back and waiting in the queue again;
    a pin costs its length. max_s bounds what a pin may cost others.
    """

    max_s: float = 300.0

    def hold_s(self, facts: GapFacts) -> float:
        """Seconds, 0..max_s. O(bins of the gap model)."""
        saved_s = facts.overlap * facts.context_tokens / facts.return_tokens_per_s + facts.wait_s
        edges, survival = facts.gap.curve()
        best_s, best = 0.0, 0.0
        for edge_s, alive in zip(edges, survival, strict=True):
            gain = facts.continue_probability * (1.0 - alive) * saved_s - edge_s
            if gain > best:
                best_s, best = edge_s, gain
        return min(self.max_s, best_s)


@dataclass(frozen=True)
class SkiRental:
    """Hold for the T that minimises E[min(X, T)] + tau x P(T < X < inf), tau = price x overlap x C / R.

    X is the forecast gap, infinite with probability 1 - continue_probability (then nothing is ever regenerated).
    Holding c of C tokens for t seconds costs others t x c / C of the device; bringing them back takes overlap x c / R
    seconds of all of it; c cancels. price: what losing a prefix costs over that: the session waits for a place again,
    and who answers meanwhile is slowed down (2 by simulation, docs/policies.md). max_s bounds what a reservation may
    cost others (fairness).
    """

    max_s: float = 600.0
    price: float = 2.0

    def hold_s(self, facts: GapFacts) -> float:
        """Seconds, 0..max_s. O(bins of the gap model), O(1) while the model says the same."""
        tau_s = _two_digits(self.price * facts.overlap * facts.capacity_tokens / facts.return_tokens_per_s)
        probability = round(facts.continue_probability, 2)
        edges, survival = facts.gap.curve()
        question = (tau_s, probability)
        hold_s = facts.gap.derived.get(question)
        if hold_s is None:
            hold_s = facts.gap.derived[question] = _cheapest_hold_s(edges, survival, tau_s, probability)
        return min(self.max_s, hold_s)


def _two_digits(seconds: float) -> float:
    """Rounded to two significant digits: gaps that are nearly alike are one question. O(log numbers)."""
    if not _ROUNDED_FROM[0] <= seconds < _ROUNDED_FROM[-1]:
        return float(f"{seconds:.2g}")
    return _TWO_DIGITS[bisect_right(_ROUNDED_FROM, seconds)]


def _first_rounded_up(middle: float) -> float:
    """The least number that is rounded to what lies above the middle of two neighbours."""
    return middle if float(f"{middle:.2g}") > middle else nextafter(middle, inf)


_TWO_DIGITS: Final = [float(f"{digits}e{power}") for power in range(-4, 5) for digits in range(10, 100)]
_ROUNDED_FROM: Final = [
    _first_rounded_up(float(f"{digits}5e{power - 1}")) for power in range(-4, 5) for digits in range(10, 100)
][:-1]
"""From where on a number is rounded to each of them but the first."""


def _cheapest_hold_s(edges: tuple[float, ...], survival: tuple[float, ...], tau_s: float, probability: float) -> float:
    """The argmin over the edges of a gap's survival curve, seconds. O(edges)."""
    best_s, best_cost = 0.0, tau_s * probability
    held_s, previous_s, previous_alive = 0.0, 0.0, 1.0
    for edge_s, alive in zip(edges, survival, strict=True):
        mean_alive = probability * 0.5 * (alive + previous_alive) + (1.0 - probability)
        held_s += mean_alive * (edge_s - previous_s)
        cost = held_s + tau_s * probability * alive
        if cost < best_cost:
            best_s, best_cost = edge_s, cost
        previous_s, previous_alive = edge_s, alive
    return best_s
