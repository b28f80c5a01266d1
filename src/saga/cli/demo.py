"""`saga demo`: what SAGA does, on a laptop, in two minutes.

Simulated: two built-in workloads and, where recorded traces are at hand, two real ones; each under plain prefix
caching, SAGA and endless KV memory. Then live: real gateways over modelled engines (`saga.cli.live`). It refuses to
know more than `saga sim` and `saga replay`, which it is a fixed set of.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga.cli.output import as_json, check_writable
from saga.errors import UsageError

if TYPE_CHECKING:
    from saga.cli.farm import Job
    from saga.cli.live import LiveComparison
    from saga.cli.sim import Comparison

SCHEMA = 1

_PRESETS = ("vllm_apc", "saga", "infinite_kv")
_TITLE = "SAGA: a demonstration"
_NUM_SEEDS = 3


@dataclass(frozen=True)
class _Scene:
    """One workload of the demo; its fields mean what they mean in `saga sim`. The load is the same for all."""

    workload: str
    oversubscription: float = 1.2
    tasks: int = 160
    workers: int = 2
    max_context: int | None = None
    min_calls: int = 1
    max_calls: int | None = None
    gap_cap_s: float | None = None


def _people_at_work(workload: str) -> _Scene:
    """A coding assistant that people use: without lunch breaks and without sessions of days."""
    return _Scene(workload, max_context=150_000, min_calls=2, max_calls=120, gap_cap_s=300.0)


_BUILT_IN = (_Scene("swe_bench"), _people_at_work("claude_code"))
_RECORDED = (_Scene("agentcgroup_haiku.jsonl"), _people_at_work("weka_cc_a.jsonl.gz"))


def demo(
    shared: Annotated[
        Path | None, typer.Option(help="Folder that holds traces/ with real recordings.", envvar="SAGA_SHARED")
    ] = None,
    out: Annotated[Path, typer.Option(help="The report.")] = Path("out/demo.html"),
    json: Annotated[Path | None, typer.Option(help="Write all figures here.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes side by side.")] = 2,
    tasks: Annotated[int | None, typer.Option(help="Tasks per run [default: what fits into two minutes].")] = None,
    live: Annotated[bool, typer.Option(help="Then live, through gateways and modelled engines.")] = True,
) -> None:
    """Compare plain prefix caching with SAGA: simulated on two workloads (and on real traces), then live over HTTP.

    saga demo

    saga demo --shared ~/recordings --out demo.html --json demo.json --no-live
    """
    from saga.bench.drawing import check_installed
    from saga.bench.files import write_whole
    from saga.bench.report import write_report
    from saga.cli.sim import compare

    check_installed()
    for path, flag in ((out, "--out"), (json, "--json")):
        if path is not None:
            _make_folder(path.parent, flag)
            check_writable(path, flag)
    if jobs < 1:
        raise UsageError(f"--jobs {jobs}: must be at least 1")
    bases = [_job(scene, scene.workload, tasks) for scene in _BUILT_IN]
    bases += [_job(scene, str(path), tasks) for scene, path in _recordings(shared)]
    comparisons = compare(bases, _PRESETS, seeds=_NUM_SEEDS, jobs=jobs)
    for comparison in comparisons:
        comparison.show()
        typer.echo()
    groups = [comparison.as_group() for comparison in comparisons]
    write_report(out, _TITLE, groups)
    measured = _live(tasks) if live else None
    if measured is not None:
        write_report(out, _TITLE, [*groups, measured.as_group()])
    if json is not None:
        write_whole(json, as_json(_document(comparisons, measured)))
    typer.echo(f"report: {out}")


def _live(tasks: int | None) -> LiveComparison:
    """The measured part; no more tasks per run than asked for."""
    from saga.cli.live import LiveScene, play

    scene = LiveScene()
    scene = scene if tasks is None else replace(scene, tasks=min(tasks, scene.tasks))
    typer.echo(f"live now: {' and '.join(scene.fronts)} in turns, about 40 s ...\n", err=True)
    measured = play(scene)
    measured.show()
    typer.echo()
    return measured


def _document(comparisons: Sequence[Comparison], measured: LiveComparison | None) -> dict[str, object]:
    """Everything, schema 1: what `saga sim --json` and `saga replay --json` write, together."""
    return {
        "schema": SCHEMA,
        "simulated": [comparison.as_document() for comparison in comparisons],
        "measured": None if measured is None else measured.document,
    }


def _job(scene: _Scene, workload: str, tasks: int | None) -> Job:
    """The scene as a run of the first preset."""
    from saga.cli.farm import Job
    from saga.sim.config import SimConfig
    from saga.workloads.limits import Limits

    config = SimConfig(
        preset=_PRESETS[0],
        workload=workload,
        workers=scene.workers,
        oversubscription=scene.oversubscription,
        tasks=scene.tasks if tasks is None else tasks,
        detail=True,
    )
    return Job(config, Limits(scene.max_context, scene.min_calls, scene.max_calls, scene.gap_cap_s))


def _recordings(shared: Path | None) -> list[tuple[_Scene, Path]]:
    """The recorded scenes whose file is there; a line says so where one is not."""
    if shared is None:
        typer.echo("no recorded traces given (--shared or SAGA_SHARED): built-in workloads only\n", err=True)
        return []
    found = [(scene, shared / "traces" / scene.workload) for scene in _RECORDED]
    for _, path in found:
        if not os.access(path, os.R_OK):
            typer.echo(f"not there, left out: {path}", err=True)
    return [(scene, path) for scene, path in found if os.access(path, os.R_OK)]


def _make_folder(folder: Path, flag: str) -> None:
    """UsageError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{flag}: cannot make the folder {folder}: {error.strerror}") from error
