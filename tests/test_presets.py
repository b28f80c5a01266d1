"""The table of systems: complete, honest about its sources, and each ablation differs in just what it says."""

from __future__ import annotations

from dataclasses import fields

import pytest

from saga.cache.prefetch import NoPrefetch
from saga.cache.ttl import FixedTtl, Forever, NoTtl
from saga.errors import UnknownName
from saga.fairness.agent_fair_share import AgentUrgency
from saga.ordering.breadth_first import BreadthFirst
from saga.ordering.classes import UrgencyClasses
from saga.ordering.least_attained import ShortestRemaining
from saga.presets import PRESETS, preset, saga_paper
from saga.routing.stealing import NoStealing
from saga.scheduler.composition import Composition

PEOPLE = {"name", "description", "source", "left_out"}


def differences(one: Composition, other: Composition) -> set[str]:
    """Names of the policies in which two systems differ."""
    return {each.name for each in fields(one) if getattr(one, each.name) != getattr(other, each.name)} - PEOPLE


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_it_is_and_where_it_comes_from(name: str) -> None:
    """People compare systems by description and source: none is empty, no two are one system."""
    chosen = preset(name)
    assert chosen.name == name
    assert chosen.description
    assert chosen.source
    assert all(differences(chosen, other) for other in PRESETS.values() if other is not chosen)


@pytest.mark.parametrize("composition", PRESETS.values(), ids=PRESETS)
def test_who_looks_at_forecasts_gets_them(composition: Composition) -> None:
    """A policy that asks for forecasts where nothing is learned would silently see the same of everybody."""
    looks = (
        not isinstance(composition.retention, NoTtl | Forever | FixedTtl)
        or isinstance(composition.ordering, AgentUrgency | ShortestRemaining | UrgencyClasses)
        or composition.preemption.blocked_s is not None
        or not isinstance(composition.prefetching, NoPrefetch)
    )
    assert composition.forecasts or not looks


@pytest.mark.parametrize("composition", PRESETS.values(), ids=PRESETS)
def test_an_order_of_tasks_reaches_the_engine(composition: Composition) -> None:
    """An engine that admits by call undoes any other order; only a gate in front may do without."""
    by_call = composition.ordering == PRESETS["vllm_apc"].ordering
    assert by_call or composition.engine.queue == "priority" or composition.admission.gates


@pytest.mark.parametrize("composition", PRESETS.values(), ids=PRESETS)
def test_a_gate_comes_with_places_that_last(composition: Composition) -> None:
    """Admission without reservations is not session admission; two systems are gates of calls on purpose."""
    calls_only = {"vtc", "saga_no_retention"}
    assert not composition.admission.gates or (composition.retention == NoTtl()) == (composition.name in calls_only)


@pytest.mark.parametrize("composition", PRESETS.values(), ids=PRESETS)
def test_who_steals_balances_calls(composition: Composition) -> None:
    """Stealing moves calls; a placement by sessions would move them back."""
    assert composition.stealing == NoStealing() or composition.routing.balance == "calls"


@pytest.mark.parametrize(
    ("name", "differs_in"),
    [
        ("vllm", {"routing", "engine"}),
        ("least_loaded", {"routing"}),
        ("vllm_apc_dram", {"host_tier"}),
        ("vllm_priority", {"ordering", "engine"}),
        ("session_cap", {"admission", "retention", "ordering"}),
        ("infinite_kv", {"engine"}),
    ],
)
def test_a_variant_of_the_baseline_differs_in_just_what_it_says(name: str, differs_in: set[str]) -> None:
    """A comparison says something only if nothing else was changed."""
    assert differences(preset(name), preset("vllm_apc")) == differs_in


@pytest.mark.parametrize(
    ("name", "differs_in"),
    [
        ("saga_no_walru", {"engine"}),
        ("saga_no_ttl", {"retention"}),
        ("saga_no_prefetch", {"prefetching"}),
        ("saga_no_affinity", {"routing", "migrate"}),
        ("saga_no_stealing", {"stealing"}),
        ("saga_no_afs", {"ordering", "preemption"}),
        ("saga_paper_bfs", {"ordering"}),
        ("saga_paper_dfs", {"ordering"}),
    ],
)
def test_an_ablation_of_the_paper_takes_one_mechanism_from_its_system(name: str, differs_in: set[str]) -> None:
    """Its table says what each mechanism earns: the rest must be the paper's."""
    assert differences(preset(name), preset("saga_paper")) == differs_in


@pytest.mark.parametrize(
    ("name", "differs_in"),
    [
        ("saga_no_admission", {"admission"}),
        ("saga_no_dram", {"host_tier"}),
        ("saga_no_retention", {"retention"}),
        ("saga_no_order", {"ordering"}),
        ("saga_no_next_use", {"engine"}),
        ("saga_no_moves", {"migrate"}),
    ],
)
def test_an_ablation_of_the_default_takes_one_policy_from_it(name: str, differs_in: set[str]) -> None:
    """One question at a time."""
    assert differences(preset(name), preset("saga")) == differs_in


@pytest.mark.parametrize(
    ("constant", "value", "moves"),
    [
        ("alpha", 0.4, {"engine"}),
        ("beta", 0.6, {"engine"}),
        ("gamma", 0.1, {"engine"}),
        ("theta", 0.95, {"routing"}),
        ("t_idle_s", 0.05, {"stealing"}),
        ("r_max", 1.5, {"stealing"}),
        ("ttl_max_s", 120.0, {"retention", "engine"}),
        ("theta_conf", 0.5, {"min_confidence"}),
        ("queue", BreadthFirst(), {"ordering"}),
    ],
)
def test_each_constant_of_the_paper_can_be_varied_alone(constant: str, value: object, moves: set[str]) -> None:
    """The sensitivity table needs every one of them, and the default of each is the paper's."""
    assert differences(saga_paper(**{constant: value}), saga_paper()) == moves  # type: ignore[arg-type]
    assert not differences(saga_paper(), preset("saga_paper"))


RIVALS = (
    "sglang",
    "llumnix",
    "trt_llm_scaffolding",
    "vllm_kvflow",
    "continuum",
    "thunderagent",
    "lmetric",
    "vtc",
    "saga_paper",
)


@pytest.mark.parametrize("name", RIVALS)
def test_a_model_of_another_system_says_what_it_leaves_out(name: str) -> None:
    """It models a published mechanism and is not that system; who reads a comparison must be told the difference."""
    assert preset(name).left_out


@pytest.mark.parametrize(
    ("name", "hint"), [("sagaa", "did you mean 'saga'"), ("vllm-apc", "'vllm_apc'"), ("", "Known")]
)
def test_an_unknown_preset_is_refused_with_the_known_ones(name: str, hint: str) -> None:
    """The message names what was asked for, the nearest name and all there are."""
    with pytest.raises(UnknownName, match=hint) as refused:
        preset(name)
    assert all(known in str(refused.value) for known in PRESETS)
