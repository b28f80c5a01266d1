"""What an engine learns of its own speed."""

from __future__ import annotations

from saga.vllm_plugin.rates import PrefillRate


def live(rate, *steps, at_s=0.0, calls=2):
    """Steps of (tokens, seconds), one after another; when they have ended."""
    for tokens, seconds in steps:
        step = object()
        rate.began(step, tokens, calls, at_s)
        at_s += seconds
        rate.ended(step, at_s)
    return at_s


def test_the_median_of_the_steps_that_compute_prompts_is_told():
    """From eight of them on, so that the first ones, which are slow, and a hiccup do not count."""
    rate = PrefillRate()
    at_s = live(rate, (1_000, 9.0), *[(1_000, 0.1)] * 6)
    assert rate.tokens_per_s == 0.0
    live(rate, (1_000, 0.1), at_s=at_s)
    assert rate.tokens_per_s == 10_000.0


def test_steps_that_mostly_decode_say_nothing():
    """Few tokens, or few for each call: they take as long for other reasons."""
    rate = PrefillRate()
    live(rate, *[(100, 0.1)] * 20)
    live(rate, *[(300, 0.1)] * 20, calls=64)
    assert rate.tokens_per_s == 0.0


def test_a_step_that_was_scheduled_ahead_begins_with_the_end_of_the_one_before():
    """Two in flight, each 0.1 s: the time that a step waited behind the other is not its own."""
    rate = PrefillRate()
    steps = [object() for _ in range(12)]
    rate.began(steps[0], 500, 1, 0.0)
    for at, step in enumerate(steps[:-1], 1):
        rate.began(steps[at], 500, 1, 0.1 * at - 0.09)
        rate.ended(step, 0.1 * at)
    assert rate.tokens_per_s == 5_000.0


def test_steps_without_an_end_are_forgotten():
    """Those that vLLM never brought back do not pile up, nor shift the ones after them."""
    rate = PrefillRate()
    for _ in range(100):
        rate.began(object(), 1_000, 1, 0.0)
    live(rate, *[(1_000, 0.1)] * 10)
    assert (rate.tokens_per_s, len(rate._begun)) == (10_000.0, 0)


def test_with_more_steps_in_flight_than_are_kept_the_newer_ones_are_learned_from():
    """The end of one that was pushed out says nothing, and takes nobody with it."""
    rate = PrefillRate()
    steps = [object() for _ in range(60)]
    for at, step in enumerate(steps):
        rate.began(step, 500, 1, 0.1 * at)
        if at >= 40:
            rate.ended(steps[at - 40], 0.1 * at + 0.05)
    assert rate.tokens_per_s == 0.0
    for at, step in enumerate(steps[20:]):
        rate.ended(step, 6.05 + 0.1 * at)
    assert rate.tokens_per_s == 5_000.0
