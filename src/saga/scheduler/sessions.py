"""Sessions and their states: who is waiting, running, away with a reservation, away without one.

                       arrived                 dispatched               finished, held
    (open) ──▶ AWAY ───────────▶ WAITING ───────────────▶ RUNNING ─────────────────▶ HELD
                ▲                   ▲  ▲                    │  │                      │ │
                │ finished, let go  │  └────── lost ────────┘  │                      │ │ arrived: dispatched at once,
                └───────────────────┼──────────────────────────┘   expired, paused    │ │ its place was kept
                ▲                   └──────────── arrived ───── AWAY ◀────────────────┘ └──▶ RUNNING
                └── cancelled

    Any state ── ended ──▶ ENDED, and the session is forgotten.

HELD means: between two steps, with a reservation on its home worker. AWAY: between two steps, without one.
This module keeps the table and refuses to know workers, policies and commands.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from enum import IntEnum
from math import inf

from saga.errors import ProtocolError
from saga.events import StepArrived
from saga.views import SessionView
from saga.workflow.model import Track


class State(IntEnum):
    """Where a session stands."""

    AWAY = 0
    WAITING = 1
    RUNNING = 2
    HELD = 3
    ENDED = 4


class Did(IntEnum):
    """What happened to a session."""

    ARRIVED = 0
    DISPATCHED = 1
    FINISHED_HELD = 2
    FINISHED_LET_GO = 3
    LOST = 4
    CANCELLED = 5
    LET_GO = 6
    ENDED = 7


TRANSITIONS: dict[tuple[State, Did], State] = {
    (State.AWAY, Did.ARRIVED): State.WAITING,
    (State.HELD, Did.ARRIVED): State.WAITING,
    (State.WAITING, Did.DISPATCHED): State.RUNNING,
    (State.RUNNING, Did.FINISHED_HELD): State.HELD,
    (State.RUNNING, Did.FINISHED_LET_GO): State.AWAY,
    (State.RUNNING, Did.LOST): State.WAITING,
    (State.WAITING, Did.CANCELLED): State.AWAY,
    (State.RUNNING, Did.CANCELLED): State.AWAY,
    (State.HELD, Did.LET_GO): State.AWAY,
    (State.AWAY, Did.ENDED): State.ENDED,
    (State.HELD, Did.ENDED): State.ENDED,
    (State.WAITING, Did.ENDED): State.ENDED,
    (State.RUNNING, Did.ENDED): State.ENDED,
}
"""Everything that may happen; what is not here is a bug."""
_AFTER = tuple(tuple(TRANSITIONS.get((state, what)) for what in Did) for state in State)
"""The same by number, for `Session.did`: hashing a pair of enumeration members takes a microsecond."""


class Session(SessionView):
    """A session's record: the view that policies see, and what only the scheduler needs.

    reserved: whether the ledger of `worker` counts it. own_tokens, growth_tokens: what is counted there, the shared
    prefix apart. Times of pending deadlines are nan-free: inf means none. backlog: steps that came while one was live.
    children: open sessions that it spawned, None for none so far. sent_at_s: when its step was last dispatched;
    gave_way: whether that step was taken back once for another one's sake.
    left_at: worker that it has left for another, until that is told that its copy of the prefix may go.
    overdue_at_s: when it is taken for gone unless it comes back; look_at_s: when that is looked at next.
    overdue: it is, and its worker counts it no longer. advanced_s: device seconds charged in advance for its place and
    not used yet. owed: others stand back for it.
    """

    __slots__ = (
        "advanced_s",
        "arrived",
        "away_since_s",
        "backlog",
        "children",
        "expected_output_tokens",
        "gave_way",
        "growth_tokens",
        "hold_until_s",
        "last_seen_s",
        "left_at",
        "lives_at",
        "look_at_s",
        "overdue",
        "overdue_at_s",
        "owed",
        "own_tokens",
        "parent",
        "place",
        "prefetch_at_s",
        "prefix",
        "prefix_tokens",
        "priority",
        "reserved",
        "reuse_probability",
        "roam_at_s",
        "sent_at_s",
        "state",
        "step",
        "track",
        "worker",
    )

    def __init__(self, event: StepArrived, track: Track, task_arrival_s: float) -> None:
        super().__init__(event.session, event.task, event.tenant, task_arrival_s)
        self.state = State.AWAY
        self.track = track
        self.step = ""
        self.worker = ""
        self.lives_at = ""
        self.left_at = ""
        self.reserved = False
        self.owed = False
        self.own_tokens = 0
        self.growth_tokens = 0.0
        self.advanced_s = 0.0
        self.prefix = event.prefix
        self.prefix_tokens = event.prefix_tokens
        self.parent = event.parent
        self.children: dict[str, Session] | None = None
        self.expected_output_tokens = 0.0
        self.reuse_probability = 1.0
        self.sent_at_s = event.at_s
        self.priority = 0
        self.gave_way = False
        self.away_since_s: float | None = None
        self.hold_until_s = inf
        self.roam_at_s = inf
        self.prefetch_at_s = inf
        self.overdue_at_s = inf
        self.look_at_s = inf
        self.overdue = False
        self.last_seen_s = event.at_s
        self.place = 0
        self.arrived: StepArrived | None = None
        self.backlog: deque[StepArrived] | None = None

    def did(self, what: Did) -> None:
        """Take the transition, ProtocolError if there is none."""
        after = _AFTER[self.state][what]
        if after is None:
            raise ProtocolError(f"session {self.session!r}: {what.name} is not possible while {self.state.name}")
        self.state = after


class TaskRecord:
    """A task: when it came, what it has received, how many of its sessions are open."""

    __slots__ = ("arrival_s", "attained_s", "num_sessions")

    def __init__(self, arrival_s: float) -> None:
        self.arrival_s = arrival_s
        self.attained_s = 0.0
        self.num_sessions = 0


class SessionTable:
    """All open sessions, those without a live step in the order in which they fell idle; and their tasks. All O(1).

    behind: steps that wait in their session's backlog, and their sessions.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._idle: OrderedDict[str, Session] = OrderedDict()
        self._tasks: dict[str, TaskRecord] = {}
        self._by_step: dict[str, Session] = {}
        self.behind: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    @property
    def num_tasks(self) -> int:
        """Tasks with an open session."""
        return len(self._tasks)

    @property
    def steps(self) -> dict[str, Session]:
        """Live steps (waiting or running) and their sessions."""
        return self._by_step

    def get(self, session: str) -> Session | None:
        """The session, None where it is not open."""
        return self._sessions.get(session)

    def open(self, event: StepArrived, track: Track) -> Session:
        """A new session, and its task if it is the first."""
        task = self._tasks.get(event.task)
        if task is None:
            task = self._tasks[event.task] = TaskRecord(event.at_s)
        task.num_sessions += 1
        session = Session(event, track, task.arrival_s)
        self._sessions[event.session] = session
        return session

    def task(self, session: Session) -> TaskRecord:
        """The session's task."""
        return self._tasks[session.task]

    def busy(self, session: Session, at_s: float) -> None:
        """It has a live step from now on."""
        session.last_seen_s = at_s
        self._idle.pop(session.session, None)

    def idle(self, session: Session, at_s: float) -> None:
        """It has no live step any more."""
        session.last_seen_s = at_s
        self._idle[session.session] = session
        self._idle.move_to_end(session.session)

    def longest_idle(self) -> Session | None:
        """The session that has been without a live step for longest."""
        return next(iter(self._idle.values()), None)

    def close(self, session: Session) -> None:
        """Forget it, and its task with its last session."""
        del self._sessions[session.session]
        self._idle.pop(session.session, None)
        if session.step:
            self._by_step.pop(session.step, None)
        for event in session.backlog or ():
            del self.behind[event.step]
        task = self._tasks[session.task]
        task.num_sessions -= 1
        if task.num_sessions == 0:
            del self._tasks[session.task]
