"""Which forecasts change decisions, and what that is worth: the default policy without one forecast at a time.

    python benchmarks/ablate_forecasts.py [--workload swe_bench ...] [--oversubscription 1.5] [--seeds 5] [--tasks 600]

For each forecast: `holds changed` is the share of gaps for which the time that a place is held moves by more than a
tenth if that forecast alone is replaced by its naive value, asked at every gap of one and the same run; `TCT` is the
mean task completion time of a run without it over that of the full policy (above 1: the forecast helps), a geometric
mean over seeds with a 95 % t-interval. All figures are simulated.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saga import events as ev
from saga.bench.statistics import paired_speedup
from saga.cache.ttl import GapFacts, Retention
from saga.commands import Command
from saga.presets import preset
from saga.sim.config import SimConfig
from saga.sim.driver import Simulation
from saga.workflow.forecast import Forecast
from saga.workflow.gaps import GapModel
from saga.workloads.catalogue import workload
from saga.workloads.limits import Limits
from saga.workloads.plan import Workload

Change = Callable[[Forecast], Forecast]

NAIVE: dict[str, Change] = {
    "gap length (prior for all)": lambda f: replace(f, gap=GapModel(), expected_gap_s=1.0),
    "continue probability (1)": lambda f: replace(f, continue_probability=1.0),
    "overlap (1)": lambda f: replace(f, overlap=1.0),
    "expected return (now)": lambda f: replace(f, expected_gap_s=0.0),
    "output tokens (0)": lambda f: replace(f, output_tokens=0.0),
}


class Without:
    """A forecaster with one of its answers replaced; the compiled core takes no stranger in that place."""

    def __init__(self, model: Any, change: Change) -> None:
        self._model = model
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forecast(self, *args: Any, **more: Any) -> Forecast:
        return self._change(self._model.forecast(*args, **more))


@dataclass(frozen=True)
class Shadowed:
    """The retention policy, asked a second time without one forecast: counts how often the answer moves."""

    policy: Retention
    counts: dict[str, list[int]] = field(default_factory=lambda: {name: [0, 0] for name in NAIVE})

    def hold_s(self, facts: GapFacts) -> float:
        hold_s = self.policy.hold_s(facts)
        forecast = Forecast(facts.continue_probability, facts.gap, 0.0, 0.0, 0.0, facts.overlap, 0.0, 0.0, 1.0)
        for name, change in NAIVE.items():
            naive = change(forecast)
            other_s = self.policy.hold_s(
                replace(facts, gap=naive.gap, continue_probability=naive.continue_probability, overlap=naive.overlap)
            )
            self.counts[name][0] += abs(other_s - hold_s) > 0.1 * max(hold_s, other_s)
            self.counts[name][1] += 1
        return hold_s


def deaf_to_ends(simulation: Simulation) -> None:
    """The scheduler never hears that a session has ended; it finds out by age."""
    handle = simulation.scheduler.handle

    def handle_without(event: ev.Event) -> list[Command]:
        return [] if isinstance(event, ev.SessionEnded) else handle(event)

    simulation.scheduler.handle = handle_without  # type: ignore[method-assign]


def tct_s(config: SimConfig, plan: Workload, change: Change | None, *, deaf: bool = False) -> float:
    """Mean TCT of one run."""
    simulation = Simulation(config, plan)
    if change is not None:
        simulation.scheduler.model = Without(simulation.scheduler.model, change)
    if deaf:
        deaf_to_ends(simulation)
    return float(simulation.run().metrics["tct_mean_s"])  # type: ignore[arg-type]


def ablate(name: str, options: argparse.Namespace) -> None:
    """Print one workload's table."""
    limits = Limits(max_context_tokens=150_000, min_calls=2, max_calls=120, gap_cap_s=300.0)
    plan = workload(name, limits if os.sep in name else Limits(), kv_tokens=450_000)
    configs = [
        SimConfig(
            preset="saga",
            workload=name,
            seed=seed,
            workers=options.workers,
            oversubscription=options.oversubscription,
            dram_tokens=options.dram_tokens,
            tasks=options.tasks,
        )
        for seed in range(options.seeds)
    ]
    shadow = Shadowed(preset("saga").retention)
    base = [tct_s(config, plan, None) for config in configs]
    Simulation(configs[0], plan, composition=replace(preset("saga"), retention=shadow)).run()
    print(f"\n{Path(name).name} at {options.oversubscription}, host tier {options.dram_tokens}: TCT {base[0]:.0f} s")
    rows: list[tuple[str, str, list[float]]] = [
        (name, f"{moved / max(1, asked):.1%}", [tct_s(config, plan, NAIVE[name]) for config in configs])
        for name, (moved, asked) in shadow.counts.items()
    ]
    rows.append(("that a session has ended", "-", [tct_s(config, plan, None, deaf=True) for config in configs]))
    for what, changed, without in rows:
        worth = paired_speedup(without, base)
        interval = f"[{worth.low:.3f}, {worth.high:.3f}]" if worth.low is not None and worth.high is not None else ""
        print(f"  without {what:<28} holds changed {changed:>6}   TCT x {worth.speedup:.3f} {interval}", flush=True)


def main() -> None:
    """Run all workloads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", nargs="+", default=["swe_bench", "claude_code", "browser", "chat"])
    parser.add_argument("--oversubscription", type=float, default=1.5)
    parser.add_argument("--dram-tokens", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=600)
    options = parser.parse_args()
    print(f"simulated; {options.seeds} seeds, {options.tasks} tasks, {options.workers} workers; baseline saga")
    for name in options.workload:
        ablate(name, options)


if __name__ == "__main__":
    main()
