"""Profiles are like the traces they were fitted to, and carry no more than numbers with a provenance."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from saga.workloads.catalogue import workload
from saga.workloads.describe import describe
from saga.workloads.limits import Fit, Limits
from saga.workloads.profiles import PROFILES, START, profile
from saga.workloads.quantiles import KNOTS
from saga.workloads.traces import TraceWorkload

SOURCES = {
    "claude_code": "weka_cc_a.jsonl.gz",
    "swe_agent": "sweagent_gpt4.jsonl",
    "tool_service": "taubench_airline.jsonl",
    "browser": "webvoyager_browseruse.jsonl",
    "chat": "mooncake_conversation.jsonl.gz",
}


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_whole(name: str) -> None:
    """Provenance is complete, shares and transitions sum to one, tables have a value per knot."""
    fitted = profile(name)
    source = fitted.provenance
    assert all((source.trace, source.origin, source.licence))
    assert len(source.commit) == 40
    assert sum(mode.share for mode in fitted.modes.values()) == pytest.approx(1.0, abs=1e-3)
    for row in fitted.transitions.values():
        assert sum(row.values()) == pytest.approx(1.0, abs=1e-3)
    assert START in fitted.transitions
    tables = [fitted.num_calls, fitted.first_tokens, fitted.output_tokens, *fitted.gaps_s.values()]
    assert all(len(table) == len(KNOTS) for table in tables)


@pytest.mark.parametrize("name", PROFILES)
def test_plans_keep_the_contract(name: str) -> None:
    """Paths sum to prompts without empty pieces, answers have tokens, the last call answers the user."""
    for task in workload(name, Limits()).tasks(40, 2):
        calls = task.sessions[0].calls
        assert calls[-1].tools == ()
        for call in calls:
            assert sum(tokens for _, tokens in call.path) == call.prompt_tokens
            assert all(tokens > 0 for _, tokens in call.path)
            assert call.output_tokens >= 1
            assert call.gap_s >= 0.0
        for before, call in pairwise(calls):
            assert call.common_tokens <= before.prompt_tokens + before.output_tokens


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_like_its_source(shared_dir: Path, name: str) -> None:
    """Mean context, lengths, gaps and reuse of some thousand drawn calls are near those of the trace."""
    trace = TraceWorkload(shared_dir / "traces" / SOURCES[name], Fit(Limits()))
    source, drawn = (
        describe(trace, len(trace.recorded)),
        describe(workload(name, Limits()), 6_000 if name == "chat" else 600),
    )
    assert drawn.mean_context_tokens == pytest.approx(source.mean_context_tokens, rel=0.20)
    assert drawn.calls_per_session.mean == pytest.approx(source.calls_per_session.mean, rel=0.15)
    assert drawn.input_tokens.p50 == pytest.approx(source.input_tokens.p50, rel=0.20)
    assert drawn.input_tokens.p95 == pytest.approx(source.input_tokens.p95, rel=0.35)
    assert drawn.output_tokens.p50 == pytest.approx(source.output_tokens.p50, rel=0.10)
    assert drawn.output_tokens.p95 == pytest.approx(source.output_tokens.p95, rel=0.10)
    assert drawn.reuse.all == pytest.approx(source.reuse.all, abs=0.03)
    for kind, gap in source.gaps_s.items():
        assert drawn.gaps_s[kind].p50 == pytest.approx(gap.p50, rel=0.25)
        assert drawn.gaps_s[kind].count / drawn.num_calls == pytest.approx(gap.count / source.num_calls, abs=0.06)
