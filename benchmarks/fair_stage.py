"""A small stage for fairness: tenants, their agents and workers that fail, around the production scheduler.

A worker serves every step that it is given at once and answers after a time of the step's own: the least that a server
can be, so that every lead between tenants is the scheduler's doing. Used by the search for violations of the bound.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from service_watch import ServiceWatch, watch

from saga import commands as do
from saga import events as ev
from saga.cache.ttl import FixedTtl
from saga.fairness.agent_fair_share import NoShares, WeightedService
from saga.fairness.start_time_fair import StartTimeFair
from saga.presets import preset
from saga.scheduler.composition import Composition
from saga.scheduler.invariants import check
from saga.scheduler.scheduler import Scheduler

KV_TOKENS = 10_000
SHARES = StartTimeFair(window_s=4.0, tie_s=0.5, advance_s=1.0)


@dataclass(frozen=True)
class Agents:
    """What a tenant sends: `tasks` agents of `steps` steps, the first at `begins_s`, then one every `every_s`.

    step_s: device seconds of a step; slow: its time on the worker over that. keeps_one: one more session is open from
    the start and makes a step now and then, as who wants to save up would.
    """

    weight: float = 1.0
    begins_s: float = 0.0
    every_s: float = 0.0
    tasks: int = 1
    steps: int = 1
    step_s: float = 1.0
    slow: float = 1.0
    gap_s: float = 0.5
    prompt_tokens: int = 2_000
    keeps_one: bool = False


@dataclass(frozen=True)
class Failure:
    """A worker that is lost at a time and joins again, or (down_s 0) the loss of one step that runs on it."""

    at_s: float
    worker: int
    down_s: float = 0.0


@dataclass(frozen=True)
class Scene:
    """Everything that happens."""

    tenants: tuple[Agents, ...]
    failures: tuple[Failure, ...] = ()
    workers: int = 1
    hold_s: float = 2.0

    def composition(self) -> Composition:
        """The default preset, with little patience, holds of one length and shares that bind soon."""
        return replace(preset("saga"), retention=FixedTtl(self.hold_s), tenants=SHARES, patience_s=1.0, forecasts=False)


class Stage:
    """One run of a scene. Ends when every agent is done, or after `most_events`."""

    def __init__(self, scene: Scene, composition: Composition | None = None) -> None:
        self.scene = scene
        self.weights = {f"t{index}": tenant.weight for index, tenant in enumerate(scene.tenants)}
        self.scheduler = Scheduler(composition or scene.composition(), weights=self.weights)
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = 0
        self._steps: dict[str, tuple[Agents, str, int, int]] = {}
        self._on: dict[str, str] = {}

    def run(self, *, most_events: int = 4_000, laws: bool = True) -> ServiceWatch:
        """Play the scene under the eyes of a witness, which is returned."""
        witness = watch(self.scheduler, self.weights, slack_s=SHARES.slack_s, advance_s=SHARES.advance_s)
        for index in range(self.scene.workers):
            self._tell(ev.WorkerJoined(0.0, f"w{index}", KV_TOKENS))
        for index, tenant in enumerate(self.scene.tenants):
            for task in range(tenant.tasks):
                self._at(tenant.begins_s + task * tenant.every_s, self._arrival(tenant, f"t{index}", task, 0))
            if tenant.keeps_one:
                patient = replace(tenant, steps=40, step_s=0.01, gap_s=1.5, prompt_tokens=10)
                self._at(0.0, self._arrival(patient, f"t{index}", -1, 0))
        for failure in self.scene.failures:
            self._at(failure.at_s, self._failure(failure))
        for _ in range(most_events):
            due_s = self.scheduler.next_deadline_s()
            if due_s is not None and (not self._heap or due_s <= self._heap[0][0]):
                self._tell(ev.Tick(max(due_s, self.scheduler.now_s)))
            elif self._heap:
                at_s, _, happen = heapq.heappop(self._heap)
                happen(at_s)
            else:
                break
            if laws:
                check(self.scheduler)
        return witness

    def _at(self, at_s: float, happen: Callable[[float], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (at_s, self._order, happen))

    def _tell(self, event: ev.Event) -> None:
        for command in self.scheduler.handle(event):
            if isinstance(command, do.Dispatch):
                self._on[command.step] = command.worker
                agents = self._steps[command.step][0]
                self._at(event.at_s + agents.step_s * agents.slow, self._answer(command.step, command.worker))

    def _arrival(self, agents: Agents, tenant: str, task: int, step: int) -> Callable[[float], None]:
        def happen(at_s: float) -> None:
            session = f"{tenant}.{task}"
            name = f"{session}/{step}"
            self._steps[name] = (agents, tenant, task, step)
            self._tell(ev.StepArrived(at_s, name, session, session, agents.prompt_tokens + 10 * step, tenant))

        return happen

    def _answer(self, step: str, worker: str) -> Callable[[float], None]:
        def happen(at_s: float) -> None:
            if self._on.get(step) != worker or self.scheduler.fleet.get(worker) is None:
                return  # the attempt was lost
            agents, tenant, task, number = self._steps.pop(step)
            del self._on[step]
            prompt_tokens = agents.prompt_tokens + 10 * number
            self._tell(ev.StepFinished(at_s, step, worker, prompt_tokens, 10, service_s=agents.step_s))
            if number + 1 < agents.steps:
                self._at(at_s + agents.gap_s, self._arrival(agents, tenant, task, number + 1))
            else:
                self._tell(ev.SessionEnded(at_s, f"{tenant}.{task}"))

        return happen

    def _failure(self, failure: Failure) -> Callable[[float], None]:
        def happen(at_s: float) -> None:
            worker = f"w{failure.worker % self.scene.workers}"
            if self.scheduler.fleet.get(worker) is None:
                return
            running = sorted(step for step, on in self._on.items() if on == worker)
            if failure.down_s:
                for step in running:
                    del self._on[step]
                self._tell(ev.WorkerLost(at_s, worker))
                self._at(at_s + failure.down_s, lambda then_s: self._tell(ev.WorkerJoined(then_s, worker, KV_TOKENS)))
            elif running:
                del self._on[running[0]]
                self._tell(ev.StepFailed(at_s, running[0], worker, "the attempt was lost"))

        return happen


def random_scene(rng: random.Random) -> Scene:
    """Tenants of random weights, loads and habits, and failures."""
    tenants = tuple(
        Agents(
            weight=rng.choice((0.5, 1.0, 1.0, 2.0, 4.0)),
            begins_s=rng.choice((0.0, 0.0, 5.0, 20.0, 40.0)),
            every_s=rng.choice((0.0, 0.0, 0.3, 1.0, 3.0)),
            tasks=rng.randint(1, 25),
            steps=rng.randint(1, 20),
            step_s=rng.choice((0.1, 0.5, 1.0, 2.0)),
            slow=rng.choice((1.0, 2.0, 4.0)),
            gap_s=rng.choice((0.0, 0.2, 1.0, 3.0)),
            prompt_tokens=rng.choice((500, 1_500, 3_000, 6_000)),
            keeps_one=rng.random() < 0.3,
        )
        for _ in range(rng.randint(2, 4))
    )
    failures = tuple(
        Failure(rng.uniform(0.0, 60.0), rng.randint(0, 2), rng.choice((0.0, 0.0, 3.0)))
        for _ in range(rng.randint(0, 4))
    )
    return Scene(tenants, failures, workers=rng.randint(1, 3), hold_s=rng.choice((0.5, 2.0, 5.0)))


def charges_nothing(scheduler: Scheduler) -> None:
    """Broken: no tenant is ever charged."""
    scheduler.accounts.charge = lambda name, service_s: None  # type: ignore[method-assign]


def forgets_time(scheduler: Scheduler) -> None:
    """Broken: who sleeps saves up."""
    scheduler.accounts.level = lambda name: None  # type: ignore[method-assign]
    scheduler.accounts._catch_up = lambda tenant: None  # type: ignore[method-assign]


BROKEN: dict[str, tuple[Callable[[Composition], Composition], Callable[[Scheduler], None]]] = {
    "as it is": (lambda each: each, lambda scheduler: None),
    "charges nothing": (lambda each: each, charges_nothing),
    "forgets virtual time": (lambda each: each, forgets_time),
    "first come, first served": (lambda each: replace(each, tenants=NoShares()), lambda scheduler: None),
    "places are never given up": (lambda each: replace(each, tenants=WeightedService()), lambda scheduler: None),
}
"""Name -> (a change of the composition, damage to the scheduler); all but the first must be caught."""
