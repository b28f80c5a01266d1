"""What it costs that few clients say when a task is over, and what the scheduler's own judgement gives back.

    python benchmarks/silent_ends.py [--workload swe_bench web_arena] [--oversubscription 1.5] [--seeds 3] [--tasks 150]

One worker with a host tier, preset saga. `told` is the baseline: every session's end is told. `silent`: none is, and
who is long overdue counts no longer (`cache.overdue`). `silent, trusting`: the same where everybody is expected back
until the idle limit. Mean task completion time, s, over the baseline's of the same seed. All figures are simulated.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from saga import events as ev
from saga.bench.statistics import mean_estimate
from saga.cache.overdue import NeverOverdue
from saga.engine.hardware import hardware
from saga.presets import preset
from saga.scheduler.composition import Composition
from saga.sim.config import SimConfig
from saga.sim.driver import Simulation
from saga.workloads.catalogue import workload
from saga.workloads.limits import Limits

HARDWARE = "llama3-70b-a100x4"


def run(composition: Composition, config: SimConfig, *, told: bool) -> float:
    """Mean task completion time, s."""
    source = workload(config.workload, Limits(), kv_tokens=hardware(HARDWARE).kv_tokens)
    simulation = Simulation(config, source, composition=composition)
    if not told:
        simulation.scheduler._handlers[ev.SessionEnded] = lambda event: None
    return float(simulation.run().metrics["tct_mean_s"])


def main() -> None:
    """Every workload and seed, the three ways."""
    flags = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    flags.add_argument("--workload", nargs="+", default=["swe_bench", "web_arena"])
    flags.add_argument("--oversubscription", type=float, default=1.5)
    flags.add_argument("--seeds", type=int, default=3)
    flags.add_argument("--tasks", type=int, default=150)
    given = flags.parse_args()
    trusting = replace(preset("saga"), overdue=NeverOverdue())
    for name in given.workload:
        ways = {
            "told": (preset("saga"), True),
            "silent": (preset("saga"), False),
            "silent, trusting": (trusting, False),
        }
        found: dict[str, list[float]] = {way: [] for way in ways}
        for seed in range(given.seeds):
            config = SimConfig(
                preset="saga",
                workload=name,
                hardware=HARDWARE,
                workers=1,
                oversubscription=given.oversubscription,
                tasks=given.tasks,
                seed=seed,
            )
            for way, (composition, told) in ways.items():
                found[way].append(run(composition, config, told=told))
        for way, means_s in found.items():
            over = mean_estimate([mean_s / told_s for mean_s, told_s in zip(means_s, found["told"], strict=True)])
            shown = ", ".join(f"{mean_s:,.0f}" for mean_s in means_s)
            print(f"{name} at {given.oversubscription:g}, {way:16} {over.value:5.2f}x   ({shown} s)", flush=True)


if __name__ == "__main__":
    main()
