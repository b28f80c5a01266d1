"""The port that fronts share, and the children that share it."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from saga.gateway import fronts as module
from saga.gateway.fronts import Fronts, reserve

from .fakes import run
from .far import until

ENDS_AT_ONCE = (sys.executable, "-c", "raise SystemExit(1)")
LASTS = (sys.executable, "-c", "import time; time.sleep(60)")


def children(number, tmp_path, command):
    """Fronts whose children do something else."""
    made = Fronts(number, tmp_path)
    made._command = command
    return made


def test_a_reserved_port_is_kept_and_shared_and_takes_no_connection():
    """Listeners of this user join it; without any, clients are refused."""
    with reserve("127.0.0.1", 0) as kept:
        address = kept.getsockname()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(address)
        with socket.socket() as joined:
            joined.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            joined.bind(address)
            joined.listen()
            socket.create_connection(address).close()


@pytest.mark.parametrize("shared", [False, True])
def test_a_port_of_somebody_else_is_not_shared(shared):
    """Also where the other would share it: two gateways must not answer each other's clients."""
    with socket.socket() as other:
        if shared:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            reserve("127.0.0.1", other.getsockname()[1])


def test_a_child_that_ends_is_replaced_and_none_is_left(tmp_path, monkeypatch):
    """Another process each time, until they are killed."""
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.01)

    async def work():
        fronts = children(2, tmp_path, LASTS)
        await fronts.start()
        first = fronts.processes
        fronts._children[0].kill()
        await until(lambda: fronts.num_restarts == 1 and len(fronts.processes) == 2)
        assert fronts.processes[1] == first[1]
        assert fronts.processes[0] != first[0]
        await fronts.kill()
        assert fronts.processes == ()

    run(work())


def test_children_that_end_at_once_are_started_ever_more_rarely(tmp_path, monkeypatch):
    """The waits double; stopping does not wait for them."""
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.02)
    waits = []
    monkeypatch.setattr(module, "say", lambda *_, wait_s, **__: waits.append(wait_s))

    async def work():
        fronts = children(1, tmp_path, ENDS_AT_ONCE)
        await fronts.start()
        await fronts.first_end()
        await until(lambda: len(waits) >= 4)
        assert waits[:4] == [0.02, 0.04, 0.08, 0.16]
        await asyncio.wait_for(fronts.ended(0.0), 5.0)
        assert fronts.processes == ()

    run(work())


def test_a_child_that_cannot_be_started_is_tried_again(tmp_path, monkeypatch):
    """A machine out of processes or memory for a moment does not cost a front for good."""
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.01)
    start, refusals = asyncio.create_subprocess_exec, [OSError("no more processes")] * 2

    async def sometimes(*command, **more):
        if refusals:
            raise refusals.pop()
        return await start(*command, **more)

    async def work():
        fronts = children(1, tmp_path, LASTS)
        await fronts.start()
        (first,) = fronts.processes
        monkeypatch.setattr(asyncio, "create_subprocess_exec", sometimes)
        fronts._children[0].kill()
        await until(lambda: fronts.processes not in ((), (first,)))
        assert fronts.num_restarts == 3
        await fronts.kill()
        assert fronts.processes == ()

    run(work())


def test_children_that_do_not_leave_are_killed(tmp_path, monkeypatch):
    """And that calls were cut off is said."""
    monkeypatch.setattr(module, "_STOP_S", 0.1)

    async def work():
        fronts = children(2, tmp_path, LASTS)
        await fronts.start()
        assert not await fronts.ended(0.1)
        assert fronts.processes == ()

    run(work())
