"""Do agents' turns stay on one worker, and do agents spread over workers? With no key, and with each system's own.

    python benchmarks/affinity_probe.py [--agents 64] [--turns 6] [--no-rivals] [--keys none,x-session-id] [--json FILE]

64 agents at once make 6 turns each over 4 mock workers; all share a system prompt of 25 KB, each has a task of its own,
each turn repeats the conversation so far. Counted: *moves* (turns on another worker than the turn before: each would
prefill a whole context again) and the load of the busiest worker over the mean. The same for every way of naming a
session, and for two that look like a name and are none: one `user`, one `prompt_cache_key` for all agents.
Aim: 0 moves, no worker above 1.5 x the mean. Exit status 1 where `saga serve` misses it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mock_fleet import Fleet, Redialling, install_uvloop, request_of, serves
from rivals import HOME, environment, gateways

NUM_WORKERS = 4
LATENCY_S = 0.02
MOST_LOAD = 1.5
SYSTEM_BYTES = 25_000

Said: TypeAlias = tuple[dict[str, str], dict[str, Any]]
"""Headers and body fields by which a call says whose it is."""


def _header(name: str) -> Callable[[str], Said]:
    return lambda agent: ({name: agent}, {})


def _field(*path: str) -> Callable[[str], Said]:
    def say(agent: str) -> Said:
        value: Any = agent
        for name in reversed(path):
            value = {name: value}
        return {}, value

    return say


KEYS: dict[str, Callable[[str], Said]] = {
    "none": lambda _agent: ({}, {}),
    "x-saga-session": _header("X-Saga-Session"),
    "saga.session": _field("saga", "session"),
    "x-session-id": _header("X-Session-ID"),
    "x-session-affinity": _header("X-Session-Affinity"),
    "session_id": _field("session_id"),
    "agentic_context": _field("vllm_xargs", "agentic_context", "program_id"),
    "agent_hint": _field("agent_hint", "session_id"),
    "x-dynamo-session-id": _header("X-Dynamo-Session-ID"),
    "nvext.trajectory_id": _field("nvext", "agent_context", "trajectory_id"),
    "x-claude-code-session-id": _header("x-claude-code-session-id"),
    "codex thread-id": _header("thread-id"),
    "session_params.id": _field("session_params", "id"),
    "x-smg-routing-key": _header("X-SMG-Routing-Key"),
    "x-litellm-session-id": _header("x-litellm-session-id"),
    "x-grok-conv-id": _header("x-grok-conv-id"),
    "conversation": _field("conversation"),
    "metadata.session_id": _field("metadata", "session_id"),
    "prompt_cache_key": _field("prompt_cache_key"),
    "user": _field("user"),
    "prompt_cache_key of all": lambda _agent: ({}, {"prompt_cache_key": "everybody"}),
    "user of all": lambda _agent: ({}, {"user": "everybody"}),
}
FOR_RIVALS = ("none", "x-session-id", "session_id", "agentic_context", "x-smg-routing-key", "user", "user of all")


@dataclass(frozen=True)
class Found:
    """What a probe saw. most_load: turns of the busiest worker over the mean. failed: turns that were not served."""

    gateway: str
    key: str
    num_turns: int
    num_moves: int
    most_load: float
    num_workers_used: int
    num_failed: int


async def probe(name: str, port: int, key: str, num_agents: int, num_turns: int) -> Found:
    """All agents at once; each makes its turns one after the other."""
    served: Counter[str] = Counter()
    moves = failed = 0
    system = f"You are one of many agents of {name}, {key}. "
    system += "Follow the rules. " * ((SYSTEM_BYTES - len(system)) // 18)

    async def agent(index: int) -> None:
        nonlocal moves, failed
        headers, fields = KEYS[key](f"{key.replace(' ', '-')}-agent-{index}")
        messages = [{"role": "system", "content": system}, {"role": "user", "content": f"Task {index}: mend it."}]
        caller, before = Redialling(port), ""
        for turn in range(num_turns):
            outcome = await caller.call(request_of(messages, headers, fields))
            failed += not outcome.served
            if outcome.served:
                served[outcome.worker] += 1
                moves += bool(before) and outcome.worker != before
                before = outcome.worker
            messages += [{"role": "assistant", "content": "fine"}, {"role": "user", "content": f"Turn {turn}: go on."}]
        caller.close()

    await asyncio.gather(*(agent(index) for index in range(num_agents)))
    total = sum(served.values())
    most = max(served.values(), default=0) / max(1.0, total / NUM_WORKERS)
    return Found(name, key, total, moves, most, len(served), failed)


def run(arguments: argparse.Namespace) -> list[Found]:
    """Each gateway in turn before fresh workers."""
    home = environment(arguments.venv, install=not arguments.no_rivals)
    fleet = Fleet(NUM_WORKERS, LATENCY_S)
    found: list[Found] = []
    try:
        fleet.start_all()
        for gateway in gateways(home, fleet.urls):
            ours = gateway.name.startswith("saga")
            if arguments.no_rivals and not ours:
                continue
            try:
                if not gateway.start(fleet.urls) or not asyncio.run(serves(gateway.port)):
                    print(f"{gateway.name}: does not serve", file=sys.stderr)
                    continue
                for key in arguments.keys or (KEYS if ours else FOR_RIVALS):
                    found.append(asyncio.run(probe(gateway.name, gateway.port, key, arguments.agents, arguments.turns)))
                    show(found[-1])
            finally:
                gateway.stop()
    finally:
        fleet.stop()
    return found


def show(found: Found) -> None:
    """One line."""
    print(
        f"{found.gateway:30} {found.key:26} moves {found.num_moves:4} of {found.num_turns:4}   "
        f"busiest {found.most_load:5.2f}x the mean, {found.num_workers_used} workers, {found.num_failed} failed"
    )


def main() -> int:
    """Run it."""
    install_uvloop()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=64)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--keys", type=lambda text: text.split(","), help=f"of: {', '.join(KEYS)}")
    parser.add_argument("--venv", type=Path, default=HOME)
    parser.add_argument("--no-rivals", action="store_true", help="only saga serve")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    for key in arguments.keys or ():
        if key not in KEYS:
            parser.error(f"--keys {key}: known are {', '.join(KEYS)}")
    found = run(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps({"kind": "measured", "rows": [asdict(row) for row in found]}, indent=1))
    missed = [
        row
        for row in found
        if row.gateway.startswith("saga") and (row.num_moves or row.num_failed or row.most_load > MOST_LOAD)
    ]
    for row in missed:
        print(f"MISSED: {row.key}: {row.num_moves} moves, busiest {row.most_load:.2f}x, {row.num_failed} failed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
