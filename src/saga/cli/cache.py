"""`saga cache`: eviction policies against the offline optimum, on calls replayed without an engine.

Everything that can be wrong is checked before the first replay; an interrupted command writes what it has finished.
Refuses to know how a replay works (`saga.sim.cache_replay`) and how its figures are told (`saga.bench.cache_study`).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga.bench.files import write_whole
from saga.cli.output import as_json, check_writable, print_table
from saga.cli.selection import GapCap, MaxCalls, MaxContext, MinCalls, WorkloadName
from saga.errors import UsageError

if TYPE_CHECKING:
    from saga.sim.cache_replay import CacheConfig, CacheRun
    from saga.workloads.limits import Limits
    from saga.workloads.plan import Workload

SCHEMA = 1
_CACHE, _OUTPUT = "Cache", "Output"


def cache(
    workload: WorkloadName,
    policy: Annotated[
        str, typer.Option(help="Names with commas between; belady is always there, bound is a limit in device seconds.")
    ] = "lru,prefix_lru,ended_lru,ttl_lru,workflow_lru,next_use,reminded,belady,bound",
    pressure: Annotated[
        str, typer.Option(help="Agents x mean context / tokens of the cache; several with commas between.")
    ] = "1.5",
    replay: Annotated[
        str, typer.Option(help="pinned: calls in flight keep their blocks; free: anything may go; or both.")
    ] = "pinned,free",
    ends: Annotated[str, typer.Option(help="Whether policies are told that a session has ended: told or untold.")] = (
        "told"
    ),
    service: Annotated[
        str,
        typer.Option(help="How long calls last: recorded (where a trace says so, else modelled) or all modelled."),
    ] = "recorded",
    hardware: Annotated[
        str,
        typer.Option(
            help="Whose cost model says how long calls last: a name, or FILE.toml:NAME.", rich_help_panel=_CACHE
        ),
    ] = "llama3-70b-a100x4",
    kv_tokens: Annotated[
        int | None, typer.Option(help="Tokens of the cache [default: by hardware].", rich_help_panel=_CACHE)
    ] = None,
    block_tokens: Annotated[int, typer.Option(help="Tokens of a block.", rich_help_panel=_CACHE)] = 16,
    max_context: MaxContext = None,
    min_calls: MinCalls = 1,
    max_calls: MaxCalls = None,
    gap_cap_s: GapCap = None,
    tasks: Annotated[int | None, typer.Option(help="Tasks per replay [default: ten per agent, at least 500].")] = None,
    seeds: Annotated[int, typer.Option(help="Replays of each kind, each with its own tasks.")] = 3,
    json: Annotated[Path | None, typer.Option(help="Write all figures here.", rich_help_panel=_OUTPUT)] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report here.", rich_help_panel=_OUTPUT)] = None,
) -> None:
    """Replay a workload against caches alone: what eviction policies compute again, beside what they must.

    Policies: lru, prefix_lru, ended_lru, ttl_lru, workflow_lru, next_use, reminded; belady, the optimum; bound, a limit
    in device seconds.

    saga cache --workload swe_bench --pressure 1.2,1.5,2,3

    saga cache --workload my_trace.jsonl --policy lru,next_use --replay free --ends untold --report cache.html
    """
    from saga.sim.cache_replay import LEAST_SHARE, CacheConfig, check_policies
    from saga.workloads.catalogue import workload as load
    from saga.workloads.limits import Limits

    names = check_policies(_split("--policy", policy))
    if ends not in {"told", "untold"}:
        raise UsageError(f"--ends {ends}: expected told or untold")
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: must be at least 1")
    replays, pressures = _split("--replay", replay), _numbers("--pressure", pressure)
    _check_outputs({"--json": json, "--report": report})
    configs = [
        CacheConfig(
            workload=workload,
            pressure=one,
            replay=kind,  # type: ignore[arg-type]  # checked there
            ends=ends == "told",
            service=service,  # type: ignore[arg-type]  # checked there
            tasks=tasks if tasks is not None else 1,
            hardware=hardware,
            kv_tokens=kv_tokens,
            block_tokens=block_tokens,
        )
        for kind in replays
        for one in pressures
    ]
    limits = Limits(max_context_tokens=max_context, min_calls=min_calls, max_calls=max_calls, gap_cap_s=gap_cap_s)
    source = load(workload, limits, kv_tokens=configs[0].capacity_tokens)
    if tasks is None:
        configs = [
            dataclasses.replace(one, tasks=_enough(one.num_agents(source.mean_context_tokens))) for one in configs
        ]
    study = _Study(configs, limits, source, names, seeds)
    try:
        study.run()
    finally:
        if study.rows:
            study.show(LEAST_SHARE)
            study.write(json, report, LEAST_SHARE)


def _add(show: Callable[[int], None], before: int, done: int) -> None:
    show(before + done)


def _enough(num_agents: int) -> int:
    """Tasks that keep the load steady for long enough."""
    return max(500, 10 * num_agents)


class _Study:
    """All replays that were asked for, and what has come out so far."""

    def __init__(
        self, configs: Sequence[CacheConfig], limits: Limits, source: Workload, names: Sequence[str], seeds: int
    ) -> None:
        self._configs = configs
        self._limits = limits
        self._source = source
        self._names = names
        self._seeds = seeds
        self._num_runs = self._num_calls = self._num_recorded = 0
        self._caveats: dict[str, None] = {}
        self.rows: list[dict[str, object]] = []

    def run(self) -> None:
        """One replay after the other."""
        from saga.sim.cache_replay import num_steps, replay_cache

        steps = num_steps(self._names)
        with _progress(steps * len(self._configs) * self._seeds) as show:
            for config in self._configs:
                for seed in range(self._seeds):
                    one = dataclasses.replace(config, seed=seed)
                    run = replay_cache(one, self._source, self._names, partial(_add, show, steps * self._num_runs))
                    self.rows += _rows(run, self._names)
                    self._num_runs += 1
                    self._num_calls += run.num_calls
                    self._num_recorded += run.num_recorded
                    if not run.steady:
                        self._caveats[_too_few(run)] = None

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for is there."""
        return self._num_runs == len(self._configs) * self._seeds

    def notes(self) -> list[str]:
        """What must be known about the figures."""
        notes = [
            self._source.provenance,
            self._setting(),
        ]
        if self._source.skipped.reasons:
            left_out = ", ".join(f"{count} sessions ({why})" for why, count in self._source.skipped.reasons.items())
            notes.append(f"left out: {left_out}")
        if not self.complete:
            notes.append(f"interrupted: {self._num_runs} of {len(self._configs) * self._seeds} replays are here")
        return [*notes, *self._caveats]

    def _setting(self) -> str:
        first = self._configs[0]
        cache = f"cache of {first.capacity_tokens:,} tokens in blocks of {first.block_tokens}"
        ends = "told" if first.ends else "untold"
        return f"{cache}, {self._lasting(first.hardware)}; ends of sessions {ends}"

    def _lasting(self, hardware: str) -> str:
        """How long calls lasted."""
        from saga.bench.tables import write_share

        if not self._num_recorded:
            return f"calls as long as on {hardware}"
        if self._num_recorded == self._num_calls:
            return "calls as long as recorded"
        share = write_share(self._num_recorded / self._num_calls)
        return f"{share} of calls as long as recorded, the others as on {hardware}"

    def show(self, least_share: float) -> None:
        """Print tables and sentences."""
        from saga.bench.cache_study import cache_meaning, cache_tables, summarise_cache

        summary = summarise_cache(self.rows)
        typer.echo(f"{self._source.name}: " + "\n".join(self.notes()) + "\n")
        for table in cache_tables(summary, self._seeds):
            print_table(table)
        for sentence in cache_meaning(summary, least_share):
            typer.echo(sentence)

    def write(self, json: Path | None, report: Path | None, least_share: float) -> None:
        """Write the files that were asked for."""
        from saga.bench.cache_study import summarise_cache, write_cache_report

        summary = summarise_cache(self.rows)
        if json is not None:
            varying = {"pressure", "replay", "seed", "tasks"}
            config = {key: value for key, value in dataclasses.asdict(self._configs[0]).items() if key not in varying}
            document = {
                "schema": SCHEMA,
                "kind": "simulated",
                "complete": self.complete,
                "workload": self._source.name,
                "config": config | {"limits": dataclasses.asdict(self._limits)},
                "notes": self.notes(),
                "runs": self.rows,
                "summary": summary,
            }
            write_whole(json, as_json(document))
        if report is not None:
            write_cache_report(
                report, self._source.name, self.notes(), summary, num_seeds=self._seeds, least_share=least_share
            )
            typer.echo(f"report: {report}")


def _rows(run: CacheRun, names: Sequence[str]) -> list[dict[str, object]]:
    """The runs' objects in the JSON: Belady always, whatever else was asked for in its order."""
    from saga.sim.cache_replay import BELADY, BOUND

    config = run.config
    where: dict[str, object] = {
        "replay": config.replay,
        "pressure": config.pressure,
        "seed": config.seed,
        "tasks": config.tasks,
        "agents": run.num_agents,
        "calls": run.num_calls,
        "recorded_calls": run.num_recorded,
        "distinct_blocks": run.num_distinct_blocks,
    }
    rows = []
    for name in dict.fromkeys((*names, BELADY)):
        if name == BOUND:
            figures = dict.fromkeys(("hit_share", "regenerated_share", "regenerated_tokens", "ratio"))
            rows.append(where | {"policy": BOUND} | figures | {"regenerated_s": run.bound_s, "over_bound": 1.0})
            continue
        tally = run.tallies[name]
        rows.append(
            where
            | {"policy": name}
            | dataclasses.asdict(tally)
            | {
                "hit_share": tally.hit_tokens / tally.input_tokens,
                "regenerated_share": tally.regenerated_tokens / tally.input_tokens,
                "ratio": run.ratio(name),
                "over_bound": tally.regenerated_s / run.bound_s if run.bound_s else None,
            }
        )
    return rows


def _too_few(run: CacheRun) -> str:
    return (
        f"there are no more tasks ({run.config.tasks}) than agents ({run.num_agents}): the cache fills and empties; "
        "more tasks would give a steady load"
    )


def _split(flag: str, text: str) -> list[str]:
    """What is between the commas, each once; UsageError where there is nothing."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise UsageError(f"{flag} {text!r}: the sweep is empty; name at least one")
    if len(set(found)) < len(found):
        raise UsageError(f"{flag} {text}: something is named twice; name each once")
    return found


def _numbers(flag: str, text: str) -> list[float]:
    numbers = []
    for part in _split(flag, text):
        try:
            numbers.append(float(part))
        except ValueError:
            raise UsageError(f"{flag} {part!r}: is not a number; expected numbers with commas between") from None
    return numbers


def _check_outputs(paths: dict[str, Path | None]) -> None:
    """Every file can be written, none is named twice."""
    wanted = {flag: path for flag, path in paths.items() if path is not None}
    for flag, path in wanted.items():
        check_writable(path, flag)
    if len({path.resolve() for path in wanted.values()}) < len(wanted):
        raise UsageError(f"{', '.join(wanted)}: the same file is named twice; name each output differently")
    if "--report" in wanted:
        from saga.bench.drawing import check_installed

        check_installed()


@contextmanager
def _progress(num_steps: int) -> Iterator[Callable[[int], None]]:
    """A bar over the policies of all replays on a terminal; one plain line elsewhere."""
    from rich.console import Console

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        console.print(f"replaying: {num_steps} steps ...", highlight=False, soft_wrap=True)
        yield lambda _done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        row = bar.add_task("replaying", total=num_steps)
        yield lambda done: bar.update(row, completed=done)
