"""What eviction lacks: regeneration over Belady's as a policy is told more than anybody can know.

    python benchmarks/ablate_cache.py [--workloads swe_bench swe_agent] [--pressure 1.5] [--tasks 400] [--seed 0]

`next_use` is told once when a gap begins, `reminded` again while a session is overdue; `answers` also knows when each
call in flight will be done; `arrivals` knows when each session's next call comes. Ratios are to `belady` (1.00); `lru`
is the baseline that knows nothing.
"""

from __future__ import annotations

import argparse
from math import inf

from saga.cache.next_use import NextUse
from saga.commands import Standing
from saga.sim.cache_facts import Reminder, Teller
from saga.sim.cache_replay import BELADY, POLICIES, REPLAYS, CacheConfig, CachePolicy, call_order, replay_cache
from saga.sim.cache_timeline import ARRIVED, FINISHED, Visit
from saga.workloads.catalogue import workload
from saga.workloads.limits import Limits
from saga.workloads.plan import Workload

ARRIVES_S: dict[tuple[str, int], float] = {}
FINISHES_S: dict[tuple[str, int], float] = {}


class KnownAnswers(Reminder):
    """As long as each answer takes, then the forecast of the gap."""

    def runs(self, visit: Visit, at_s: float) -> None:
        forecast = self.model.forecast(self._tracks[visit.session])
        done_s = FINISHES_S.get((visit.session, visit.number), inf)
        self._pool.set_standing(visit.session, Standing.ACTIVE, done_s + forecast.expected_gap_s, 1.0)


class KnownArrivals(Teller):
    """The next arrival of each session, or that there is none."""

    def runs(self, visit: Visit, at_s: float) -> None:
        arrives_s = ARRIVES_S.get((visit.session, visit.number + 1), inf)
        standing = Standing.ACTIVE if arrives_s < inf else Standing.ENDED
        self._pool.set_standing(visit.session, standing, arrives_s, 1.0)

    def finished(self, visit: Visit, at_s: float) -> None:
        super().finished(visit, at_s)
        self.runs(visit, at_s)


def look_ahead(config: CacheConfig, source: Workload) -> None:
    """Note when calls of this replay arrive and finish."""
    timeline = call_order(config, source)
    for kind, table in ((ARRIVED, ARRIVES_S), (FINISHED, FINISHES_S)):
        table.clear()
        table.update({(visit.session, visit.number): at_s for at_s, this, visit in timeline.events if this == kind})


def main() -> None:
    """One line per workload and replay."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=["swe_bench", "swe_agent"])
    parser.add_argument("--pressure", type=float, default=1.5)
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    POLICIES["answers"] = CachePolicy(NextUse(), "knows when calls in flight are done", KnownAnswers)
    POLICIES["arrivals"] = CachePolicy(NextUse(), "knows when sessions return", KnownArrivals)
    names = ("lru", "next_use", "reminded", "answers", "arrivals")
    for name in options.workloads:
        for replay in REPLAYS:
            config = CacheConfig(
                workload=name, pressure=options.pressure, replay=replay, tasks=options.tasks, seed=options.seed
            )
            source = workload(name, Limits(), kv_tokens=config.capacity_tokens)
            look_ahead(config, source)
            run = replay_cache(config, source, names)
            best = run.tallies[BELADY]
            ratios = "  ".join(
                f"{one} {run.tallies[one].regenerated_tokens / max(1, best.regenerated_tokens):.2f}" for one in names
            )
            share = best.regenerated_tokens / best.input_tokens
            print(f"{name:<12} {replay:<7} {ratios}  (Belady {share:.1%} of the input)", flush=True)


if __name__ == "__main__":
    main()
