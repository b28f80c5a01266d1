"""The scheduler: one event in, commands out. All of SAGA's decisions are made here, and nowhere else.

A step's way: `_begin` closes the session's gap (what was forecast is learned) -> `_enter` asks for a place
(`fairness.admission`; one whose reservation still holds has it) or lets it wait at the `gate` in the order of
`ordering` and of the tenants' shares -> `_place` picks the worker (`routing`) -> `_dispatch`. When it has finished,
`_begin_gap` forecasts the return (`workflow`), decides how long its place is held (`cache.ttl`), and `_fill` gives free
room to who waits.

It refuses to know clocks (time arrives as `event.at_s`), transports, engines and presets: the same object runs behind
the gateway, in the simulator and over a recorded log, and gives the same commands for the same events.

Cost of one event, W workers, S sessions: O(log S) for deadlines and queues; O(1) in W (a short list instead of the
fleet, above `_SHORT_LIST_FROM` workers); O(tenants that wait) while somebody waits; O(active sessions of one worker)
when a session must be paused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf, isfinite

from saga import commands as do
from saga import events as ev
from saga.cache.ttl import GapFacts
from saga.commands import Command, Standing
from saga.errors import ProtocolError
from saga.scheduler.accounts import Accounts, service_s
from saga.scheduler.composition import Caps, Composition
from saga.scheduler.deadlines import Deadlines, Due
from saga.scheduler.forecasts import Forecaster, NoForecasts, nothing_known
from saga.scheduler.gate import ANYWHERE, Gate, precedes
from saga.scheduler.least import LeastLoadedIndex
from saga.scheduler.sessions import Did, Session, SessionTable, State
from saga.scheduler.workers import Fleet, Worker
from saga.workflow.forecast import Forecast
from saga.workflow.model import WorkflowModel, WorkflowSettings

_SHORT_LIST_FROM = 17
_PRIORITY_PER_RANK = 1_000.0
_MAX_PRIORITY = 2.0**62
_WAIT_KEEP = 0.9


class Scheduler:
    """`handle` and `next_deadline_s` are the whole interface. Same events, same commands."""

    def __init__(
        self,
        composition: Composition,
        *,
        caps: Caps | None = None,
        weights: dict[str, float] | None = None,
        workflow: WorkflowSettings | None = None,
    ) -> None:
        self.composition = composition
        self.caps = caps or Caps()
        self.sessions = SessionTable()
        self.fleet = Fleet()
        self.accounts = Accounts(weights or {}, self.caps.max_tenants)
        self.model: Forecaster = WorkflowModel(workflow) if composition.forecasts else NoForecasts()
        self.gate = Gate(composition.tenants.rank, self.accounts.tenants)
        self.deadlines = Deadlines()
        self.now_s = -inf
        self._gates = composition.admission.gates
        self._directs = self._gates or composition.forecasts
        self._steals = composition.stealing.idle_s is not None
        self._preempts = composition.preemption.blocked_s is not None
        self._nothing_known = nothing_known()
        self._is_large = False
        self._nobody_idle_before_s = -inf
        self._least = LeastLoadedIndex(composition.routing.balance)
        self._out: list[Command] = []
        self._roomier: dict[str, Worker] = {}
        self._held_back: dict[str, Worker] = {}
        self._handlers: dict[type[ev.Event], Callable[..., None]] = {
            ev.StepArrived: self._on_step_arrived,
            ev.FirstToken: self._on_first_token,
            ev.StepFinished: self._on_step_finished,
            ev.StepFailed: self._on_step_failed,
            ev.StepCancelled: self._on_step_cancelled,
            ev.SessionEnded: self._on_session_ended,
            ev.WorkerJoined: self._on_worker_joined,
            ev.WorkerReported: self._on_worker_reported,
            ev.WorkerDraining: self._on_worker_draining,
            ev.WorkerLost: self._on_worker_lost,
            ev.BlocksStored: self._on_residency,
            ev.BlocksRemoved: self._on_residency,
            ev.Tick: self._on_tick,
        }

    def handle(self, event: ev.Event) -> list[Command]:
        """What follows from one fact. Raises ProtocolError for one that contradicts those before it."""
        at_s = event.at_s
        if not at_s >= self.now_s:
            raise ProtocolError(f"at_s {at_s} is before {self.now_s}: time does not run back")
        if not isfinite(at_s):
            raise ProtocolError(f"at_s {at_s} is not a time; expected finite seconds")
        self.now_s = at_s
        self._out = []
        self._handlers[type(event)](event)
        self._forget_idle()
        while self._roomier:
            self._fill(self._roomier.popitem()[1])
        return self._out

    def next_deadline_s(self) -> float | None:
        """When a Tick is due if nothing else happens; None if nothing is pending."""
        return self.deadlines.next_s()

    # ------------------------------------------------------------------ a step arrives

    def _on_step_arrived(self, event: ev.StepArrived) -> None:
        if event.step in self.sessions.steps or event.step in self.sessions.behind:
            raise ProtocolError(f"step {event.step!r} has arrived before and is not finished; step ids are unique")
        common_tokens = event.common_tokens or 0
        if event.prompt_tokens < 1 or common_tokens < 0 or event.prefix_tokens < 0 or event.home_tokens < 0:
            raise ProtocolError(_bad_count(event))
        session = self.sessions.get(event.session) or self._open(event)
        if session.step:
            self._queue_behind(session, event)
        else:
            self._begin(session, event)

    def _open(self, event: ev.StepArrived) -> Session:
        parent = self.sessions.get(event.parent) if event.parent is not None else None
        track = self.model.open(event.workflow, event.hints, parent=None if parent is None else parent.track)
        session = self.sessions.open(event, track)
        if parent is not None:
            parent.children = parent.children or {}
            parent.children[session.session] = session
        self.accounts.join(event.tenant)
        home = self.fleet.get(event.home)
        if home is not None and not home.draining:
            session.home, session.home_tokens, session.context_tokens = event.home, event.home_tokens, event.home_tokens
            home.settle(session)
        return session

    def _queue_behind(self, session: Session, event: ev.StepArrived) -> None:
        """A session's steps do not overlap: a second one waits for the first (forks are sessions of their own)."""
        if session.backlog is None:
            session.backlog = deque()
        if len(session.backlog) >= self.caps.max_backlog:
            self._out.append(do.Reject(event.step, f"{len(session.backlog)} steps of this session wait already"))
            return
        session.backlog.append(event)
        self.sessions.behind[event.step] = session
        self._out.append(do.Hold(event.step, "an earlier step of the session is still live"))

    def _begin(self, session: Session, event: ev.StepArrived) -> None:
        at_s = self.now_s
        away_since_s = session.away_since_s
        self.model.step_arrived(
            session.track,
            gap_s=None if away_since_s is None else at_s - away_since_s,
            gap_kind=event.gap_kind,
            prompt_tokens=event.prompt_tokens,
            common_tokens=event.common_tokens,
            hints=event.hints,
        )
        self.sessions.busy(session, at_s)
        self.sessions.steps[event.step] = session
        session.step = event.step
        session.arrived = event
        session.step_arrival_s = at_s
        session.prompt_tokens = event.prompt_tokens
        session.gave_way = False
        session.overdue_at_s = inf
        if event.deadline_s is not None:
            session.deadline_s = event.deadline_s
        if event.common_tokens is not None:
            session.home_tokens = min(session.home_tokens, event.common_tokens)
            session.home_host_tokens = min(session.home_host_tokens, event.common_tokens)
        if away_since_s is None and self.composition.forecasts:
            self._note(session, self._forecast(session))
        held = session.state is State.HELD
        if held:
            self._charge_gap(session)
        session.did(Did.ARRIVED)
        self._tell_parent(session)
        if not self._gates:
            self._send_at_once(session)
        elif held and session.reserved:
            self._resume(session)
        else:
            self._enter(session)

    def _fits_nowhere(self, session: Session) -> bool:
        """Whether the prompt is longer than the memory of any worker: it would wait for ever."""
        return 0 < self.fleet.largest_kv_tokens <= session.prompt_tokens

    def _send_at_once(self, session: Session) -> None:
        if self._fits_nowhere(session):
            self._refuse(session)
            return
        worker = self._place(session, self._candidates(session))
        if worker is None:
            self._wait(session, ANYWHERE, "no worker can take it now")
        else:
            self._dispatch(session, worker, self.composition.routing.name)

    def _resume(self, session: Session) -> None:
        worker = self.fleet.get(session.worker)
        fits = worker is not None and not worker.draining and session.prompt_tokens < worker.kv_tokens
        if worker is None or not fits or self._stands_back(session):
            self._let_go(session)
            self._enter(session)
            return
        self._reserve(session, worker)
        self._dispatch(session, worker, "its place was kept across the gap")
        self._pause_for_room(worker)

    def _enter(self, session: Session) -> None:
        """Ask for a place; wait at the gate where there is none, or where somebody is ahead."""
        if self._fits_nowhere(session):
            self._refuse(session)
            return
        rank = self.composition.ordering.rank(session, self.now_s)
        home = self._home(session)
        if home is not None:
            if self._stands_back(session):
                self._held_back[home.worker] = home
            elif not self._outranked(session, rank, home.worker) and self._fits(session, home):
                self._admit(session, home, "its prefix is here and there is room")
                return
            session.roam_at_s = self.now_s + self.composition.patience_s
            self.deadlines.add(session.roam_at_s, Due.ROAM, session)
            self._wait(session, home.worker, f"waits for room at its home {home.worker}", rank)
            return
        worker = None if self._outranked(session, rank, ANYWHERE) else self._roomy(session, rank)
        if worker is not None:
            self._admit(session, worker, "there is room")
        else:
            self._wait(session, ANYWHERE, "waits for room on any worker", rank)

    def _refuse(self, session: Session) -> None:
        why = f"a prompt of {session.prompt_tokens} tokens fits no worker"
        self._out.append(do.Reject(session.step, why, retry_after_s=0.0))
        self._drop_step(session)

    def _home(self, session: Session) -> Worker | None:
        """The worker that holds enough of the session's prefix to be worth waiting for."""
        worker = self.fleet.get(session.home)
        if worker is None or worker.draining or session.prompt_tokens >= worker.kv_tokens:
            return None
        at_home = session.home_tokens + session.home_host_tokens
        return worker if at_home >= self.composition.home_share * session.prompt_tokens else None

    def _outranked(self, session: Session, rank: float, lane: str) -> bool:
        if not self.gate.num_waiting:
            return False
        head = self.gate.head(lane)
        return head is not None and precedes(head, self.gate.turn(session, rank))

    def _stands_back(self, session: Session) -> bool:
        """Whether its tenant is ahead of one that any worker might serve by more than its policy allows."""
        if not self.gate.num_waiting:
            return False
        first, tenants = self.gate.head(ANYWHERE), self.composition.tenants
        if first is None or not tenants.stands_back(self._rank(session.tenant), first[0]):
            return False
        self._is_owed(first[1][3])
        return True

    def _is_owed(self, session: Session) -> None:
        """Others stand back for it: now it needs room on the device only, whatever the host tier holds."""
        if not session.owed:
            session.owed = True
            for worker in self._candidates(session):
                self._roomier[worker.worker] = worker

    def _rank(self, tenant: str) -> float:
        return self.composition.tenants.rank(self.accounts.tenants[tenant])

    def _roomy(self, session: Session, rank: float) -> Worker | None:
        return self._place(
            session,
            [
                worker
                for worker in self._candidates(session)
                if self._fits(session, worker) and not self._outranked(session, rank, worker.worker)
            ],
        )

    def _wait(self, session: Session, lane: str, reason: str, rank: float | None = None) -> None:
        if self.gate.is_full_for(session.tenant, self.caps.max_waiting):
            self._out.append(do.Reject(session.step, f"{self.gate.num_waiting} sessions wait already", 5.0))
            self._drop_step(session)
            return
        self.accounts.level(session.tenant)
        self.gate.add(lane, session, self.composition.ordering.rank(session, self.now_s) if rank is None else rank)
        if self._gates and self.accounts.num_busy > 1:
            home = self.fleet.get(lane)
            for worker in self._candidates(session) if home is None else [home]:
                self._roomier[worker.worker] = worker
        self._out.append(do.Hold(session.step, reason))

    def _leave_gate(self, session: Session) -> None:
        """It waits no longer, and whoever waited behind it may be next."""
        self.gate.remove(session)
        if not (self._gates and self.gate.num_waiting):
            return
        home = self.fleet.get(session.home)
        if home is not None:
            self._roomier[home.worker] = home
        for worker in self._candidates(session):
            self._roomier[worker.worker] = worker
        self._roomier.update(self._held_back)
        self._held_back.clear()

    # ------------------------------------------------------------------ a place and a worker

    def _candidates(self, session: Session) -> list[Worker]:
        """All workers of a small fleet; home and the least loaded of a large one."""
        if not self._is_large:
            return list(self.fleet)
        short = self._least.least(2)
        home = self.fleet.get(session.home)
        if home is not None and home not in short:
            short.append(home)
        if all(session.prompt_tokens >= worker.kv_tokens for worker in short):
            return list(self.fleet)  # an unusually long prompt: only some workers can take it
        return short

    def _place(self, session: Session, candidates: list[Worker]) -> Worker | None:
        picked = self.composition.routing.pick(session, candidates)
        return None if picked is None else self.fleet.get(picked.worker)

    def _context(self, session: Session) -> int:
        return session.prompt_tokens + int(session.expected_output_tokens)

    def _fits(self, session: Session, worker: Worker) -> bool:
        admission = self.composition.admission
        context_tokens = self._context(session)
        growth_tokens = admission.growth(context_tokens, session.remaining_tokens)
        need_tokens = worker.need(session, context_tokens, growth_tokens)
        new = session.overdue or session.lives_at != worker.worker
        return admission.fits(worker, need_tokens, new=new and not session.owed)

    def _reserve(self, session: Session, worker: Worker) -> None:
        context_tokens = self._context(session)
        before_tokens = worker.reserved_tokens
        growth_tokens = self.composition.admission.growth(context_tokens, session.remaining_tokens)
        if not session.reserved:
            session.advanced_s = self.composition.tenants.advance_s
            self.accounts.advance(session.tenant, session.advanced_s)
        worker.reserve(session, context_tokens, growth_tokens)
        self._touched(worker, freed=worker.reserved_tokens < before_tokens)

    def _touched(self, worker: Worker, *, freed: bool) -> None:
        """The worker's load changed; if room came free, those who wait are asked at the end of the event."""
        if self._is_large:
            self._least.update(worker)
        if freed and self.gate.num_waiting:
            self._roomier[worker.worker] = worker

    def _admit(self, session: Session, worker: Worker, reason: str) -> None:
        self._reserve(session, worker)
        self._dispatch(session, worker, f"{reason}: {worker.reserved_tokens:.0f} of {worker.kv_tokens} tokens reserved")

    def _dispatch(self, session: Session, worker: Worker, reason: str) -> None:
        if self._gates:
            self.accounts.serve(session.tenant, self.gate.in_the_open() if self.gate.num_waiting else ())
        context_tokens = self._context(session)
        if session.lives_at == worker.worker:
            worker.grow(session, context_tokens)
        else:
            self._move(session, worker)
            session.context_tokens = context_tokens
            worker.settle(session)
        session.roam_at_s = session.hold_until_s = session.prefetch_at_s = inf
        session.worker = worker.worker
        session.preempted = session.owed = False
        session.did(Did.DISPATCHED)
        session.sent_at_s = self.now_s
        worker.num_running += 1
        worker.running_tokens += session.prompt_tokens
        worker.unstarted[session.step] = session
        self._touched(worker, freed=False)
        self.accounts.charge(session.tenant, self.composition.billing.sent(session))
        session.priority = self._priority(session)
        self._out.append(do.Dispatch(session.step, session.session, worker.worker, session.priority, reason))
        if self._steals:
            self._wake_thieves(worker)
        if self._preempts and worker.num_running > 1:
            self._watch(worker)

    def _priority(self, session: Session) -> int:
        rank = self.composition.ordering.rank(session, self.now_s) * _PRIORITY_PER_RANK
        return int(max(-_MAX_PRIORITY, min(_MAX_PRIORITY, rank)))

    def _move(self, session: Session, target: Worker) -> None:
        """Take the session to another worker, with its prefix where that is cheaper than prefilling it again.

        Whether it comes along or not, what stays behind is a copy that nobody needs: see `_clear_up`.
        """
        source = self.fleet.get(session.lives_at)
        tokens = session.home_tokens + session.home_host_tokens
        if session.left_at != target.worker:
            self._clear_up(session)
        session.left_at = ""
        if source is not None:
            source.leave(session)
            self._touched(source, freed=False)
            if self._directs:
                session.left_at = source.worker
            if self.composition.migrate and tokens and target.move_tokens_per_s > target.prefill_tokens_per_s:
                self._out.append(
                    do.Migrate(
                        session.session, source.worker, target.worker, tokens, "moving is cheaper than prefilling"
                    )
                )
            else:
                tokens = 0
        session.home = target.worker
        session.home_tokens = tokens if source is not None else 0
        session.home_host_tokens = 0

    def _clear_up(self, session: Session) -> None:
        """The copy of its prefix on the worker that it left may go first; said when a call has ended on the new one.

        Otherwise old copies fill the host tier: nobody speaks of them again, not even when the session ends.
        """
        if not session.left_at:
            return
        left = self.fleet.get(session.left_at)
        session.left_at = ""
        if left is not None:
            why = "it has moved to another worker"
            self._out.append(do.Release(session.session, left.worker, Standing.ENDED, why))

    # ------------------------------------------------------------------ a step runs and ends

    def _on_first_token(self, event: ev.FirstToken) -> None:
        worker = self.fleet.get(event.worker)
        session = None if worker is None else worker.unstarted.pop(event.step, None)
        if worker is not None and session is not None:
            waited_s = max(0.0, self._kept_waiting_s(session, worker, session.step_arrival_s))
            session.waited_s += waited_s
            worker.wait_s = _WAIT_KEEP * worker.wait_s + (1.0 - _WAIT_KEEP) * waited_s

    def _kept_waiting_s(self, session: Session, worker: Worker, since_s: float) -> float:
        """Seconds since then, less what prefilling its prompt takes."""
        new_tokens = max(0, session.prompt_tokens - session.home_tokens - session.home_host_tokens)
        return self.now_s - since_s - new_tokens / worker.prefill_tokens_per_s

    def _live(self, step: str, worker: str) -> tuple[Session, Worker] | None:
        """The session and worker of a live attempt; None for news of one that is over (it crossed a cancel)."""
        session = self.sessions.steps.get(step)
        host = self.fleet.get(worker)
        if session is None or host is None or session.state is not State.RUNNING or session.worker != worker:
            return None
        return session, host

    def _on_step_finished(self, event: ev.StepFinished) -> None:
        live = self._live(event.step, event.worker)
        if live is None:
            return
        session, worker = live
        self._leave_worker(session, worker)
        self.model.step_finished(
            session.track,
            tool_calls=event.tool_calls,
            output_tokens=event.output_tokens,
            prompt_tokens=event.prompt_tokens,
        )
        self._account(session, worker, event)
        context_tokens = event.prompt_tokens + event.output_tokens
        worker.grow(session, context_tokens)
        session.home_tokens = context_tokens
        session.steps_done += 1
        self._end_step(session)
        self._clear_up(session)
        self._begin_gap(session, worker)
        self._tell_parent(session)
        self._epoch(worker)
        self._take_backlog(session)

    def _leave_worker(self, session: Session, worker: Worker) -> None:
        worker.num_running -= 1
        worker.running_tokens -= session.prompt_tokens
        worker.unstarted.pop(session.step, None)
        if worker.num_running == 0:
            self._arm(worker)

    def _wake_thieves(self, busier: Worker) -> None:
        """There may be something to steal now. O(workers), for systems that steal."""
        only_idle = self.composition.stealing.only_idle
        if only_idle:
            busier.steal_at_s = inf
        for worker in self.fleet:
            if worker.steal_at_s == inf and (worker.num_running == 0 or not only_idle):
                self._arm(worker)

    def _arm(self, thief: Worker) -> None:
        """The worker may steal after a while."""
        idle_s = self.composition.stealing.idle_s
        if idle_s is not None:
            thief.steal_at_s = self.now_s + idle_s
            self.deadlines.add(thief.steal_at_s, Due.STEAL, thief)

    def _account(self, session: Session, worker: Worker, event: ev.StepFinished) -> None:
        """Charge tenant and task."""
        seconds = service_s(event, worker)
        self._charge(session, self.composition.billing.finished(event, seconds))
        task = self.sessions.task(session)
        task.attained_s += seconds
        session.attained_s = task.attained_s

    def _charge(self, session: Session, seconds: float) -> None:
        """What its place was charged in advance is used up first."""
        self.accounts.charge(session.tenant, seconds)
        used_s = min(session.advanced_s, seconds)
        session.advanced_s -= used_s
        self.accounts.advance(session.tenant, -used_s)

    def _charge_gap(self, session: Session) -> None:
        """Memory kept across a gap costs the others its share of the device for that long (as in `cache.ttl`)."""
        worker, since_s = self.fleet.get(session.worker), session.away_since_s
        if worker is not None and since_s is not None and session.reserved:
            held_s = (self.now_s - since_s) * session.own_tokens / worker.kv_tokens
            self._charge(session, self.composition.billing.unanswered(held_s))

    def _charge_unfinished(self, session: Session, worker: Worker) -> None:
        """A step that ends without an answer: prefill and its part of the batch, at most the time that it was there."""
        elapsed_s = self.now_s - session.sent_at_s
        new_tokens = max(0, session.prompt_tokens - session.home_tokens - session.home_host_tokens)
        share_s = new_tokens / worker.prefill_tokens_per_s + elapsed_s / max(1, worker.num_running)
        self._charge(session, self.composition.billing.unanswered(min(elapsed_s, share_s)))

    def _end_step(self, session: Session) -> None:
        self.sessions.steps.pop(session.step, None)
        self.sessions.idle(session, self.now_s)
        session.step = ""
        session.arrived = None
        session.away_since_s = self.now_s

    def _forecast(self, session: Session, waited_s: float = 0.0) -> Forecast:
        """What is expected of the session, as far as it is sure enough to be acted on."""
        forecast = self.model.forecast(session.track, waited_s)
        return forecast if forecast.confidence >= self.composition.min_confidence else self._nothing_known

    def _note(self, session: Session, forecast: Forecast) -> None:
        session.expected_output_tokens = forecast.output_tokens
        session.remaining_steps = forecast.remaining_steps
        session.remaining_tokens = forecast.remaining_tokens

    def _expect(self, session: Session, forecast: Forecast) -> None:
        """Remember when it is to be taken for gone. At most one deadline a session, looked at again where it moved."""
        session.overdue_at_s = self.now_s + self.composition.overdue.after_s(forecast.gap)
        if session.overdue_at_s < session.look_at_s:
            session.look_at_s = session.overdue_at_s
            self.deadlines.add(session.look_at_s, Due.OVERDUE, session)

    def _begin_gap(self, session: Session, worker: Worker) -> None:
        """Decide how long the session's place, and its prefix, are kept for it."""
        if not self._directs:
            session.did(Did.FINISHED_LET_GO)
            return
        forecast = self._forecast(session)
        self._note(session, forecast)
        self._expect(session, forecast)
        facts = GapFacts(
            gap=forecast.gap,
            continue_probability=forecast.continue_probability,
            overlap=forecast.overlap,
            capacity_tokens=worker.kv_tokens,
            return_tokens_per_s=self._return_rate(session, worker),
            pressure=worker.live_tokens / worker.kv_tokens,
            context_tokens=session.context_tokens,
            wait_s=worker.wait_s,
        )
        ahead = self._gates and self._stands_back(session)
        hold_s = 0.0 if ahead else self.composition.retention.hold_s(facts)
        expected_use_s = self.now_s + forecast.expected_gap_s
        session.reuse_probability = forecast.continue_probability * forecast.overlap
        if hold_s > 0.0:
            session.did(Did.FINISHED_HELD)
            session.hold_until_s = self.now_s + hold_s
            if hold_s < inf:
                self.deadlines.add(session.hold_until_s, Due.HOLD, session)
            if self._gates:
                self._hold_place(session, worker)
            self._out.append(
                do.Retain(
                    session.session,
                    worker.worker,
                    session.hold_until_s if hold_s < inf else None,
                    expected_use_s,
                    "held across the gap",
                    session.reuse_probability,
                    _steps_to_use(session),
                )
            )
        else:
            session.did(Did.FINISHED_LET_GO)
            self._give_up_place(session)
            why = "its tenant is ahead of one that waits" if ahead else "not worth holding"
            self._release(session, why, expected_use_s)
        if self._gates:
            self._pause_for_room(worker)

    def _return_rate(self, session: Session, worker: Worker) -> float:
        """Tokens per second at which the prefix would come back: over the link if the host tier has room for it."""
        paused_tokens = worker.live_tokens - worker.active_tokens
        if worker.load_tokens_per_s and paused_tokens + session.context_tokens <= worker.host_kv_tokens:
            return worker.load_tokens_per_s
        return worker.prefill_tokens_per_s

    def _hold_place(self, session: Session, worker: Worker) -> None:
        before_tokens = worker.reserved_tokens
        context_tokens = session.context_tokens
        growth_tokens = self.composition.admission.growth(context_tokens, session.remaining_tokens)
        worker.reserve(session, context_tokens, growth_tokens)
        self._touched(worker, freed=worker.reserved_tokens < before_tokens)

    def _pause_for_room(self, worker: Worker) -> None:
        """While active contexts exceed what they may, pause sessions that are not running, in the policy's order."""
        admission = self.composition.admission
        excess_tokens = admission.excess(worker)
        room_tokens = worker.active_tokens - excess_tokens
        while excess_tokens > 0.0 and worker.active_tokens > room_tokens:
            idle = [session for session in worker.active.values() if session.state is State.HELD]
            if not idle:
                return
            first = max(idle, key=lambda each: (self._rank(each.tenant), admission.pause_rank(each), each.session))
            self._pause(first, "the working sets outgrew the device, and of those away it is the first to go")

    def _pause(self, session: Session, reason: str) -> None:
        """HELD -> AWAY: its prefix stays where it is for as long as nobody needs the room."""
        self._charge_gap(session)
        session.did(Did.LET_GO)
        session.hold_until_s = inf
        self._give_up_place(session)
        self._release(session, reason)

    def _release(self, session: Session, reason: str, expected_use_s: float | None = None) -> None:
        """Its prefix may go; where there is a host tier a copy of it stays there."""
        worker = self.fleet.get(session.home)
        if worker is not None and worker.host_kv_tokens:
            self._out.append(do.Offload(session.session, session.home, reason))
        self._release_only(session, reason, expected_use_s)

    def _release_only(self, session: Session, reason: str, expected_use_s: float | None) -> None:
        reuse, steps = session.reuse_probability, _steps_to_use(session)
        release = do.Release(session.session, session.home, Standing.PAUSED, reason, expected_use_s, reuse, steps)
        self._out.append(release)

    def _tell_parent(self, child: Session) -> None:
        """A sub-agent went on or ended: its parent's next call has come nearer or moved away."""
        parent = self.sessions.get(child.parent) if self.composition.follows_children and child.parent else None
        if parent is not None and parent.home and parent.state is State.AWAY:
            self._release_only(parent, "its sub-agents go on", None)

    def _let_go(self, session: Session) -> None:
        session.hold_until_s = inf
        self._give_up_place(session)

    def _give_up_place(self, session: Session) -> None:
        worker = self.fleet.get(session.worker)
        if session.reserved and worker is not None:
            self._refund(session)
            worker.unreserve(session)
            self._touched(worker, freed=True)

    def _refund(self, session: Session) -> None:
        self.accounts.advance(session.tenant, -session.advanced_s)
        session.advanced_s = 0.0

    def _fill(self, worker: Worker) -> None:
        """Give room to those who wait for this worker or for any, in order, until the next one does not fit."""
        if worker.lost or worker.draining:
            return
        if not self.composition.ordering.static:
            self.gate.rerank(lambda session: self.composition.ordering.rank(session, self.now_s))
        while self.gate.num_waiting:
            home, anywhere = self.gate.head(worker.worker), self.gate.head(ANYWHERE)
            roams = home is None or (anywhere is not None and precedes(anywhere, home))
            first = anywhere if roams else home
            if first is None:
                return
            session = first[1][3]
            fits = self._fits(session, worker) or self._make_room(session, worker)
            if not fits and roams and home is not None and not session.home:
                session = home[1][3]  # a new session that does not fit does not keep one from coming home
                if self.composition.tenants.stands_back(home[0], first[0]):
                    self._is_owed(first[1][3])
                    self._held_back[worker.worker] = worker
                    return
                fits = self._fits(session, worker)
            if not fits or session.prompt_tokens >= worker.kv_tokens:
                return
            if roams or session.owed:
                self._leave_gate(session)
            else:
                self.gate.remove(session)
            self._admit(session, worker, "room came free")

    def _make_room(self, session: Session, worker: Worker) -> bool:
        """Pause sessions that are away and whose tenants are ahead, if one that waits fits then. O(active sessions)."""
        if self.accounts.num_busy < 2 or session.prompt_tokens >= worker.kv_tokens:
            return False
        shares, mine = self.composition.tenants, self._rank(session.tenant)
        away = [each for each in worker.active.values() if each.state is State.HELD]
        ahead = [(rank, each) for each in away if shares.gives_way(rank := self._rank(each.tenant), mine)]
        ahead.sort(key=lambda pair: (pair[0], self.composition.admission.pause_rank(pair[1]), pair[1].session))
        going: list[tuple[Session, float]] = []
        fits = False
        while ahead and not fits:
            _, last = ahead.pop()
            going.append((last, last.growth_tokens))
            worker.unreserve(last)
            fits = self._fits(session, worker)
        for each, growth_tokens in going:
            worker.reserve(each, each.context_tokens, growth_tokens)
            if fits:
                self._pause(each, "it is away, and its tenant is ahead of one that waits")
        return fits

    def _take_backlog(self, session: Session) -> None:
        if session.backlog:
            event = session.backlog.popleft()
            del self.sessions.behind[event.step]
            self._begin(session, event)

    # ------------------------------------------------------------------ failures and ends

    def _on_step_failed(self, event: ev.StepFailed) -> None:
        live = self._live(event.step, event.worker)
        if live is None:
            return
        session, worker = live
        self._leave_worker(session, worker)
        if event.retry:
            self._again(session)
        else:
            self._drop_running(session)

    def _again(self, session: Session) -> None:
        """The attempt is lost, the step is not: it goes to the front of those that wait."""
        session.did(Did.LOST)
        session.preempted = True
        self._give_up_place(session)
        if self._gates:
            self._enter(session)
        else:
            self._send_at_once(session)

    def _drop_running(self, session: Session) -> None:
        session.did(Did.CANCELLED)
        self._give_up_place(session)
        self._drop(session)

    def _drop_step(self, session: Session) -> None:
        """A step that was never dispatched leaves."""
        session.did(Did.CANCELLED)
        session.roam_at_s = inf
        self._drop(session)

    def _drop(self, session: Session) -> None:
        self._end_step(session)
        self._expect(session, self._forecast(session))
        self._take_backlog(session)

    def _on_step_cancelled(self, event: ev.StepCancelled) -> None:
        session = self.sessions.steps.get(event.step)
        if session is None:
            self._cancel_in_backlog(event.step)
        elif session.state is State.WAITING:
            self._leave_gate(session)
            self._drop_step(session)
        else:
            worker = self.fleet.get(session.worker)
            if worker is not None:
                self._charge_unfinished(session, worker)
                self._leave_worker(session, worker)
            self._drop_running(session)

    def _cancel_in_backlog(self, step: str) -> None:
        session = self.sessions.behind.pop(step, None)
        if session is not None and session.backlog:
            session.backlog = deque(event for event in session.backlog if event.step != step)

    def _on_session_ended(self, event: ev.SessionEnded) -> None:
        session = self.sessions.get(event.session)
        if session is not None:
            self._end(session, "the session has ended")

    def _end(self, session: Session, reason: str) -> None:
        worker = self.fleet.get(session.worker)
        if session.state is State.RUNNING and worker is not None:
            self._charge_unfinished(session, worker)
            self._leave_worker(session, worker)
        elif session.state is State.HELD:
            self._charge_gap(session)
        elif session.state is State.WAITING:
            self._leave_gate(session)
            self._out.append(do.Reject(session.step, reason, retry_after_s=0.0))
        for event in session.backlog or ():
            self._out.append(do.Reject(event.step, reason, retry_after_s=0.0))
        self.model.session_ended(session.track)
        parent = self.sessions.get(session.parent) if session.parent else None
        if parent is not None and parent.children:
            parent.children.pop(session.session, None)
        home = self.fleet.get(session.lives_at)
        self._clear_up(session)
        self._give_up_place(session)
        session.did(Did.ENDED)
        self.accounts.leave(session.tenant)
        self.sessions.close(session)
        if home is not None:
            home.leave(session)
            self._touched(home, freed=True)
            self._out.append(do.Release(session.session, home.worker, Standing.ENDED, reason))
        self._tell_parent(session)

    def _forget_idle(self) -> None:
        """Caps and ages: the sessions that have been idle for longest end if it is too long or they are too many."""
        if self.now_s < self._nobody_idle_before_s and len(self.sessions) <= self.caps.max_sessions:
            return
        while (oldest := self.sessions.longest_idle()) is not None:
            too_old = self.now_s - oldest.last_seen_s > self.caps.idle_s
            if not (too_old or len(self.sessions) > self.caps.max_sessions):
                self._nobody_idle_before_s = oldest.last_seen_s + self.caps.idle_s
                return
            self._end(oldest, "idle for too long" if too_old else "too many sessions")
        self._nobody_idle_before_s = self.now_s + self.caps.idle_s

    # ------------------------------------------------------------------ workers

    def _on_worker_joined(self, event: ev.WorkerJoined) -> None:
        if self.fleet.get(event.worker) is not None:
            raise ProtocolError(f"worker {event.worker!r} has joined before; names are unique")
        for name in ("kv_tokens", "block_tokens", "prefill_tokens_per_s", "max_running"):
            if not getattr(event, name) > 0:
                raise ProtocolError(f"{name} {getattr(event, name)} of worker {event.worker!r}: expected more than 0")
        worker = self.fleet.join(event)
        if len(self.fleet) == _SHORT_LIST_FROM:
            self._is_large = True
            for other in self.fleet:
                self._least.update(other)
        self._refuse_misfits()
        self._touched(worker, freed=True)
        if not self._gates:
            self._roomier.pop(worker.worker, None)
            self._send_waiting()

    def _send_waiting(self) -> None:
        while (head := self.gate.head(ANYWHERE)) is not None:
            session = head[1][3]
            worker = self._place(session, self._candidates(session))
            if worker is None:
                return
            self.gate.remove(session)
            self._dispatch(session, worker, "a worker joined")

    def _on_worker_reported(self, event: ev.WorkerReported) -> None:
        worker = self.fleet.get(event.worker)
        if worker is not None:
            worker.kv_used_tokens = event.kv_used_tokens
            if event.prefill_tokens_per_s > 0.0:
                worker.prefill_tokens_per_s = event.prefill_tokens_per_s

    def _on_worker_draining(self, event: ev.WorkerDraining) -> None:
        worker = self.fleet.get(event.worker)
        if worker is not None:
            worker.draining = True
            self._least.remove(worker)
            self.fleet.measure()
            self._let_roam(list(worker.residents.values()))
            self._refuse_misfits()

    def _on_worker_lost(self, event: ev.WorkerLost) -> None:
        worker = self.fleet.get(event.worker)
        if worker is None:
            return
        residents = list(worker.residents.values())
        running = [session for session in residents if session.state is State.RUNNING]
        self.fleet.lose(worker)
        self._is_large = len(self.fleet) >= _SHORT_LIST_FROM
        self._least.remove(worker)
        for session in residents:
            self._uproot(session)
        self._let_roam(residents)
        self.gate.drop_lane(worker.worker)
        self._refuse_misfits()
        for session in running:
            self._again(session)

    def _uproot(self, session: Session) -> None:
        """Its worker is gone: nothing points there any more."""
        session.lives_at = session.home = session.worker = ""
        session.home_tokens = session.home_host_tokens = 0
        self._refund(session)
        session.reserved = False
        session.own_tokens, session.growth_tokens = 0, 0.0
        session.prefetch_at_s = inf
        session.overdue = False
        if session.state is State.HELD:
            session.did(Did.LET_GO)
            session.hold_until_s = inf

    def _let_roam(self, residents: list[Session]) -> None:
        """Those of them who wait may go anywhere."""
        for session in residents:
            if session.state is State.WAITING:
                session.roam_at_s = inf
                self._roam(session)

    def _refuse_misfits(self) -> None:
        """The fleet has changed: who waits with a prompt that fits nowhere now is told so. O(waiting)."""
        if self.gate.num_waiting:
            for session in [s for s in self.sessions.steps.values() if s.state is State.WAITING]:
                if self._fits_nowhere(session):
                    self._leave_gate(session)
                    self._refuse(session)

    def _on_residency(self, event: ev.BlocksStored | ev.BlocksRemoved) -> None:
        session = self.sessions.get(event.session)
        if session is None or session.home != event.worker or self._answers(session):
            return
        session.home_tokens = event.device_tokens
        session.home_host_tokens = max(0, event.host_tokens - event.device_tokens)
        if session.home_host_tokens and session.state in (State.HELD, State.AWAY):
            self._plan_prefetch(session)

    def _answers(self, session: Session) -> bool:
        """Whether its step has left its worker's queue, as far as it is known."""
        worker = self.fleet.get(session.worker)
        return session.state is State.RUNNING and worker is not None and session.step not in worker.unstarted

    def _plan_prefetch(self, session: Session) -> None:
        if session.prefetch_at_s < inf or session.away_since_s is None or session.overdue:
            return
        waited_s = self.now_s - session.away_since_s
        forecast = self._forecast(session, waited_s)
        begin_s = self.composition.prefetching.begin_s(forecast.gap, waited_s, forecast.confidence)
        if begin_s is not None:
            session.prefetch_at_s = max(self.now_s, session.away_since_s + begin_s)
            self.deadlines.add(session.prefetch_at_s, Due.PREFETCH, session)

    # ------------------------------------------------------------------ time passes

    def _on_tick(self, event: ev.Tick) -> None:
        while (due := self.deadlines.pop_due(event.at_s)) is not None:
            what, whom = due
            if isinstance(whom, Worker):
                if what is Due.STEAL:
                    whom.steal_at_s = inf
                    self._steal(whom)
                else:
                    whom.preempt_at_s = inf
                    self._preempt(whom)
            elif what is Due.HOLD:
                self._pause(whom, "its reservation expired")
            elif what is Due.ROAM:
                whom.roam_at_s = inf
                self._roam(whom)
            elif what is Due.OVERDUE:
                self._look(whom)
            else:
                whom.prefetch_at_s = inf
                self._out.append(do.Prefetch(whom.session, whom.home, "expected back soon"))

    def _look(self, session: Session) -> None:
        """Where it is long overdue it counts no longer, and is expected at no time, until it comes back."""
        session.look_at_s = inf
        worker = self.fleet.get(session.lives_at)
        if worker is None or session.overdue or session.overdue_at_s == inf:
            return
        if self.now_s < session.overdue_at_s:
            session.look_at_s = session.overdue_at_s
            self.deadlines.add(session.look_at_s, Due.OVERDUE, session)
            return
        if session.state is State.HELD:
            self._charge_gap(session)
            session.did(Did.LET_GO)
            self._let_go(session)
        session.prefetch_at_s = inf
        worker.overlook(session)
        self._touched(worker, freed=True)
        self._out.append(do.Release(session.session, worker.worker, Standing.PAUSED, "it is long overdue"))

    def _roam(self, session: Session) -> None:
        """Home has kept it waiting for too long: any worker may take it now."""
        rank = self.composition.ordering.rank(session, self.now_s)
        worker = None if self._outranked(session, rank, ANYWHERE) else self._roomy(session, rank)
        if worker is None:
            self.accounts.level(session.tenant)
            self.gate.also(ANYWHERE, session, rank)
        else:
            self._leave_gate(session)
            self._admit(session, worker, "home had no room for too long")

    def _steal(self, thief: Worker) -> None:
        """A worker takes the waiting call that came last to the most loaded worker. O(workers)."""
        stealing = self.composition.stealing
        victims = [worker for worker in self.fleet if worker.unstarted and worker is not thief]
        if not victims or thief.draining or (stealing.only_idle and thief.num_running):
            return
        if not stealing.only_idle:
            self._arm(thief)
        victim = max(victims, key=lambda worker: (stealing.load(worker), -worker.index))
        step = next(reversed(victim.unstarted))
        session = victim.unstarted[step]
        if session.prompt_tokens >= thief.kv_tokens or not stealing.allows(thief, victim):
            return
        self._take_back(session, victim, f"{thief.worker} has less to do than {victim.worker}")
        self._dispatch(session, thief, f"stolen from {victim.worker}")

    def _take_back(self, session: Session, worker: Worker, reason: str) -> None:
        """RUNNING -> WAITING: the attempt is over; a dispatch must follow."""
        self._out.append(do.Preempt(session.step, worker.worker, reason))
        self._leave_worker(session, worker)
        session.did(Did.LOST)

    def _watch(self, worker: Worker) -> None:
        """Look again, when a call could have been kept waiting for too long."""
        blocked_s = self.composition.preemption.blocked_s
        if blocked_s is not None and worker.preempt_at_s == inf:
            worker.preempt_at_s = self.now_s + blocked_s
            self.deadlines.add(worker.preempt_at_s, Due.PREEMPT, worker)

    def _preempt(self, worker: Worker) -> None:
        """The least urgent of those that answer gives way to the most urgent that was kept waiting. O(residents).

        A step gives way once at most, so that it gets done; it goes back to the same worker's queue.
        """
        preemption = self.composition.preemption
        if preemption.blocked_s is None or not worker.unstarted:
            return
        self._watch(worker)
        blocked = [
            session
            for session in worker.unstarted.values()
            if self._kept_waiting_s(session, worker, session.sent_at_s) >= preemption.blocked_s
        ]
        answering = [
            session
            for session in worker.residents.values()
            if session.state is State.RUNNING and session.step not in worker.unstarted and not session.gave_way
        ]
        if not blocked or not answering:
            return
        first = max(blocked, key=lambda session: preemption.urgency(session, self.now_s))
        last = min(answering, key=lambda session: preemption.urgency(session, self.now_s))
        if preemption.yields(preemption.urgency(last, self.now_s), preemption.urgency(first, self.now_s)):
            self._take_back(last, worker, f"{first.session} is more urgent and has waited for too long")
            last.gave_way = True
            self._dispatch(last, worker, f"gave way to {first.session}")

    def _epoch(self, worker: Worker) -> None:
        """Orderings that move with time: new priorities for what waits there, at most once per epoch."""
        ordering = self.composition.ordering
        if ordering.static or not worker.unstarted or self.now_s - worker.last_epoch_s < self.composition.epoch_s:
            return
        worker.last_epoch_s = self.now_s
        for step, session in worker.unstarted.items():
            priority = self._priority(session)
            if priority != session.priority:
                session.priority = priority
                self._out.append(do.Reprioritize(step, worker.worker, priority, "urgency moved"))


def _steps_to_use(session: Session) -> float:
    """Calls of its task until its own next one: that one, and before it what its sub-agents are expected to make."""
    if not session.children:
        return 1.0
    return 1.0 + max([_steps_left(child) for child in session.children.values()])


def _steps_left(session: Session) -> float:
    """Calls that it still makes, one that is live included; the forecast at a first call is of those after it."""
    if session.steps_done == 0:
        return session.remaining_steps + 1.0
    return max(session.remaining_steps, float(bool(session.step)))


def _bad_count(event: ev.StepArrived) -> str:
    """Which count of a step cannot be, in words."""
    least = {"prompt_tokens": 1, "common_tokens": 0, "prefix_tokens": 0, "home_tokens": 0}
    counts = {name: getattr(event, name) or 0 for name in least}
    name = next(name for name, count in counts.items() if count < least[name])
    return f"{name} {counts[name]} of step {event.step!r}: expected at least {least[name]}"
