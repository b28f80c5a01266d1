"""How fast the simulator is: calls per second of processor time on one core, per preset, and its memory.

    [SAGA_CORE=native] python benchmarks/bench_sim.py [--workers 16] [--tasks 2000] [--oversubscription 1.0]
        [--presets ...] [--json FILE]

Everything is counted: building the workload, the scheduler, the modelled engines and the figures. Ratios are to the
first preset (the named baseline). Each preset runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from pathlib import Path

from saga.sim.config import SimConfig
from saga.sim.driver import simulate
from saga.workloads.catalogue import workload
from saga.workloads.limits import Limits


def measure(config: SimConfig) -> dict[str, float | str]:
    """Calls, processor seconds and peak memory of one run."""
    begin_s = time.process_time()
    run = simulate(config, workload(config.workload, Limits(), kv_tokens=config.kv_tokens))
    taken_s = time.process_time() - begin_s
    calls = int(run.metrics["calls_simulated"])  # type: ignore[call-overload]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "preset": config.preset,
        "calls": calls,
        "cpu_s": taken_s,
        "calls_per_s": calls / taken_s,
        "peak_mb": peak_mb,
    }


def main() -> None:
    """Run all presets one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="swe_bench")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--tasks", type=int, default=2_000)
    parser.add_argument("--oversubscription", type=float, default=1.0)
    parser.add_argument("--presets", nargs="+", default=["vllm_apc", "saga", "infinite_kv"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    core = os.environ.get("SAGA_CORE", "python")
    print(f"core: {core}")
    rows = []
    for name in options.presets:
        config = SimConfig(
            preset=name,
            workload=options.workload,
            workers=options.workers,
            tasks=options.tasks,
            oversubscription=options.oversubscription,
        )
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (config,))
        rows.append(row)
        print(
            f"{row['preset']:<14} {row['calls']:>9} calls in {row['cpu_s']:>6.1f} s: {row['calls_per_s']:>7.0f} "
            f"calls/s  x {row['calls_per_s'] / rows[0]['calls_per_s']:.2f}  peak {row['peak_mb']:.0f} MB",
            flush=True,
        )
    if options.json:
        options.json.write_text(
            json.dumps({"schema": 1, "kind": "measured", "core": core, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
