"""What engines with a link say, and what they are told: the coordinator, without its port.

    Hello ─▶ a worker that is known by name or url, or a new one        Report ─▶ WorkerReported, BlocksStored, ...
    Retain, Release, Offload, Prefetch, Migrate, Reprioritize ─▶ directives ─▶ Answer ─▶ counted by outcome

A link only adds: without it a worker is as good as before, and whether it is up is for `health` to say. What waits for
a slow engine is bounded, the oldest is dropped and counted. Times leave here as seconds from now. A migration is an
offload at the source: the tier that it goes to is the one that the target reads. Who sends a step after it may wait for
its answer (`move`), and an idle source is woken to give one.

It refuses to know streams and keys (`engine_port`) and what is best for a session. Use it on one event loop.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import count
from math import inf, isfinite
from typing import Protocol, TypeAlias

from saga import commands as do
from saga import events as ev
from saga.errors import UsageError
from saga.gateway.health import Health
from saga.gateway.worker_config import Capacity, WorkerConfig
from saga.gateway.workers import Worker, Workers, WorkerState
from saga.protocol import coordinator_pb2 as wire

MAX_NAME = 512
"""Characters of a session's or step's name; longer ones are not taken."""

_MAX_WAITING = 4_096
_MAX_ASKED = 8_192
_MAX_PER_REPORT = 1_000
_MAX_PRIORITIES = 1_000
_MAX_REASONS = 32
_MAX_REGISTERED = 1_024
_AT_A_TIME = 50
_REPORT_EVERY_S = 0.1
_REPORTS_PER_S = 1_000.0
_SOON_S = 0.001
_UNKNOWN_S = -1.0
_LEAST_PREFILL_PER_S, _MOST_PREFILL_PER_S = 10.0, 1e7

Residency: TypeAlias = ev.BlocksStored | ev.BlocksRemoved


class EngineMeter(Protocol):
    """Who counts what engines say."""

    def answered(self, worker: str, directive: str, outcome: str, seconds: float | None) -> None:
        """What became of a directive, seconds after it was ordered; None where nobody knows."""
        ...

    def engine_finished(self, worker: str, finished: wire.Finished) -> None:
        """A step ended, by the engine's own count."""
        ...

    def misunderstood(self, why: str) -> None:
        """An engine said what cannot be used."""
        ...


class EngineLink:
    """An engine's open stream. waiting: directives to be sent, `ready` is set while there are some or it is over.

    asked: (name, since when) of what has no answer yet, by id; moves: who waits for one of those.
    """

    __slots__ = ("asked", "figures", "is_over", "moves", "ready", "waiting", "worker")

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.figures = wire.Report()
        self.waiting: deque[wire.Directive] = deque()
        self.asked: OrderedDict[int, tuple[str, float]] = OrderedDict()
        self.moves: dict[int, asyncio.Future[None]] = {}
        self.ready = asyncio.Event()
        self.is_over = False

    def forget(self, directive: int) -> str:
        """The directive has its answer, or will have none: its name, "" where it was not asked. O(1)."""
        move = self.moves.pop(directive, None)
        if move is not None and not move.done():
            move.set_result(None)
        name, _ = self.asked.pop(directive, ("", 0.0))
        return name

    def is_awaited(self) -> bool:
        """Whether somebody waits for its answer to a move or a prefetch. O(directives asked)."""
        return bool(self.moves) or any(name == "prefetch" for name, _ in self.asked.values())


class Engines:
    """All links by worker. residency: told what a worker holds of a session."""

    def __init__(
        self,
        workers: Workers,
        health: Health,
        residency: Callable[[Residency], None],
        meter: EngineMeter,
        clock: Callable[[], float],
    ) -> None:
        self.links: dict[str, EngineLink] = {}
        self._workers = workers
        self._health = health
        self._residency = residency
        self._meter = meter
        self._clock = clock
        self._registered: set[str] = set()
        self._ids = count(secrets.randbits(40) << 20)  # none is that of another process

    @property
    def report_every_s(self) -> float:
        """How often each should report: ten times a second, less where they are more than a hundred."""
        return max(_REPORT_EVERY_S, len(self.links) / _REPORTS_PER_S)

    # ------------------------------------------------------------------ a link begins and ends

    def joined(self, hello: wire.Hello) -> EngineLink:
        """A link for the engine that says hello; it takes the place of an older one. Raises UsageError."""
        capacity = _capacity(hello)
        worker = self._worker(hello)
        older = self.links.get(worker.name)
        if older is not None:
            self.left(older)
        link = self.links[worker.name] = EngineLink(worker)
        self._workers.told(worker, capacity)
        return link

    def left(self, link: EngineLink) -> None:
        """The stream is gone. The worker stays; who comes next under its name may be as fast as it likes."""
        if link.is_over:
            return
        link.is_over = True
        link.ready.set()
        if self.links.get(link.worker.name) is link:
            del self.links[link.worker.name]
            link.worker.measured_prefill_tokens_per_s = 0.0
        for number in list(link.asked):
            self._meter.answered(link.worker.name, link.forget(number), "unanswered", None)
        link.waiting.clear()

    def _worker(self, hello: wire.Hello) -> Worker:
        """The worker that it is. O(workers)."""
        known = self._workers.get(hello.worker)
        if known is not None and not self._has_moved(known, hello.url):
            return known
        if known is None and not hello.url:
            raise UsageError(f"worker {hello.worker!r} is not known here and says no url: expected http://host:port")
        config = WorkerConfig(hello.url, name=hello.worker).named()
        if known is not None:
            self._workers.remove(known.name, self._clock())
            return self._register(config)
        address = config.address()
        for worker in self._workers:
            other = worker.address
            if (other.host, other.port, other.base_path) == (address.host, address.port, address.base_path):
                return worker
        return self._register(config)

    def _has_moved(self, worker: Worker, url: str) -> bool:
        """Whether an engine that registered itself did so from elsewhere; what an operator wrote down holds."""
        return worker.name in self._registered and bool(url) and url != worker.config.url

    def _register(self, config: WorkerConfig) -> Worker:
        self._registered = {name for name in self._registered if self._workers.get(name) is not None}
        if len(self._registered) >= _MAX_REGISTERED:
            self._forget_gone()
        if len(self._registered) >= _MAX_REGISTERED:
            raise UsageError(f"{_MAX_REGISTERED} workers have registered themselves already")
        worker = self._workers.add(config, self._clock())
        self._registered.add(worker.name)
        self._health.follow(worker)
        return worker

    def _forget_gone(self) -> None:
        """Those that registered themselves and are neither linked nor up are not waited for any longer. O(those)."""
        for name in self._registered - self.links.keys():
            worker = self._workers.get(name)
            if worker is not None and worker.state in (WorkerState.STARTING, WorkerState.DOWN):
                self._workers.remove(name, self._clock())
                self._registered.discard(name)

    # ------------------------------------------------------------------ what an engine says

    async def heard(self, link: EngineLink, message: wire.FromEngine) -> None:
        """Take a message; other work may come in between where it is long."""
        if link.is_over:
            return
        kind = message.WhichOneof("message")
        if kind == "report":
            await self._take_report(link, message.report)
        elif kind == "answer":
            self._take_answer(link, message.answer)
        else:
            self._meter.misunderstood("second hello" if kind == "hello" else "unreadable")

    async def _take_report(self, link: EngineLink, report: wire.Report) -> None:
        worker = link.worker
        worker.running, worker.waiting = report.running, report.waiting
        worker.kv_usage = min(1.0, report.used_blocks * worker.capacity.block_tokens / worker.kv_tokens)
        if _LEAST_PREFILL_PER_S <= report.prefill_tokens_per_s <= _MOST_PREFILL_PER_S:
            worker.measured_prefill_tokens_per_s = report.prefill_tokens_per_s
        elif report.prefill_tokens_per_s != 0.0:
            self._meter.misunderstood("prefill rate")
        self._workers.reported(worker)
        for finished in report.finished[:_MAX_PER_REPORT]:
            self._meter.engine_finished(worker.name, finished)
        for place, held in enumerate(report.sessions[:_MAX_PER_REPORT], 1):
            if held.session and len(held.session) <= MAX_NAME:
                self._residency(_residency(self._clock(), worker.name, held))
            else:
                self._meter.misunderstood("session name")
            if place % _AT_A_TIME == 0:
                await asyncio.sleep(0)
        if max(len(report.sessions), len(report.finished)) > _MAX_PER_REPORT:
            self._meter.misunderstood("long report")
        link.figures = _figures(report)

    def _take_answer(self, link: EngineLink, answer: wire.Answer) -> None:
        asked = link.asked.get(answer.id)
        link.forget(answer.id)
        outcome = _OUTCOMES.get(answer.outcome)
        if asked is None or outcome is None:
            self._meter.misunderstood("answer")
        else:
            directive, since_s = asked
            self._meter.answered(link.worker.name, directive, outcome, self._clock() - since_s)

    # ------------------------------------------------------------------ what an engine is told

    def order(self, worker: str, command: do.Command, at_s: float) -> bool:
        """Queue the directive that carries the command out; whether the worker has a link and there is one. O(1)."""
        link = self.links.get(worker)
        if link is None:
            return False
        if type(command) is do.Reprioritize:
            self._prioritize(link, command)
            return True
        directive = _directive(command, at_s)
        if directive is None:
            return False
        self._put(link, directive)
        if type(command) is do.Prefetch:
            self._health.wake(link.worker, link.is_awaited)
        return True

    def move(self, worker: str, command: do.Migrate, at_s: float) -> asyncio.Future[None] | None:
        """Order a migration at its source `worker`; done with its answer or the link, None without a link. O(1)."""
        link = self.links.get(worker)
        directive = _directive(command, at_s)
        if link is None or directive is None:
            return None
        self._put(link, directive)
        move = link.moves[directive.id] = asyncio.get_running_loop().create_future()
        self._health.wake(link.worker, link.is_awaited)
        return move

    def _prioritize(self, link: EngineLink, command: do.Reprioritize) -> None:
        """Priorities that are ordered together go together."""
        last = link.waiting[-1] if link.waiting else None
        if last is None or not last.HasField("prioritize") or len(last.prioritize.priority_by_step) >= _MAX_PRIORITIES:
            last = wire.Directive()
            last.prioritize.SetInParent()
            self._put(link, last)
        last.prioritize.priority_by_step[command.step] = command.priority

    def _put(self, link: EngineLink, directive: wire.Directive) -> None:
        if len(link.waiting) >= _MAX_WAITING:
            name = link.forget(link.waiting.popleft().id)
            self._meter.answered(link.worker.name, name, "dropped", None)
        directive.id = next(self._ids)
        link.asked[directive.id] = directive.WhichOneof("what") or "", self._clock()
        if len(link.asked) > _MAX_ASKED:
            name = link.forget(next(iter(link.asked)))
            self._meter.answered(link.worker.name, name, "unanswered", None)
        link.waiting.append(directive)
        link.ready.set()


def _capacity(hello: wire.Hello) -> Capacity:
    """What the engine says of itself. Raises UsageError where it cannot be."""
    if len(hello.worker) > MAX_NAME or not (hello.worker + "x").isprintable():
        raise UsageError(f"worker's name of {len(hello.worker)} characters: expected up to {MAX_NAME} printable ones")
    for name, most in (("block_tokens", 65_536), ("num_blocks", 2**40), ("max_running", 2**20)):
        if not 0 < getattr(hello, name) <= most:
            raise UsageError(f"{name} = {getattr(hello, name)} of worker {hello.worker!r}: expected 1 to {most}")
    if hello.num_host_blocks > 2**40:
        raise UsageError(
            f"num_host_blocks = {hello.num_host_blocks} of worker {hello.worker!r}: expected up to {2**40}"
        )
    for name in ("prefill_tokens_per_s", "load_tokens_per_s", "move_tokens_per_s"):
        if not 0.0 <= getattr(hello, name) < inf:
            raise UsageError(f"{name} = {getattr(hello, name)} of worker {hello.worker!r}: expected 0 or more")
    return Capacity(
        kv_tokens=hello.num_blocks * hello.block_tokens,
        block_tokens=hello.block_tokens,
        host_kv_tokens=hello.num_host_blocks * hello.block_tokens,
        max_running=hello.max_running,
        prefill_tokens_per_s=hello.prefill_tokens_per_s,
        load_tokens_per_s=hello.load_tokens_per_s,
        move_tokens_per_s=hello.move_tokens_per_s,
    )


def _residency(at_s: float, worker: str, held: wire.Held) -> Residency:
    kind = ev.BlocksStored if held.device_tokens or held.host_tokens else ev.BlocksRemoved
    return kind(at_s, worker, held.session, held.device_tokens, held.host_tokens)


def _figures(report: wire.Report) -> wire.Report:
    """What is shown of a report until the next; reasons become labels, so they are short and few."""
    kept = wire.Report(
        running=report.running,
        waiting=report.waiting,
        used_blocks=report.used_blocks,
        retained_blocks=report.retained_blocks,
        used_host_blocks=report.used_host_blocks,
    )
    for reason in sorted(report.ignored):
        if len(kept.ignored) < _MAX_REASONS and reason.isascii() and reason.isprintable() and len(reason) <= 64:
            kept.ignored[reason] = report.ignored[reason]
    return kept


def _directive(command: do.Command, at_s: float) -> wire.Directive | None:
    """The directive for a command; None for one that no engine is told."""
    kind = type(command)
    if kind is do.Retain:
        assert isinstance(command, do.Retain)
        until_s = command.until_s
        retain = wire.Retain(
            session=command.session,
            for_s=0.0 if until_s is None or not isfinite(until_s) else max(_SOON_S, until_s - at_s),
            expected_use_s=_in_s(command.expected_use_s, at_s),
            reuse_probability=max(0.0, min(1.0, command.reuse_probability)),
        )
        return wire.Directive(retain=retain)
    if kind is do.Release:
        assert isinstance(command, do.Release)
        release = wire.Release(
            session=command.session,
            standing=_STANDINGS[command.standing],
            expected_use_s=_in_s(command.expected_use_s, at_s),
        )
        return wire.Directive(release=release)
    if kind is do.Offload or kind is do.Migrate:
        assert isinstance(command, do.Offload | do.Migrate)
        return wire.Directive(offload=wire.Offload(session=command.session))
    if kind is do.Prefetch:
        assert isinstance(command, do.Prefetch)
        return wire.Directive(prefetch=wire.Prefetch(session=command.session))
    return None


def _in_s(expected_use_s: float | None, at_s: float) -> float:
    if expected_use_s is None or not isfinite(expected_use_s):
        return _UNKNOWN_S
    return max(0.0, expected_use_s - at_s)


_STANDINGS = {
    do.Standing.ACTIVE: wire.STANDING_ACTIVE,
    do.Standing.PAUSED: wire.STANDING_PAUSED,
    do.Standing.ENDED: wire.STANDING_ENDED,
}
_OUTCOMES = {
    int(wire.OUTCOME_ACCEPTED): "accepted",
    int(wire.OUTCOME_CLIPPED): "clipped",
    int(wire.OUTCOME_MISSING): "missing",
    int(wire.OUTCOME_REFUSED): "refused",
}
