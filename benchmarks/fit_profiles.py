"""Fit the built-in profiles to recorded traces.

Use: python benchmarks/fit_profiles.py TRACES_FOLDER

Writes src/saga/workloads/data/*.json: quantiles, shares and correlations, with the provenance of the trace. No row of
a trace is kept.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np

from saga.workloads.catalogue import workload
from saga.workloads.limits import Limits
from saga.workloads.plan import Call, SessionPlan
from saga.workloads.profiles import START, USER, Mode, Profile, Provenance
from saga.workloads.quantiles import fit
from saga.workloads.traces import TraceWorkload

DATA = Path(__file__).resolve().parent.parent / "src" / "saga" / "workloads" / "data"
MAX_TOOLS = 12  # tools beyond the most frequent are "other"
TRIM_KEEPS = 0.5  # a prompt that keeps more of the context only trims it

SOURCES = {
    "claude_code": (
        "weka_cc_a.jsonl.gz",
        Provenance(
            trace="weka_cc_a",
            origin="callanjfox/kv-cache-tester, traces/*.json",
            commit="94f6046dfd9c0c8bc0cdb24a5aa6579bac8669bf",
            licence="Apache-2.0",
            note="gaps are whole seconds, client gaps; sharing of the system prompt between sessions is not visible",
        ),
    ),
    "swe_agent": (
        "sweagent_gpt4.jsonl",
        Provenance(
            trace="sweagent_gpt4",
            origin="AutoCodeRoverSG/auto-code-rover, results/swe-agent-results/cost_2_1/*.traj",
            commit="585d3e639aeda58ef0b6a151dd1cc2721a94d267",
            licence="Sonar Source-Available 1.0 (repository); aggregate figures only",
            note="the trace has no times: gaps by class of tool from the paper's table",
        ),
    ),
    "tool_service": (
        "taubench_airline.jsonl",
        Provenance(
            trace="taubench_airline",
            origin="sierra-research/tau-bench, historical_trajectories/gpt-4o-airline.json",
            commit="59a200c6d575d595120f1cb70fea53cef0632f6b",
            licence="MIT",
            note="the trace has no times: tool gaps from the paper's table, a person's from mooncake_conversation",
        ),
    ),
    "browser": (
        "webvoyager_browseruse.jsonl",
        Provenance(
            trace="webvoyager_browseruse",
            origin="nottelabs/open-operator-evals, WebVoyager30/BrowserUse/**/results_no_screenshot.json",
            commit="50f8e472230cbcc9c4ff24e1e8ed5ae42683b238",
            licence="none stated; aggregate figures only",
            note="gaps are step times less an estimate of the model's",
        ),
    ),
    "chat": (
        "mooncake_conversation.jsonl.gz",
        Provenance(
            trace="mooncake_conversation",
            origin="kvcache-ai/Mooncake, FAST25-release/traces/conversation_trace.jsonl",
            commit="3b5a594133958449a1feaf1c9e0fc1b553e34a28",
            licence="Apache-2.0",
            note="sessions recovered from block ids, gaps estimated from arrivals",
        ),
    ),
}
TIMELESS = {"swe_agent", "tool_service"}


def main(folder: Path) -> None:
    """Fit and write every profile."""
    DATA.mkdir(exist_ok=True)
    for name, (file, provenance) in SOURCES.items():
        source = workload(str(folder / file), Limits())
        assert isinstance(source, TraceWorkload)
        sessions = [session for task in source.recorded for session in task.sessions]
        text = msgspec.json.encode(fitted(name, provenance, sessions))
        (DATA / f"{name}.json").write_bytes(msgspec.json.format(text, indent=1) + b"\n")
        print(f"{name}: {len(sessions)} sessions, {source.mean_context_tokens:,.0f} tokens mean context")


def fitted(name: str, provenance: Provenance, sessions: list[SessionPlan]) -> Profile:
    """The profile of these recorded sessions."""
    calls = [call for session in sessions for call in session.calls]
    tools = {tool for tool, _ in Counter(_tool(call) for call in calls).most_common(MAX_TOOLS)} | {USER}
    alike, along = _growth(sessions)
    return Profile(
        name=name,
        provenance=provenance,
        num_calls=_table([len(session.calls) for session in sessions]),
        first_tokens=_table([session.calls[0].prompt_tokens for session in sessions]),
        output_tokens=_table([call.output_tokens for call in calls]),
        system_tokens=_system_tokens(sessions),
        modes=_modes(sessions),
        growth_alike=alike,
        growth_and_calls=along,
        gaps_s={} if name in TIMELESS else _gaps(sessions, tools),
        transitions=_transitions(sessions, tools),
    )


def _table(values: Iterable[float]) -> tuple[float, ...]:
    return fit(list(values)).values


def _tool(call: Call) -> str:
    return "+".join(call.tools) or USER


def _pairs(sessions: list[SessionPlan]) -> Iterable[tuple[Call, Call]]:
    return ((before, call) for session in sessions for before, call in pairwise(session.calls))


def _system_tokens(sessions: list[SessionPlan]) -> int:
    """What at least half of the sessions share with others at their front."""
    return int(np.median([session.calls[0].shared_tokens for session in sessions]))


def _modes(sessions: list[SessionPlan]) -> dict[str, Mode]:
    """Shares and tables of the steps that extend the context, trim its end, or rewrite most of it."""
    steps: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for before, call in _pairs(sessions):
        context = before.prompt_tokens + before.output_tokens
        kept = call.common_tokens
        mode = "extend" if kept == context else "trim" if kept >= TRIM_KEEPS * context else "rewrite"
        steps[mode].append((context, kept, call.prompt_tokens - kept))
    total = sum(len(found) for found in steps.values())
    return {
        mode: Mode(
            share=round(len(found) / total, 5),
            new_tokens=_table(new for _, _, new in found),
            kept=_table(kept / context for context, kept, _ in found) if mode == "rewrite" else (),
            dropped=_table(context - kept for context, kept, _ in found) if mode == "trim" else (),
        )
        for mode, found in sorted(steps.items())
    }


def _growth(sessions: list[SessionPlan]) -> tuple[float, float]:
    """Intra-class correlation of log growth, and the correlation of its session mean with the log number of calls."""
    grown = [
        [math.log1p(call.prompt_tokens - call.common_tokens) for call in session.calls[1:]]
        for session in sessions
        if len(session.calls) > 3
    ]
    alike = 1 - np.mean([np.var(steps) for steps in grown]) / np.var(np.concatenate(grown))
    along = np.corrcoef([math.log(len(steps)) for steps in grown], [np.mean(steps) for steps in grown])[0, 1]
    return round(float(max(alike, 0.0)), 3), round(float(along), 3)


def _gaps(sessions: list[SessionPlan], tools: set[str]) -> dict[str, tuple[float, ...]]:
    seconds: dict[str, list[float]] = defaultdict(list)
    for before, call in _pairs(sessions):
        tool = USER if call.gap_kind == "user" else _tool(before)
        seconds[tool if tool in tools else "other"].append(call.gap_s)
    return {tool: _table(found) for tool, found in sorted(seconds.items())}


def _transitions(sessions: list[SessionPlan], tools: set[str]) -> dict[str, dict[str, float]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for session in sessions:
        names = [START, *(_tool(call) for call in session.calls[:-1])]
        for before, tool in pairwise(names):
            counts[before if before in tools or before == START else "other"][tool if tool in tools else "other"] += 1
    return {
        before: {tool: round(count / found.total(), 5) for tool, count in found.most_common()}
        for before, found in sorted(counts.items())
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
