"""A serial link."""

from __future__ import annotations

from saga.engine.link import Link


def test_transfers_queue_behind_each_other() -> None:
    """The second transfer starts when the first has ended; an idle link starts at once."""
    link = Link(100.0)
    assert link.transfer(200, at_s=1.0) == 3.0
    assert link.transfer(100, at_s=1.5) == 4.0
    assert link.transfer(100, at_s=10.0) == 11.0
