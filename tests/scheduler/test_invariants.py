"""The scheduler's laws under random lives: agents, failures, cancels, workers coming and going, time passing."""

from __future__ import annotations

import random
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from saga import commands as do
from saga import events as ev
from saga.cache.overdue import LongOverdue
from saga.cache.ttl import FixedTtl
from saga.errors import InvariantViolated
from saga.presets import PRESETS, preset
from saga.scheduler.composition import Caps
from saga.scheduler.invariants import check
from saga.scheduler.scheduler import Scheduler

SESSIONS = [f"s{i}" for i in range(8)]
ACTIONS = ("arrive", "first", "finish", "fail", "cancel", "end", "wait", "join", "lose", "drain", "evict")


class Life:
    """Plays agents and workers at random, and remembers what the driver would know."""

    def __init__(self, name: str) -> None:
        composition = replace(preset(name), patience_s=2.0)
        if name == "saga":
            composition = replace(composition, retention=FixedTtl(3.0), overdue=LongOverdue(times=0.0, least_s=5.0))
        self.scheduler = Scheduler(composition, caps=Caps(max_sessions=6, idle_s=50.0, max_backlog=2))
        self.at_s = 0.0
        self.num_steps = 0
        self.num_workers = 0
        self.arrived: dict[str, str] = {}
        self.at_work: dict[str, str] = {}
        self.outcomes: dict[str, int] = {}
        self.log: list[ev.Event] = []
        self.commands: list[do.Command] = []
        self.join(2_000)

    def tell(self, event: ev.Event) -> None:
        self.log.append(event)
        commands = self.scheduler.handle(event)
        self.commands += commands
        for command in commands:
            if isinstance(command, do.Preempt):
                assert self.at_work.pop(command.step) == command.worker
            elif isinstance(command, do.Dispatch):
                assert command.step not in self.at_work, "two live attempts of one step"
                assert command.step in self.arrived, "a step that is over was dispatched"
                self.at_work[command.step] = command.worker
            elif isinstance(command, do.Reject) and command.step in self.arrived:
                self.over(command.step)
            else:
                assert getattr(command, "worker", "w") != "", "a command for no worker"
        check(self.scheduler)

    def over(self, step: str) -> None:
        del self.arrived[step]
        self.at_work.pop(step, None)
        self.outcomes[step] = self.outcomes.get(step, 0) + 1
        assert self.outcomes[step] == 1, "two terminal outcomes of one step"

    def join(self, kv_tokens: int) -> None:
        self.num_workers += 1
        self.tell(ev.WorkerJoined(self.at_s, f"w{self.num_workers}", kv_tokens, move_tokens_per_s=9_000.0))

    def do(self, action: str, index: int, amount: int) -> None:
        getattr(self, f"do_{action}")(index, amount)

    def do_arrive(self, index: int, amount: int) -> None:
        session = SESSIONS[index % len(SESSIONS)]
        self.num_steps += 1
        step = f"{session}/{self.num_steps}"
        self.arrived[step] = session
        self.tell(
            ev.StepArrived(
                self.at_s,
                step,
                session,
                f"t{index % 3}",
                1 + amount * 3,
                f"tenant{index % 3}",
                prefix=f"p{index % 2}",
                prefix_tokens=amount % 50,
                parent=SESSIONS[(index + 3) % len(SESSIONS)] if index % 2 else None,
            )
        )

    def running(self, index: int) -> str | None:
        steps = sorted(self.at_work)
        return steps[index % len(steps)] if steps else None

    def worker(self, index: int) -> str | None:
        workers = sorted(worker.worker for worker in self.scheduler.fleet)
        return workers[index % len(workers)] if workers else None

    def do_first(self, index: int, amount: int) -> None:
        if step := self.running(index):
            self.tell(ev.FirstToken(self.at_s, step, self.at_work[step]))

    def do_finish(self, index: int, amount: int) -> None:
        if step := self.running(index):
            worker = self.at_work[step]
            self.over(step)
            self.tell(ev.StepFinished(self.at_s, step, worker, 1 + amount * 3, amount, tool_calls=("Bash",)))

    def do_fail(self, index: int, amount: int) -> None:
        if step := self.running(index):
            worker = self.at_work[step]
            if amount % 2:
                del self.at_work[step]
            else:
                self.over(step)
            self.tell(ev.StepFailed(self.at_s, step, worker, "reset", retry=bool(amount % 2)))

    def do_cancel(self, index: int, amount: int) -> None:
        if self.arrived:
            step = sorted(self.arrived)[index % len(self.arrived)]
            self.over(step)
            self.tell(ev.StepCancelled(self.at_s, step))

    def do_end(self, index: int, amount: int) -> None:
        session = SESSIONS[index % len(SESSIONS)]
        for step in [step for step, owner in self.arrived.items() if owner == session]:
            self.over(step)
        self.tell(ev.SessionEnded(self.at_s, session))

    def do_wait(self, index: int, amount: int) -> None:
        self.wait(amount / 50.0)

    def do_join(self, index: int, amount: int) -> None:
        if len(self.scheduler.fleet) < 4:
            self.join(500 + 10 * amount)

    def do_lose(self, index: int, amount: int) -> None:
        if worker := self.worker(index):
            for step in [step for step, at in self.at_work.items() if at == worker]:
                del self.at_work[step]
            self.tell(ev.WorkerLost(self.at_s, worker))

    def do_drain(self, index: int, amount: int) -> None:
        if len(self.scheduler.fleet) > 1:
            self.tell(ev.WorkerDraining(self.at_s, str(self.worker(index))))

    def do_evict(self, index: int, amount: int) -> None:
        if worker := self.worker(index):
            session = SESSIONS[index % len(SESSIONS)]
            self.tell(ev.BlocksRemoved(self.at_s, worker, session, amount, 2 * amount))

    def wait(self, seconds: float) -> None:
        until_s = self.at_s + seconds
        while (due_s := self.scheduler.next_deadline_s()) is not None and due_s <= until_s:
            self.at_s = max(self.at_s, due_s)
            self.tell(ev.Tick(self.at_s))
        self.at_s = until_s


STEPS = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 15), st.integers(0, 200)), max_size=120)


EVERY_SEAM = ["saga", "saga_paper", "llumnix", "vllm_kvflow", "thunderagent", "vtc"]
"""Presets that between them use every seam of the scheduler: gate, holds, moves, stealing, preemption, children."""


@pytest.mark.parametrize("name", [*EVERY_SEAM, "vllm_apc", "session_cap", "vllm"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_all_laws_hold_after_every_event(name, steps):
    """Random lives never break a law, never dispatch a step twice and never answer it twice."""
    life = Life(name)
    for action, index, amount in steps:
        life.do(action, index, amount)


@pytest.mark.parametrize("name", [*EVERY_SEAM, "session_cap"])
def test_all_laws_hold_over_long_lives(name):
    """What needs many steps to go wrong (queues, roaming, caps, lost homes) is walked through by seeded chance."""
    weights = {"arrive": 8, "finish": 6, "wait": 4, "first": 2}
    for seed in range(15):
        rng = random.Random(seed)
        life = Life(name)
        for _ in range(300):
            action = rng.choices(ACTIONS, [weights.get(action, 1) for action in ACTIONS])[0]
            life.do(action, rng.randrange(16), rng.randrange(201))


@pytest.mark.parametrize("name", EVERY_SEAM)
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_a_recorded_life_replays_to_the_same_commands(name, steps):
    """Same events, same commands: the scheduler is deterministic."""
    life = Life(name)
    for action, index, amount in steps:
        life.do(action, index, amount)
    twin = Scheduler(life.scheduler.composition, caps=life.scheduler.caps)
    assert [command for event in life.log for command in twin.handle(event)] == life.commands


@pytest.mark.parametrize("name", EVERY_SEAM)
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_no_session_waits_for_ever(name, steps):
    """When those at work finish and time passes, everybody who waits is served."""
    life = Life(name)
    for action, index, amount in steps:
        life.do(action, index, amount)
    if not any(not worker.draining for worker in life.scheduler.fleet):
        life.join(2_000)
    for _ in range(400):
        if not life.arrived:
            break
        for step in sorted(life.at_work):
            life.over(step)
            life.tell(ev.StepFinished(life.at_s, step, life.scheduler.sessions.steps[step].worker, 10, 1))
        life.wait(5.0)
    assert not life.arrived


def test_the_check_notices_a_broken_ledger():
    """A check that cannot fail proves nothing: each kind of damage is seen."""
    life = Life("saga")
    life.do("arrive", 0, 50)
    worker = next(iter(life.scheduler.fleet))
    worker.num_running += 1
    with pytest.raises(InvariantViolated, match="law 3"):
        check(life.scheduler)
    worker.num_running -= 1
    worker.reserved_tokens += 100
    with pytest.raises(InvariantViolated, match="law 4"):
        check(life.scheduler)
    worker.reserved_tokens -= 100
    session = next(iter(life.scheduler.sessions))
    session.home = "nowhere"
    with pytest.raises(InvariantViolated, match="law 6"):
        check(life.scheduler)


def test_every_preset_is_named_after_itself():
    """The table's keys are the names that results carry."""
    assert all(name == composition.name for name, composition in PRESETS.items())
