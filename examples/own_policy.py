"""A policy of your own, compared with the default on a modelled fleet.

    python examples/own_policy.py

A policy is a frozen dataclass that answers one question. This one says how long a session's place is held across a gap:
a minute, times the share of its prefix that is expected to be used again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from saga.cache.ttl import GapFacts
from saga.presets import preset
from saga.sim.config import SimConfig
from saga.sim.driver import simulate
from saga.workloads.catalogue import workload
from saga.workloads.limits import Limits


@dataclass(frozen=True)
class PatientWithReuse:
    """Hold a place longer the more of the prefix the next step will use."""

    full_reuse_s: float = 60.0

    def hold_s(self, facts: GapFacts) -> float:
        """Seconds."""
        return self.full_reuse_s * facts.overlap * facts.continue_probability


def main() -> None:
    """Run both on the same tasks and print mean task completion times (simulated)."""
    config = SimConfig(preset="saga", workload="swe_bench", workers=1, oversubscription=1.3, tasks=60, dram_tokens=0)
    plan = workload("swe_bench", Limits())
    systems = {"saga": preset("saga"), "mine": replace(preset("saga"), name="mine", retention=PatientWithReuse())}
    for name, composition in systems.items():
        metrics = simulate(config, plan, composition=composition).metrics
        print(f"{name:5} mean TCT {metrics['tct_mean_s']:.0f} s (simulated)")


if __name__ == "__main__":
    main()
