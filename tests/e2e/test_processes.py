"""Tests of a gateway whose fronts are processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from saga.gateway import serve

MODEL = "llama3-8b-h100"
HELLO = [{"role": "user", "content": "Hello"}]


@contextlib.asynccontextmanager
async def fresh_connections(scene):
    """Each call of the scene on a connection of its own: the kernel gives it to any front."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
        kept, scene.http = scene.http, http
        yield
        scene.http = kept


async def idle(gateway):
    """Wait until no step is anywhere."""
    async with asyncio.timeout(10.0):
        while gateway.scheduling.num_running or gateway.scheduling.num_waiting:  # noqa: ASYNC110 - told by nobody
            await asyncio.sleep(0.01)


def test_agents_stay_on_their_workers_whichever_front_they_come_to(scene, play):
    """Sessions by content, one scheduler: nobody moves, all workers are used, and one /metrics counts every call."""

    async def work():
        async with scene(3, processes=2) as s, fresh_connections(s):
            agents = await asyncio.gather(*(s.agent(f"agent {i}", 4) for i in range(9)))
            assert all(len(set(workers)) == 1 for workers in agents)
            assert {workers[0] for workers in agents} == {"e0", "e1", "e2"}
            await idle(s.gateway)
            async with s.http.get(f"{s.gateway.admin_url}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            calls = [float(line.split()[-1]) for line in lines if line.startswith("saga_calls_total{")]
            assert sum(calls) == 36
            assert "saga_front_processes 2.0" in lines

    play(work)


def test_a_killed_front_is_replaced_and_leaves_no_step_behind(scene, play):
    """Its calls end with their connections, those of the other front are answered, and calls go on."""

    async def work():
        async with scene(2, speed=4.0, processes=2) as s, fresh_connections(s):
            calls = [
                asyncio.create_task(s.ask(HELLO, tokens=1_000, ignore_eos=True, headers={"x-saga-session": f"s{i}"}))
                for i in range(16)
            ]
            async with asyncio.timeout(10.0):
                while s.gateway.scheduling.num_running < 16:  # noqa: ASYNC110 - told by nobody
                    await asyncio.sleep(0.01)
            os.kill(s.gateway.fronts.processes[0], signal.SIGKILL)
            ended = await asyncio.gather(*calls, return_exceptions=True)
            answered = [one for one in ended if not isinstance(one, Exception)]
            assert all(isinstance(one, aiohttp.ClientError) for one in ended if isinstance(one, Exception))
            assert all(status == 200 for status, _, _ in answered)
            assert 0 < len(answered) < 16
            await idle(s.gateway)
            async with s.http.get(f"{s.gateway.admin_url}/admin/overview") as overview:
                assert (await overview.json())["calls"] == {"waiting": 0, "running": 0}
            async with asyncio.timeout(15.0):
                while s.gateway._front_links.num_listening < 2:  # noqa: ASYNC110 - told by nobody
                    await asyncio.sleep(0.05)
            assert s.gateway.fronts.num_restarts == 1
            assert {(await s.ask(HELLO))[0] for _ in range(8)} == {200}

    play(work, 60.0)


def test_a_front_that_hangs_is_replaced(scene, play, monkeypatch):
    """It is stopped, not dead: nobody else would ever notice, and every second client would wait for ever."""
    monkeypatch.setattr(serve, "_MOST_SILENT", 3)

    async def work():
        async with scene(1, processes=2) as s, fresh_connections(s):
            hangs = s.gateway.fronts.processes[0]
            os.kill(hangs, signal.SIGSTOP)
            async with asyncio.timeout(30.0):
                while hangs in s.gateway.fronts.processes or s.gateway._front_links.num_listening < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert s.gateway.fronts.num_restarts == 1
            assert {(await s.ask(HELLO))[0] for _ in range(8)} == {200}

    play(work, 60.0)


def test_draining_lets_the_calls_of_all_fronts_finish(scene, play):
    """Whole answers, then nobody listens and no process is left."""

    async def work():
        async with scene(1, speed=1.0, processes=2) as s, fresh_connections(s):
            calls = [asyncio.create_task(s.ask(HELLO, tokens=200, ignore_eos=True)) for _ in range(6)]
            async with asyncio.timeout(10.0):
                while s.gateway.scheduling.num_running < 6:  # noqa: ASYNC110 - told by nobody
                    await asyncio.sleep(0.01)
            assert await s.gateway.stop(10.0)
            for status, _, body in await asyncio.gather(*calls):
                assert (status, body["usage"]["completion_tokens"]) == (200, 200)
            assert s.gateway.fronts.processes == ()
            with pytest.raises(OSError, match="connect"):
                await s.ask(HELLO)

    play(work, 40.0)


def children(pid):
    """Processes that were started by a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def lives(pid):
    """Whether a process is there and not only waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_fronts_do_not_outlive_a_killed_parent(tmp_path):
    """SIGKILL of the coordinator: its fronts and its socket's folder are gone soon."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "saga", "serve", "--processes", "2", "--port", str(port), "--admin-port", "0"]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([*command, "--worker", "http://127.0.0.1:9"], stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert parent.stdout.readline().startswith("SAGA")
        fronts = children(parent.pid)
        assert len(fronts) == 2
        (folder,) = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o077 == 0
        parent.kill()
        parent.wait()
        end = time.monotonic() + 20.0
        while any(map(lives, fronts)) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(map(lives, fronts))
        assert not folder.exists()
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
