"""The engine's end of the link: a thread that keeps one gRPC stream to the coordinator open.

    engine's thread ── report(), answer() ──▶ outbox ──▶ gRPC      gRPC ──▶ link's thread ──▶ directives ──▶ poll()

Where the stream ends, whatever the reason, it is opened again after a pause that doubles up to ten seconds, with
jitter. Both queues are bounded: of too many directives the oldest are answered `refused`, reports that a slow
coordinator has not taken are merged into one. What cannot be understood is answered `refused`, where it has a number,
and counted in the next report. Nothing that the coordinator does or does not do makes the engine's thread wait.

It refuses to know vLLM, blocks and what a directive is good for. Needs grpcio (the extra `vllm`).
"""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf, isfinite
from time import monotonic

from saga import __version__
from saga.commands import Standing
from saga.errors import UsageError
from saga.vllm_plugin.contracts import (
    Directive,
    EngineFacts,
    Finished,
    Held,
    Link,
    LinkConfig,
    NoLink,
    Offload,
    Outcome,
    Prefetch,
    Prioritize,
    Release,
    Report,
    Retain,
)

try:
    import grpc

    from saga.protocol import KEY_HEADER, MAX_MESSAGE_BYTES, METHOD, SERVICE, read_to_engine, write
    from saga.protocol import coordinator_pb2 as wire
except ImportError as missing:  # an engine without a coordinator needs none of it
    _missing: ImportError | None = missing
else:
    _missing = None

_log = logging.getLogger(__name__)

_MAX_DIRECTIVES = 4_096
_MAX_POLLED = 256
_MAX_ANSWERS = 8_192
_MAX_MERGED = 10_000
_MAX_PER_MESSAGE = 500
_MAX_NAME = 512
_MAX_PRIORITIES = 10_000
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_CLOSE_S = 1.0
_SOON_S = 0.001
_REPORT_EVERY_S = 0.1
_SHORTEST_REPORT_S, _LONGEST_REPORT_S = 0.01, 60.0
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # each attempt its own: pauses are made here, not in gRPC
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)


def connect(config: LinkConfig, facts: EngineFacts) -> Link:
    """A link to `config.coordinator`, opened in the background; `NoLink` where none is named.

    Raises UsageError where the address cannot be one, or where grpcio is not installed.
    """
    if not config.coordinator:
        return NoLink()
    if _missing is not None:
        raise UsageError(f"a coordinator needs grpcio: pip install 'saga-sched[vllm]' ({_missing})")
    host, colon, port = config.coordinator.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise UsageError(f"coordinator {config.coordinator!r}: expected HOST:PORT, e.g. 127.0.0.1:8002")
    if not (config.key + "x").isprintable() or not config.key.isascii():
        raise UsageError("the coordinator's key holds characters that no header can carry")
    return GrpcLink(config, facts)


class GrpcLink:
    """`contracts.Link` over gRPC. Costs the engine's thread microseconds per call, dead or alive."""

    def __init__(self, config: LinkConfig, facts: EngineFacts) -> None:
        self._config = config
        self._facts = facts
        self._directives: deque[tuple[float, int, Directive]] = deque()
        self._ignored: Counter[str] = Counter()
        self._outbox = _Outbox(self._ignored)
        self._report_every_s = inf
        self._is_new = False
        self._call: grpc.Call | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="saga-link", daemon=True)
        self._thread.start()

    @property
    def report_every_s(self) -> float:
        """As the coordinator wishes; infinity while the stream is down, and once whenever it is up anew.

        So who asks now and then cannot miss that the other side knows nothing yet: tell it all.
        """
        if self._is_new:
            self._is_new = False
            return inf
        return self._report_every_s

    def poll(self) -> list[tuple[int, Directive]]:
        """At most 256 at a time; of times, what is left of them since they came."""
        if not self._directives:
            return []
        polled: list[tuple[int, Directive]] = []
        now_s = monotonic()
        try:
            while self._directives and len(polled) < _MAX_POLLED:
                came_s, number, directive = self._directives.popleft()
                polled.append((number, _later(directive, now_s - came_s)))
        except IndexError:  # the link's thread took the last one away
            pass
        return polled

    def answer(self, directive: int, outcome: Outcome, why: str = "") -> None:
        """Dropped where nobody listens: the stream that it came by has ended."""
        if self._report_every_s < inf:
            self._outbox.add_answer(directive, outcome, why)

    def report(self, report: Report) -> None:
        """Merged into what has not been sent; dropped where nobody listens."""
        if self._report_every_s < inf:
            self._outbox.add_report(report)

    def close(self) -> None:
        """End stream and thread; waits for the thread, a second at most."""
        self._closed.set()
        self._outbox.shut()
        call = self._call
        if call is not None:
            call.cancel()
        self._thread.join(_CLOSE_S)

    # ------------------------------------------------------------------ the link's thread

    def _run(self) -> None:
        num_failed = 0
        why_last = ""
        while not self._closed.is_set():
            why, welcomed = self._converse()
            if self._closed.is_set():
                return
            num_failed = 0 if welcomed else num_failed + 1
            if welcomed or why != why_last:
                _log.warning("no link to the coordinator at %s: %s", self._config.coordinator, why)
            why_last = why
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(num_failed, 10))
            self._closed.wait(pause_s * random.uniform(0.5, 1.0))

    def _converse(self) -> tuple[str, bool]:
        """One stream from its begin to its end; (why it ended, whether there was a welcome)."""
        limits = (
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        )
        metadata = ((KEY_HEADER, f"Bearer {self._config.key}"),) if self._config.key else ()
        try:
            with grpc.insecure_channel(self._config.coordinator, options=(*_OPTIONS, *limits)) as channel:
                connect_ = channel.stream_stream(
                    f"/{SERVICE}/{METHOD}", request_serializer=write, response_deserializer=read_to_engine
                )
                call = self._call = connect_(self._outbox.open(self._hello()), metadata=metadata)
                if self._closed.is_set():
                    call.cancel()
                for message in call:
                    self._take(message)
        except grpc.RpcError as error:
            why = f"{error.code().name}: {error.details()}"
        except Exception as error:  # noqa: BLE001 - the thread outlives whatever it is
            why = f"{type(error).__name__}: {error}"
        else:
            why = "the coordinator ended the stream"
        welcomed = self._report_every_s < inf
        self._report_every_s = inf
        self._call = None
        self._outbox.shut()
        self._directives.clear()
        return why, welcomed

    def _hello(self) -> wire.FromEngine:
        facts = self._facts
        return wire.FromEngine(
            hello=wire.Hello(
                worker=self._config.worker,
                url=self._config.url,
                model=facts.model,
                block_tokens=facts.block_tokens,
                num_blocks=facts.num_blocks,
                num_host_blocks=facts.num_host_blocks,
                max_running=facts.max_running,
                prefill_tokens_per_s=facts.prefill_tokens_per_s,
                load_tokens_per_s=facts.load_tokens_per_s,
                move_tokens_per_s=facts.move_tokens_per_s,
                engine_version=facts.engine_version,
                plugin_version=__version__,
            )
        )

    def _take(self, message: wire.ToEngine) -> None:
        kind = message.WhichOneof("message")
        if kind == "directive":
            self._take_directive(message.directive)
        elif kind == "welcome":
            wanted_s = message.welcome.report_every_s
            sane = isfinite(wanted_s) and wanted_s > 0.0
            self._is_new = self._report_every_s == inf
            self._report_every_s = max(
                _SHORTEST_REPORT_S, min(_LONGEST_REPORT_S, wanted_s if sane else _REPORT_EVERY_S)
            )
            _log.info("linked to the coordinator at %s", self._config.coordinator)
        else:
            self._ignored["link_unreadable"] += 1

    def _take_directive(self, said: wire.Directive) -> None:
        try:
            directive = _READERS[said.WhichOneof("what") or ""](said)
        except (KeyError, ValueError) as error:
            self._ignored["link_nonsense"] += 1
            why = str(error) if isinstance(error, ValueError) else "it says nothing"
            self._outbox.add_answer(said.id, Outcome.REFUSED, why)
            return
        if len(self._directives) >= _MAX_DIRECTIVES:
            try:
                _, oldest, _ = self._directives.popleft()
            except IndexError:  # the engine took them all
                pass
            else:
                self._ignored["link_too_many"] += 1
                self._outbox.add_answer(oldest, Outcome.REFUSED, "too many directives wait")
        self._directives.append((monotonic(), said.id, directive))


# ---------------------------------------------------------------------- what waits to be sent


class _Outbox:
    """Answers and one merged report. The lock is held for as long as it takes to append; gRPC's thread iterates."""

    def __init__(self, ignored: Counter[str]) -> None:
        self._ready = threading.Condition()
        self._hello: wire.FromEngine | None = None
        self._answers: deque[tuple[int, Outcome, str]] = deque()
        self._latest: Report | None = None
        self._held: dict[str, Held] = {}
        self._finished: deque[Finished] = deque()
        self._ignored = ignored
        self._round = 0

    def open(self, hello: wire.FromEngine) -> Iterator[wire.FromEngine]:
        """What to send on a new stream, `hello` first; it ends with `shut`."""
        with self._ready:
            self._round += 1
            return self._messages(hello, self._round)

    def shut(self) -> None:
        """End the stream's messages and forget what was not sent."""
        with self._ready:
            self._round += 1
            self._answers.clear()
            self._finished.clear()
            self._held.clear()
            self._latest = None
            self._ready.notify_all()

    def add_answer(self, directive: int, outcome: Outcome, why: str) -> None:
        """O(1)."""
        with self._ready:
            if len(self._answers) >= _MAX_ANSWERS:
                self._answers.popleft()
                self._ignored["link_answers_dropped"] += 1
            self._answers.append((directive, outcome, why))
            self._ready.notify_all()

    def add_report(self, report: Report) -> None:
        """Figures are the latest, sessions the latest of each, finished steps all. O(what it holds)."""
        with self._ready:
            self._latest = report
            for held in report.sessions:
                self._held.pop(held.session, None)
                self._held[held.session] = held
            self._finished.extend(report.finished)
            while len(self._held) > _MAX_MERGED:
                del self._held[next(iter(self._held))]
                self._ignored["link_sessions_dropped"] += 1
            while len(self._finished) > _MAX_MERGED:
                self._finished.popleft()
                self._ignored["link_finished_dropped"] += 1
            self._ready.notify_all()

    def _messages(self, hello: wire.FromEngine, turn: int) -> Iterator[wire.FromEngine]:
        yield hello
        while True:
            with self._ready:
                while self._round == turn and not self._answers and self._latest is None:
                    self._ready.wait()
                if self._round != turn:
                    return
                answer = self._answers.popleft() if self._answers else None
                taken = None if answer is not None else self._take_report()
            if answer is not None:
                yield _answer(*answer)
            elif taken is not None:
                yield self._say(*taken)

    def _take_report(self) -> tuple[Report, list[Held], list[Finished]]:
        """A message's worth; what is left follows in the next."""
        assert self._latest is not None
        report = self._latest
        names = [name for name, _ in zip(self._held, range(_MAX_PER_MESSAGE), strict=False)]
        held = [self._held.pop(name) for name in names]
        finished = [self._finished.popleft() for _ in range(min(_MAX_PER_MESSAGE, len(self._finished)))]
        if not self._held and not self._finished:
            self._latest = None
        return report, held, finished

    def _say(self, report: Report, held: list[Held], finished: list[Finished]) -> wire.FromEngine:
        message = wire.FromEngine()
        said = message.report
        said.running, said.waiting = _u32(report.running), _u32(report.waiting)
        said.used_blocks, said.retained_blocks = _u32(report.used_blocks), _u32(report.retained_blocks)
        said.used_host_blocks = _u32(report.used_host_blocks)
        said.prefill_tokens_per_s = report.prefill_tokens_per_s
        for entry in held:
            if self._can_say(entry.session):
                said.sessions.add(
                    session=entry.session,
                    device_tokens=_u32(entry.device_tokens),
                    host_tokens=_u32(entry.host_tokens),
                )
        for step in finished:
            if self._can_say(step.session) and self._can_say(step.step):
                said.finished.add(
                    step=step.step,
                    session=step.session,
                    prompt_tokens=_u32(step.prompt_tokens),
                    output_tokens=_u32(step.output_tokens),
                    cached_tokens=_u32(step.cached_tokens),
                    host_tokens=_u32(step.host_tokens),
                    preemptions=_u32(step.preemptions),
                )
        for reason, number in (*report.ignored.items(), *tuple(self._ignored.items())):
            if reason.isascii() and len(reason) <= _MAX_NAME:
                said.ignored[reason] = _u32(number)
        return message

    def _can_say(self, name: str) -> bool:
        """Clients choose names: too long ones, and what is no text, stay here."""
        if len(name) > _MAX_NAME or not _is_text(name):
            self._ignored["link_unsayable"] += 1
            return False
        return True


def _u32(number: float) -> int:
    return max(0, min(2**32 - 1, int(number)))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _answer(directive: int, outcome: Outcome, why: str) -> wire.FromEngine:
    said = wire.Outcome.Value(f"OUTCOME_{outcome.name}")
    short = why[:_MAX_NAME].encode("utf-8", "replace").decode()
    return wire.FromEngine(answer=wire.Answer(id=directive, outcome=said, why=short))


# ---------------------------------------------------------------------- what the coordinator says


def _session(name: str) -> str:
    if not name or len(name) > _MAX_NAME:
        raise ValueError(f"session of {len(name)} characters: expected 1 to {_MAX_NAME}")
    return name


def _seconds(name: str, value: float) -> float:
    if not isfinite(value):
        raise ValueError(f"{name} {value}: expected a number of seconds")
    return value


def _expected(value: float) -> float | None:
    return value if _seconds("expected_use_s", value) >= 0.0 else None


def _retain(said: wire.Directive) -> Retain:
    retain = said.retain
    for_s = _seconds("for_s", retain.for_s)
    if for_s < 0.0:
        raise ValueError(f"for_s {for_s}: the deadline has passed; expected 0 (none) or more")
    if not 0.0 <= retain.reuse_probability <= 1.0:
        raise ValueError(f"reuse_probability {retain.reuse_probability}: expected 0 to 1")
    return Retain(_session(retain.session), for_s or None, _expected(retain.expected_use_s), retain.reuse_probability)


def _release(said: wire.Directive) -> Release:
    release = said.release
    standing = _STANDINGS.get(release.standing)
    if standing is None:
        raise ValueError(f"standing {release.standing}: expected active, paused or ended")
    return Release(_session(release.session), standing, _expected(release.expected_use_s))


def _later(directive: Directive, age_s: float) -> Directive:
    """The directive as it would be said `age_s` later: an idle engine polls when it wakes."""
    if isinstance(directive, Retain):
        for_s = None if directive.for_s is None else max(_SOON_S, directive.for_s - age_s)
        return replace(directive, for_s=for_s, expected_use_s=_sooner(directive.expected_use_s, age_s))
    if isinstance(directive, Release):
        return replace(directive, expected_use_s=_sooner(directive.expected_use_s, age_s))
    return directive


def _sooner(expected_use_s: float | None, age_s: float) -> float | None:
    return None if expected_use_s is None else max(0.0, expected_use_s - age_s)


def _prioritize(said: wire.Directive) -> Prioritize:
    priorities = dict(said.prioritize.priority_by_step)
    if not 0 < len(priorities) <= _MAX_PRIORITIES:
        raise ValueError(f"{len(priorities)} priorities: expected 1 to {_MAX_PRIORITIES}")
    return Prioritize(priorities)


_STANDINGS = {1: Standing.ACTIVE, 2: Standing.PAUSED, 3: Standing.ENDED}
_READERS: dict[str, Callable[[wire.Directive], Directive]] = {
    "retain": _retain,
    "release": _release,
    "offload": lambda said: Offload(_session(said.offload.session)),
    "prefetch": lambda said: Prefetch(_session(said.prefetch.session)),
    "prioritize": _prioritize,
}
