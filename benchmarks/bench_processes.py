"""What several gateway processes cost: CPU per call in the coordinator and in the fronts, against one process.

    python benchmarks/bench_processes.py [--processes 2] [--rounds 4] [--json FILE]

`saga serve` and `saga serve --processes N` stand before the same mock workers and are measured in turn in the same run.
CPU is user and system time of each process, read from /proc. The coordinator's time per call is what bounds a gateway:
1 s divided by it is how many calls a second its one core can schedule, however many fronts there are. How requests per
second grow with N shows only where each process, the workers and the load have cores of their own.

Before that, in this process and without sockets: what the messages of one call cost to write in a front (beyond reading
the request) and to read, act on and answer in the coordinator, where placing and scheduling themselves cost nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench_gateway import (
    NUM_WORKERS,
    Client,
    RoundRobin,
    children_of,
    connect,
    free_port,
    install_uvloop,
    latencies_us,
    request_of,
    spawn,
    wait_for,
)

from saga.gateway import frames
from saga.gateway.addresses import WorkerAddress
from saga.gateway.contracts import Answer, Call, Request
from saga.gateway.coordinator import Coordinator, FrontLink
from saga.gateway.reading import Reader, Reading
from saga.gateway.settings import DEFAULT_TENANT, IdentitySettings

SIZES = {"2 KB": 2_000, "200 KB": 200_000}
CONCURRENCY = 32


class Nowhere:
    """A link that only encodes."""

    def send(self, message: frames.FromCoordinator) -> None:
        """What it costs to say it."""
        frames.encoded(message)


class Instantly(RoundRobin):
    """Identity and scheduling in no time."""

    def place(self, reading: Reading, at_s: float) -> Call:
        """Its own call."""
        return reading.call


async def messages_us(num_bytes: int, num_calls: int = 4_000) -> tuple[float, float, int]:
    """Best of five rounds: (CPU us per call in a front, in the coordinator), and bytes of a call that is placed."""
    head, _, body = request_of(num_bytes).partition(b"\r\n\r\n")
    lines = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:]]
    path = "/v1/chat/completions"
    request = Request("POST", path, path, [(name.lower(), value) for name, value in lines], body)
    reading = Reader(settings=IdentitySettings(secret=b"s")).read(request)
    answer = Answer(500, 60, complete=True, text="word " * 60)
    instantly: Any = Instantly([WorkerAddress(f"w{i}", "127.0.0.1", 1) for i in range(NUM_WORKERS)])
    front_us = coordinator_us = float("inf")
    for _ in range(5):
        begin = time.process_time()
        said = [
            raw
            for number in range(num_calls)
            for raw in (
                frames.encoded(frames.placing(number, reading, reading.digest)),  # type: ignore[arg-type]
                frames.encoded(frames.Began(number)),
                frames.encoded(frames.finishing(number, answer)),
            )
        ]
        front_us = min(front_us, 1e6 * (time.process_time() - begin) / num_calls)
        coordinator: Any = Coordinator(instantly, instantly, lambda _: (200, b""), tuple)
        link = FrontLink(coordinator, Nowhere())  # type: ignore[arg-type]
        link.process = 1
        link._tenant = lambda _: DEFAULT_TENANT  # type: ignore[method-assign]
        begin = time.process_time()
        for raw in said:
            link.told(frames.read_front.decode(raw))
        coordinator_us = min(coordinator_us, 1e6 * (time.process_time() - begin) / num_calls)
    return front_us, coordinator_us, len(said[0])


@dataclass
class Gateway:
    """One of the two. cpu_us: of the parent and of its children, per call, by size."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    latency_us: dict[str, list[float]] = field(default_factory=dict)
    calls_per_s: dict[str, list[float]] = field(default_factory=dict)
    parent_us: dict[str, list[float]] = field(default_factory=dict)
    children_us: dict[str, list[float]] = field(default_factory=dict)

    def cpu_s(self) -> tuple[float, float]:
        """(parent's, children's) CPU time so far, all threads."""
        return _cpu_s(self.process.pid), sum(_cpu_s(pid) for pid in children_of(self.process.pid))


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(port: int, num_bytes: int, seconds: float) -> int:
    """Calls answered within that time, on connections that are kept."""
    clients: list[Client] = [await connect(port) for _ in range(CONCURRENCY)]
    end = time.monotonic() + seconds
    num_calls = 0

    async def drive(client: Client, request: bytes) -> None:
        nonlocal num_calls
        while time.monotonic() < end:
            await client.call(request)
            num_calls += 1

    await asyncio.gather(*(drive(c, request_of(num_bytes, session=f"s{i}")) for i, c in enumerate(clients)))
    for client in clients:
        client.transport.close()
    return num_calls


async def measure(gateways: list[Gateway], rounds: int, seconds: float) -> None:
    """Both in turn, block by block."""
    for gateway in gateways:
        await load(gateway.port, SIZES["2 KB"], 1.0)
    for _ in range(rounds):
        for label, num_bytes in SIZES.items():
            for gateway in gateways:
                taken = await latencies_us(gateway.port, request_of(num_bytes), 100)
                gateway.latency_us.setdefault(label, []).extend(taken)
                before = gateway.cpu_s()
                num_calls = await load(gateway.port, num_bytes, seconds)
                after = gateway.cpu_s()
                gateway.calls_per_s.setdefault(label, []).append(num_calls / seconds)
                gateway.parent_us.setdefault(label, []).append(1e6 * (after[0] - before[0]) / num_calls)
                gateway.children_us.setdefault(label, []).append(1e6 * (after[1] - before[1]) / num_calls)


def show(gateways: list[Gateway]) -> dict[str, Any]:
    """Print the table; its figures."""
    one, many = gateways
    rows: dict[str, Any] = {}
    print(f"{'':8}{'':32}{one.name:>16}{many.name:>16}{'ratio':>8}")
    for label in SIZES:
        figures = {
            "latency p50, us": [statistics.median(g.latency_us[label]) for g in gateways],
            f"calls/s at {CONCURRENCY} (shared cores)": [statistics.median(g.calls_per_s[label]) for g in gateways],
            "CPU us/call, all processes": [
                statistics.median(map(sum, zip(g.parent_us[label], g.children_us[label], strict=True)))
                for g in gateways
            ],
            "CPU us/call, scheduling process": [statistics.median(g.parent_us[label]) for g in gateways],
            "CPU us/call, fronts": [0.0, statistics.median(many.children_us[label])],
        }
        rows[label] = figures
        for figure, (first, second) in figures.items():
            ratio = f"{second / first:>8.2f}" if first else f"{'':8}"
            print(f"{label:8}{figure:32}{first:>16,.0f}{second:>16,.0f}{ratio}")
        ceiling = 1e6 / figures["CPU us/call, scheduling process"][1]
        print(f"{label:8}{'calls/s one coordinator can do':32}{'':16}{ceiling:>16,.0f}")
    return rows


def main() -> None:
    """Start everything, measure, stop everything."""
    install_uvloop()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    for label, num_bytes in SIZES.items():
        front_us, coordinator_us, num_sent = asyncio.run(messages_us(num_bytes))
        print(
            f"{label:8}messages of a call, CPU us: front {front_us:.1f}, coordinator {coordinator_us:.1f};"
            f" a call to place is {num_sent} bytes"
        )
    mocks = [free_port() for _ in range(NUM_WORKERS)]
    bench = str(Path(__file__).with_name("bench_gateway.py"))
    processes = [spawn([sys.executable, bench, "--serve", "workers", *map(str, mocks)])]
    gateways = []
    try:
        if not all(wait_for(port, processes[0]) for port in mocks):
            raise SystemExit("the mock workers did not start")
        for number in (1, arguments.processes):
            port = free_port()
            command = [str(Path(sys.executable).with_name("saga")), "serve", "--processes", str(number)]
            command += ["--port", str(port), "--admin-port", str(free_port())]
            command += [flag for mock in mocks for flag in ("--worker", f"http://127.0.0.1:{mock}")]
            processes.append(spawn(command))
            if not wait_for(port, processes[-1]):
                raise SystemExit(f"saga serve --processes {number} did not start")
            gateways.append(Gateway(f"{number} process" + "es" * (number > 1), port, processes[-1]))
        asyncio.run(measure(gateways, arguments.rounds, arguments.seconds))
        rows = show(gateways)
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            process.wait()
    if arguments.json:
        arguments.json.write_text(json.dumps({"kind": "measured", "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
