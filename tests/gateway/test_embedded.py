"""Tests of engines as child processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from saga.errors import PeerError
from saga.gateway.embedded import EmbeddedEngines, _last_of


def test_an_engine_that_does_not_start_is_one_error_with_its_own_words():
    """And no child is left."""

    async def work():
        engines = EmbeddedEngines(1, ("--hardware", "abacus"))
        with pytest.raises(PeerError, match="abacus"):
            await engines.start()
        assert not engines._children

    asyncio.run(work())


async def _answers(port: int) -> bool:
    """Whether somebody listens."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.mark.slow
def test_an_engine_that_dies_is_started_again_where_it_was(caplog):
    """Killed twice, it listens on its port again each time, the second time after a longer pause; the other stays."""

    async def work():
        engines = EmbeddedEngines(2, ("--speed", "50"), prefill_tokens_per_s=250_000.0, first_pause_s=0.05)
        workers = await engines.start()
        assert [worker.prefill_tokens_per_s for worker in workers] == [250_000.0] * 2
        port = workers[0].address().port
        killed, other = engines._children
        other_pid = other.pid
        for _ in range(2):
            before = killed.pid
            os.kill(before, signal.SIGKILL)
            async with asyncio.timeout(30.0):
                while killed.pid == before or not await _answers(port):  # noqa: ASYNC110  of others
                    await asyncio.sleep(0.02)
        assert other.pid == other_pid
        await engines.stop()
        assert not await _answers(port)

    asyncio.run(work())
    pauses = [record.fields["again_in_s"] for record in caplog.records]
    assert pauses == [0.05, 0.1]


@pytest.mark.slow
def test_a_pipe_that_nobody_reads_does_not_stop_an_engine():
    """What a child writes to its standard error is read all along, and its end is kept."""

    async def work():
        program = "import sys; sys.stderr.write('x' * 1_000_000 + 'end'); sys.stderr.flush()"
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stderr=pipe)
        kept = await asyncio.wait_for(_last_of(child.stderr), 20.0)
        await child.wait()
        assert kept.endswith(b"xend")
        assert len(kept) <= 2_000

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
