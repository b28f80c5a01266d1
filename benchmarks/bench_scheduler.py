"""What one event costs the scheduler, and how that grows with workers and sessions.

    python benchmarks/bench_scheduler.py [--events 200000] [--json FILE]

A fleet with live sessions in the middle of their tasks is set up first; then agents return, are served and leave at
random while every event is timed by itself. Prints median and p99 in microseconds per event type and the ratio of each
size to the first one (the named baseline, 16 workers and 1,000 sessions).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from saga import commands as do
from saga import events as ev
from saga.presets import preset
from saga.scheduler.composition import Caps
from saga.scheduler.scheduler import Scheduler

SIZES = ((16, 1_000), (16, 10_000), (256, 100_000), (1_000, 100_000))
TOOLS = ("Bash:git", "Bash:pytest", "Read", "Edit", "Grep")


class Fleet:
    """Workers and agents in steady state: each live session's next event is drawn at random."""

    def __init__(self, name: str, num_workers: int, num_sessions: int) -> None:
        self.scheduler = Scheduler(preset(name), caps=Caps(max_sessions=10 * num_sessions, idle_s=1e9))
        self.rng = random.Random(0)
        self.at_s = 0.0
        self.taken_s: dict[str, list[float]] = defaultdict(list)
        self.running: list[tuple[str, str, str, int]] = []
        self.away: list[tuple[str, int, int]] = []
        self.prompts: dict[str, int] = {}
        self.num_steps = 0
        self.next_session = 0
        kv_tokens = int(1.3 * 12_000 * num_sessions / num_workers)
        for index in range(num_workers):
            self.tell(ev.WorkerJoined(0.0, f"w{index}", kv_tokens, host_kv_tokens=kv_tokens, load_tokens_per_s=76e3))
        for _ in range(num_sessions):
            self.new_session()
        while len(self.running) > num_sessions // 3:
            self.finish()

    def tell(self, event: ev.Event) -> None:
        begin = time.perf_counter_ns()
        commands = self.scheduler.handle(event)
        self.taken_s[type(event).__name__].append((time.perf_counter_ns() - begin) / 1e3)
        for command in commands:
            if isinstance(command, do.Dispatch):
                self.running.append((command.step, command.session, command.worker, self.prompts[command.step]))

    def arrive(self, session: str, number: int, prompt_tokens: int) -> None:
        self.num_steps += 1
        self.at_s += 1e-4
        step = f"{session}/{number}"
        self.prompts[step] = prompt_tokens
        kind = f"kind{len(session) % 4}"
        self.tell(
            ev.StepArrived(
                self.at_s,
                step,
                session,
                f"task-{session}",
                prompt_tokens,
                f"tenant{len(session) % 8}",
                kind,
                None,
                prompt_tokens - 400,
                "system",
                1_800,
            )
        )

    def new_session(self) -> None:
        self.next_session += 1
        self.arrive(f"s{self.next_session}", 0, self.rng.randrange(3_000, 14_000))

    def finish(self) -> None:
        index = self.rng.randrange(len(self.running))
        self.running[index], self.running[-1] = self.running[-1], self.running[index]
        step, session, worker, prompt_tokens = self.running.pop()
        del self.prompts[step]
        self.at_s += 1e-4
        self.tell(
            ev.StepFinished(
                self.at_s, step, worker, prompt_tokens, 200, prompt_tokens - 400, 0, (self.rng.choice(TOOLS),), 0.5
            )
        )
        if self.rng.random() < 1 / 36:
            self.tell(ev.SessionEnded(self.at_s, session))
            self.new_session()
        else:
            self.away.append((session, int(step.rsplit("/", 1)[1]), prompt_tokens + 200))

    def small_talk(self) -> None:
        """What engines report between the steps, and a client's late cancel."""
        worker = f"w{self.rng.randrange(len(self.scheduler.fleet))}"
        self.tell(ev.WorkerReported(self.at_s, worker, 10, 0, 100_000))
        self.tell(ev.StepCancelled(self.at_s, "nobody/0"))
        if self.running:
            self.tell(ev.FirstToken(self.at_s, self.running[-1][0], self.running[-1][2]))
        if self.away:
            self.tell(ev.BlocksRemoved(self.at_s, worker, self.away[-1][0], 0, 1_000))

    def turn(self) -> None:
        """One event of a running fleet, time and ticks included."""
        due_s = self.scheduler.next_deadline_s()
        if due_s is not None and due_s <= self.at_s:
            self.tell(ev.Tick(self.at_s))
        elif self.rng.random() < 0.1:
            self.small_talk()
        elif self.away and self.rng.random() < 0.5:
            index = self.rng.randrange(len(self.away))
            self.away[index], self.away[-1] = self.away[-1], self.away[index]
            session, number, context_tokens = self.away.pop()
            self.arrive(session, number + 1, min(context_tokens + 400, 25_000))
        elif self.running:
            self.finish()


def measure(name: str, num_workers: int, num_sessions: int, num_events: int) -> dict[str, Any]:
    """Microseconds per event type in the steady state."""
    fleet = Fleet(name, num_workers, num_sessions)
    fleet.taken_s.clear()
    for _ in range(num_events):
        fleet.turn()
    rows = {}
    for kind, taken in sorted(fleet.taken_s.items()):
        taken.sort()
        rows[kind] = {
            "num_events": len(taken),
            "median_us": taken[len(taken) // 2],
            "p99_us": taken[int(len(taken) * 0.99)],
        }
    return {"workers": num_workers, "sessions": num_sessions, "events": rows}


def main() -> None:
    """Run all sizes and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--preset", default="saga")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = [measure(options.preset, *size, options.events) for size in SIZES]
    base = results[0]["events"]
    print(f"{'workers':>8} {'sessions':>9} {'event':<14} {'median us':>10} {'p99 us':>8} {'x median':>9} {'x p99':>7}")
    for result in results:
        for kind, row in result["events"].items():
            first = base.get(kind, row)
            print(
                f"{result['workers']:>8} {result['sessions']:>9} {kind:<14} {row['median_us']:>10.1f} "
                f"{row['p99_us']:>8.1f} {row['median_us'] / first['median_us']:>9.2f} "
                f"{row['p99_us'] / first['p99_us']:>7.2f}"
            )
    if options.json:
        options.json.write_text(json.dumps({"schema": 1, "kind": "measured", "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
