"""The sessions that an engine has seen: who they are, how they stand, what context each left last.

`SagaScheduler.saga.sessions` is a `SessionTable`. A session is known by (tenant, name): the same name under another
tenant, or under another cache salt, is another session and shares nothing with it. What is kept of a context are
references to the lists that its last call made anyway: token ids for at most `max_tokens` tokens and hashes of full
blocks for at most `max_hashes` over all sessions, of which the longest idle ones lose theirs first. It refuses to know
blocks, queues and clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import NamedTuple

from saga.views import CacheOwner

_NO_TOKENS: Sequence[int] = ()
_NO_HASHES: Sequence[bytes] = ()


class SessionKey(NamedTuple):
    """Whose session it is, and its name. tenant: "" where nobody was named; salt: vLLM's `cache_salt`, or ""."""

    tenant: str
    salt: str
    name: str


class Session(CacheOwner):
    """A session of this engine; what eviction policies may know of it is inherited.

    num_waiting, num_running: its calls in the engine. arrived_s: when its task was first seen here. until_s: when its
    retention ends (inf: none, or without end). task: "" where unnamed. num_steps: calls that ended.
    token_ids, block_hashes: of its last context, empty where forgotten; hashes are of full blocks from the front
    (vLLM's `Request.block_hashes`). untraceable: they were dropped for the bound, so that nobody knows what is held of
    it. lora: of its last call.
    reported: (device, host) tokens that were last told to the coordinator.
    """

    __slots__ = (
        "arrived_s",
        "block_hashes",
        "key",
        "lora",
        "num_running",
        "num_steps",
        "num_waiting",
        "reported",
        "task",
        "token_ids",
        "until_s",
        "untraceable",
    )

    def __init__(self, key: SessionKey, *, capacity_tokens: int = 1, at_s: float = 0.0) -> None:
        super().__init__(key.name, capacity_tokens=capacity_tokens)
        self.key = key
        self.task = ""
        self.arrived_s = at_s
        self.last_use_s = at_s
        self.num_waiting = 0
        self.num_running = 0
        self.num_steps = 0
        self.until_s = inf
        self.token_ids = _NO_TOKENS
        self.block_hashes = _NO_HASHES
        self.untraceable = False
        self.lora: object | None = None
        self.reported = (0, 0)

    @property
    def idle(self) -> bool:
        """No call of it is in the engine."""
        return not (self.num_waiting or self.num_running)


class SessionTable:
    """At most max_sessions sessions, max_tokens tokens and max_hashes hashes; beyond them the longest idle make room.

    forgotten: told of each session that is dropped.
    """

    def __init__(
        self,
        *,
        max_sessions: int,
        max_tokens: int,
        max_hashes: int,
        capacity_tokens: int,
        forgotten: Callable[[Session], None] = lambda _session: None,
    ) -> None:
        self.max_sessions = max_sessions
        self.max_tokens = max_tokens
        self.max_hashes = max_hashes
        self.num_tokens = 0
        self.num_hashes = 0
        self._capacity_tokens = capacity_tokens
        self._forgotten = forgotten
        self._by_key: dict[SessionKey, Session] = {}  # in order of last use, the longest ago first
        self._by_name: dict[str, list[Session]] = {}
        self._tasks: dict[tuple[str, str], list[Session]] = {}
        self._remembered: dict[Session, None] = {}  # those whose tokens are kept, the longest ago first
        self._hashed: dict[Session, None] = {}  # those whose hashes are kept, the longest ago first

    def __len__(self) -> int:
        """Sessions known."""
        return len(self._by_key)

    def __iter__(self) -> Iterator[Session]:
        """All of them, the longest unused first."""
        return iter(self._by_key.values())

    def get(self, key: SessionKey) -> Session | None:
        """The session, or None. O(1)."""
        return self._by_key.get(key)

    def named(self, name: str) -> Sequence[Session]:
        """Every session of that name; more than one where several tenants, or cache salts, use it. O(1)."""
        return self._by_name.get(name, ())

    def use(self, key: SessionKey, at_s: float) -> Session:
        """The session, opened where it is new; it is now the last used. O(1), a forgotten one apart."""
        session = self._by_key.pop(key, None)
        if session is None:
            session = Session(key, capacity_tokens=self._capacity_tokens, at_s=at_s)
            self._by_name.setdefault(key.name, []).append(session)
        self._by_key[key] = session
        if len(self._by_key) > self.max_sessions:
            self._make_room(session)
        return session

    def join_task(self, session: Session, task: str) -> None:
        """The session is part of a task, which is as old as its oldest session here. O(1)."""
        if not task or session.task:
            return
        session.task = task
        others = self._tasks.setdefault((session.key.tenant, task), [])
        if others:
            session.arrived_s = min(session.arrived_s, others[0].arrived_s)
        others.append(session)

    def remember(self, session: Session, token_ids: Sequence[int], block_hashes: Sequence[bytes]) -> None:
        """Keep the context that the session's call left, by reference. O(1), what makes room for it apart."""
        self._drop_tokens(session)
        self._drop_hashes(session)
        session.context_tokens = len(token_ids)
        if len(token_ids) <= self.max_tokens:
            session.token_ids = token_ids
            self.num_tokens += len(token_ids)
            self._remembered[session] = None
            while self.num_tokens > self.max_tokens:
                self._drop_tokens(next(iter(self._remembered)))
        if len(block_hashes) <= self.max_hashes:
            session.block_hashes = block_hashes
            self.num_hashes += len(block_hashes)
            self._hashed[session] = None
            session.untraceable = False
            while self.num_hashes > self.max_hashes:
                self._lose_hashes(next(iter(self._hashed)))
        else:
            session.untraceable = True

    def forget(self, session: Session) -> None:
        """Drop it, with all that is known of it."""
        if self._by_key.pop(session.key, None) is None:
            return
        namesakes = self._by_name[session.session]
        namesakes.remove(session)
        if not namesakes:
            del self._by_name[session.session]
        if session.task:
            task = session.key.tenant, session.task
            self._tasks[task].remove(session)
            if not self._tasks[task]:
                del self._tasks[task]
        self._drop_tokens(session)
        self._drop_hashes(session)
        session.untraceable = False
        self._forgotten(session)

    def forget_idle_since(self, at_s: float) -> None:
        """Drop idle sessions that were last used before `at_s`. O(those dropped and those at work before them)."""
        leavers = []
        for session in self._by_key.values():
            if session.last_use_s >= at_s:
                break
            if session.idle:
                leavers.append(session)
        for session in leavers:
            self.forget(session)

    def _make_room(self, newest: Session) -> None:
        """`newest` is about to be at work."""
        for session in self._by_key.values():
            if session.idle and session is not newest:
                self.forget(session)
                return

    def _drop_tokens(self, session: Session) -> None:
        if session in self._remembered:
            del self._remembered[session]
            self.num_tokens -= len(session.token_ids)
            session.token_ids = _NO_TOKENS

    def _lose_hashes(self, session: Session) -> None:
        self._drop_hashes(session)
        session.untraceable = True

    def _drop_hashes(self, session: Session) -> None:
        if session in self._hashed:
            del self._hashed[session]
            self.num_hashes -= len(session.block_hashes)
            session.block_hashes = _NO_HASHES
