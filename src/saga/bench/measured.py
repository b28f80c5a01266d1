"""What a replay measured: one dictionary per run, with units in its names, and the table that people read.

A run has the keys of a simulated one where they mean the same (`preset` is the label of the URL), so that the same
statistics apply. It refuses to know how the calls were made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from saga.bench.openai_client import Measured
from saga.bench.tables import (
    RunObject,
    SummaryObject,
    Table,
    best_rival,
    mean_figure,
    presets_of,
    summarise,
    time_sentence,
    write_count,
    write_seconds,
    write_share,
    write_speedup,
)


@dataclass(slots=True)
class TaskTime:
    """One task that was run to its end, or failed on the way. Seconds."""

    tenant: str
    tct_s: float
    failed: bool


@dataclass(slots=True)
class RunRecord:
    """Everything that one run saw. num_tasks: asked for. wall_s: first call to last answer."""

    label: str
    url: str
    repeat: int
    seed: int
    num_tasks: int
    calls: list[Measured] = field(default_factory=list)
    tasks: list[TaskTime] = field(default_factory=list)
    wall_s: float = 0.0
    partial: bool = False

    def figures(self) -> dict[str, object]:
        """The run's object in the JSON."""
        tenants = sorted({task.tenant for task in self.tasks})
        found: dict[str, object] = {
            "preset": self.label,
            "url": self.url,
            "seed": self.seed + self.repeat,
            "repeat": self.repeat,
            "partial": self.partial,
            "wall_s": self.wall_s,
            **_figures(self.calls, self.tasks),
        }
        done = sum(1 for task in self.tasks if not task.failed)
        found["tasks_per_min"] = 60.0 * done / self.wall_s if self.wall_s > 0 else 0.0
        found["errors_by_kind"] = dict(Counter(call.error for call in self.calls if call.error))
        found["calls_by_worker"] = dict(sorted(Counter(call.worker for call in self.calls if call.worker).items()))
        found["tenants"] = {
            tenant: _figures(
                [call for call in self.calls if call.tenant == tenant],
                [task for task in self.tasks if task.tenant == tenant],
            )
            for tenant in tenants
        }
        return found


def _figures(calls: Sequence[Measured], tasks: Sequence[TaskTime]) -> dict[str, object]:
    """Figures of these calls and tasks; what nobody told is left out."""
    good = [call for call in calls if not call.error]
    found: dict[str, object] = {"tasks_completed": sum(1 for task in tasks if not task.failed)}
    found["tasks_failed"] = len(tasks) - sum(1 for task in tasks if not task.failed)
    found |= _spread("tct", [task.tct_s for task in tasks if not task.failed], mean=True)
    found |= _spread("ttft", [call.ttft_s for call in good], mean=True)
    found |= _spread("call", [call.total_s for call in good], mean=True)
    found |= _spread("queued", [call.queued_s for call in good], mean=True)
    found |= {"calls": len(calls), "errors": len(calls) - len(good), "retries": sum(call.retries for call in calls)}
    told = [call for call in good if call.prompt_tokens is not None]
    if told:
        input_tokens = sum(call.prompt_tokens or 0 for call in told)
        found |= {"input_tokens": input_tokens, "output_tokens": sum(call.output_tokens or 0 for call in told)}
        if any(call.cached_tokens is not None for call in told):
            cached = sum(call.cached_tokens or 0 for call in told)
            found |= {"cached_tokens": cached, "prefix_hit_share": cached / max(1, input_tokens)}
    return found


def _spread(name: str, values: Sequence[float | None], *, mean: bool) -> dict[str, float]:
    seconds = np.array([value for value in values if value is not None])
    if not seconds.size:
        return {}
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99])
    found = {f"{name}_mean_s": float(seconds.mean())} if mean else {}
    return found | {f"{name}_p50_s": float(p50), f"{name}_p95_s": float(p95), f"{name}_p99_s": float(p99)}


def _milliseconds(value: float) -> str:
    return f"{1e3 * value:,.0f}" if value >= 0.1 else f"{1e3 * value:.1f}"


_ROWS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("tct_mean_s", "TCT mean s", write_seconds),
    ("tct_p50_s", "TCT p50 s", write_seconds),
    ("tct_p95_s", "TCT p95 s", write_seconds),
    ("tct_p99_s", "TCT p99 s", write_seconds),
    ("tasks_completed", "tasks completed", write_count),
    ("tasks_failed", "tasks failed", write_count),
    ("tasks_per_min", "tasks/min", write_seconds),
    ("ttft_p50_s", "TTFT p50 ms", _milliseconds),
    ("ttft_p95_s", "TTFT p95 ms", _milliseconds),
    ("ttft_p99_s", "TTFT p99 ms", _milliseconds),
    ("call_p50_s", "call p50 ms", _milliseconds),
    ("call_p95_s", "call p95 ms", _milliseconds),
    ("queued_p50_s", "queued p50 ms", _milliseconds),
    ("queued_p95_s", "queued p95 ms", _milliseconds),
    ("calls", "calls", write_count),
    ("input_tokens", "input tokens", write_count),
    ("output_tokens", "output tokens", write_count),
    ("prefix_hit_share", "input cached", write_share),
    ("errors", "errors", write_count),
    ("retries", "retries", write_count),
)
_TENANT_ROWS = (
    "tasks_completed",
    "tct_mean_s",
    "tct_p95_s",
    "ttft_p50_s",
    "queued_p50_s",
    "prefix_hit_share",
    "errors",
)


def summary_of(runs: Sequence[RunObject]) -> list[dict[str, object]]:
    """One object per URL: means over its repeats, and the speed-up over the first URL, paired by repeat."""
    found = []
    for row in summarise(runs):
        mine = [run for run in runs if run["preset"] == row["preset"]]
        means = {key: value for key, _, _ in _ROWS if (value := mean_figure(mine, key)) is not None}
        found.append({**row, "url": mine[0]["url"], "runs": len(mine), **means})
    return found


def measured_table(runs: Sequence[RunObject], summary: Sequence[SummaryObject]) -> Table:
    """One column per URL, one row per figure, mean over repeats."""
    labels = presets_of(runs)
    rows = []
    if len(labels) > 1:
        speedups = {str(row["preset"]): write_speedup(row) for row in summary}
        rows.append(("speed-up", *(speedups[label] for label in labels)))
    groups = [[run for run in runs if run["preset"] == label] for label in labels]
    for key, header, write in _ROWS:
        values = [mean_figure(group, key) for group in groups]
        if any(value is not None for value in values):
            rows.append((header, *("-" if value is None else write(value) for value in values)))
    repeats = max(len(group) for group in groups)
    title = f"measured, mean over {repeats} runs" if repeats > 1 else "measured, one run: no interval"
    return Table(title, ("", *labels), tuple(rows))


def measured_meaning(runs: Sequence[RunObject], summary: Sequence[SummaryObject]) -> list[str]:
    """Two plain sentences: completion time, and what the engines' caches served. Empty with one server."""
    base = presets_of(runs)[0]
    row = best_rival(runs, summary, bound="")
    if row is None:
        return []
    sentences = [time_sentence(runs, base, row, kind="measured")]
    names = (base, str(row["preset"]))
    cached = [mean_figure([run for run in runs if run["preset"] == name], "prefix_hit_share") for name in names]
    if cached[0] is not None and cached[1] is not None:
        before, after = (write_share(share) for share in cached if share is not None)
        sentences.append(f"{names[0]} found {before} of all prompt tokens in the engines' caches, {names[1]} {after}.")
    return sentences


def measured_tenants(runs: Sequence[RunObject]) -> Table | None:
    """One row per URL and tenant, mean over repeats; None where there are fewer than two tenants."""
    tenants = sorted({name for run in runs for name in _tenants(run)})
    if len(tenants) < 2:
        return None
    columns = [row for row in _ROWS if row[0] in _TENANT_ROWS]
    rows = []
    for label in presets_of(runs):
        for tenant in tenants:
            mine = [_tenants(run)[tenant] for run in runs if run["preset"] == label and tenant in _tenants(run)]
            values = [mean_figure(mine, key) for key, _, _ in columns]
            cells = [
                "-" if value is None else write(value) for value, (_, _, write) in zip(values, columns, strict=True)
            ]
            rows.append((label, tenant, *cells))
    return Table("measured, by tenant", ("server", "tenant", *(header for _, header, _ in columns)), tuple(rows))


def _tenants(run: RunObject) -> dict[str, RunObject]:
    tenants = run.get("tenants")
    return tenants if isinstance(tenants, dict) else {}
