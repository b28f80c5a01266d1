"""The paper's three workloads have the shapes that their docstrings promise."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from saga.workloads.catalogue import workload
from saga.workloads.generators import TENANT_RATES_PER_MIN, BurstyArrivals
from saga.workloads.limits import Limits
from saga.workloads.plan import Call, Task


def _tasks(name: str, num_tasks: int = 300, seed: int = 3) -> list[Task]:
    return list(workload(name, Limits()).tasks(num_tasks, seed))


def _calls(tasks: list[Task]) -> list[Call]:
    return [call for task in tasks for call in task.sessions[0].calls]


@pytest.mark.parametrize("name", ["swe_bench", "web_arena", "ten_tenants"])
def test_plans_keep_the_contract(name: str) -> None:
    """Paths sum to prompts, answers have tokens, gaps are not negative, the last call answers the user."""
    for task in _tasks(name, 60):
        calls = task.sessions[0].calls
        assert calls[0].gap_s == 0.0
        assert calls[-1].tools == ()
        for call in calls:
            assert sum(tokens for _, tokens in call.path) == call.prompt_tokens
            assert call.output_tokens >= 1
            assert call.gap_s >= 0.0
            assert call.common_tokens < call.prompt_tokens


def test_swe_bench_is_as_documented() -> None:
    """Calls, first prompts, answers and tool shares lie where the docstring puts them."""
    tasks = _tasks("swe_bench")
    calls = _calls(tasks)
    firsts = [task.sessions[0].calls[0] for task in tasks]
    assert 36.0 <= len(calls) / len(tasks) <= 37.0
    assert all(2_500 <= call.prompt_tokens <= 4_500 and call.path[0] == (0, 1_800) for call in firsts)
    assert all(100 <= call.output_tokens <= 500 for call in calls)
    assert np.mean([call.output_tokens for call in calls]) < 300
    tools = Counter(call.tools[0] for call in calls if call.tools)
    shares = [tools[name] / tools.total() for name in ("code", "file", "database")]
    assert shares == pytest.approx([0.50, 0.45, 0.05], abs=0.02)
    appended = [
        after.prompt_tokens - before.prompt_tokens - before.output_tokens
        for task in tasks
        for before, after in pairwise(task.sessions[0].calls)
    ]
    assert np.median(appended) == pytest.approx(430, rel=0.05)
    assert max(appended) <= 6_000


def test_swe_bench_only_appends() -> None:
    """Every prompt extends the whole context before it."""
    for task in _tasks("swe_bench", 40):
        for before, after in pairwise(task.sessions[0].calls):
            assert after.common_tokens == before.prompt_tokens + before.output_tokens


def test_web_arena_prompts_stay_between_four_and_eight_thousand() -> None:
    """Each prompt has 4,000-8,000 tokens, about 18 calls a task; a rewrite keeps the first prompt."""
    tasks = _tasks("web_arena")
    calls = _calls(tasks)
    assert 17.0 <= len(calls) / len(tasks) <= 19.0
    assert all(4_000 <= call.prompt_tokens <= 8_000 for call in calls)
    assert all(50 <= call.output_tokens <= 200 for call in calls)
    rewrites = 0
    for task in tasks:
        first = task.sessions[0].calls[0].prompt_tokens
        for before, after in pairwise(task.sessions[0].calls):
            extends = after.common_tokens == before.prompt_tokens + before.output_tokens
            assert extends or after.common_tokens == first
            rewrites += not extends
    assert 0.3 <= rewrites / len(tasks) <= 2.0


def test_ten_tenants_arrive_in_order_at_the_papers_rates() -> None:
    """Arrivals rise; over many tasks each tenant has its share; heavy, medium and light have 100, 30 and 10 calls."""
    tasks = _tasks("ten_tenants", 1_500)
    times = [task.arrival_s for task in tasks if task.arrival_s is not None]
    assert len(times) == len(tasks)
    assert times == sorted(times)
    total = sum(TENANT_RATES_PER_MIN.values())
    assert len(tasks) / times[-1] * 60 == pytest.approx(total, rel=0.15)
    for kind, num_calls in (("heavy", 100), ("medium", 30), ("light", 10)):
        ours = [task for task in tasks if task.tenant.startswith(kind)]
        assert np.mean([task.num_calls for task in ours]) == pytest.approx(num_calls, rel=0.05)
        share = sum(rate for tenant, rate in TENANT_RATES_PER_MIN.items() if tenant.startswith(kind)) / total
        assert len(ours) / len(tasks) == pytest.approx(share, rel=0.25)


def test_tenants_do_not_share_system_prompts() -> None:
    """Each tenant's tasks begin with a stream that only that tenant uses."""
    users: dict[int, set[str]] = {}
    for task in _tasks("ten_tenants", 100):
        users.setdefault(task.sessions[0].calls[0].path[0][0], set()).add(task.tenant)
    assert all(len(tenants) == 1 for tenants in users.values())


def test_arrivals_are_bursty() -> None:
    """The intervals of one tenant have a coefficient of variation of about 2."""
    arrivals = BurstyArrivals().arrivals(np.random.SeedSequence(5))
    times = [at_s for at_s, tenant in (next(arrivals) for _ in range(40_000)) if tenant == "heavy-0"]
    intervals = np.diff(times)
    assert intervals.std() / intervals.mean() == pytest.approx(2.0, rel=0.1)
