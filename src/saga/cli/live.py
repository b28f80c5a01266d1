"""The part of `saga demo` that is measured: the same tasks through a plain front and through SAGA, over HTTP.

    agents (saga.bench.replay) ─HTTP─▶ gateway least_loaded ─┐
                               ─HTTP─▶ gateway saga         ─┴─HTTP─▶ modelled engines, child processes

Gateways, protocol, prompts and clocks are real, the engines are modelled and run fast. Both gateways use the same
engines in turns (A B B A), and every run has words of its own, so that none finds another's cache. It refuses to know
policies, and it leaves no process behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

from saga.cli.output import print_table

if TYPE_CHECKING:
    from saga.bench.measured import RunRecord
    from saga.bench.replay import ReplayConfig, Target
    from saga.bench.report import ReportGroup
    from saga.gateway.worker_config import WorkerConfig
    from saga.workloads.plan import Workload

KIND = "real gateways and real HTTP, modelled engines"


@dataclass(frozen=True)
class LiveScene:
    """What is lived. fronts: presets, the first is what the other is compared with. kv_tokens: of an engine.

    speed: modelled seconds per real one, of engines and of gaps between calls.
    """

    workload: str = "swe_bench"
    fronts: tuple[str, ...] = ("least_loaded", "saga")
    hardware: str = "llama3-70b-a100x4"
    workers: int = 2
    kv_tokens: int = 50_000
    agents: int = 14
    tasks: int = 14
    max_calls: int | None = 32
    speed: float = 150.0
    repeats: int = 3
    scale: float = 1.0


@dataclass
class TaskTimes:
    """What a report draws of a replay: completion times of tasks, seconds."""

    tct_s: list[float]
    occupancy: list[tuple[float, float, float]] = field(default_factory=list)
    timeline: list[tuple[str, str, str, str, float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class LiveComparison:
    """What was measured."""

    scene: LiveScene
    provenance: str
    records: Sequence[RunRecord]
    document: Mapping[str, Any]

    def show(self) -> None:
        """Print heading, table and sentences."""
        from saga.bench.measured import measured_meaning, measured_table

        typer.echo(f"{self.scene.workload}, measured ({KIND}): {self.provenance}")
        for note in self.notes():
            typer.echo(note)
        typer.echo()
        print_table(measured_table(self.document["runs"], self.document["summary"]))
        for sentence in measured_meaning(self.document["runs"], self.document["summary"]):
            typer.echo(sentence)

    def notes(self) -> tuple[str, str]:
        """The experiment in two lines."""
        scene = self.scene
        engines = f"{scene.workers} engines modelled after {scene.hardware} with {scene.kv_tokens:,} KV tokens each"
        return (
            f"{engines}, {scene.agents} agents, {scene.tasks} tasks per run",
            f"seconds are real ones; engines and tools run {scene.speed:g} times as fast as modelled",
        )

    def as_group(self) -> ReportGroup:
        """What the report shows, beside what was simulated."""
        from saga.bench.report import ReportGroup

        details = {
            record.label: TaskTimes([task.tct_s for task in record.tasks if not task.failed])
            for record in reversed(self.records)
        }
        return ReportGroup(
            workload=f"{self.scene.workload}, measured",
            notes=(f"measured: {KIND}", self.provenance, *self.notes()),
            runs=self.document["runs"],
            summary=self.document["summary"],
            details={name: details[name] for name in self.scene.fronts if name in details and details[name].tct_s},
            kind="measured",
        )


def play(scene: LiveScene) -> LiveComparison:
    """All runs, and every process ended. Raises PeerError where an engine does not start; Ctrl-C ends it at once."""
    from saga.bench.replay import ReplayConfig
    from saga.cli.replay import as_document, progress
    from saga.workloads.catalogue import workload as find_workload
    from saga.workloads.limits import Limits

    limits = Limits(max_calls=scene.max_calls)
    source = find_workload(scene.workload, limits)
    config = ReplayConfig(
        agents=scene.agents, tasks=scene.tasks, speed=scene.speed, repeats=scene.repeats, scale=scene.scale
    )
    with progress() as advance:
        records = asyncio.run(_play(scene, source, config, advance))
    settings = dataclasses.asdict(scene)
    document = as_document(records, scene.workload, config, limits) | {"engines": "modelled", "scene": settings}
    return LiveComparison(scene, source.provenance, records, document)


async def _play(
    scene: LiveScene, source: Workload, config: ReplayConfig, advance: Callable[[str, int, int], None] | None
) -> list[RunRecord]:
    from saga.bench.replay import Replay

    async with _fronts(scene) as targets:
        return await Replay(targets, source, config, on_progress=advance).run()


@contextlib.asynccontextmanager
async def _fronts(scene: LiveScene) -> AsyncIterator[list[Target]]:
    """Engines and a gateway for each preset before all of them, until the end."""
    from saga.bench.replay import Target
    from saga.engine.hardware import hardware
    from saga.engine.latency import LatencyModel
    from saga.gateway.embedded import EmbeddedEngines

    flags = {"--hardware": scene.hardware, "--kv-tokens": scene.kv_tokens, "--speed": scene.speed}
    rate = LatencyModel(hardware(scene.hardware)).prefill_tokens_per_s * scene.speed
    engines = EmbeddedEngines(scene.workers, tuple(str(part) for flag in flags.items() for part in flag), rate)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(engines.stop)
        workers = await engines.start()
        urls = [await stack.enter_async_context(_gateway(preset, workers)) for preset in scene.fronts]
        yield [Target(preset, url) for preset, url in zip(scene.fronts, urls, strict=True)]


@contextlib.asynccontextmanager
async def _gateway(preset: str, workers: Sequence[WorkerConfig]) -> AsyncIterator[str]:
    """A gateway on ports of its own; its URL."""
    from saga.gateway.config import GatewayConfig
    from saga.gateway.serve import Gateway
    from saga.gateway.settings import SchedulingSettings

    scheduling = SchedulingSettings(preset=preset)
    gateway = Gateway(GatewayConfig(port=0, admin_port=0, workers=tuple(workers), scheduling=scheduling))
    try:
        await gateway.start()
        yield gateway.url
    finally:
        await gateway.stop(0.0)
