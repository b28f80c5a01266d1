"""Who notices when one of four workers is killed under load.

    python benchmarks/kill_worker.py [--rounds 3] [--engine] [--no-rivals] [--json FILE]

16 clients make unary calls and 16 stream, each in sessions of six turns, over four workers behind each gateway in turn.
After two seconds one worker gets SIGKILL; the load goes on for three. Counted, over all rounds:

- unary calls that failed (aim 0)
- streams that failed without having sent a byte of their body (aim 0)
- streams broken after their first byte, and how many of them ended with an error event (nobody can mend these)
- the worst time a call waited after the kill, less the median before (aim under 0.5 s): unary calls whole, streams to
  their first byte

--engine puts modelled engines (`saga engine`) behind `saga serve` in place of mock workers. Each round has fresh
workers and a fresh gateway; gateways take turns. Exit status 1 where `saga serve` misses an aim.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mock_fleet import MODEL, Fleet, Gateway, Outcome, Redialling, install_uvloop, listens, request_of, serves, spawn
from rivals import HOME, environment, gateways

NUM_WORKERS = 4
LATENCY_S = 0.02
NUM_UNARY = 16
NUM_STREAMING = 16
NUM_TURNS = 6
BEFORE_S = 2.0
AFTER_S = 3.0
MOST_EXTRA_S = 0.5


class Engines(Fleet):
    """Modelled engines in place of mock workers."""

    def start(self, index: int) -> None:
        """Start one that does not run."""
        port = self.ports[index]
        saga = str(Path(sys.executable).with_name("saga"))
        command = [saga, "engine", "--port", str(port), "--speed", "5", "--model", MODEL, "--die-with-parent"]
        process = self._processes[index] = spawn(command)
        if not listens(port, process):
            raise SystemExit(f"the engine on port {port} did not start")


@dataclass(frozen=True, slots=True)
class Timed:
    """An outcome, when its call began (seconds on the monotonic clock), and what it was."""

    at_s: float
    stream: bool
    outcome: Outcome

    @property
    def took_s(self) -> float:
        """What the client waited for."""
        return self.outcome.first_s if self.stream and self.outcome.begun else self.outcome.total_s


@dataclass
class Found:
    """Figures of a gateway, over all rounds."""

    gateway: str
    num_calls: int = 0
    failed_unary: int = 0
    failed_streams_unbegun: int = 0
    broken_streams: int = 0
    told_streams: int = 0
    worst_extra_s: float = 0.0
    worst_before_s: float = 0.0

    def add(self, timed: Sequence[Timed], killed_s: float) -> None:
        """Count a round."""
        self.num_calls += len(timed)
        for stream in (False, True):
            ours = [one for one in timed if one.stream is stream]
            before = [one.took_s for one in ours if one.at_s + one.outcome.total_s < killed_s and one.outcome.served]
            after = [one.took_s for one in ours if one.at_s + one.took_s >= killed_s]
            usual_s = statistics.median(before) if before else 0.0
            self.worst_before_s = max(self.worst_before_s, max(before, default=0.0) - usual_s)
            self.worst_extra_s = max(self.worst_extra_s, max(after, default=0.0) - usual_s)
        for one in timed:
            if one.outcome.served:
                continue
            if not one.stream:
                self.failed_unary += 1
            elif one.outcome.begun and one.outcome.status in (0, 200):
                self.broken_streams += 1
                self.told_streams += one.outcome.error_event
            else:
                self.failed_streams_unbegun += 1


async def drive(port: int, name: str, until_s: float, timed: list[Timed], *, stream: bool) -> None:
    """One client: session after session."""
    caller, num_sessions = Redialling(port), 0
    while time.perf_counter() < until_s:
        num_sessions += 1
        session = f"{name}-{num_sessions}"
        messages: list[dict[str, Any]] = [{"role": "user", "content": f"Task {session}: " + "go " * 200}]
        for turn in range(NUM_TURNS):
            request = request_of(messages, {"x-session-id": session}, {"max_tokens": 20}, stream=stream)
            at_s = time.perf_counter()
            if at_s >= until_s:
                break
            outcome = await caller.call(request)
            timed.append(Timed(at_s, stream, outcome))
            if outcome.total_s == 0.0:
                await asyncio.sleep(0.05)
            messages += [{"role": "assistant", "content": "fine"}, {"role": "user", "content": f"Turn {turn}: go on."}]
    caller.close()


async def attack(port: int, fleet: Fleet, victim: int) -> tuple[list[Timed], float]:
    """The load, and when the worker was killed."""
    if not await serves(port):
        raise RuntimeError("does not serve")
    await asyncio.sleep(1.0)
    timed: list[Timed] = []
    begin_s = time.perf_counter()
    until_s = begin_s + BEFORE_S + AFTER_S
    clients = [drive(port, f"u{i}", until_s, timed, stream=False) for i in range(NUM_UNARY)]
    clients += [drive(port, f"s{i}", until_s, timed, stream=True) for i in range(NUM_STREAMING)]
    load = asyncio.gather(*clients)
    await asyncio.sleep(BEFORE_S)
    killed_s = time.perf_counter()
    fleet.kill(victim)
    await asyncio.wait_for(load, 60.0)
    return timed, killed_s


def run(arguments: argparse.Namespace) -> list[Found]:
    """Each gateway before fresh workers, round by round."""
    home = environment(arguments.venv, install=not arguments.no_rivals)
    found: dict[str, Found] = {}
    for number in range(arguments.rounds):
        names = [gateway.name for gateway in gateways(home, [])]
        for name in names[:1] if arguments.no_rivals or arguments.engine else names:
            fleet = Engines(NUM_WORKERS) if arguments.engine else Fleet(NUM_WORKERS, LATENCY_S)
            gateway = next(one for one in gateways(home, fleet.urls) if one.name == name)
            one_round(gateway, fleet, number % NUM_WORKERS, found.setdefault(name, Found(name)))
    return list(found.values())


def one_round(gateway: Gateway, fleet: Fleet, victim: int, found: Found) -> None:
    """Start, attack, count, stop."""
    try:
        fleet.start_all()
        if not gateway.start(fleet.urls):
            print(f"{gateway.name}: did not start", file=sys.stderr)
            return
        found.add(*asyncio.run(attack(gateway.port, fleet, victim)))
    except (RuntimeError, TimeoutError) as error:
        print(f"{gateway.name}: {error or 'clients never heard back'}", file=sys.stderr)
    finally:
        gateway.stop()
        fleet.stop()


def main() -> int:
    """Run it."""
    install_uvloop()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", action="store_true", help="modelled engines behind saga serve; no rivals")
    parser.add_argument("--venv", type=Path, default=HOME)
    parser.add_argument("--no-rivals", action="store_true", help="only saga serve")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = run(arguments)
    for row in found:
        print(
            f"{row.gateway:28} {row.num_calls:6} calls: {row.failed_unary} unary failed, "
            f"{row.failed_streams_unbegun} streams failed before a byte, {row.broken_streams} broke later "
            f"({row.told_streams} told so), worst extra {row.worst_extra_s:.3f} s "
            f"(before the kill {row.worst_before_s:.3f} s)"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"kind": "measured", "rows": [asdict(row) for row in found]}, indent=1))
    ours = found[0]
    missed = ours.failed_unary or ours.failed_streams_unbegun or ours.worst_extra_s >= MOST_EXTRA_S
    return 1 if missed or not ours.num_calls else 0


if __name__ == "__main__":
    sys.exit(main())
