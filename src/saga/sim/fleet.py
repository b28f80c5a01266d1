"""Modelled engines as the scheduler's fleet: carries out commands, says when something happens. No policy here."""

from __future__ import annotations

from math import inf

import numpy as np

from saga import commands as do
from saga.cache.prefix_lru import PrefixLru
from saga.engine.batching import EngineRequest, EngineSettings, ModelledEngine
from saga.engine.hardware import Hardware
from saga.engine.latency import LatencyModel
from saga.errors import InvariantViolated
from saga.events import WorkerJoined
from saga.scheduler.composition import Composition
from saga.sim.config import SimConfig
from saga.views import PromptPath

_INFINITE_TOKENS = 10**12


class ModelledFleet:
    """`workers` engines of one kind. Contexts of sessions are remembered for moves only."""

    def __init__(self, config: SimConfig, composition: Composition, machine: Hardware) -> None:
        rules = composition.engine
        host_tokens = machine.host_kv_tokens if config.dram_tokens is None else config.dram_tokens
        self.latency = LatencyModel(machine)
        self.settings = EngineSettings(
            kv_tokens=config.kv_tokens or machine.kv_tokens,
            block_tokens=config.block_tokens,
            max_running=config.max_running,
            chunk_tokens=config.chunk_tokens,
            prefix_caching=rules.prefix_caching,
            queue=rules.queue,
            eviction=rules.eviction,
            host_kv_tokens=host_tokens if composition.host_tier.enabled else 0,
            host_eviction=composition.host_tier.eviction,
            load_tokens_per_s=machine.load_tokens_per_s,
            move_tokens_per_s=machine.move_tokens_per_s,
            infinite_kv=rules.infinite_kv,
            report_residency=composition.reports_residency,
            report_first_tokens=composition.reports_first_tokens,
        )
        self.names = [f"w{index}" for index in range(config.workers)]
        self.engines = {name: ModelledEngine(self.settings, self.latency) for name in self.names}
        self.moved_tokens: list[int] = []
        self._directs = not isinstance(rules.eviction, PrefixLru)

    def joined(self, at_s: float) -> list[WorkerJoined]:
        """What the workers say of themselves."""
        settings = self.settings
        return [
            WorkerJoined(
                at_s=at_s,
                worker=name,
                kv_tokens=_INFINITE_TOKENS if settings.infinite_kv else settings.kv_tokens,
                block_tokens=settings.block_tokens,
                host_kv_tokens=settings.host_kv_tokens,
                prefill_tokens_per_s=self.latency.prefill_tokens_per_s,
                load_tokens_per_s=settings.load_tokens_per_s,
                move_tokens_per_s=settings.move_tokens_per_s,
                max_running=settings.max_running,
            )
            for name in self.names
        ]

    def direct(self, command: do.Command, path: PromptPath, at_s: float) -> str | None:
        """Carry out a command about a session's cache; `path`: its context. The worker whose time table it changed."""
        if isinstance(command, do.Migrate):
            return self._migrate(command, path, at_s)
        engine = self.engines[command.worker]  # type: ignore[attr-defined]
        match command:
            case do.Retain() | do.Release():
                self._set_standing(engine, command, at_s)
                return None
            case do.Offload():
                engine.offload(command.session, at_s)
                return None
            case do.Prefetch():
                engine.prefetch(command.session, at_s)
            case do.Reprioritize():
                engine.reprioritize(command.step, command.priority)
            case do.Preempt():
                if not engine.cancel(command.step, at_s):
                    raise InvariantViolated(f"step {command.step!r} is not on {command.worker!r}")
        return command.worker  # type: ignore[attr-defined, no-any-return]

    def _set_standing(self, engine: ModelledEngine, command: do.Retain | do.Release, at_s: float) -> None:
        if not self._directs:
            return
        engine.set_standing(
            command.session,
            do.Standing.ACTIVE if isinstance(command, do.Retain) else command.standing,
            expected_use_s=inf if command.expected_use_s is None else command.expected_use_s,
            reuse_probability=command.reuse_probability,
            steps_to_use=command.steps_to_use,
            at_s=at_s,
        )

    def submit(self, worker: str, request: EngineRequest, at_s: float) -> None:
        """Give a call to a worker."""
        self.engines[worker].submit(request, at_s)

    def used_and_resident_share(self) -> tuple[float, float]:
        """Fleet means: KV held by running calls, KV holding anything, as shares of the capacity."""
        capacity = self.settings.kv_tokens * len(self.names)
        reports = [engine.report() for engine in self.engines.values()]
        return sum(r[2] for r in reports) / capacity, sum(r[3] for r in reports) / capacity

    @property
    def moves(self) -> int:
        """Prefixes that went from one worker to another."""
        return len(self.moved_tokens)

    def move_times_s(self) -> tuple[float, float]:
        """Mean and p95 of what a move takes on the network, seconds, waiting for others left out; some were made."""
        seconds = np.array(self.moved_tokens) / self.settings.move_tokens_per_s
        return float(seconds.mean()), float(np.percentile(seconds, 95))

    def _migrate(self, command: do.Migrate, path: PromptPath, at_s: float) -> str:
        tokens = min(command.tokens, self.engines[command.source].export_tokens(command.session))
        if tokens:
            self.engines[command.target].import_prefix(command.session, path, tokens, at_s)
            self.moved_tokens.append(tokens)
        return command.target
