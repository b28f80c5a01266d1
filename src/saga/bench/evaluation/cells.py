"""What is run how often and how large: every choice of size, with its reason.

A cell is one point of a table before seeds; cells that are equal are run once, whatever tables they belong to. This
module refuses to know how a run is made and what is read from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from saga.workloads.limits import Limits

Kind = Literal["simulated", "cache", "timed"]


@dataclass(frozen=True)
class Cell:
    """One system at one load, or one cache-only replay, or one run whose decisions are timed.

    system: see `systems.system`; "" for a cache replay. oversubscription: of a closed loop (the pressure of a cache
    replay); None in an open loop, then rate_per_worker_s. waves: tasks measured, per agent of the fleet, at least
    least_tasks of them (an open loop has just these). hardware, tokens and limits as in `saga sim`.
    """

    workload: str
    system: str = ""
    kind: Kind = "simulated"
    oversubscription: float | None = None
    rate_per_worker_s: float | None = None
    workers: int = 1
    waves: float = 2.0
    least_tasks: int = 40
    hardware: str = "llama3-70b-a100x4"
    kv_tokens: int | None = None
    dram_tokens: int | None = None
    limits: Limits = field(default_factory=Limits)
    replay: Literal["free", "pinned"] = "pinned"


@dataclass(frozen=True)
class Scale:
    """How large the tables are made. The workers of a fleet share its load, so agents per worker are what counts.

    seeds: runs per cell. cluster: workers at the paper's load. fleet: workers everywhere else; more than one, so that
    routing, moves and stealing have something to do. loads: the sweep, sweeps_all: of every system or of a few.
    variation_loads, sensitivity_loads: of ablations and variations, and of constants; the paper's load first.
    cluster_waves, waves, cache_waves: tasks measured per agent, the first wave excepted, at least least_tasks of them.
    slo_tasks: of the open loop.
    """

    name: str
    seeds: int
    cluster: int
    fleet: int
    loads: tuple[float, ...]
    sweeps_all: bool
    variation_loads: tuple[float, ...]
    sensitivity_loads: tuple[float, ...]
    cluster_waves: float
    waves: float
    least_tasks: int
    slo_tasks: int
    cache_pressures: tuple[float, ...]
    cache_waves: float


PAPER_LOAD = 0.8
"""The one load that the paper states, for its ten tenants; read as oversubscription for the others."""

CROWDED_LOAD = 1.0
"""Where the memory is just full and plain prefix caching begins to collapse: the second load of every variation."""

COLLAPSED_LOAD = 1.5
"""Where plain prefix caching has collapsed."""

LOW_LOAD = 0.1
"""About what the paper's throughput and completion times imply by Little's law."""

TEN_TENANTS_PER_WORKER_MIN = 0.55
"""Full load: what `saga` completes of `ten_tenants` per worker and minute at oversubscription 1.5 (4 workers, 240
tasks, one seed; 0.44 at 1.0, 0.46 at 3.0). The paper's own rates, 92 a minute on 16 instances, are 10 times that."""

FULL = Scale(
    # 10 seeds as in the paper; 16 workers as in its cluster. Half a wave behind an unmeasured first one is little for
    # a collapse that builds up slowly (see docs/paper.md), but a cell has 1,300 tasks or more; the sweep runs on 2
    # workers, where a wave is an eighth as large, for twice as many. 40 are measured where agents are few. Some 15
    # million calls in all: half an hour of two cores at 7,000 calls per second and core (2,600 of `saga_paper`).
    name="full",
    seeds=10,
    cluster=16,
    fleet=2,
    loads=(LOW_LOAD, PAPER_LOAD, CROWDED_LOAD, 1.2, COLLAPSED_LOAD),
    sweeps_all=True,
    variation_loads=(PAPER_LOAD, CROWDED_LOAD),
    sensitivity_loads=(PAPER_LOAD, CROWDED_LOAD),
    cluster_waves=0.5,
    waves=1.0,
    least_tasks=40,
    slo_tasks=300,
    cache_pressures=(1.0, COLLAPSED_LOAD, 3.0),
    cache_waves=2.0,
)
QUICK = Scale(
    # To see the whole report within minutes: 2 seeds (wide intervals), 2 workers everywhere, so that the paper's load
    # is one point of the sweep, one wave, and a sweep of what the sentences are about. With fewer than 200 tasks the
    # open loop ends before its queues have grown, and everybody is in time.
    name="quick",
    seeds=2,
    cluster=2,
    fleet=2,
    loads=(LOW_LOAD, PAPER_LOAD, CROWDED_LOAD),
    sweeps_all=False,
    variation_loads=(PAPER_LOAD, CROWDED_LOAD),
    sensitivity_loads=(PAPER_LOAD,),
    cluster_waves=1.0,
    waves=1.0,
    least_tasks=24,
    slo_tasks=200,
    cache_pressures=(COLLAPSED_LOAD, 3.0),
    cache_waves=1.0,
)
SCALES = {scale.name: scale for scale in (FULL, QUICK)}
