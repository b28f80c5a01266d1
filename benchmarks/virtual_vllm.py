"""The scheduler of vLLM itself at a real worker's scale, in virtual time: stock, behind SAGA's gate, with the plug-in.

    python benchmarks/virtual_vllm.py [--tasks 120] [--oversubscription 0.7 1.0 1.5 3.0] [--systems ...] [--json FILE]

One worker with the KV memory and the cost model of `--hardware`, agents of `--workload`, a closed loop. Every iteration
is decided by the real scheduler and KV cache manager (`real_vllm.py`) and lasts what the cost model says; agents, gaps
and the scheduler before it are the simulator's:

    stock       first come first served, everybody let in: the baseline
    priority    stock vLLM, `--scheduling-policy priority`, each call with its task's arrival
    gateway     preset saga before stock vLLM: nothing in the engine obeys
    plugin      preset saga before vLLM with SAGA's scheduler class, which hears every directive
    infinite    the modelled engine with memory for all: the bound

Simulated: nothing here computes a token. Needs vLLM beside SAGA (`make test` puts it there).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from model_check import SchedulerOnly
from real_vllm import VLLM_VERSION, RealScheduler, Settings
from rich.console import Console
from rich.table import Table

from saga.cache.prefix_lru import PrefixLru
from saga.cache.tiers import NoHostTier
from saga.commands import Standing
from saga.engine.hardware import hardware
from saga.engine.latency import LatencyModel
from saga.presets import preset
from saga.scheduler.composition import Composition
from saga.sim.config import SimConfig
from saga.sim.driver import Simulation
from saga.vllm_plugin.contracts import Directive, NoLink, Outcome, Release, Retain
from saga.vllm_plugin.scheduler import SagaSyncScheduler
from saga.workloads.catalogue import workload
from saga.workloads.limits import Limits

PRESETS = {
    "stock": "vllm_apc",
    "priority": "vllm_priority",
    "gateway": "saga",
    "plugin": "saga",
    "infinite": "infinite_kv",
}


class Wire(NoLink):
    """A link without a network: what is told is heard at the next epoch."""

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self._told: list[tuple[int, Directive]] = []

    def tell(self, directive: Directive) -> None:
        """A directive of the scheduler before the engine."""
        self._told.append((len(self._told), directive))

    def poll(self) -> list[tuple[int, Directive]]:
        """See Link."""
        told, self._told = self._told, []
        return told

    def answer(self, directive: int, outcome: Outcome, why: str = "") -> None:
        """See Link: counted."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


class Virtual(SchedulerOnly):
    """vLLM's scheduler, stock or with the plug-in, which then hears every directive."""

    def __init__(
        self, queue: str, latency: LatencyModel, settings: Settings, *, plugin: bool, report_first_tokens: bool
    ) -> None:
        more: dict[str, Any] = {"scheduler_cls": SagaSyncScheduler} if plugin else {}
        vllm = RealScheduler(replace(settings, queue="priority" if plugin else queue), **more)
        super().__init__(vllm, latency, report_first_tokens=report_first_tokens)
        self.wire = Wire() if plugin else None
        if self.wire is not None:
            vllm.scheduler.saga.link = self.wire

    def set_standing(
        self,
        session: str,
        standing: Standing,
        *,
        expected_use_s: float = inf,
        reuse_probability: float = 1.0,
        steps_to_use: float = 1.0,
        at_s: float,
    ) -> None:
        """Tell the plug-in, but for steps_to_use, which the link does not carry; a stock engine knows nothing of it."""
        if self.wire is None:
            return
        expected_s = expected_use_s - at_s if expected_use_s < inf else None
        if standing == Standing.ACTIVE:
            self.wire.tell(Retain(session, None, expected_s, reuse_probability))
        else:
            self.wire.tell(Release(session, standing, expected_s))


def composition_of(system: str) -> Composition:
    """The preset, without a host tier; a stock engine evicts as it does."""
    composition = replace(preset(PRESETS[system]), host_tier=NoHostTier(), migrate=False)
    if system == "gateway":
        composition = replace(composition, engine=replace(composition.engine, eviction=PrefixLru()))
    return composition


def run(system: str, oversubscription: float, given: argparse.Namespace) -> dict[str, Any]:
    """Figures of one run."""
    machine = hardware(given.hardware)
    source = workload(given.workload, Limits(), kv_tokens=machine.kv_tokens)
    config = SimConfig(
        preset=PRESETS[system],
        workload=given.workload,
        hardware=given.hardware,
        workers=1,
        oversubscription=oversubscription,
        tasks=given.tasks,
        seed=given.seed,
        dram_tokens=0,
    )
    simulation = Simulation(config, source, composition=composition_of(system))
    engine = None
    if system != "infinite":
        settings = simulation.fleet.settings
        sizes = Settings(machine.kv_tokens // settings.block_tokens, settings.block_tokens, settings.chunk_tokens)
        engine = Virtual(
            settings.queue,
            simulation.fleet.latency,
            sizes,
            plugin=system == "plugin",
            report_first_tokens=settings.report_first_tokens,
        )
        simulation.fleet.engines = dict.fromkeys(simulation.fleet.names, engine)
    began_s = time.perf_counter()
    figures = dict(simulation.run().metrics)
    figures["took_s"] = time.perf_counter() - began_s
    if engine is not None and engine.wire is not None:
        figures["directives"] = engine.wire.outcomes
    return figures


def show(found: dict[float, dict[str, dict[str, Any]]], systems: list[str], given: argparse.Namespace) -> None:
    """Mean TCT, speed-up over stock, and regenerated share."""
    title = f"simulated time, the scheduler of vLLM {VLLM_VERSION}, {given.workload}, {given.tasks} tasks"
    table = Table(title=f"{title}: mean TCT s (x stock; regenerated)")
    table.add_column("oversubscription")
    for system in systems:
        table.add_column(system, justify="right")
    for oversubscription, runs in found.items():
        cells = []
        for figures in runs.values():
            over = runs["stock"]["tct_mean_s"] / figures["tct_mean_s"] if "stock" in runs else 0.0
            cells.append(f"{figures['tct_mean_s']:,.0f} ({over:.2f}x; {figures['regenerated_share']:.1%})")
        table.add_row(f"{oversubscription:g}", *cells)
    Console(width=max(140, Console().width)).print(table)


def main() -> None:
    """Every system at every load."""
    flags = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    flags.add_argument("--systems", nargs="+", default=list(PRESETS), choices=PRESETS)
    flags.add_argument("--oversubscription", nargs="+", type=float, default=[0.7, 1.0, 1.5, 3.0])
    flags.add_argument(
        "--tasks", type=int, default=120, help="the first wave of agents included, which is not measured"
    )
    flags.add_argument("--workload", default="swe_bench")
    flags.add_argument("--hardware", default="llama3-70b-a100x4")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--json", type=Path)
    given = flags.parse_args()
    found: dict[float, dict[str, dict[str, Any]]] = {}
    for oversubscription in given.oversubscription:
        runs = found[oversubscription] = {}
        for system in given.systems:
            runs[system] = run(system, oversubscription, given)
            took_s, tct_s = runs[system]["took_s"], runs[system]["tct_mean_s"]
            again = runs[system]["regenerated_share"]
            line = (
                f"{oversubscription:g} {system}: mean TCT {tct_s:,.0f} s, {again:.1%} regenerated, took {took_s:.0f} s"
            )
            print(line, flush=True)
            if given.json is not None:
                given.json.write_text(json.dumps({"kind": "simulated", "runs": found}, indent=1))
    show(found, given.systems, given)


if __name__ == "__main__":
    main()
