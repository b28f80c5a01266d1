"""How long the scheduler takes to decide, timed event by event within a simulated run.

The only place of the simulator that reads a clock for figures: they are measured, on this machine, and say nothing
about the modelled fleet. It refuses to know what is decided.
"""

from __future__ import annotations

import time

import numpy as np

from saga import commands as do
from saga import events as ev
from saga.scheduler.composition import Composition
from saga.scheduler.scheduler import Scheduler
from saga.sim.config import SimConfig
from saga.sim.driver import Simulation
from saga.workloads.plan import Workload


class _TimedScheduler(Scheduler):
    """The scheduler, and the seconds that each event took it."""

    def __init__(self, composition: Composition) -> None:
        super().__init__(composition)
        self.seconds: list[float] = []

    def handle(self, event: ev.Event) -> list[do.Command]:
        """See Scheduler."""
        began_s = time.thread_time()
        commands = super().handle(event)
        self.seconds.append(time.thread_time() - began_s)
        return commands


def decision_times(config: SimConfig, workload: Workload) -> dict[str, float]:
    """decision_p50_s, _p99_s, _mean_s and `decisions`: seconds per event over a whole run, measured.

    Processor time of this thread: what others do on the machine is not in it.
    """
    simulation = Simulation(config, workload)
    timed = simulation.scheduler = _TimedScheduler(simulation.composition)
    simulation.run()
    p50, p99 = np.percentile(timed.seconds, [50, 99])
    mean_s = float(np.mean(timed.seconds))
    return {
        "decision_p50_s": float(p50),
        "decision_p99_s": float(p99),
        "decision_mean_s": mean_s,
        "decisions": len(timed.seconds),
    }
