"""A witness of tenants' service: recounts it from events and commands, against the bound of docs/fairness.md.

It sees what the scheduler sees and what it orders, keeps books of its own, and asks the scheduler only who waits for
any worker and how much memory a held session has: a scheduler whose accounts are wrong is caught all the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import NamedTuple

from saga import commands as do
from saga import events as ev
from saga.scheduler.scheduler import Scheduler


class Worst(NamedTuple):
    """The largest lead that `ahead` won while `behind` waited, device seconds per weight, and its bound."""

    deviation_s: float
    bound_s: float
    ahead: str
    behind: str

    @property
    def share(self) -> float:
        """Deviation over bound; above 1 the theorem is broken."""
        return self.deviation_s / self.bound_s if self.bound_s else 0.0


class ServiceWatch:
    """Wraps `scheduler.handle`. weights: 1 where unnamed. slack_s: B, advance_s: e of the theorem."""

    def __init__(self, scheduler: Scheduler, weights: dict[str, float], *, slack_s: float, advance_s: float) -> None:
        self._scheduler = scheduler
        self._handle = scheduler.handle
        self._weights = weights
        self._slack_s, self._advance_s = slack_s, advance_s
        self._tenant: dict[str, str] = {}
        self._running: dict[str, str] = {}
        self._held: dict[str, tuple[float, float]] = {}
        self._places: Counter[str] = Counter()
        self._least_lead: dict[tuple[str, str], float] = {}
        self._waiting: set[str] = set()
        self.served_s: defaultdict[str, float] = defaultdict(float)
        self.deviation_s: dict[tuple[str, str], float] = {}
        self.most_places: Counter[str] = Counter()
        self.step_s = self.gap_s = 0.0

    def handle(self, event: ev.Event) -> list[do.Command]:
        """The scheduler's answer, looked at. O(tenants that wait x tenants)."""
        self._before(event)
        commands = self._handle(event)
        for command in commands:
            self._ordered(command, event.at_s)
        self._count_places()
        self._compare()
        return commands

    def _before(self, event: ev.Event) -> None:
        if isinstance(event, ev.StepArrived):
            self._tenant[event.session] = event.tenant
            self._end_gap(event.session, event.at_s)
        elif isinstance(event, ev.StepFinished):
            session = self._running.pop(event.step, None)
            if session is not None:
                seconds = event.service_s or 0.0
                self.served_s[self._tenant[session]] += seconds
                self.step_s = max(self.step_s, seconds)
        elif isinstance(event, ev.StepFailed):
            self._running.pop(event.step, None)
        elif isinstance(event, ev.SessionEnded):
            self._end_gap(event.session, event.at_s)
        elif isinstance(event, ev.WorkerLost):
            worker = self._scheduler.fleet.get(event.worker)
            for session in worker.residents.values() if worker is not None else ():
                self._running.pop(session.step, None)
                self._held.pop(session.session, None)

    def _ordered(self, command: do.Command, at_s: float) -> None:
        if isinstance(command, do.Dispatch):
            self._running[command.step] = command.session
        elif isinstance(command, do.Retain):
            session, worker = self._scheduler.sessions.get(command.session), self._scheduler.fleet.get(command.worker)
            if session is not None and worker is not None:
                self._held[command.session] = (at_s, session.own_tokens / worker.kv_tokens)
        elif isinstance(command, do.Release):
            self._end_gap(command.session, at_s)

    def _end_gap(self, session: str, at_s: float) -> None:
        held = self._held.pop(session, None)
        if held is not None:
            seconds = (at_s - held[0]) * held[1]
            self.served_s[self._tenant[session]] += seconds
            self.gap_s = max(self.gap_s, seconds)

    def _count_places(self) -> None:
        sessions = {*self._running.values(), *self._held}
        self._places = Counter(self._tenant[session] for session in sessions)
        for tenant, places in self._places.items():
            self.most_places[tenant] = max(self.most_places[tenant], places)

    def _level_s(self, tenant: str) -> float:
        return self.served_s[tenant] / self._weights.get(tenant, 1.0)

    def _compare(self) -> None:
        now = {view.tenant for view in self._scheduler.gate.in_the_open()}
        for behind in now:
            mine_s, goes_on = self._level_s(behind), behind in self._waiting
            for ahead in self.served_s:
                if ahead != behind:
                    pair, lead_s = (ahead, behind), self._level_s(ahead) - mine_s
                    least_s = min(self._least_lead.get(pair, lead_s), lead_s) if goes_on else lead_s
                    self._least_lead[pair] = least_s
                    self.deviation_s[pair] = max(self.deviation_s.get(pair, 0.0), lead_s - least_s)
        for pair in [pair for pair in self._least_lead if pair[1] not in now]:
            del self._least_lead[pair]
        self._waiting = now

    def bound_s(self, ahead: str, behind: str) -> float:
        """The theorem's, with the largest step, gap and number of places that were seen."""
        place_s = self.step_s + self.gap_s
        ahead_places = self.most_places[ahead] / self._weights.get(ahead, 1.0)
        behind_places = self.most_places[behind] / self._weights.get(behind, 1.0)
        most = max((number / self._weights.get(name, 1.0) for name, number in self.most_places.items()), default=0.0)
        advances_s = (behind_places + most) * self._advance_s
        return (2 * ahead_places + behind_places) * place_s + 2 * self._slack_s + advances_s

    def worst(self) -> Worst:
        """The pair that came nearest to its bound, or went beyond it."""
        found = [Worst(seen_s, self.bound_s(*pair), *pair) for pair, seen_s in self.deviation_s.items()]
        return max(found, key=lambda each: each.share, default=Worst(0.0, 0.0, "", ""))


def watch(scheduler: Scheduler, weights: dict[str, float], *, slack_s: float, advance_s: float) -> ServiceWatch:
    """Put a witness before the scheduler: whoever calls its `handle` is seen from now on."""
    witness = ServiceWatch(scheduler, weights, slack_s=slack_s, advance_s=advance_s)
    scheduler.handle = witness.handle  # type: ignore[method-assign]
    return witness
