"""What a live engine is asked so that its cost model can be fitted: few calls, one kind of probe after the other.

    prefill   one call, alone: the time to its first token                       (chunked: longer than one iteration)
    cached    one call whose front the engine has seen: its own tokens after a long context
    decode    calls side by side; the last one that joins is the first that ends, so that between its first and its last
              token nothing but decode iterations of the whole batch pass, as many as it has tokens
    mixed     a prefill into such a batch

Every prompt has content of its own. Times are those that the engine's client noted; this module reads no clock, and
refuses to know how calls reach the engine (`ProbedEngine`) and what is made of the observations (`calibration.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Protocol

from saga.engine.calibration import Observation, Spell
from saga.errors import PeerError, UsageError

MOST_PROMPT_TOKENS = 8192
LEAST_CONTEXT_TOKENS = 256
_GAUGE_TOKENS = 32
_SPARE_TOKENS = 96
_KV_SHARE = 0.6
_MOST_BATCH_TOKENS = 65_536
_SHORT_TOKENS = 64


@dataclass(frozen=True)
class Prompt:
    """`shared_tokens` of the content named `shared`, then tokens of content that no other prompt has."""

    name: int
    tokens: int
    shared: int = 0
    shared_tokens: int = 0


class Answering:
    """A call under way, as its client sees it. Seconds of the client's clock.

    times: (when, tokens of the answer by then). prompt_tokens, cached_tokens: as the engine says, None where silent.
    leave: give the call up.
    """

    def __init__(self, sent_s: float, leave: Callable[[], None]) -> None:
        self.sent_s = sent_s
        self.leave = leave
        self.times: list[tuple[float, int]] = []
        self.prompt_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.done = False
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    def note(self, at_s: float, tokens: int) -> None:
        """So many tokens of the answer are here."""
        if tokens > (self.times[-1][1] if self.times else 0):
            self.times.append((at_s, tokens))
            self._changed.set()

    def end(self, error: Exception | None = None) -> None:
        """Nothing more comes."""
        self.done = True
        self._error = error
        self._changed.set()

    async def first_s(self) -> float:
        """When the first token was here. Raises what ended the call before, PeerError where it had no token."""
        while not self.times:
            if self.done:
                raise self._error or PeerError("the engine ended an answer before its first token")
            await self._change()
        return self.times[0][0]

    async def last_s(self) -> float:
        """When the last token was here. Raises likewise."""
        while not self.done:
            await self._change()
        if self._error is not None:
            raise self._error
        await self.first_s()
        return self.times[-1][0]

    def tokens_at(self, at_s: float) -> int:
        """Tokens of the answer that were here by then."""
        return max((tokens for when_s, tokens in self.times if when_s <= at_s), default=0)

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class ProbedEngine(Protocol):
    """A live engine. Its clock is its own business.

    max_context_tokens: prompt and answer; chunk_tokens: of one iteration. waits: which share of an iteration under way
    a new call waits for, on average.
    """

    max_context_tokens: int
    kv_tokens: int
    chunk_tokens: int
    block_tokens: int
    waits: float

    async def prepare(self) -> None:
        """Learn what must be known before the first call. Raises PeerError where the engine does not answer."""
        ...

    def ask(self, prompt: Prompt, output_tokens: int) -> Answering:
        """Send a call that answers with exactly so many tokens."""
        ...

    async def idle(self) -> bool:
        """Wait (not for long) until no call of ours is left in the engine; False where others' calls run."""
        ...


@dataclass(frozen=True)
class Probed:
    """What the probes of one engine brought. num_disturbed: ran beside calls of others; num_dropped: say nothing."""

    observations: tuple[Observation, ...]
    num_disturbed: int
    num_dropped: int


@dataclass(frozen=True)
class Probe:
    """One measurement. context_tokens: what is cached (cached), each call's prompt (decode, mixed).

    batch: calls that decode; prefill_tokens: what goes through the model (prefill, cached, mixed).
    """

    kind: str
    prefill_tokens: int = 0
    context_tokens: int = 0
    batch: int = 0
    held_out: bool = False

    @property
    def about(self) -> str:
        """In words."""
        parts = {"prefill of": self.prefill_tokens, "context": self.context_tokens, "batch": self.batch}
        return f"{self.kind}: " + ", ".join(f"{name} {value}" for name, value in parts.items() if value)


def plan(*, max_context_tokens: int, kv_tokens: int, chunk_tokens: int, repeats: int, seed: int = 0) -> list[Probe]:
    """All probes in a shuffled order, each `repeats` times. Raises UsageError where the engine takes too little."""
    longest = min(max_context_tokens - _GAUGE_TOKENS, int(_KV_SHARE * kv_tokens), MOST_PROMPT_TOKENS)
    if longest < LEAST_CONTEXT_TOKENS:
        raise UsageError(
            f"the engine takes {max_context_tokens:,} tokens of context and has {kv_tokens:,} of KV memory: too few to "
            f"be calibrated; right is a context of {LEAST_CONTEXT_TOKENS + _GAUGE_TOKENS:,} or more"
        )
    probes = [*_prefills(longest, chunk_tokens), *_cached(longest)]
    probes += _batches(longest, min(int(_KV_SHARE * kv_tokens), _MOST_BATCH_TOKENS), chunk_tokens)
    order = []
    for repeat in range(repeats):
        again = list(probes)
        Random(seed + repeat).shuffle(again)
        order += again
    return order


def _prefills(longest: int, chunk_tokens: int) -> Iterator[Probe]:
    in_one = min(longest, chunk_tokens)
    lengths = [1 << power for power in range(4, 20) if 1 << power < in_one]
    yield from (Probe("prefill", length) for length in [*lengths, in_one])
    yield from (Probe("prefill", 3 * length // 2, held_out=True) for length in lengths[2::2] if 1.5 * length < in_one)
    for times in (1.25, 1.5, 2.0, 3.0):
        tokens = int(times * chunk_tokens)
        if tokens <= longest:
            yield Probe("chunked", tokens, held_out=times == 1.5)


def _cached(longest: int) -> Iterator[Probe]:
    for share, new in product((0.2, 0.5, 0.8), (32, 64, 128, 256, 512)):
        context = int(share * longest)
        if context + new <= longest and new <= 2 * context:
            yield Probe("cached", new, context, held_out=new in (64, 256))


def _batches(longest: int, most_tokens: int, chunk_tokens: int) -> Iterator[Probe]:
    for batch, context, held_out in (
        *((batch, _SHORT_TOKENS, batch == 12) for batch in (1, 2, 4, 8, 12, 16, 32)),
        *((batch, longest // 4, batch == 3) for batch in (1, 3, 6, 12)),
        *((batch, longest // 2, batch == 2) for batch in (1, 2, 4, 8)),
    ):
        if batch * (context + _GAUGE_TOKENS + _SPARE_TOKENS) <= most_tokens and batch < chunk_tokens // 8:
            yield Probe("decode", 0, context, batch, held_out=held_out)
    for batch, new in product((4, 12), (128, 256, 512)):
        context = min(256, longest // 4)
        if batch * (context + _SPARE_TOKENS) + new <= most_tokens and new + batch < min(chunk_tokens, longest):
            yield Probe("mixed", new, context, batch, held_out=new == 256)


async def probe(
    engine: ProbedEngine,
    *,
    repeats: int,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Probed:
    """Warm up and run the whole plan; on_progress is told how many probes of how many are done. Raises as its parts."""
    probes = plan(
        max_context_tokens=engine.max_context_tokens,
        kv_tokens=engine.kv_tokens,
        chunk_tokens=engine.chunk_tokens,
        repeats=repeats,
    )
    prober = Prober(engine, seed)
    await prober.warm_up()
    observations = await prober.run(probes, lambda done: on_progress(done, len(probes)))
    return Probed(tuple(observations), prober.num_disturbed, prober.num_dropped)


class Prober:
    """Runs probes, one after the other. seed: of the contents; another one finds no cache warm."""

    def __init__(self, engine: ProbedEngine, seed: int = 0) -> None:
        self._engine = engine
        self._name = seed << 20
        self.num_disturbed = 0
        self.num_dropped = 0

    async def warm_up(self) -> None:
        """Two calls whose times do not count. Raises PeerError where the engine does not answer."""
        await self._engine.prepare()
        for tokens in (_SHORT_TOKENS, LEAST_CONTEXT_TOKENS - _GAUGE_TOKENS):
            await self._engine.ask(self._prompt(tokens), 4).last_s()

    async def run(self, probes: Sequence[Probe], on_progress: Callable[[int], None]) -> list[Observation]:
        """All of them; on_progress is told how many are done. Raises what the engine raises."""
        observations = []
        for number, probe in enumerate(probes, start=1):
            self.num_disturbed += not await self._engine.idle()
            found = await (self._alone(probe) if not probe.batch else self._batch(probe))
            if found is None:
                self.num_dropped += 1
            else:
                observations.append(found)
            on_progress(number)
        return observations

    def _prompt(self, tokens: int, before: Prompt | None = None) -> Prompt:
        self._name += 1
        if before is None:
            return Prompt(self._name, tokens)
        return Prompt(self._name, tokens, before.name, before.tokens)

    async def _alone(self, probe: Probe) -> Observation:
        """Prefill with nothing else in the engine."""
        before = None
        if probe.context_tokens:
            before = self._prompt(probe.context_tokens)
            await self._engine.ask(before, 1).last_s()
            await self._engine.idle()
        call = self._engine.ask(self._prompt(probe.prefill_tokens, before), 1)
        await call.last_s()
        spells = self._prefill(call, probe, 0, 0.0)
        return self._observed(probe, await call.first_s() - call.sent_s, spells, 1)

    async def _batch(self, probe: Probe) -> Observation | None:
        """Decode side by side, or prefill into that; None where a companion ended too early."""
        engine, batch = self._engine, probe.batch
        lasts = _SPARE_TOKENS + 2 * batch * probe.context_tokens // engine.chunk_tokens + batch
        lasts = min(lasts, engine.max_context_tokens - probe.context_tokens - _GAUGE_TOKENS)
        mixed = probe.kind == "mixed"
        companions = [
            engine.ask(self._prompt(probe.context_tokens), lasts) for _ in range(batch if mixed else batch - 1)
        ]
        try:
            for companion in companions:
                await companion.first_s()
            new_tokens = probe.prefill_tokens if mixed else probe.context_tokens
            gauge = engine.ask(self._prompt(new_tokens), 1 if mixed else _GAUGE_TOKENS)
            end_s = await gauge.last_s()
            begin_s = await gauge.first_s()
            if any(companion.done for companion in companions):
                return None
        finally:
            for companion in companions:
                companion.leave()
        if mixed:
            context = float(sum(self._context(companion, probe, gauge.sent_s) for companion in companions))
            waited = Spell(engine.waits, 0, 0, batch, context)
            spells = (waited, *self._prefill(gauge, probe, batch, context + batch * engine.waits))
            return self._observed(probe, begin_s - gauge.sent_s, spells, 1)
        steps = gauge.times[-1][1] - gauge.times[0][1]
        if steps < 1:
            return None
        context = sum(self._context(call, probe, begin_s) for call in (*companions, gauge)) + batch * (steps - 1) / 2
        return self._observed(probe, end_s - begin_s, (Spell(steps, 0, 0, batch, context),), 0)

    def _context(self, call: Answering, probe: Probe, at_s: float) -> int:
        """Tokens that a decoding call attends to in the iteration after `at_s`."""
        return (call.prompt_tokens or probe.context_tokens) + call.tokens_at(at_s)

    def _prefill(self, call: Answering, probe: Probe, batch: int, context: float) -> tuple[Spell, ...]:
        """The iterations of a call's prefill, chunk by chunk, beside `batch` calls that decode."""
        cached_before = 0 if probe.kind == "mixed" else probe.context_tokens
        prompt = call.prompt_tokens or cached_before + probe.prefill_tokens
        block = self._engine.block_tokens
        done = cached_before // block * block if call.cached_tokens is None else call.cached_tokens
        done = min(done, prompt - 1)
        spells = []
        while done < prompt:
            new = min(self._engine.chunk_tokens - batch, prompt - done)
            spells.append(Spell(1, new, done, batch, context))
            done += new
            context += batch
        return tuple(spells)

    def _observed(self, probe: Probe, seconds: float, spells: tuple[Spell, ...], num_calls: int) -> Observation:
        return Observation(probe.kind, probe.about, seconds, spells, num_calls, probe.held_out)
