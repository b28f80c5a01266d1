"""Record what the real vLLM scheduler decides in small scenarios, for tests/engine/test_recordings.py.

The modelled engine must take the same decisions. A scenario is a handful of calls on a small cache; a
recording is the scenario and what vLLM did, one JSON file each, made so that a person can read it. This file
refuses to know the modelled engine.

    python benchmarks/record_vllm.py tests/engine/recordings

with a Python that has vLLM and SAGA (see real_vllm.py). Recording again with the same vLLM gives the same bytes.

The clock counts iterations: iteration i lasts from i to i + 1. A call *arrives* at iteration i when it is
in the queue before i is scheduled. One with `after` arrives `delay` iterations after that call's last token:
finish + 1 + delay. "decisions" are in the order of arrival; there `admitted`, `first_token`, `finished` and
`preempted` are iterations, `cached` is the prefix hit at the first admission, `resumed_cached` at each one after a
preemption, `prefilled` all tokens that went through the model except the one per decode iteration.
With a host tier `host` is what of `cached` was loaded from it; stores take no time, loads whole iterations.
"iterations" tells runs of equal iterations: [first iteration, how many, {step: tokens scheduled}, blocks no live call
holds once the first of them is scheduled].
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from real_vllm import VLLM_VERSION, Call, RealScheduler, Settings

SYSTEM, ALICE, BOB, CAROL, DAVE = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class Ask:
    """One call of a scenario: a prompt as content streams, and when it comes (see the module's docstring)."""

    step: str
    session: str
    path: tuple[tuple[int, int], ...]
    output_tokens: int
    priority: int = 0
    after: str | None = None
    delay: int = 0


@dataclass(frozen=True)
class Scenario:
    """What is asked of which engine, and why it is worth asking."""

    about: str
    engine: Settings
    asks: tuple[Ask, ...]


def chunked_prefill() -> Scenario:
    """Several prefills share the token budget with decodes."""
    return Scenario(
        "three prompts are prefilled in chunks of what the budget of 64 leaves beside the decodes",
        Settings(num_blocks=64, chunk_tokens=64, max_running=8),
        (
            Ask("a", "a", ((ALICE, 150),), 6),
            Ask("b", "b", ((BOB, 20),), 12),
            Ask("c", "c", ((CAROL, 100),), 4),
            Ask("d", "d", ((DAVE, 70),), 3, delay=3),
        ),
    )


def shared_prompt() -> Scenario:
    """A system prompt is a hit for the next call of the very iteration that computes it."""
    return Scenario(
        "a system prompt of 70 tokens: the second call hits it in the iteration in which the first computes it",
        Settings(num_blocks=64, chunk_tokens=256, max_running=8),
        (
            Ask("a", "a", ((SYSTEM, 70), (ALICE, 50)), 4),
            Ask("b", "b", ((SYSTEM, 70), (BOB, 40)), 4),
            Ask("c", "c", ((SYSTEM, 70), (CAROL, 30)), 4),
            Ask("d", "d", ((SYSTEM, 70),), 2, delay=1),
        ),
    )


def shared_prompt_chunked() -> Scenario:
    """The sharer is admitted while the shared prompt is only half computed."""
    return Scenario(
        "two calls share 200 tokens, the budget is 64: the second is admitted when the first is through",
        Settings(num_blocks=64, chunk_tokens=64, max_running=8),
        (
            Ask("a", "a", ((SYSTEM, 200), (ALICE, 10)), 8),
            Ask("b", "b", ((SYSTEM, 200), (BOB, 30)), 5),
            Ask("c", "c", ((SYSTEM, 120), (CAROL, 9)), 5, delay=2),
        ),
    )


def tail_first() -> Scenario:
    """Idle sessions lose their oldest block chains, each from its tail."""
    asks = [Ask(f"{name}0", name, ((stream, 96),), 4, delay=8 * i) for i, (name, stream) in enumerate(_PEOPLE)]
    asks += [Ask(f"{n}1", n, ((s, 120),), 4, after="d0", delay=10 * i) for i, (n, s) in enumerate(_PEOPLE)]
    return Scenario(
        "four sessions of 7 blocks on 22: the idle one that ran longest ago is evicted first, tail first",
        Settings(num_blocks=22, chunk_tokens=256, max_running=4),
        tuple(asks),
    )


_PEOPLE = (("a", ALICE), ("b", BOB), ("c", CAROL), ("d", DAVE))


def head_blocks_queue() -> Scenario:
    """A head that does not fit holds back smaller calls behind it, whose caches are evicted meanwhile."""
    return Scenario(
        "c needs 12 of 20 blocks while a holds 13: d, which would fit, waits behind it",
        Settings(num_blocks=20, chunk_tokens=256, max_running=8),
        (
            Ask("d0", "d", ((DAVE, 40),), 2),
            Ask("a", "a", ((ALICE, 190),), 20, delay=3),
            Ask("c", "c", ((CAROL, 180),), 4, delay=5),
            Ask("d1", "d", ((DAVE, 60),), 4, delay=6),
            Ask("e", "e", ((6, 15),), 3, delay=6),
        ),
    )


def preempt_fcfs() -> Scenario:
    """The last running call is preempted and recomputed at the front of the queue."""
    return Scenario(
        "three growing calls outgrow 15 blocks: FCFS preempts the last running, which restarts at the front",
        Settings(num_blocks=15, chunk_tokens=128, max_running=8),
        (
            Ask("a", "a", ((ALICE, 60),), 60),
            Ask("b", "b", ((BOB, 60),), 60),
            Ask("c", "c", ((CAROL, 60),), 60),
            Ask("d", "d", ((DAVE, 30),), 10, delay=5),
        ),
    )


def preempt_priority() -> Scenario:
    """The victim is the running call of the largest (priority, arrival), wherever it stands in the batch."""
    return Scenario(
        "as preempt_fcfs, but the victim is the least urgent (b), not the last running",
        Settings(num_blocks=15, chunk_tokens=128, max_running=8, queue="priority"),
        (
            Ask("a", "a", ((ALICE, 60),), 60, priority=5),
            Ask("b", "b", ((BOB, 60),), 60, priority=9),
            Ask("c", "c", ((CAROL, 60),), 60, priority=1),
            Ask("d", "d", ((DAVE, 30),), 10, priority=5, delay=5),
        ),
    )


def preempt_itself() -> Scenario:
    """The least urgent call is the one that needs a block: it preempts itself and ends the round."""
    return Scenario(
        "the call that needs a block is itself the victim; those behind it in the batch miss the iteration",
        Settings(num_blocks=12, chunk_tokens=128, max_running=8, queue="priority"),
        (
            Ask("a", "a", ((ALICE, 63),), 40, priority=9),
            Ask("b", "b", ((BOB, 58),), 40, priority=1),
            Ask("c", "c", ((CAROL, 50),), 40, priority=2),
        ),
    )


def forks() -> Scenario:
    """Children of a session share its blocks with each other and with it."""
    return Scenario(
        "a session forks into three children at two places; all hit what the parent computed",
        Settings(num_blocks=60, chunk_tokens=128, max_running=8),
        (
            Ask("p0", "p", ((ALICE, 100),), 20),
            Ask("p1", "p", ((ALICE, 150),), 20, after="p0", delay=2),
            Ask("x0", "x", ((ALICE, 120), (BOB, 40)), 8, after="p0", delay=1),
            Ask("y0", "y", ((ALICE, 110), (CAROL, 40)), 8, after="p0", delay=1),
            Ask("z0", "z", ((ALICE, 120), (BOB, 48), (DAVE, 20)), 4, after="x0"),
        ),
    )


def whole_blocks() -> Scenario:
    """A prompt that is cached to its last token recomputes its last block."""
    return Scenario(
        "prompts of exactly 4 blocks asked again: the hit stops one block short, at prompt - 1 rounded down",
        Settings(num_blocks=30, chunk_tokens=128, max_running=8),
        (
            Ask("a0", "a", ((ALICE, 64),), 4),
            Ask("b0", "b", ((ALICE, 64),), 4, after="a0", delay=1),
            Ask("c0", "c", ((ALICE, 65),), 4, after="b0", delay=1),
            Ask("d0", "d", ((ALICE, 16),), 4, after="c0", delay=1),
            Ask("e0", "e", ((ALICE, 64),), 17, after="d0", delay=1),
            Ask("f0", "f", ((ALICE, 81),), 1, after="e0", delay=1),
        ),
    )


def nearly_all_memory() -> Scenario:
    """A prompt as long as the cache still runs, alone."""
    return Scenario(
        "prompts of 160 and 150 tokens on 10 blocks run one after the other; the last token needs no block",
        Settings(num_blocks=10, chunk_tokens=64, max_running=8),
        (
            Ask("a", "a", ((ALICE, 160),), 1),
            Ask("b", "b", ((BOB, 150),), 11),
            Ask("c", "c", ((CAROL, 20),), 8, delay=1),
            Ask("a1", "a", ((ALICE, 100),), 5, after="b"),
        ),
    )


def max_running() -> Scenario:
    """Calls beyond max_running wait although memory is free."""
    return Scenario(
        "six short calls, two may run",
        Settings(num_blocks=60, chunk_tokens=128, max_running=2),
        tuple(Ask(f"s{i}", f"s{i}", ((10 + i, 20 + 5 * i),), 4 + i, delay=i // 2) for i in range(6)),
    )


def priority_order() -> Scenario:
    """Lower priority values first; equal ones in order of arrival; running calls are left alone."""
    return Scenario(
        "one may run: the queue is served by (priority, arrival), a late urgent call passes all waiting ones",
        Settings(num_blocks=60, chunk_tokens=128, max_running=1, queue="priority"),
        (
            Ask("a", "a", ((ALICE, 40),), 6, priority=5),
            Ask("b", "b", ((BOB, 40),), 3, priority=7),
            Ask("c", "c", ((CAROL, 40),), 3, priority=5),
            Ask("d", "d", ((DAVE, 40),), 3, priority=5, delay=1),
            Ask("e", "e", ((6, 40),), 3, priority=0, delay=2),
        ),
    )


def rewritten_history() -> Scenario:
    """A session that rewrites its history keeps the hit up to the change."""
    return Scenario(
        "from token 70 on the history is rewritten: 64 tokens hit, and the old branch is still there later",
        Settings(num_blocks=40, chunk_tokens=128, max_running=4),
        (
            Ask("a0", "a", ((ALICE, 160),), 10),
            Ask("a1", "a", ((ALICE, 70), (BOB, 100)), 10, after="a0", delay=1),
            Ask("a2", "a", ((ALICE, 70), (BOB, 130)), 10, after="a1", delay=1),
            Ask("a3", "a", ((ALICE, 175),), 10, after="a2", delay=1),
        ),
    )


def generated_tokens() -> Scenario:
    """Answers are cached too, except the last token, which never went through the model."""
    return Scenario(
        "60 + 37 tokens: 6 full blocks are cached; 60 + 36: the 96th token was never computed, 5 blocks are",
        Settings(num_blocks=40, chunk_tokens=128, max_running=4),
        (
            Ask("a0", "a", ((ALICE, 60),), 37),
            Ask("a1", "a", ((ALICE, 120),), 4, after="a0", delay=1),
            Ask("b0", "b", ((BOB, 60),), 36),
            Ask("b1", "b", ((BOB, 120),), 4, after="b0", delay=1),
        ),
    )


def fork_of_running() -> Scenario:
    """A call extends an answer that is still being written; vLLM has hashed its blocks already."""
    return Scenario(
        "b extends the answer of a while a still writes it: vLLM offers each block as soon as it is full",
        Settings(num_blocks=40, chunk_tokens=128, max_running=4),
        (
            Ask("a", "a", ((ALICE, 100),), 60),
            Ask("b", "b", ((ALICE, 130), (BOB, 20)), 5, delay=40),
            Ask("c", "c", ((ALICE, 155), (CAROL, 20)), 5, after="a", delay=1),
        ),
    )


def host_tier() -> Scenario:
    """What the device lost is loaded, what the tier lost too is computed again."""
    asks = [Ask(f"{name}0", name, ((stream, 96),), 4, delay=8 * i) for i, (name, stream) in enumerate(_PEOPLE)]
    asks += [Ask(f"{n}1", n, ((s, 120),), 4, after="d0", delay=20 * i) for i, (n, s) in enumerate(_PEOPLE)]
    return Scenario(
        "tail_first with a host tier of 24 blocks: the calls load what is left of their sessions in it",
        Settings(num_blocks=14, chunk_tokens=256, max_running=4, host_blocks=24, load_tokens_per_s=16.0),
        tuple(asks),
    )


def duplicates_under_pressure() -> Scenario:
    """Copies of the same blocks stay in vLLM's cache and push others out."""
    return Scenario(
        "three identical calls write the same answer at once; vLLM keeps the copies, so d's blocks go",
        Settings(num_blocks=32, chunk_tokens=256, max_running=8),
        (
            Ask("d", "d", ((DAVE, 100),), 4),
            Ask("a", "a", ((ALICE, 60),), 60, delay=10),
            Ask("b", "b", ((ALICE, 60),), 60, delay=10),
            Ask("c", "c", ((ALICE, 60),), 60, delay=10),
            Ask("e", "e", ((BOB, 150),), 60, after="c", delay=1),
            Ask("d1", "d", ((DAVE, 110),), 4, after="e", delay=1),
            Ask("a1", "a", ((ALICE, 130),), 4, after="d1", delay=1),
        ),
    )


def duplicate_computation() -> Scenario:
    """Two calls compute the same content at once; both copies take memory."""
    return Scenario(
        "identical calls decode side by side: each writes its own blocks; later calls hit one of the copies",
        Settings(num_blocks=24, chunk_tokens=256, max_running=8),
        (
            Ask("a", "a", ((ALICE, 60),), 30),
            Ask("b", "b", ((ALICE, 60),), 40),
            Ask("c", "c", ((BOB, 100),), 10, after="a", delay=2),
            Ask("d", "d", ((ALICE, 110),), 4, after="b", delay=12),
            Ask("e", "e", ((CAROL, 180),), 10, after="d", delay=1),
            Ask("f", "f", ((ALICE, 110),), 4, after="e", delay=1),
        ),
    )


def _agents(
    seed: int,
    queue: str,
    *,
    rewrite: float = 0.0,
    chunk_tokens: int = 64,
    max_output_tokens: int = 24,
    times: float = 1.3,
    host: float = 0.0,
) -> Scenario:
    """Seven agents in a closed loop whose contexts together are about `times` the cache; `host` tier per cache."""
    dice = random.Random(seed)
    asks: list[Ask] = []
    num_agents, num_calls = 7, 9
    tokens_asked = 0
    for agent in range(num_agents):
        branch, own, before = 100 * (agent + 1), dice.randint(20, 60), None
        path: tuple[tuple[int, int], ...] = ((SYSTEM, 40),)
        for call in range(num_calls):
            output = dice.randint(2, max_output_tokens)
            asks.append(
                Ask(
                    step=f"{agent}.{call}",
                    session=f"agent{agent}",
                    path=(*path, (branch, own)),
                    output_tokens=output,
                    priority=agent,
                    after=before,
                    delay=dice.randint(0, 12) if before else 3 * agent,
                )
            )
            tokens_asked += 40 + sum(n for _, n in path[1:]) + own + output
            before = f"{agent}.{call}"
            own += output + dice.randint(1, 24)
            if dice.random() < rewrite:
                kept = dice.randint(own // 2, own)
                path, branch, own = (*path, (branch, kept)), branch + 1, dice.randint(1, 30)
    mean_context_tokens = tokens_asked / len(asks)
    num_blocks = round(num_agents * mean_context_tokens / times / 16)
    return Scenario(
        f"{num_agents} agents of {num_calls} calls at oversubscription {times}, seed {seed}"
        + (", histories rewritten now and then" if rewrite else "")
        + (", long answers" if max_output_tokens > 24 else "")
        + (f", a host tier of {host} times the cache" if host else ""),
        replace(
            Settings(num_blocks=num_blocks, chunk_tokens=chunk_tokens, max_running=6, queue=queue),
            host_blocks=round(host * num_blocks),
            load_tokens_per_s=16.0 if host else inf,
        ),
        tuple(asks),
    )


SCENARIOS: dict[str, Callable[[], Scenario]] = {
    scenario.__name__: scenario
    for scenario in (
        chunked_prefill,
        shared_prompt,
        shared_prompt_chunked,
        tail_first,
        head_blocks_queue,
        preempt_fcfs,
        preempt_priority,
        preempt_itself,
        forks,
        whole_blocks,
        nearly_all_memory,
        max_running,
        priority_order,
        rewritten_history,
        generated_tokens,
        duplicate_computation,
        duplicates_under_pressure,
        fork_of_running,
        host_tier,
    )
} | {
    "agents_fcfs_1": lambda: _agents(1, "fcfs"),
    "agents_fcfs_2": lambda: _agents(2, "fcfs", chunk_tokens=200),
    "agents_fcfs_3": lambda: _agents(3, "fcfs", rewrite=0.3),
    "agents_priority_4": lambda: _agents(4, "priority"),
    "agents_priority_5": lambda: _agents(5, "priority", rewrite=0.3, chunk_tokens=200),
    "agents_host_small_fcfs_8": lambda: _agents(8, "fcfs", times=2.0, host=0.7),
    "agents_host_small_priority_9": lambda: _agents(9, "priority", times=2.0, host=0.7),
    "agents_host_small_rewrite_fcfs_23": lambda: _agents(23, "fcfs", rewrite=0.3, times=2.0, host=0.7),
    "agents_host_priority_24": lambda: _agents(24, "priority", times=2.0, host=1.0),
    "agents_long_answers_fcfs_6": lambda: _agents(6, "fcfs", max_output_tokens=120, times=1.6),
    "agents_long_answers_priority_7": lambda: _agents(7, "priority", max_output_tokens=120, times=1.6),
}


def record(scenario: Scenario) -> dict[str, Any]:
    """Run a scenario through vLLM's scheduler; the recording as JSON values (see the module's docstring)."""
    engine = RealScheduler(scenario.engine)
    due: dict[int, list[Ask]] = {}
    following: dict[str, list[Ask]] = {}
    for ask in scenario.asks:
        if ask.after is None:
            due.setdefault(ask.delay, []).append(ask)
        else:
            following.setdefault(ask.after, []).append(ask)
    iterations: list[list[Any]] = []
    now = 0
    while due or engine.busy:
        now = now if engine.busy else min(due)
        for ask in due.pop(now, []):
            engine.submit(Call(ask.step, ask.path, ask.output_tokens, ask.priority), now)
        decision = engine.schedule(now)
        if decision is None:
            now += 1
            continue
        _note(iterations, now, decision.num_scheduled_tokens, engine.num_free_blocks)
        for call in engine.finish(decision, now, copied_by=now + 1):
            for ask in following.pop(call.step, []):
                due.setdefault(now + 1 + ask.delay, []).append(ask)
        now += 1
    return {
        "about": scenario.about,
        "vllm": VLLM_VERSION,
        "scheduler": "vllm.v1.core.sched.scheduler.Scheduler",
        "engine": _told(scenario.engine),
        "calls": [vars(ask) for ask in scenario.asks],
        "decisions": [_decision(call, host=scenario.engine.host_blocks > 0) for call in engine.calls.values()],
        "iterations": iterations,
    }


def _note(iterations: list[list[Any]], now: int, scheduled: dict[str, int], num_free_blocks: int) -> None:
    last = iterations[-1] if iterations else None
    if last is not None and last[2] == scheduled and last[0] + last[1] == now:
        last[1] += 1
    else:
        iterations.append([now, 1, dict(scheduled), num_free_blocks])


def _told(engine: Settings) -> dict[str, Any]:
    told = vars(engine)
    host = {"host_blocks": told["host_blocks"], "load_tokens_per_s": told["load_tokens_per_s"]}
    basic = ("num_blocks", "block_tokens", "chunk_tokens", "max_running", "queue")
    return {name: told[name] for name in basic} | (host if engine.host_blocks else {})


def _decision(call: Call, *, host: bool) -> dict[str, Any]:
    loaded = {"host": call.host_tokens} if host else {}
    return loaded | {
        "step": call.step,
        "arrived": call.arrived,
        "admitted": call.admitted,
        "cached": call.cached_tokens,
        "first_token": call.first_token,
        "finished": call.finished,
        "preempted": call.preempted,
        "resumed_cached": call.resumed_cached_tokens,
        "prefilled": call.prefilled_tokens,
    }


def _lines(recording: dict[str, Any]) -> Iterator[str]:
    """JSON with one line per call, decision and iteration."""
    yield "{"
    fields = list(recording.items())
    for name, value in fields:
        comma = "" if name == fields[-1][0] else ","
        if isinstance(value, list):
            yield f" {json.dumps(name)}: ["
            yield ",\n".join(f"  {json.dumps(entry)}" for entry in value)
            yield f" ]{comma}"
        else:
            yield f" {json.dumps(name)}: {json.dumps(value)}{comma}"
    yield "}\n"


def main() -> None:
    """Write one file per scenario into the folder given."""
    arguments = argparse.ArgumentParser(description="Record decisions of the real vLLM scheduler.")
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--only", choices=sorted(SCENARIOS), action="append", help="just these scenarios")
    given = arguments.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.only or SCENARIOS:
        recording = record(SCENARIOS[name]())
        path = given.folder / f"{name}.json"
        path.write_text("\n".join(_lines(recording)))
        num_preemptions = sum(len(decision["preempted"]) for decision in recording["decisions"])
        print(f"{path}: {len(recording['calls'])} calls, {num_preemptions} preemptions, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
