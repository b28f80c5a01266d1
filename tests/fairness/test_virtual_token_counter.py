"""Virtual token counters: what a call costs, and VTC's bound between two tenants that always have calls waiting."""

from __future__ import annotations

import random
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.events import SessionEnded, StepArrived, StepFinished, WorkerJoined
from saga.fairness.agent_fair_share import NoShares, WeightedService
from saga.fairness.virtual_token_counter import DeviceSeconds, TokenCosts
from saga.presets import preset
from saga.scheduler.composition import Composition
from saga.scheduler.scheduler import Scheduler
from saga.scheduler.sessions import State
from saga.views import SessionView, TenantView

KV_TOKENS, LONGEST_PROMPT = 10_000, 4_000
COUNTS = st.integers(0, 10**6)


def finished(prompt_tokens: int, output_tokens: int) -> StepFinished:
    """An answer."""
    return StepFinished(1.0, "s/0", "w", prompt_tokens, output_tokens)


@given(COUNTS, COUNTS, st.floats(0.0, 1e3))
def test_a_call_costs_its_prompt_once_and_its_answer_twice(prompt: int, output: int, service_s: float) -> None:
    """VTC's weights, whatever the device took; billing by device seconds asks for nothing else."""
    asking = SessionView("s", "task", "tenant", 0.0)
    asking.prompt_tokens = prompt
    tokens = TokenCosts().sent(asking) + TokenCosts().finished(finished(prompt, output), service_s)
    assert tokens == prompt + 2 * output
    assert DeviceSeconds().sent(asking) + DeviceSeconds().finished(finished(prompt, output), service_s) == service_s


@given(COUNTS, COUNTS, st.floats(0.1, 10.0))
def test_the_least_counter_per_weight_is_next(one: int, other: int, weight: float) -> None:
    """A tenant of twice the weight may have had twice as much."""
    mine, theirs = TenantView("a", weight), TenantView("b", weight)
    mine.attained_s, theirs.attained_s = one, other
    assert (WeightedService().rank(mine) < WeightedService().rank(theirs)) == (one / weight < other / weight)


def worst_difference(composition: Composition, seed: int) -> float:
    """Two tenants that always have calls waiting, one of long calls: how far their charged tokens ever drift apart."""
    rng = random.Random(seed)
    scheduler = Scheduler(composition)
    scheduler.handle(WorkerJoined(0.0, "w", KV_TOKENS))
    worst, at_s, number = 0.0, 0.0, 0
    live: dict[str, int] = {}

    def arrive(tenant: str) -> None:
        nonlocal number
        number += 1
        tokens = rng.randint(2_000, LONGEST_PROMPT) if tenant == "heavy" else rng.randint(50, 500)
        session = f"{tenant}/{number}"
        live[session] = tokens
        scheduler.handle(StepArrived(at_s, f"{session}/0", session, session, tokens, tenant))

    for _ in range(30):
        arrive("heavy")
        arrive("light")
    for _ in range(400):
        at_s += 1.0
        running = [s for s in scheduler.sessions if s.state is State.RUNNING]
        chosen = rng.choice(running)
        tokens = live.pop(chosen.session)
        scheduler.handle(StepFinished(at_s, chosen.step, "w", tokens, rng.randint(1, 800)))
        scheduler.handle(SessionEnded(at_s, chosen.session))
        arrive(chosen.tenant)
        counters = [scheduler.accounts.tenants[name].attained_s for name in ("heavy", "light")]
        worst = max(worst, abs(counters[0] - counters[1]))
    return worst


BOUND = 2 * max(1.0 * LONGEST_PROMPT, 2.0 * KV_TOKENS)


@pytest.mark.parametrize("seed", range(5))
def test_counters_of_two_backlogged_tenants_stay_within_the_papers_bound(seed: int) -> None:
    """2 max(w_in x longest prompt, w_out x KV tokens), however unlike their calls are."""
    assert worst_difference(preset("vtc"), seed) <= BOUND


def test_without_the_counters_the_bound_is_broken() -> None:
    """The same run in order of arrival drifts without end: the bound is no accident."""
    assert worst_difference(replace(preset("vtc"), tenants=NoShares()), 0) > BOUND
