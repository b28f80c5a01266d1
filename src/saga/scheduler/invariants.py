"""The scheduler's laws, numbered, with one check. Tests run it after every event; drivers may sample it live.

1. Every live step has one session, which is WAITING or RUNNING with that step.
2. A session's steps do not overlap: it is RUNNING on one worker or not at all, and the others wait in its backlog.
3. A worker's counts are those of its sessions: running, active, live.
4. Its ledger is the sum over its sessions, what they share counted once.
5. A reservation lies on a known worker, and is held across a gap for ever by intent or with a deadline ahead.
6. Nothing points at a worker that is lost.
7. Every waiting session is in a lane of the gate.
8. The sums of open and waiting sessions and of advances per tenant are right, those of sessions per task too.
9. What is remembered is bounded by the caps.

This module refuses to mend anything.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from math import inf, isclose

from saga.errors import InvariantViolated
from saga.scheduler.scheduler import Scheduler
from saga.scheduler.sessions import Session, State
from saga.scheduler.workers import Worker


def check(scheduler: Scheduler) -> None:
    """Raise InvariantViolated with the number of the law that does not hold. O(sessions + workers)."""
    _steps(scheduler)
    for worker in scheduler.fleet:
        _counts(scheduler, worker)
        _ledger(worker)
    for session in scheduler.sessions:
        _reservation(scheduler, session)
        _pointers(scheduler, session)
    _gate(scheduler)
    _sums(scheduler)
    _caps(scheduler)


def _law(number: int, holds: object, what: str) -> None:
    if not holds:
        raise InvariantViolated(f"law {number}: {what}")


def _steps(scheduler: Scheduler) -> None:
    steps = scheduler.sessions.steps
    for step, session in steps.items():
        _law(1, session.step == step, f"step {step!r} is not the live step of {session.session!r}")
        _law(1, session.state in (State.WAITING, State.RUNNING), f"step {step!r} is live while {session.state.name}")
    for session in scheduler.sessions:
        busy = session.state in (State.WAITING, State.RUNNING)
        _law(2, busy == (session.step in steps), f"session {session.session!r} is {session.state.name}")
        _law(2, busy or not session.backlog, f"session {session.session!r} has a backlog and nothing to wait for")
    behind = {event.step: session for session in scheduler.sessions for event in session.backlog or ()}
    _law(2, behind == scheduler.sessions.behind, "the steps in backlogs are not those that are remembered")


def _counts(scheduler: Scheduler, worker: Worker) -> None:
    name = worker.worker
    running = sum(1 for s in scheduler.sessions if s.state is State.RUNNING and s.worker == name)
    _law(3, running == worker.num_running, f"{name} counts {worker.num_running} running, {running} are")
    prompts = sum(s.prompt_tokens for s in scheduler.sessions if s.state is State.RUNNING and s.worker == name)
    _law(3, prompts == worker.running_tokens, f"{name} counts {worker.running_tokens} tokens running, {prompts} are")
    _law(3, len(worker.active) == worker.num_active, f"{name} counts {worker.num_active} active")
    _law(3, len(_live(worker)) == worker.num_live, f"{name} counts {worker.num_live} live")
    _law(3, len(worker.unstarted) <= worker.num_running, f"{name} has more unstarted than running steps")


def _longest(sessions: list[Session]) -> int:
    longest: dict[str, int] = {}
    for session in sessions:
        if session.prefix:
            longest[session.prefix] = max(longest.get(session.prefix, 0), session.prefix_tokens)
    return sum(longest.values())


def _ledger(worker: Worker) -> None:
    active, residents = list(worker.active.values()), _live(worker)
    own = sum(s.own_tokens for s in active)
    growth = sum(s.growth_tokens for s in active)
    counted = {"active": own + worker.active_shared.tokens, "live": _own_live(residents) + worker.live_shared.tokens}
    _law(4, counted["active"] == worker.active_tokens, f"{worker.worker}: {worker.active_tokens} active, {counted}")
    _law(4, counted["live"] == worker.live_tokens, f"{worker.worker}: {worker.live_tokens} live, {counted}")
    _law(4, worker.active_shared.tokens >= _longest(active), f"{worker.worker} forgot a shared prefix of the active")
    _law(4, worker.live_shared.tokens >= _longest(residents), f"{worker.worker} forgot a shared prefix of the live")
    _law(
        4,
        isclose(worker.reserved_tokens, worker.active_tokens + growth, rel_tol=1e-6, abs_tol=1.0),
        f"{worker.worker} reserves {worker.reserved_tokens}, its sessions {worker.active_tokens + growth}",
    )


def _live(worker: Worker) -> list[Session]:
    """Who counts there: residents that are not long overdue."""
    return [session for session in worker.residents.values() if not session.overdue]


def _own_live(residents: list[Session]) -> int:
    return sum(max(0, s.context_tokens - s.prefix_tokens) if s.prefix else s.context_tokens for s in residents)


def _reservation(scheduler: Scheduler, session: Session) -> None:
    if session.reserved:
        worker = scheduler.fleet.get(session.worker)
        _law(5, worker is not None and session.session in worker.active, f"{session.session!r} holds a place nowhere")
    counts = not session.overdue or session.state in (State.AWAY, State.WAITING)
    _law(5, counts and not (session.overdue and session.reserved), f"{session.session!r} is at work and not counted")
    if session.state is State.HELD:
        due_s = scheduler.next_deadline_s()
        ends = session.hold_until_s == inf or (due_s is not None and due_s <= session.hold_until_s)
        _law(5, ends, f"the hold of {session.session!r} until {session.hold_until_s} has no deadline")


def _pointers(scheduler: Scheduler, session: Session) -> None:
    for name in (session.home, session.lives_at):
        _law(6, not name or scheduler.fleet.get(name) is not None, f"{session.session!r} points at lost {name!r}")
    if session.state is State.RUNNING:
        _law(6, scheduler.fleet.get(session.worker) is not None, f"{session.session!r} runs on lost {session.worker!r}")


def _gate(scheduler: Scheduler) -> None:
    waiting = {s.session for s in scheduler.sessions if s.state is State.WAITING}
    _law(7, scheduler.gate.waiting() == waiting, "the gate does not hold just those who wait")
    _law(7, scheduler.gate.num_waiting == len(waiting), f"the gate counts {scheduler.gate.num_waiting}")


def _sums(scheduler: Scheduler) -> None:
    by_tenant = Counter(s.tenant for s in scheduler.sessions)
    waiting = Counter(s.tenant for s in scheduler.sessions if s.state is State.WAITING)
    advanced_s: dict[str, float] = defaultdict(float)
    for session in scheduler.sessions:
        advanced_s[session.tenant] += session.advanced_s
    for tenant in scheduler.accounts.tenants.values():
        name = tenant.tenant
        _law(8, tenant.num_sessions == by_tenant[name], f"tenant {name!r} miscounts its sessions")
        _law(8, tenant.num_waiting == waiting[name], f"tenant {name!r} miscounts those that wait")
        _law(8, isclose(tenant.advanced_s, advanced_s[name], abs_tol=1e-6), f"tenant {name!r} miscounts its advances")
    _law(8, scheduler.sessions.num_tasks == len({s.task for s in scheduler.sessions}), "a task outlives its sessions")


def _caps(scheduler: Scheduler) -> None:
    live = len(scheduler.sessions.steps)
    _law(9, len(scheduler.sessions) <= max(scheduler.caps.max_sessions, live) + 1, "more sessions than the cap allows")
    _law(
        9,
        len(scheduler.deadlines) <= 1024 + 8 * (len(scheduler.sessions) + len(scheduler.fleet)) + 1024,
        "deadlines pile up",
    )
