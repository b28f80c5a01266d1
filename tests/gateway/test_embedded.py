"""Tests of engines as child processes."""

from __future__ import annotations

import asyncio

import pytest

from saga.errors import PeerError
from saga.gateway.embedded import EmbeddedEngines


def test_an_engine_that_does_not_start_is_one_error_with_its_own_words():
    """And no child is left."""

    async def work():
        engines = EmbeddedEngines(1, ("--hardware", "abacus"))
        with pytest.raises(PeerError, match="abacus"):
            await engines.start()
        assert not engines._children

    asyncio.run(work())


@pytest.mark.slow
def test_engines_start_side_by_side_and_end_together():
    """Each has its URL; after stop nobody listens."""

    async def work():
        engines = EmbeddedEngines(2, ("--speed", "50"))
        workers = await engines.start()
        assert [worker.name for worker in workers] == ["engine-1", "engine-2"]
        ports = [worker.address().port for worker in workers]
        assert len(set(ports)) == 2
        await engines.stop()
        for port in ports:
            with pytest.raises(OSError, match="Connect"):
                await asyncio.open_connection("127.0.0.1", port)

    asyncio.run(work())
