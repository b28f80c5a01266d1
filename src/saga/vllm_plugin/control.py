"""What the plug-in decides between an engine's steps; `scheduler` ties it to vLLM's scheduler.

    arrived ▶ its session's prefix is due, the call gets its place        finished ▶ the session stands as its hints say
    started ▶ what it found is noted, pins end                            preempted ▶ it waits again
    epoch   ▶ directives, deadlines, ages                                 report   ▶ the coordinator hears what is so

It refuses to know vLLM: requests, pools and blocks are what `Request`, `Pool` and `owners.Block` say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Protocol, cast

from saga.vllm_plugin.calls import Call, Calls
from saga.vllm_plugin.config import TENANTS, PluginConfig
from saga.vllm_plugin.contracts import (
    Directive,
    Finished,
    Link,
    NoLink,
    Offload,
    Outcome,
    Prioritize,
    Release,
    Report,
    Retain,
)
from saga.vllm_plugin.hints import Ignored, read_hints
from saga.vllm_plugin.owners import Block, OwnedBlocks
from saga.vllm_plugin.pins import Pins, Pool
from saga.vllm_plugin.rates import PrefillRate
from saga.vllm_plugin.reports import Reporter, leading_blocks
from saga.vllm_plugin.retention import Retention
from saga.vllm_plugin.sessions import Session, SessionKey, SessionTable
from saga.vllm_plugin.tier import NoTier, Tier

_HOUSEKEEPING_S = 10.0


class Request(Protocol):
    """What is used of vLLM's `Request`."""

    request_id: str
    session_id: str | None
    cache_salt: str | None
    priority: int
    sampling_params: Any
    lora_request: Any
    block_hashes: Sequence[bytes]
    num_prompt_tokens: int
    num_preemptions: int

    @property
    def all_token_ids(self) -> Sequence[int]:
        """Prompt and answer."""
        ...

    @property
    def num_output_tokens(self) -> int:
        """Of the answer."""
        ...


class Cache(Protocol):
    """What a device holds: `block_order` asks vLLM."""

    def num_blocks(self, session: Session) -> int:
        """Full blocks of the session's last context, wherever they are."""
        ...

    def block_at(self, session: Session, index: int) -> Block | None:
        """The block that holds block `index` of that context, None where it is gone. O(1)."""
        ...


class Control:
    """One engine's. queue: None where the order of blocks is left as it is. now_s: the clock, in seconds.

    num_blocks, block_tokens: of the device. by_priority: whether the engine runs by priority. tier, link: set before
    the first call, by whoever has them.
    """

    def __init__(
        self,
        config: PluginConfig,
        *,
        queue: OwnedBlocks | None,
        pool: Pool,
        cache: Cache,
        num_blocks: int,
        block_tokens: int,
        by_priority: bool,
        now_s: Callable[[], float],
    ) -> None:
        self.config = config
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.by_priority = by_priority
        self.now_s = now_s
        self.tier: Tier = NoTier()
        self.link: Link = NoLink()
        self.prefill_rate = None if config.prefill_tokens_per_s or not config.coordinator else PrefillRate()
        self.ignored = Ignored(self._now)
        self.calls = Calls(TENANTS[config.tenants], config.weights)
        self.retention = Retention(self._changed, self.ignored, factor=config.retain_factor, max_s=config.max_retain_s)
        self.sessions = SessionTable(
            max_sessions=config.max_sessions,
            max_tokens=config.keep_tokens,
            max_hashes=config.keep_blocks,
            capacity_tokens=num_blocks * block_tokens,
            forgotten=self.retention.forget,
        )
        self.pins = Pins(pool, int(config.pin_share * num_blocks))
        self.next_epoch_s = -1.0
        self._queue = queue
        self._pool = pool
        self._cache = cache
        self._reports = Reporter(self.device_tokens, self._host_tokens)
        self._heard = False
        self._next_report_s = 0.0
        self._next_housekeeping_s = 0.0

    # Calls

    def arrived(self, request: Request) -> None:
        """A call comes into the engine's queue."""
        at_s = self._now()
        params = request.sampling_params
        hints = read_hints(request.session_id, params.extra_args if params is not None else None, self.ignored)
        session = None
        if hints.session:
            session = self.sessions.use(SessionKey(hints.tenant, request.cache_salt or "", hints.session), at_s)
            self.sessions.join_task(session, hints.task)
            session.num_waiting += 1
            self.retention.came(session)
        if hints.wake:
            self.next_epoch_s = at_s
        self.tier.arriving(request, session)
        call = Call(request.request_id, hints, session, request.priority, at_s)
        self.calls.add(call)
        if self.by_priority:
            request.priority = self.calls.place(call)

    def started(self, name: str, prompt_tokens: int, cached_tokens: int, host_tokens: int) -> None:
        """A call that waited runs. The numbers are of its first start."""
        call = self.calls.get(name)
        if call is None or not call.waiting:
            return
        call.waiting = False
        if call.session is not None:
            call.session.num_waiting -= 1
            call.session.num_running += 1
            self.pins.unpin(call.session)
            if self._queue is not None:
                self._queue.rewritten(call.session)
        if call.begun_s < 0:
            call.begun_s = self._now()
            call.cached_tokens, call.host_tokens = cached_tokens, host_tokens
            self.calls.charge(call, prompt_tokens - cached_tokens - host_tokens, 0)

    def leaving(self, request: Request, *, finished: bool) -> Session | None:
        """A call is about to give its blocks back: it ended, or it was preempted. The session that they belong to."""
        call = self.calls.get(request.request_id)
        if call is None:
            return self.tier.errand_of(request)
        session = call.session
        if finished:
            self._ended(call, request)
        elif not call.waiting:
            call.waiting = True
            call.since_s = self._now()
            if session is not None:
                session.num_running -= 1
                session.num_waiting += 1
                self.retention.came(session)
        return session

    def _ended(self, call: Call, request: Request) -> None:
        self.calls.charge(call, 0, request.num_output_tokens)
        self.calls.end(call)
        self.tier.ended(request)
        session = call.session
        if session is not None:
            if call.waiting:
                session.num_waiting -= 1
            else:
                session.num_running -= 1
            session.num_steps += 1
            session.lora = request.lora_request
            self.sessions.remember(session, request.all_token_ids, request.block_hashes)
            session.last_use_s = self._now()
            if session.idle:
                self.retention.left(session, call.hints, session.last_use_s)
            else:
                self._changed(session)
            if self._heard:
                self._reports.changed((session,))
        if call.hints.step and self._heard:
            self._reports.finished(
                Finished(
                    call.hints.step,
                    session.session if session is not None else "",
                    request.num_prompt_tokens,
                    request.num_output_tokens,
                    call.cached_tokens,
                    call.host_tokens,
                    request.num_preemptions,
                )
            )

    # Epochs

    def epoch(self) -> None:
        """Hear the coordinator, keep deadlines. Every `epoch_s`; O(directives + deadlines passed)."""
        at_s = self._now()
        self.next_epoch_s = at_s + self.config.epoch_s
        for number, directive in self.link.poll():
            outcome, why = self.obey(directive)
            self.link.answer(number, outcome, why)
        self.retention.tick(at_s)
        if at_s >= self._next_housekeeping_s:
            self._next_housekeeping_s = at_s + _HOUSEKEEPING_S
            self.sessions.forget_idle_since(at_s - self.config.session_idle_s)

    def obey(self, directive: Directive) -> tuple[Outcome, str]:
        """Do what the coordinator wants, and say what became of it."""
        if isinstance(directive, Prioritize):
            return self._prioritize(directive)
        namesakes = self.sessions.named(directive.session)
        if not namesakes:
            self.ignored.add("a directive for an unknown session", directive.session)
            return Outcome.MISSING, f"session {directive.session!r} is not known here"
        if len(namesakes) > 1:
            self.ignored.add("a directive for a session id that several tenants use", directive.session)
            return Outcome.REFUSED, f"session id {directive.session!r} belongs to {len(namesakes)} tenants here"
        session = namesakes[0]
        if isinstance(directive, Retain):
            return self._retain(session, directive)
        if isinstance(directive, Release):
            return self.retention.release(session, directive, self._now())
        if isinstance(directive, Offload):
            return self.tier.offload(session)
        return self.tier.prefetch(session)

    def _prioritize(self, order: Prioritize) -> tuple[Outcome, str]:
        known, asked = self.calls.order(order.priority_by_step), len(order.priority_by_step)
        if not self.by_priority:
            return Outcome.REFUSED, "this engine runs first come, first served (--scheduling-policy priority)"
        if known < asked:
            return (Outcome.CLIPPED if known else Outcome.MISSING), f"{known} of {asked} steps are here"
        return Outcome.ACCEPTED, ""

    def _retain(self, session: Session, order: Retain) -> tuple[Outcome, str]:
        outcome, why = self.retention.retain(session, order, self._now())
        if outcome is Outcome.REFUSED or not session.idle:
            return outcome, why
        full_tokens = self._cache.num_blocks(session) * self.block_tokens
        device_tokens = self.device_tokens(session)
        if not device_tokens and full_tokens:
            return Outcome.MISSING, "its prefix is gone"
        if self.pins.max_blocks:
            blocks = [self._cache.block_at(session, at) for at in range(device_tokens // self.block_tokens)]
            if not self.pins.pin(session, [block for block in blocks if block is not None]):
                return Outcome.CLIPPED, "not all of it could be pinned"
        if device_tokens < full_tokens:
            return Outcome.CLIPPED, f"{device_tokens} of {full_tokens} tokens are left"
        return outcome, why

    def forget_cache(self) -> None:
        """The engine is about to drop everything that it has cached."""
        self.pins.unpin_all()

    def cache_forgotten(self) -> None:
        """It has."""
        if self._queue is not None:
            self._queue.disown_all()

    # Reports

    def device_tokens(self, session: Session) -> int:
        """Tokens from the front of its last context that are on the device. O(log tokens)."""
        cache = self._cache
        count = leading_blocks(cache.num_blocks(session), lambda at: cache.block_at(session, at) is not None)
        return count * self.block_tokens

    def _host_tokens(self, session: Session) -> int:
        return self.tier.held_tokens(session)

    def report(self, *, num_running: int, num_waiting: int, at_once: bool = False) -> None:
        """Tell the coordinator what is so, if it wants to know by now or `at_once`."""
        every_s = self.link.report_every_s
        if every_s == inf:
            self._fall_silent()
            return
        at_s = self._now()
        if not self._heard:
            self._heard = True
            self._tell_all()
        if at_s < self._next_report_s and not at_once:
            return
        self._next_report_s = at_s + every_s
        retained = self.retention.retained
        retained_blocks = 0
        if self._queue is not None:
            self._reports.changed(cast("set[Session]", self._queue.take_losers()))
            retained_blocks = self._queue.num_blocks_of(retained)
        self.link.report(
            Report(
                running=num_running,
                waiting=num_waiting,
                used_blocks=self.num_blocks - self._pool.get_num_free_blocks(),
                retained_blocks=retained_blocks,
                used_host_blocks=self.tier.used_blocks,
                sessions=self._reports.take_held(),
                finished=self._reports.take_finished(),
                ignored=dict(self.ignored.counts),
                prefill_tokens_per_s=self.prefill_rate.tokens_per_s if self.prefill_rate is not None else 0.0,
            )
        )

    def _fall_silent(self) -> None:
        """Nobody listens: nothing is kept for later."""
        if self._heard:
            self._heard = False
            self._reports.clear()
        if self._queue is not None:
            self._queue.forget_losers()

    def _tell_all(self) -> None:
        """Whoever listens now knows nothing yet."""
        for session in self.sessions:
            session.reported = (0, 0)
        self._reports.changed(self.sessions)
        self._next_report_s = 0.0

    def _changed(self, session: Session) -> None:
        if self._queue is not None:
            self._queue.rekey(session)
        if len(self.pins) and not self.retention.is_retained(session):
            self.pins.unpin(session)
        self.tier.standing_changed(session)

    def _now(self) -> float:
        at_s = self.now_s()
        if self._queue is not None:
            self._queue.now_s = at_s
        return at_s
