"""How long a place is held: the laws of ski rental against brute force, and the simpler rules."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nextafter

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.cache.ttl import FixedTtl, Forever, GapFacts, NoTtl, P95Ttl, Retention, SkiRental, UtilityTtl, _two_digits
from saga.workflow.gaps import EDGES_S, GapModel

GAPS = st.lists(st.floats(0.0, 1e4), max_size=40)
SHARES = st.integers(0, 100).map(lambda percent: percent / 100)
RETURNS_S = st.builds(lambda digits, power: digits * 10.0**power, st.integers(1, 99), st.integers(-2, 3))
ENDLESS = SkiRental(max_s=inf, price=1.0)


def model(gaps_s: list[float]) -> GapModel:
    """A model that has seen these gaps."""
    made = GapModel()
    for gap_s in gaps_s:
        made.observe(gap_s)
    return made


def facts(
    gap: GapModel, return_s: float = 30.0, probability: float = 1.0, overlap: float = 1.0, pressure: float = 0.0
) -> GapFacts:
    """A gap on a worker whose whole device comes back in `return_s`."""
    return GapFacts(gap, probability, overlap, 100_000, 100_000 / return_s, pressure)


def cost_s(known: GapFacts, hold_s: float) -> float:
    """What holding for so long costs on average, device seconds x capacity / context, by the model's own answers."""
    tau_s = known.overlap * known.capacity_tokens / known.return_tokens_per_s
    held_s = known.gap.expected_min(hold_s) if hold_s else 0.0
    lost_s = tau_s * known.gap.survival(hold_s)
    return known.continue_probability * (held_s + lost_s) + (1.0 - known.continue_probability) * hold_s


@given(GAPS, RETURNS_S, SHARES, st.floats(0.0, 1e6))
def test_no_other_hold_is_cheaper(gaps_s: list[float], return_s: float, probability: float, other_s: float) -> None:
    """The hold is the argmin of the stated cost, over all edges of the curve and any time between them."""
    known = facts(model(gaps_s), return_s, probability)
    best_s = cost_s(known, ENDLESS.hold_s(known))
    cheapest_s = min(cost_s(known, hold_s) for hold_s in (*EDGES_S, other_s))
    assert best_s <= cheapest_s * (1.0 + 1e-9) + 1e-9


@given(GAPS, RETURNS_S, SHARES, st.sampled_from((2.0, 4.0)))
def test_a_price_is_a_slower_return(gaps_s: list[float], return_s: float, probability: float, price: float) -> None:
    """A prefix that costs twice as much to lose is held as long as one that takes twice as long to bring back."""
    gap = model(gaps_s)
    priced = SkiRental(max_s=inf, price=price).hold_s(facts(gap, return_s, probability))
    assert priced == ENDLESS.hold_s(facts(gap, price * return_s, probability))


@given(GAPS, SHARES, SHARES)
def test_what_is_free_to_bring_back_is_not_held(gaps_s: list[float], overlap: float, probability: float) -> None:
    """No overlap, or no return at all: every second of holding is a loss."""
    assert SkiRental().hold_s(facts(model(gaps_s), probability=probability, overlap=0.0)) == 0.0
    assert SkiRental().hold_s(facts(model(gaps_s), probability=0.0, overlap=overlap)) == 0.0


@given(GAPS, SHARES, SHARES, SHARES)
def test_more_overlap_is_held_longer(gaps_s: list[float], probability: float, one: float, other: float) -> None:
    """The more of the prefix would be lost, the longer it is worth keeping."""
    gap = model(gaps_s)
    less, more = (facts(gap, probability=probability, overlap=overlap) for overlap in sorted((one, other)))
    assert ENDLESS.hold_s(less) <= ENDLESS.hold_s(more)


@given(GAPS, st.integers(1, 10**7), st.integers(1, 10**7), st.floats(10.0, 1e5))
def test_a_larger_device_and_a_slower_return_hold_longer(
    gaps_s: list[float], one: int, other: int, rate: float
) -> None:
    """The hold scales with C / R."""
    gap = model(gaps_s)
    small, large = (GapFacts(gap, 1.0, 1.0, tokens, rate, 0.0) for tokens in sorted((one, other)))
    assert ENDLESS.hold_s(small) <= ENDLESS.hold_s(large)
    assert ENDLESS.hold_s(replace(large, return_tokens_per_s=2.0 * rate)) <= ENDLESS.hold_s(large)


@given(GAPS, SHARES, SHARES)
def test_the_surer_the_return_the_longer_the_hold(gaps_s: list[float], one: float, other: float) -> None:
    """A session that may have ended is held for less."""
    gap = model(gaps_s)
    less, more = (facts(gap, probability=probability) for probability in sorted((one, other)))
    assert ENDLESS.hold_s(less) <= ENDLESS.hold_s(more)


@given(GAPS, RETURNS_S, SHARES, st.floats(0.0, 1e4))
def test_a_hold_is_bounded(gaps_s: list[float], return_s: float, probability: float, max_s: float) -> None:
    """Never below 0, never above max_s, and below the bound the bound changes nothing."""
    known = facts(model(gaps_s), return_s, probability)
    assert 0.0 <= SkiRental(max_s, price=1.0).hold_s(known) == min(max_s, ENDLESS.hold_s(known)) <= max_s


def test_short_gaps_are_held_out_and_long_ones_not_begun() -> None:
    """With half a minute to bring a prefix back, a second's tool keeps its place and an hour's does not."""
    quick, slow = GapModel.around(1.0, sigma=0.2), GapModel.around(3_600.0, sigma=0.2)
    hold_s = SkiRental().hold_s(facts(quick))
    assert quick.survival(hold_s) < 0.05
    assert SkiRental().hold_s(facts(slow)) == 0.0


def test_the_hold_follows_what_is_learned() -> None:
    """An answer that was given when nothing was known does not outlive the evidence against it."""
    gap = GapModel()
    ENDLESS.hold_s(facts(gap, 10.0))
    for _ in range(1_000):
        gap.observe(500.0)
    twin = GapModel()
    twin.restore(gap.snapshot())
    assert ENDLESS.hold_s(facts(gap, 10.0)) == ENDLESS.hold_s(facts(twin, 10.0))


@given(GAPS)
def test_without_pressure_p95_holds_for_the_quantile(gaps_s: list[float]) -> None:
    """One in twenty outlasts the hold, unless TTL_max cuts it."""
    gap = model(gaps_s)
    assert P95Ttl(max_s=inf).hold_s(facts(gap)) == gap.quantile(0.95)
    assert P95Ttl().hold_s(facts(gap)) == min(300.0, gap.quantile(0.95))


@given(GAPS, st.floats(0.0, 2.0), st.floats(0.0, 2.0))
def test_pressure_shortens_p95_down_to_a_half(gaps_s: list[float], one: float, other: float) -> None:
    """The hold falls as the device fills, and at worst to half of what it was."""
    rule, gap = P95Ttl(max_s=inf), model(gaps_s)
    relaxed_s, pressed_s = (rule.hold_s(facts(gap, pressure=pressure)) for pressure in sorted((one, other)))
    full_s = rule.hold_s(facts(gap))
    assert full_s / 2 <= pressed_s <= relaxed_s <= full_s
    assert rule.hold_s(facts(gap, pressure=rule.hard + 1.0)) == full_s / 2
    assert rule.hold_s(facts(gap, pressure=rule.soft)) == full_s


@pytest.mark.parametrize(("rule", "hold_s"), [(NoTtl(), 0.0), (Forever(), inf), (FixedTtl(90.0), 90.0)], ids=repr)
@given(gaps_s=GAPS, pressure=SHARES)
def test_simple_rules_say_the_same_of_everybody(
    rule: Retention, hold_s: float, gaps_s: list[float], pressure: float
) -> None:
    """Baselines look at no forecast and no pressure."""
    assert rule.hold_s(facts(model(gaps_s), pressure=pressure)) == hold_s


def pinned(gap: GapModel, context_tokens: int, wait_s: float, probability: float = 1.0) -> GapFacts:
    """A gap of a session with so much context, where calls have lately waited for so long; 1,000 tokens a second."""
    return GapFacts(gap, probability, 1.0, 100_000, 1_000.0, 0.0, context_tokens, wait_s)


@given(GAPS, st.integers(0, 10**6), st.floats(0.0, 1e3), SHARES)
def test_a_pin_is_never_longer_than_what_it_may_save(
    gaps_s: list[float], tokens: int, wait_s: float, probability: float
) -> None:
    """A pin costs its length for sure and saves a reload and a wait at most."""
    hold_s = UtilityTtl(max_s=inf).hold_s(pinned(model(gaps_s), tokens, wait_s, probability))
    assert 0.0 <= hold_s <= probability * (tokens / 1_000.0 + wait_s)


@given(GAPS, st.integers(0, 10**6), st.floats(0.0, 1e3), st.floats(0.0, 1e3))
def test_a_longer_queue_is_worth_a_longer_pin(gaps_s: list[float], tokens: int, one_s: float, other_s: float) -> None:
    """What saves more is held no shorter, up to the most that is ever held."""
    gap = model(gaps_s)
    short_s, long_s = (UtilityTtl().hold_s(pinned(gap, tokens, wait_s)) for wait_s in sorted((one_s, other_s)))
    assert short_s <= long_s <= UtilityTtl().max_s


def test_a_tool_that_is_surely_back_in_time_is_waited_for() -> None:
    """A reload of 20 s pays for a pin over gaps of one second, a context of nothing for none."""
    quick = model([1.0] * 100)
    assert 1.0 <= UtilityTtl().hold_s(pinned(quick, 20_000, 0.0)) < 5.0
    assert UtilityTtl().hold_s(pinned(quick, 0, 0.0)) == 0.0


@given(st.floats(1e-6, 1e8))
def test_a_price_counts_to_two_digits(seconds: float) -> None:
    """Rounded as decimal figures are, and so are the middles between two of them and the numbers beside those."""
    middle = float(f"{float(f'{seconds:.2g}'):.1e}".replace("e", "5e"))
    for number in (seconds, middle, nextafter(middle, 0.0), nextafter(middle, inf), float(f"{seconds:.2g}")):
        assert _two_digits(number) == float(f"{number:.2g}")
