"""The fit: what it follows, what it leaves out, and that times never fall with tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from saga.engine.calibration import Observation, Sizes, Spell, fit
from saga.errors import UsageError

SIZES = Sizes(kv_tokens=10_000)


def prefill(tokens: int, seconds: float, *, kind: str = "prefill", held_out: bool = False) -> Observation:
    """One call alone."""
    return Observation(kind, f"{tokens}", seconds, (Spell(1, tokens, 0, 0, 0.0),), 1, held_out)


def decode(batch: int, seconds: float) -> Observation:
    """Ten iterations of calls without context."""
    return Observation("decode", f"batch {batch}", seconds, (Spell(10, 0, 0, batch, 0.0),))


STRAIGHT = [prefill(tokens, 0.01 + tokens / 10_000) for tokens in (1, 8, 64, 256, 1_024)]
DECODES = [decode(batch, 0.1 + batch / 1_000) for batch in (1, 4, 16)]


def test_times_never_fall_with_tokens() -> None:
    """However the observations lie: all coefficients are 0 or more and the grid's costs ascend."""
    dice = np.random.default_rng(1)
    wild = [prefill(2**power, float(dice.uniform(0.001, 0.1))) for power in range(1, 12)]
    found = fit(
        wild + [decode(batch, float(dice.uniform(0.001, 0.1))) for batch in (1, 2, 8)],
        name="x",
        provenance="y",
        sizes=SIZES,
    ).hardware
    assert list(found.linear_ms) == sorted(found.linear_ms)
    assert min((*found.linear_ms, *found.prefill_attention_ms, *found.decode_attention_ms)) >= 0.0


def test_one_disturbed_repeat_in_three_changes_nothing() -> None:
    """Of each probe the repeat in the middle counts."""
    clean = fit(STRAIGHT + DECODES, name="x", provenance="y", sizes=SIZES)
    disturbed = [replace(one, seconds=9.0 * one.seconds) for one in STRAIGHT + DECODES]
    again = fit(STRAIGHT + DECODES + disturbed + STRAIGHT + DECODES, name="x", provenance="y", sizes=SIZES)
    assert again.hardware == clean.hardware


def test_an_outlier_among_probes_is_seen_but_not_followed() -> None:
    """One length that took three times as long: the others stay within 5 %."""
    outlier = prefill(128, 3 * (0.01 + 128 / 10_000))
    found = fit([*STRAIGHT, outlier, *DECODES], name="x", provenance="y", sizes=SIZES)
    assert all(found.seconds(one) == pytest.approx(one.seconds, rel=0.05) for one in STRAIGHT)


def test_what_is_held_out_is_not_fitted() -> None:
    """It changes no coefficient and has residuals of its own."""
    held_out = prefill(512, 5.0, held_out=True)
    with_it = fit([*STRAIGHT, *DECODES, held_out], name="x", provenance="y", sizes=SIZES)
    assert with_it.hardware == fit(STRAIGHT + DECODES, name="x", provenance="y", sizes=SIZES).hardware
    (apart,) = [residual for residual in with_it.residuals if residual.held_out]
    assert (apart.kind, apart.num_observations) == ("prefill", 1)
    assert apart.bias < -0.9


def test_one_kind_alone_is_too_little() -> None:
    """The message says which is missing."""
    with pytest.raises(UsageError, match="no decode was measured"):
        fit(STRAIGHT, name="x", provenance="y", sizes=SIZES)
