"""Modelled engines as a fleet: they say what they are, and do what they are told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from saga import commands as do
from saga.engine.batching import EngineRequest
from saga.engine.hardware import hardware
from saga.errors import InvariantViolated
from saga.presets import PRESETS, preset
from saga.sim.config import SimConfig
from saga.sim.fleet import ModelledFleet

from .conftest import KV_TOKENS

Build = Callable[..., SimConfig]
PATH = ((7, 2_000),)


def fleet(config: SimConfig) -> ModelledFleet:
    """The fleet of this run."""
    return ModelledFleet(config, preset(config.preset), hardware(config.hardware))


def serve(
    of: ModelledFleet, worker: str, session: str = "s", path: tuple[tuple[int, int], ...] = PATH, at_s: float = 0.0
) -> EngineRequest:
    """Let a worker serve one call of the session to its end."""
    engine = of.engines[worker]
    request = EngineRequest(f"{session}/0", session, path, sum(tokens for _, tokens in path), 50)
    of.submit(worker, request, at_s)
    while not request.finished_s >= at_s:  # nan until it is known
        engine.advance(engine.next_event_s())
        engine.check()
    return request


@pytest.mark.parametrize("name", PRESETS)
def test_workers_say_what_the_run_says(name: str, config: Build) -> None:
    """As many as asked for, each with a name of its own, the memory of the run, and a host tier where there is one."""
    joined = fleet(config(name, workers=3, max_running=17)).joined(2.0)
    tier, endless = preset(name).host_tier.enabled, preset(name).engine.infinite_kv
    assert len({each.worker for each in joined}) == 3
    for each in joined:
        assert (each.at_s, each.max_running, each.block_tokens) == (2.0, 17, 16)
        assert each.kv_tokens > 10**9 if endless else each.kv_tokens == KV_TOKENS
        assert each.host_kv_tokens == (60_000 if tier else 0)
        assert each.prefill_tokens_per_s > 0


def test_the_hardware_speaks_where_the_run_is_silent(config: Build) -> None:
    """Without kv_tokens and dram_tokens both are those of the machine; 0 tokens of DRAM are none."""
    machine = hardware("llama3-70b-a100x4")
    (silent,) = fleet(config("saga", kv_tokens=None, dram_tokens=None)).joined(0.0)
    assert (silent.kv_tokens, silent.host_kv_tokens) == (machine.kv_tokens, machine.host_kv_tokens)
    (without,) = fleet(config("saga", dram_tokens=0)).joined(0.0)
    assert without.host_kv_tokens == 0


@pytest.mark.parametrize(("name", "stays"), [("saga", "older"), ("vllm_apc", "ended")])
def test_only_an_engine_that_is_directed_lets_the_ended_session_go_first(name: str, stays: str, config: Build) -> None:
    """When room is needed, a stock cache drops what was used longest ago, one that listens what will not come back."""
    of = fleet(config(name, kv_tokens=6_000, dram_tokens=0))
    serve(of, "w0", "older", ((1, 2_500),))
    serve(of, "w0", "ended", ((2, 2_500),))
    of.direct(do.Retain("older", "w0", 99.0, 5.0, "why"), ((1, 2_550),), 50.0)
    of.direct(do.Release("ended", "w0", do.Standing.ENDED, "why"), ((2, 2_550),), 50.0)
    serve(of, "w0", "third", ((3, 3_000),), at_s=50.0)
    kept = {session: of.engines["w0"].export_tokens(session) for session in ("older", "ended")}
    assert max(kept, key=kept.__getitem__) == stays
    assert sum(kept.values()) < 3_000


def test_a_call_that_is_taken_back_is_gone(config: Build) -> None:
    """After Preempt the worker has no such call; to take back what is not there is a bug."""
    of = fleet(config("saga_paper"))
    of.submit("w0", EngineRequest("s/0", "s", PATH, 2_000, 50), 0.0)
    assert of.direct(do.Preempt("s/0", "w0", "why"), (), 0.0) == "w0"
    assert of.engines["w0"].report()[:2] == (0, 0)
    with pytest.raises(InvariantViolated, match="'s/0' is not on 'w0'"):
        of.direct(do.Preempt("s/0", "w0", "why"), (), 0.0)


def test_a_migrated_prefix_is_found_at_its_target(config: Build) -> None:
    """The call that follows a move reads from the target's cache what it would have read at home."""
    of = fleet(config("saga", workers=2))
    serve(of, "w0")
    context = ((7, 2_050),)
    there = of.engines["w0"].export_tokens("s")
    assert 1_900 < there <= 2_050
    moved = of.direct(do.Migrate("s", "w0", "w1", there, "why"), context, 100.0)
    assert (moved, of.moves) == ("w1", 1)
    assert of.move_times_s() == pytest.approx((there / of.settings.move_tokens_per_s,) * 2)
    request = serve(of, "w1", path=((7, 3_000),), at_s=100.0)
    assert request.cached_tokens + request.host_tokens + request.moved_tokens == there


def test_nothing_moves_where_nothing_is(config: Build) -> None:
    """A prefix that was evicted before the order came is not moved and not counted."""
    of = fleet(config("saga", workers=2))
    of.direct(do.Migrate("s", "w0", "w1", 500, "why"), PATH, 0.0)
    assert of.moves == 0


def test_shares_are_of_the_whole_fleet(config: Build) -> None:
    """An idle fleet uses nothing; what one of two workers holds counts for half, resident no less than used."""
    of = fleet(config("saga", workers=2))
    assert of.used_and_resident_share() == (0.0, 0.0)
    serve(of, "w0")
    used, resident = of.used_and_resident_share()
    assert used == 0.0
    assert 2_000 / (2 * KV_TOKENS) <= resident <= 2_100 / (2 * KV_TOKENS)
