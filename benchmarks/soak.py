"""An hour's worth of traffic compressed: what `saga serve` leaks, loses or wedges while workers come and go.

    python benchmarks/soak.py [--calls 1000000] [--clients 48] [--workers 5] [--cap 20000] [--seed 0] [--json FILE]
    python benchmarks/soak.py --sessions 100000        memory per 100,000 live sessions, instead

A whole gateway (scheduler, identity, metrics, admin API; invariants sampled every 1,000 events) in a process of its
own, mock workers in others, load from this one: sessions of one to six turns that name themselves or are found by
content, a tenth of the calls streams, a fiftieth of the clients gone in the middle. Every two seconds a worker is
drained, removed, added, or killed and later started again.

Caps on sessions and conversations are set low (`--cap`), so that tables are full after a short warm-up and whatever
still grows is a leak. RSS is compared between 20 % of the calls and the end. At the end nobody may wait, run, or be
counted as in flight. Exit status 1 where any of this fails.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from mock_fleet import Fleet, Redialling, connect, end, free_port, install_uvloop, listens, request_of

from saga.gateway.config import GatewayConfig
from saga.gateway.conversations import Conversations
from saga.gateway.serve import Gateway
from saga.gateway.sweeping import Sweeper
from saga.gateway.worker_config import WorkerConfig

LEAK_SHARE = 0.05
CHURN_EVERY_S = 2.0
STREAM_SHARE = 0.1
VANISH_SHARE = 0.02
SYSTEM = "You are a careful agent. " * 40
MIB = 2**20


# ---------------------------------------------------------------------- the gateway's process


async def serve(port: int, admin_port: int, cap: int, urls: list[str]) -> None:
    """A gateway whose tables hold `cap` entries; for each line on stdin it prints their sizes."""
    base = GatewayConfig()
    config = replace(
        base,
        port=port,
        admin_port=admin_port,
        workers=tuple(WorkerConfig(url).named() for url in urls),
        scheduling=replace(base.scheduling, max_sessions=cap, check_every=1_000),
    )
    gateway = Gateway(config)
    identity = gateway.identity
    identity.conversations = Conversations(replace(identity.conversations.settings, max_conversations=cap))
    await gateway.start()
    sweeping = asyncio.create_task(Sweeper(lambda: gateway.scheduling.num_running == 0).run())
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        print(json.dumps(sizes(gateway)), flush=True)
    sweeping.cancel()
    await gateway.stop(1.0)


def sizes(gateway: Gateway) -> dict[str, int]:
    """Entries of every table that could leak."""
    scheduling, identity = gateway.scheduling, gateway.identity
    found = {
        "waiting": scheduling.num_waiting,
        "running": scheduling.num_running,
        "steps": len(scheduling._steps),
        "identified and not answered": len(identity._pending),
        "in flight by tenants": sum(gateway.tenants.in_flight(tenant.name) for tenant in gateway.tenants.all()),
        "pools": len(list(scheduling.pools)),
        "seats": sum(len(pool.seats) for pool in scheduling.pools),
        "sessions": sum(len(pool.scheduler.sessions) for pool in scheduling.pools),
        "deadlines": sum(len(pool.scheduler.deadlines._heap) for pool in scheduling.pools),
        "live steps in schedulers": sum(len(pool.scheduler.sessions.steps) for pool in scheduling.pools),
        "conversations": len(identity.conversations),
        "tasks": len(asyncio.all_tasks()),
        "client connections": gateway.front.num_connections if gateway.front is not None else 0,
        "worker connections": gateway.front.pool.num_connections if gateway.front is not None else 0,
    }
    begin = time.perf_counter()
    gc.collect()
    found["collection_ms"] = round(1e3 * (time.perf_counter() - begin))
    found["objects"] = len(gc.get_objects()) + gc.get_freeze_count()
    return found


class Watched:
    """The gateway's process, seen from outside."""

    def __init__(self, cap: int, urls: list[str]) -> None:
        self.port, self.admin_port = free_port(), free_port()
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", str(self.port), str(self.admin_port)]
        self.process = subprocess.Popen(
            [*command, str(cap), *urls], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        if not listens(self.port, self.process):
            raise SystemExit("the gateway did not start")

    def sizes(self) -> dict[str, int]:
        """What its tables hold."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        found: dict[str, int] = json.loads(self.process.stdout.readline())
        return found

    def rss_bytes(self) -> int:
        """Resident memory."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
        return 0

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """The admin API's answer, None where it refuses."""
        data = json.dumps(body).encode() if body is not None else None
        connection = HTTPConnection("127.0.0.1", self.admin_port, timeout=10.0)
        try:
            connection.request(method, path, data, {"content-type": "application/json"})
            response = connection.getresponse()
            said = json.loads(response.read())
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()
        return said if response.status < 400 else None


# ---------------------------------------------------------------------- load


class Load:
    """Clients until so many calls are made. outcomes: counts by what became of calls."""

    def __init__(self, port: int, num_calls: int, seed: int) -> None:
        self.port = port
        self.num_calls = num_calls
        self.num_begun = 0
        self.num_sessions = 0
        self.outcomes: Counter[str] = Counter()
        self.worst_s = 0.0
        self._random = random.Random(seed)

    async def drive(self, index: int) -> None:
        """One client: session after session."""
        caller = Redialling(self.port)
        while self.num_begun < self.num_calls:
            await self._session(caller, self._random.randrange(1, 7))
        caller.close()

    async def _session(self, caller: Redialling, num_turns: int) -> None:
        draw = self._random
        self.num_sessions += 1
        name = f"s{self.num_sessions}"
        kind = draw.choice(("x-session-id", "x-saga-session", "content", "content"))
        headers = {} if kind == "content" else {kind: name}
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"Task {name}: " + "go " * 50}]
        for turn in range(num_turns):
            self.num_begun += 1
            if kind == "x-saga-session" and turn == num_turns - 1:
                headers["x-saga-final"] = "true"
            request = request_of(messages, headers, stream=draw.random() < STREAM_SHARE)
            if draw.random() < VANISH_SHARE:
                await self._vanish(request)
                continue
            outcome = await caller.call(request)
            self.worst_s = max(self.worst_s, outcome.total_s)
            what = "served" if outcome.served else "broken stream" if outcome.begun and outcome.status == 200 else ""
            self.outcomes[what or f"failed: {outcome.status or 'connection lost'}"] += 1
            messages += [{"role": "assistant", "content": "fine"}, {"role": "user", "content": f"Turn {turn}: go on."}]

    async def _vanish(self, request: bytes) -> None:
        """Ask, and hang up in the middle."""
        try:
            caller = await connect(self.port)
        except OSError:
            self.outcomes["failed: no connection"] += 1
            return
        caller.transport.write(request if self._random.random() < 0.7 else request[: len(request) // 2])
        await asyncio.sleep(self._random.choice((0.0, 0.0, 0.005, 0.05)))
        caller.transport.abort()
        self.outcomes["vanished"] += 1


class Churn:
    """Workers drained, removed, added, killed and started again; at least two are always there."""

    def __init__(self, fleet: Fleet, gateway: Watched, seed: int) -> None:
        self._fleet = fleet
        self._gateway = gateway
        self._random = random.Random(seed)
        self._away: dict[int, str] = {}
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """Until cancelled; all workers are back then or later by `restore`."""
        while True:
            await asyncio.sleep(CHURN_EVERY_S)
            index = self._random.randrange(len(self._fleet))
            if index in self._away:
                await asyncio.to_thread(self._back, index)
            elif len(self._fleet) - len(self._away) > 2:
                await asyncio.to_thread(self._leave, index)

    def _leave(self, index: int) -> None:
        how = self._random.choice(("drained", "removed", "killed"))
        name = self._fleet.urls[index].removeprefix("http://")
        if how == "killed":
            self._fleet.kill(index)
        elif how == "drained":
            self._gateway.ask("POST", f"/admin/workers/{name}/drain")
        else:
            self._gateway.ask("DELETE", f"/admin/workers/{name}")
        self._away[index] = how
        self.counts[how] += 1

    def _back(self, index: int) -> None:
        how = self._away.pop(index)
        url = self._fleet.urls[index]
        if how == "killed":
            self._fleet.start(index)
        elif how == "drained":
            self._gateway.ask("POST", f"/admin/workers/{url.removeprefix('http://')}/resume")
        else:
            self._gateway.ask("POST", "/admin/workers", {"url": url})
        self.counts["back"] += 1

    def restore(self) -> None:
        """Bring all of them back."""
        for index in list(self._away):
            self._back(index)


# ---------------------------------------------------------------------- the runs


async def soak(arguments: argparse.Namespace, fleet: Fleet, gateway: Watched) -> dict[str, Any]:
    """The load under churn, with samples of memory on the way."""
    load = Load(gateway.port, arguments.calls, arguments.seed)
    churn = Churn(fleet, gateway, arguments.seed)
    samples: list[dict[str, float]] = []
    begin_s = time.monotonic()
    clients = asyncio.gather(*(load.drive(index) for index in range(arguments.clients)))
    changes = asyncio.create_task(churn.run())
    try:
        for part in range(1, 11):
            while load.num_begun < arguments.calls * part / 10 and not clients.done():
                await asyncio.sleep(0.2)
                if gateway.process.poll() is not None:
                    raise SystemExit(f"the gateway died after {load.num_begun} calls")
            sample = {"calls": load.num_begun, "rss_mib": gateway.rss_bytes() / MIB} | await asyncio.to_thread(
                gateway.sizes
            )
            samples.append(sample)
            shown = {name: round(value, 1) for name, value in sample.items()}
            print(f"{time.monotonic() - begin_s:7.1f} s {shown}", file=sys.stderr)
        await clients
    finally:
        changes.cancel()
        await asyncio.gather(changes, return_exceptions=True)
    took_s = time.monotonic() - begin_s
    await asyncio.to_thread(churn.restore)
    await asyncio.sleep(3.0)
    queue = await asyncio.to_thread(gateway.ask, "GET", "/admin/queue")
    at_rest = await asyncio.to_thread(gateway.sizes)
    return {
        "calls": load.num_begun,
        "sessions": load.num_sessions,
        "requests_per_s": load.num_begun / took_s,
        "outcomes": dict(load.outcomes),
        "worst_s": load.worst_s,
        "churn": dict(churn.counts),
        "queue_at_end": queue["total"] if queue else None,
        "at_rest": at_rest,
        "samples": samples,
        "rss_after_warm_up_mib": samples[1]["rss_mib"],
        "rss_at_end_mib": samples[-1]["rss_mib"],
        "growth": samples[-1]["rss_mib"] / samples[1]["rss_mib"] - 1.0,
    }


def faults(found: dict[str, Any]) -> list[str]:
    """What should not be."""
    told = []
    if found["growth"] > LEAK_SHARE:
        told.append(f"RSS grew by {found['growth']:.1%} after warm-up (at most {LEAK_SHARE:.0%})")
    if found["queue_at_end"] != 0:
        told.append(f"{found['queue_at_end']} calls wait at the end")
    still = ("waiting", "running", "steps", "identified and not answered", "in flight by tenants")
    told += [f"{name}: {found['at_rest'][name]} at the end" for name in still if found["at_rest"][name]]
    if found["at_rest"]["live steps in schedulers"]:
        told.append(f"{found['at_rest']['live steps in schedulers']} sessions are stuck in a step")
    told += [f"{count} calls {what}" for what, count in found["outcomes"].items() if what.startswith("failed")]
    return told


async def fill(gateway: Watched, numbers: range, num_clients: int) -> None:
    """Sessions of two turns that stay open."""
    left = iter(numbers)

    async def drive() -> None:
        caller = Redialling(gateway.port)
        for index in left:
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{index}: " + "go " * 50}]
            await caller.call(request_of(messages, {"x-session-id": f"s{index}"}))
            messages += [{"role": "assistant", "content": "fine"}, {"role": "user", "content": "Go on."}]
            await caller.call(request_of(messages, {"x-session-id": f"s{index}"}))
        caller.close()

    await asyncio.gather(*(drive() for _ in range(num_clients)))


async def weigh(arguments: argparse.Namespace, gateway: Watched) -> dict[str, Any]:
    """Memory per 100,000 live sessions, from the second half of a ramp."""
    points = []
    half = arguments.sessions // 2
    for numbers in (range(half), range(half, 2 * half)):
        await fill(gateway, numbers, arguments.clients)
        points.append((await asyncio.to_thread(gateway.sizes), gateway.rss_bytes()))
    (first, low), (second, high) = points
    more = second["sessions"] - first["sessions"]
    return {
        "sessions": second["sessions"],
        "conversations": second["conversations"],
        "rss_mib": high / MIB,
        "collection_ms": second["collection_ms"],
        "mib_per_100k_sessions": (high - low) / MIB * 100_000 / max(1, more),
    }


def show(found: dict[str, Any]) -> None:
    """All figures but the samples."""
    for name, value in found.items():
        if name != "samples":
            print(f"{name:26} {value:,.3f}" if isinstance(value, float) else f"{name:26} {value}")


def main() -> int:
    """Run it, or serve as its gateway."""
    install_uvloop()
    if sys.argv[1:2] == ["--serve"]:
        port, admin_port, cap = (int(text) for text in sys.argv[2:5])
        asyncio.run(serve(port, admin_port, cap, sys.argv[5:]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--sessions", type=int, default=0, help="weigh that many live sessions instead")
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--cap", type=int, default=20_000, help="sessions and conversations that are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    fleet = Fleet(arguments.workers)
    gateway = None
    try:
        fleet.start_all()
        gateway = Watched(max(arguments.cap, 2 * arguments.sessions), fleet.urls)
        found = asyncio.run(weigh(arguments, gateway) if arguments.sessions else soak(arguments, fleet, gateway))
    finally:
        if gateway is not None:
            end(gateway.process)
        fleet.stop()
    show(found)
    told = [] if arguments.sessions else faults(found)
    print("\n".join(f"FAULT: {fault}" for fault in told) or "no fault found")
    if arguments.json:
        arguments.json.write_text(json.dumps({"kind": "measured", **found, "faults": told}, indent=1))
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
