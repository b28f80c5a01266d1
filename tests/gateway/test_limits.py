"""What clients and workers may take."""

from __future__ import annotations

import pytest

from saga.errors import UsageError
from saga.gateway.limits import FrontLimits, MessageLimits, UpstreamLimits


def test_fronts_share_the_memory_for_bodies():
    """However many there are, each can hold one body, and all of them no more than one process."""
    whole = FrontLimits()
    assert whole.share(1) == whole
    assert whole.share(4).max_held_bytes * 4 == whole.max_held_bytes
    assert whole.share(64).max_held_bytes == whole.message.max_body_bytes


@pytest.mark.parametrize("limits", [FrontLimits, MessageLimits, UpstreamLimits])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_limit_that_lets_nothing_through_is_refused_by_name(limits, value):
    """Each of them, also one that is no number."""
    for name in limits.__dataclass_fields__:
        if name not in {"message", "upstream"}:
            with pytest.raises(UsageError, match=f"{name} = {value}: must be more than 0"):
                limits(**{name: value})
