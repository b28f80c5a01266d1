"""Probes against the modelled engine, whose coefficients are known, in virtual time: the oracle of calibration."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import count
from random import Random

import pytest

from saga.engine.batching import ModelledEngine
from saga.engine.calibration import Fit, Sizes, fit
from saga.engine.calls import EngineRequest, EngineSettings
from saga.engine.hardware import Hardware, hardware
from saga.engine.latency import LatencyModel
from saga.engine.probes import Answering, Probe, Prober, Prompt, plan, probe
from saga.errors import PeerError, UsageError


class VirtualEngine:
    """The modelled engine, stepped as fast as it goes. call_s: a call takes so much longer outside of it.

    noise: standard deviation of each noted time, as a share of the time since the call was sent.
    """

    waits = 0.0
    block_tokens = 16

    def __init__(
        self, machine: Hardware, *, call_s: float = 0.0, noise: float = 0.0, says_cached: bool = True, kv_tokens=60_000
    ) -> None:
        self.max_context_tokens = 8_192
        self.kv_tokens = kv_tokens
        self.chunk_tokens = 2_048
        settings = EngineSettings(kv_tokens=self.kv_tokens, chunk_tokens=self.chunk_tokens, max_jump_iterations=1)
        self._engine = ModelledEngine(settings, LatencyModel(machine))
        self._call_s, self._noise, self._says_cached = call_s, noise, says_cached
        self._dice = Random(0)
        self._steps = count()
        self._under_way: dict[str, tuple[EngineRequest, Answering]] = {}
        self._now_s = 0.0
        self._pump: asyncio.Task[None] | None = None

    def ask(self, prompt: Prompt, output_tokens: int) -> Answering:
        """See ProbedEngine."""
        path = ((prompt.name, prompt.tokens),)
        if prompt.shared_tokens:
            path = ((prompt.shared, prompt.shared_tokens), *path)
        step = f"{next(self._steps)}"
        tokens = prompt.tokens + prompt.shared_tokens
        request = EngineRequest(step, step, path, tokens, output_tokens)
        call = Answering(self._now_s - self._call_s, lambda: self._leave(step))
        call.prompt_tokens = tokens
        self._engine.submit(request, self._now_s)
        self._under_way[step] = (request, call)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())
        return call

    async def prepare(self) -> None:
        """See ProbedEngine."""

    async def idle(self) -> bool:
        """See ProbedEngine."""
        if self._pump is not None:
            await self._pump
        return True

    def _leave(self, step: str) -> None:
        if self._under_way.pop(step, None):
            self._engine.cancel(step, self._now_s)

    async def _run(self) -> None:
        while self._under_way:
            self._now_s = self._engine.next_event_s()
            done = {o.step for o in self._engine.advance(self._now_s) if o.kind == "finished"}
            for step, (request, call) in list(self._under_way.items()):
                tokens = request.output_tokens if step in done else self._engine.generated(request, self._now_s)
                late = 1.0 + self._dice.gauss(0.0, self._noise)
                call.note(call.sent_s + (self._now_s - call.sent_s) * late, tokens)
                if self._says_cached:
                    call.cached_tokens = request.cached_tokens
                if step in done:
                    del self._under_way[step]
                    call.end()
            for _ in range(5):
                await asyncio.sleep(0)


def calibrate(engine: VirtualEngine, repeats: int = 1) -> Fit:
    """All probes and the fit."""
    observations = asyncio.run(probe(engine, repeats=repeats)).observations
    return fit(observations, name="found", provenance="test", sizes=Sizes(engine.kv_tokens))


def straight(name: str, own_share: float) -> Hardware:
    """A built-in worker whose linear layers have no bends where the grid of the fit has no point."""
    machine = hardware(name)
    cost = [5.0 + 0.05 * tokens for tokens in machine.tokens]
    return replace(machine, linear_ms=tuple(cost), prefill_own_share=own_share)


WORK = [
    (64, 64 * 3_000, 0, 0),
    (2_000, 2_000 * 1_000, 0, 0),
    (0, 0, 1, 500),
    (0, 0, 24, 24 * 800),
    (300, 90_000, 8, 4_000),
]


@pytest.mark.parametrize("own_share", [0.5, 0.8, 1.0])
def test_known_coefficients_are_found_again(own_share: float) -> None:
    """Without noise: each identifiable coefficient within 2 %, the latency outside the engine too."""
    machine = straight("llama3-8b-h100", own_share)
    found = calibrate(VirtualEngine(machine, call_s=0.004))
    assert found.call_s == pytest.approx(0.004, rel=0.02)
    assert found.hardware.prefill_own_share == pytest.approx(own_share)
    assert found.hardware.prefill_attention_ms[2] == pytest.approx(machine.prefill_attention_ms[2], rel=0.02)
    assert found.hardware.decode_attention_ms[2] == pytest.approx(machine.decode_attention_ms[2], rel=0.02)
    for work in WORK:
        expected = LatencyModel(machine).iteration_s(*work)
        assert LatencyModel(found.hardware).iteration_s(*work) == pytest.approx(expected, rel=0.02)
    assert max(residual.p95_error for residual in found.residuals) < 0.02


@pytest.mark.parametrize("name", ["llama3-8b-a100", "llama3-8b-h100", "llama3-70b-a100x4", "llama3-70b-h100x8"])
def test_measured_bends_are_followed(name: str) -> None:
    """The built-in tables, with 5 % noise and no word of what was cached: held-out probes within 12 %."""
    found = calibrate(VirtualEngine(hardware(name), noise=0.05, says_cached=False), repeats=3)
    held_out = [residual for residual in found.residuals if residual.held_out]
    assert {residual.kind for residual in held_out} == {"prefill", "chunked", "cached", "decode", "mixed"}
    assert max(abs(residual.bias) for residual in held_out) < 0.12


def test_an_engine_too_small_is_refused() -> None:
    """The message says what it has and what would do."""
    with pytest.raises(UsageError, match=r"takes 200 tokens of context .* right is a context of 288"):
        plan(max_context_tokens=200, kv_tokens=10_000, chunk_tokens=2_048, repeats=1)


def test_small_memory_makes_small_probes() -> None:
    """No probe needs more than its share of the KV memory, and every kind but the longest is still there."""
    probes = plan(max_context_tokens=4_096, kv_tokens=3_000, chunk_tokens=2_048, repeats=2)
    assert max(probe.batch * probe.context_tokens + probe.prefill_tokens for probe in probes) <= 1_800
    assert {probe.kind for probe in probes} >= {"prefill", "cached", "decode", "mixed"}


def test_an_engine_that_breaks_ends_the_probing() -> None:
    """What ended a call comes out, whether it had begun to answer or not."""

    async def scene() -> None:
        for tokens in (0, 3):
            call = Answering(0.0, lambda: None)
            call.note(0.5, tokens)
            call.end(PeerError("gone"))
            with pytest.raises(PeerError, match="gone"):
                await call.last_s()

    asyncio.run(scene())


def test_a_probe_whose_companions_end_too_early_is_dropped() -> None:
    """A batch that was not there to the end says nothing."""

    async def scene() -> None:
        engine = VirtualEngine(hardware("llama3-8b-h100"))
        engine.max_context_tokens = 64 + 40
        prober = Prober(engine)
        assert await prober.run([Probe("decode", 0, 64, 4)], lambda done: None) == []
        assert prober.num_dropped == 1

    asyncio.run(scene())
