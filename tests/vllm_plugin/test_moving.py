"""Whether a prefix is carried to another worker or computed there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.errors import UsageError
from saga.vllm_plugin.moving import Link, carry_s, pays

RATES = st.floats(1.0, 1e12)


def test_a_fast_link_pays_and_a_slow_one_does_not():
    """131,072 bytes per token over 25 GB/s are 190,735 tokens/s: more than 20,000 prefilled, less than 200,000."""
    link = Link(25e9)
    assert carry_s(1_000, 131_072, link) == pytest.approx(0.00524288)
    assert pays(1_000, 131_072, link, 20_000.0)
    assert not pays(1_000, 131_072, link, 200_000.0)


def test_what_a_transfer_costs_to_begin_with_makes_short_prefixes_not_worth_it():
    """With 0.1 s to set up, only prefixes that take longer than that to prefill are carried."""
    link = Link(1e9, setup_s=0.1)
    assert not pays(999, 100_000, link, 5_000.0)
    assert pays(1_001, 100_000, link, 5_000.0)


@given(st.integers(1, 10**6), st.integers(1, 10**7), RATES, st.floats(0.0, 10.0), RATES)
def test_it_pays_exactly_from_some_number_on(num_tokens, bytes_per_token, bytes_per_s, setup_s, prefill):
    """That number is where what a token gains has paid for the setup; where no token gains, nothing is carried."""
    gain_s_per_token = 1.0 / prefill - bytes_per_token / bytes_per_s
    least = setup_s / gain_s_per_token if gain_s_per_token > 0 else float("inf")
    link = Link(bytes_per_s, setup_s)
    if num_tokens > least * (1 + 1e-6):
        assert pays(num_tokens, bytes_per_token, link, prefill)
    if num_tokens < least * (1 - 1e-6):
        assert not pays(num_tokens, bytes_per_token, link, prefill)


def test_unknown_rates():
    """An unknown link carries nothing, an unknown prefill rate is slower than any link; nothing is never carried."""
    assert not pays(100, 2_048, Link(0.0), 1.0)
    assert pays(1, 2_048, Link(1.0), 0.0)
    assert not pays(0, 2_048, Link(1e9), 1.0)


@pytest.mark.parametrize(("rate", "setup"), [(-1.0, 0.0), (float("nan"), 0.0), (1.0, -1.0)])
def test_a_link_that_cannot_be_is_refused(rate, setup):
    """Negative rates and times, and those that are no numbers, are usage errors."""
    with pytest.raises(UsageError, match="link"):
        Link(rate, setup)
