"""`saga demo`: what SAGA does, on a laptop, in two minutes.

Two built-in workloads and, where recorded traces are at hand, two real ones; each under plain prefix caching, SAGA and
endless KV memory. It refuses to know more than `saga sim`, which it is a fixed set of.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga.cli.output import check_writable
from saga.errors import UsageError

if TYPE_CHECKING:
    from saga.cli.farm import Job

_PRESETS = ("vllm_apc", "saga", "infinite_kv")
_NUM_SEEDS = 4


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
    jobs: Annotated[int, typer.Option(help="Processes side by side.")] = 2,
    tasks: Annotated[int | None, typer.Option(help="Tasks per run [default: what fits into two minutes].")] = None,
) -> None:
    """Compare plain prefix caching with SAGA on two workloads, and on real traces where there are any.

    saga demo

    saga demo --shared ~/recordings --out demo.html
    """
    from saga.bench.report import check_installed, write_report
    from saga.cli.sim import compare

    check_installed()
    _make_folder(out.parent)
    check_writable(out, "--out")
    if jobs < 1:
        raise UsageError(f"--jobs {jobs}: must be at least 1")
    bases = [_job(scene, scene.workload, tasks) for scene in _BUILT_IN]
    bases += [_job(scene, str(path), tasks) for scene, path in _recordings(shared)]
    comparisons = compare(bases, _PRESETS, seeds=_NUM_SEEDS, jobs=jobs)
    for comparison in comparisons:
        comparison.show()
        typer.echo()
    write_report(out, "SAGA: a demonstration", [comparison.as_group() for comparison in comparisons])
    typer.echo(f"report: {out}")


def _job(scene: _Scene, workload: str, tasks: int | None) -> Job:
    """The scene as a run of the first preset."""
    from saga.cli.farm import Job
    from saga.sim.config import SimConfig
    from saga.workloads.plan import Limits

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


def _make_folder(folder: Path) -> None:
    """UsageError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot make the folder {folder}: {error.strerror}") from error
