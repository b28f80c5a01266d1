"""Does the default hold where nothing was chosen? Agents drawn at random, against the presets that come closest.

    python benchmarks/held_out.py [--worlds 12] [--first 1000] [--tasks 120] [--waves 3] [--dram 0 600000]
        [--oversubscription 1.0 1.5] [--workers 1] [--jobs 1] [--out FOLDER]

A world is a kind of agent with everything drawn by its number: calls per task, first prompt, what tools append, answer
lengths, whether it cuts its history, and the distribution of its gaps (log-normal, gamma, Weibull, or quick ones mixed
with slow ones under one tool name) with a mean of 0.3 to 60 s and a coefficient of variation of 0.5 to 3. No constant
of any policy was chosen on them. The last lines give geometric means and the worst world. All figures are simulated.
"""

from __future__ import annotations

import argparse
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import product
from math import exp, log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bench_policies import num_tasks, results_of
from rich.console import Console
from rich.progress import Progress

from saga.bench.evaluation.store import RunStore
from saga.presets import preset
from saga.scheduler.composition import Composition
from saga.sim.config import SimConfig
from saga.sim.driver import simulate
from saga.workloads.generators import AgentShape
from saga.workloads.limits import Fit, Limits
from saga.workloads.quantiles import Quantiles, fit
from saga.workloads.synthetic import Source, SyntheticWorkload

PRESETS = ("vllm_apc", "vllm_priority", "vllm_kvflow", "thunderagent", "vllm_apc_dram", "saga", "infinite_kv")
"""The baseline first, the bound last."""
_NUM_SAMPLES = 20_000


class World(NamedTuple):
    """A kind of agent and the words for it."""

    source: Source
    words: str


class Cell(NamedTuple):
    """One run; its seed is the number of the world."""

    number: int
    preset: str
    oversubscription: float
    dram_tokens: int
    tasks: int
    workers: int

    def system(self) -> Composition:
        """The preset."""
        return preset(self.preset)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _gaps_s(rng: np.random.Generator, family: str, mean_s: float, cv: float) -> Quantiles:
    """A table of that family with (about) that mean and coefficient of variation, at most 600 s."""
    if family == "log-normal":
        sigma = np.sqrt(np.log1p(cv * cv))
        samples = rng.lognormal(-sigma * sigma / 2, sigma, _NUM_SAMPLES)
    elif family == "gamma":
        samples = rng.gamma(1 / cv**2, cv**2, _NUM_SAMPLES)
    elif family == "weibull":
        samples = rng.weibull(cv**-1.086, _NUM_SAMPLES)  # Justus' approximation of the shape
    else:
        slow = rng.random(_NUM_SAMPLES) < 1 / (1 + 4 * cv**2)
        samples = np.where(slow, rng.gamma(4.0, 1.0, _NUM_SAMPLES), rng.gamma(4.0, 0.02, _NUM_SAMPLES))
    return fit(np.minimum(samples * (mean_s / samples.mean()), 600.0).tolist())


@cache
def world(number: int) -> World:
    """The same for the same number."""
    rng = np.random.Generator(np.random.PCG64([number, 77]))
    family = ("log-normal", "gamma", "weibull", "quick and slow")[number % 4]
    latency_s = _gaps_s(rng, family, _between(rng, 0.3, 60.0), _between(rng, 0.5, 3.0))
    drawn_s = latency_s.draw(rng, _NUM_SAMPLES)
    calls = _between(rng, 6.0, 60.0)
    first = _between(rng, 1_000.0, 20_000.0)
    appended = _between(rng, 100.0, 2_500.0)
    longest = _between(rng, 40.0, 800.0)
    cuts = bool(rng.random() < 0.4)
    grown = first + calls * (1.6 * appended + longest / 3)
    shape = AgentShape(
        num_calls=(calls, calls / 3, 2, int(4 * calls)),
        first_tokens=(int(0.7 * first), int(1.3 * first)),
        appended=(appended, 1.0, int(20 * appended)),
        output=(10, int(10 + longest), 2.0),
        tools=(("tool", 1.0),),
        system_tokens=int(rng.uniform(0.1, 0.6) * first),
        max_prompt_tokens=int(1.3 * first + 0.4 * (grown - first)) if cuts else None,
        latency_s={"tool": latency_s},
    )
    cut = ", cut" if cuts else ""
    gaps = f"{family}, {drawn_s.mean():.1f} s, cv {drawn_s.std() / drawn_s.mean():.1f}"
    words = f"{calls:.0f} calls to {grown / 1_000:.0f}k tokens{cut}; {gaps}"
    return World(Source(f"world-{number}", "drawn at random", {"default": shape}, "agent"), words)


@cache
def load(number: int) -> SyntheticWorkload:
    """A world's tasks, once per process."""
    return SyntheticWorkload(world(number).source, Fit(Limits(max_context_tokens=150_000)))


def run(cell: Cell) -> dict[str, Any]:
    """The run's metrics."""
    config = SimConfig(
        preset=cell.preset,
        workload=f"world-{cell.number}",
        seed=cell.number,
        oversubscription=cell.oversubscription,
        dram_tokens=cell.dram_tokens,
        tasks=cell.tasks,
        workers=cell.workers,
    )
    return simulate(config, load(cell.number)).metrics


def main() -> None:
    """One line a world, load and tier, then the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=12)
    parser.add_argument("--first", type=int, default=1_000, help="number of the first world")
    parser.add_argument("--tasks", type=int, default=120)
    parser.add_argument("--waves", type=float, default=3.0, help="tasks per agent, at least")
    parser.add_argument("--dram", nargs="+", type=int, default=[0, 600_000], help="tokens of host tier")
    parser.add_argument("--oversubscription", nargs="+", type=float, default=[1.0, 1.5])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for finished runs: the same command goes on where it was")
    options = parser.parse_args()
    store = None if options.out is None else RunStore(options.out)
    places = list(product(range(options.first, options.first + options.worlds), options.dram, options.oversubscription))
    over: dict[tuple[str, int, float], list[float]] = {}
    with ProcessPoolExecutor(options.jobs) as pool, Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("runs", total=len(places) * len(PRESETS))
        for number, dram, x in places:
            tasks = num_tasks(load(number), x, options)
            cells = [Cell(number, preset, x, dram, tasks, options.workers) for preset in PRESETS]
            found: dict[str, Any] = {}
            for cell, metrics in zip(cells, results_of(cells, run, store, pool), strict=True):
                found[cell.preset] = metrics
                progress.advance(bar)
            own = found["saga"]
            over_own = {preset: found[preset]["tct_mean_s"] / own["tct_mean_s"] for preset in PRESETS}
            for preset, ratio in over_own.items():
                over.setdefault((preset, dram, x), []).append(ratio)
            best = min(PRESETS[:-2], key=lambda preset: over_own[preset])
            print(
                f"{number} at {x:g}, tier {dram}: {own['tct_mean_s']:.0f} s, "
                f"over vllm_apc {over_own['vllm_apc']:.2f}x, "
                f"over the best rival {over_own[best]:.2f}x {best}, of the bound {over_own['infinite_kv']:.0%}, "
                f"regenerated {own['regenerated_share']:.1%}, {tasks} tasks ({world(number).words})",
                flush=True,
            )
    for (preset, dram, x), ratios in over.items():
        if preset == "saga":
            continue
        mean = exp(statistics.fmean(map(log, ratios)))
        print(
            f"tier {dram} at {x:g}: {preset} over saga {mean:.2f}x, least {min(ratios):.2f}x, most {max(ratios):.2f}x"
        )


if __name__ == "__main__":
    main()
