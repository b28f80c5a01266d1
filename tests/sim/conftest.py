"""Small workloads, written by hand or by a few seeded draws, that crowd a small worker within seconds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from saga.sim.config import SimConfig
from saga.workloads.plan import Call, SessionPlan, Skipped, Task

SYSTEM_STREAM, SYSTEM_TOKENS = 1, 512
KV_TOKENS = 30_000


class Plan:
    """A workload that gives the tasks that `make(index, rng)` makes."""

    def __init__(self, make: Callable[[int, random.Random], Task], mean_context_tokens: float = 4_000.0) -> None:
        self.name = "tiny"
        self.provenance = "made by the test"
        self.mean_context_tokens = mean_context_tokens
        self.skipped = Skipped()
        self._make = make

    def tasks(self, num_tasks: int, seed: int) -> Iterator[Task]:
        """Each task has a seed of its own."""
        return (self._make(index, random.Random(f"{seed}/{index}")) for index in range(num_tasks))


def chain(
    session: str,
    stream: int,
    turns: list[tuple[int, int, float]],
    *,
    parent: int | None = None,
    spawns: dict[int, tuple[int, ...]] | None = None,
) -> SessionPlan:
    """An append-only session behind the common system prompt; a turn is (new tokens, output tokens, gap_s)."""
    calls: list[Call] = []
    own = 0
    for index, (new_tokens, output_tokens, gap_s) in enumerate(turns):
        common_tokens = SYSTEM_TOKENS + own if index else 0
        own += new_tokens
        calls.append(
            Call(
                path=((SYSTEM_STREAM, SYSTEM_TOKENS), (stream, own)),
                prompt_tokens=SYSTEM_TOKENS + own,
                output_tokens=output_tokens,
                gap_s=gap_s,
                tools=("Bash",) if index < len(turns) - 1 else (),
                shared_tokens=SYSTEM_TOKENS,
                common_tokens=common_tokens,
                spawns=(spawns or {}).get(index, ()),
            )
        )
        own += output_tokens
    return SessionPlan(session, tuple(calls), parent)


def agent(index: int, rng: random.Random, *, arrival_s: float | None = None) -> Task:
    """Three to seven turns that grow to a few thousand tokens, gaps short and long; every third has a sub-agent."""

    def turns(num_turns: int) -> list[tuple[int, int, float]]:
        return [
            (rng.randint(200, 1_200), rng.randint(5, 60), rng.choice([0.1, 1.0, 5.0, 40.0]) if turn else 0.0)
            for turn in range(num_turns)
        ]

    stream, with_child = 10 + 10 * index, index % 3 == 0
    spawns = {0: (1,)} if with_child else None
    sessions = [chain(f"s{index}", stream, turns(rng.randint(3, 7)), spawns=spawns)]
    if with_child:
        sessions.append(chain(f"s{index}.child", stream + 1, turns(rng.randint(1, 3)), parent=0))
    return Task(f"t{index}", f"tenant{index % 2}", "coder", "made", tuple(sessions), arrival_s)


def supervisor(index: int, rng: random.Random) -> Task:
    """A parent that spawns two sub-agents at once, of which one has a child; all forget half of what they read."""

    def turns() -> list[tuple[int, int, float]]:
        return [(rng.randint(100, 2_000), rng.randint(1, 80), rng.choice([0.0, 2.0, 20.0])) for _ in range(3)]

    stream = 10 + 100 * index
    sessions = [
        chain(f"p{index}", stream, turns(), spawns={0: (1, 2)}),
        chain(f"p{index}.a", stream + 20, turns(), parent=0, spawns={1: (3,)}),
        chain(f"p{index}.b", stream + 40, turns(), parent=0),
        chain(f"p{index}.c", stream + 60, turns(), parent=1),
    ]
    cut = [replace(each, calls=tuple(_forget(call, rng) for call in each.calls)) for each in sessions]
    return Task(f"t{index}", f"tenant{index % 3}", "supervisor", "made", tuple(cut))


def _forget(call: Call, rng: random.Random) -> Call:
    """The call goes on from its own copy of the last half of the history, a stream of its own."""
    stream, tokens = call.path[-1]
    kept = min(tokens // 2, max(0, call.common_tokens - SYSTEM_TOKENS))
    path = (*call.path[:-1], (stream, kept), (10**9 + rng.randrange(10**9), tokens - kept))
    return replace(call, path=path, common_tokens=min(call.common_tokens, SYSTEM_TOKENS + kept))


@pytest.fixture
def forks() -> Plan:
    """Agents with sub-agents that work at the same time and rewrite what they have read."""
    return Plan(supervisor, mean_context_tokens=3_000.0)


@pytest.fixture
def tiny() -> Plan:
    """Agents that outgrow one worker of KV_TOKENS when eight of them are at work."""
    return Plan(agent)


@pytest.fixture
def config() -> Callable[..., SimConfig]:
    """A closed loop of eight agents on one small worker; any field can be said otherwise."""

    def build(preset: str = "saga", **settings: object) -> SimConfig:
        loads = {"agents_per_worker", "oversubscription", "rate_per_s", "as_recorded"}
        facts: dict[str, object] = {"workload": "tiny", "workers": 1, "kv_tokens": KV_TOKENS, "tasks": 20}
        facts |= {"dram_tokens": 60_000} | ({} if loads & settings.keys() else {"agents_per_worker": 8.0})
        return SimConfig(preset=preset, **(facts | settings))  # type: ignore[arg-type]

    return build
