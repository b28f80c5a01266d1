"""`saga workflow`: what the scheduler would learn from a workload, and how good its forecasts would be.

The first half of the tasks teaches, the second half is scored against naive guesses. It refuses to know how forecasts
are made (`saga.workflow`) and scored (`saga.bench.forecasts`).
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from saga.bench.forecasts import ForecastScores
    from saga.bench.tables import Table
    from saga.workloads.plan import Task, Workload

SCHEMA = 1


def workflow(
    trace_or_name: Annotated[str, typer.Argument(help="Built-in workload or path of a trace; see `saga workload`.")],
    kind: Annotated[
        str | None, typer.Option(help="Which kind of workflow to show [default: the one seen most].")
    ] = None,
    tasks: Annotated[int, typer.Option(help="Tasks at most; a trace is used once.")] = 1000,
    seed: Annotated[int, typer.Option(help="Order of the tasks.")] = 0,
    edges: Annotated[int, typer.Option(help="Edges to show, most frequent first.")] = 30,
    json: Annotated[bool, typer.Option("--json", help="Write scores and graph as JSON to standard output.")] = False,
    dot: Annotated[Path | None, typer.Option(help="Write the graph for Graphviz here.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw the graph here.")] = None,
) -> None:
    """Learn the workflow graph of a workload and judge its forecasts.

    saga workflow swe_bench

    saga workflow my_trace.jsonl --svg graph.svg
    """
    from saga.bench.files import write_whole
    from saga.bench.forecasts import evaluate
    from saga.cli.output import check_writable
    from saga.errors import UnknownName, UsageError
    from saga.workflow import render
    from saga.workloads.catalogue import workload
    from saga.workloads.limits import Limits

    for path, flag in ((dot, "--dot"), (svg, "--svg")):
        if path is not None:
            check_writable(path, flag)
    if tasks < 2:
        raise UsageError(f"--tasks {tasks}: must be at least 2, one to learn from and one to score")
    if edges < 1:
        raise UsageError(f"--edges {edges}: must be at least 1")
    source = workload(trace_or_name, Limits())
    scores, model = evaluate(_once(source, tasks, seed))
    shown = kind if kind is not None else max(model.kinds(), key=lambda name: model.graph(name).tasks)
    if shown not in model.kinds():
        raise UnknownName("kind of workflow", shown, model.kinds())
    graph = model.graph(shown)
    if dot is not None:
        write_whole(dot, render.to_dot(graph, edges))
    if svg is not None:
        write_whole(svg, render.to_svg(graph, edges))
    if json:
        arrows = [arrow._asdict() for arrow in render.arrows(graph, edges)]
        _write_json(source, scores, {"kind": shown, "sessions": graph.tasks, "edges": arrows})
        return
    sys.stdout.write(render.to_text(graph, edges) + "\n")
    _print(scores)


def _once(source: Workload, num_tasks: int, seed: int) -> list[Task]:
    """Up to `num_tasks` tasks, each recorded one at most once."""
    seen: set[str] = set()
    found: list[Task] = []
    for task in islice(source.tasks(num_tasks, seed), num_tasks):
        if task.source in seen:
            break
        seen.add(task.source)
        found.append(task)
    return found


def _print(scores: ForecastScores) -> None:
    from saga.cli.output import print_table

    for table in _tables(scores):
        print_table(table)
    if scores.below_p50 is not None and scores.below_p95 is not None:
        sys.stdout.write(
            f"Gaps within the forecast's median: {scores.below_p50:.1%} (50 % is right); "
            f"within its 95th percentile: {scores.below_p95:.1%} (95 %).\n"
        )


def _tables(scores: ForecastScores) -> list[Table]:
    """The figures beside the naive guess, and the reliability of the continue probability."""
    from saga.bench.tables import Table

    title = (
        f"forecasts, {scores.num_steps_scored} steps of {scores.num_tasks_scored} tasks "
        f"after {scores.num_tasks_taught} to learn from; smaller is better"
    )
    figures = tuple((row.figure, f"{row.model:.4g}", f"{row.naive:.4g}") for row in scores.figures)
    bins = tuple(
        (f"{row.low:.1f} - {row.high:.1f}", str(row.steps), f"{row.said:.3f}", f"{row.came:.3f}")
        for row in scores.reliability
    )
    return [
        Table(title, ("figure", "model", "naive guess"), figures),
        Table("will the session go on?", ("forecast", "steps", "said", "came"), bins),
    ]


def _write_json(source: Workload, scores: ForecastScores, graph: dict[str, object]) -> None:
    import msgspec

    record = asdict(scores)
    record["figures"] = [row._asdict() for row in scores.figures]
    record["reliability"] = [row._asdict() for row in scores.reliability]
    whole = {
        "schema": SCHEMA,
        "workload": source.name,
        "provenance": source.provenance,
        "scores": record,
        "graph": graph,
    }
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(whole), indent=2).decode() + "\n")
