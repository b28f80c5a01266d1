"""Calibration of a real engine in this process: one short run, every kind of probe, a table that can be used."""

from __future__ import annotations

import asyncio

import pytest

from saga.engine.calibration import Sizes, fit
from saga.engine.latency import LatencyModel
from saga.engine.probes import Prober, plan
from saga.errors import PeerError
from saga.vllm_plugin.in_process import InProcessEngine, start_vllm


def test_a_real_engine_is_measured(engines) -> None:
    """All probes come back with the tokens that vLLM counted; more work takes longer in the model that is fitted."""
    engine = InProcessEngine(engines.get().llm)
    probes = plan(
        max_context_tokens=min(1_024, engine.max_context_tokens),
        kv_tokens=engine.kv_tokens,
        chunk_tokens=engine.chunk_tokens,
        repeats=1,
    )
    wanted = [probe for probe in probes if probe.batch in (0, 1, 4)]

    async def scene():
        prober = Prober(engine)
        await prober.warm_up()
        return await prober.run(wanted, lambda done: None), prober.num_dropped

    observations, num_dropped = asyncio.run(scene())
    assert len(observations) + num_dropped == len(wanted)
    assert {one.kind for one in observations} >= {"prefill", "cached", "decode", "mixed"}
    cached = [spell for one in observations if one.kind == "cached" for spell in one.spells]
    assert all(spell.context_tokens % engine.block_tokens == 0 < spell.context_tokens for spell in cached)
    found = fit(observations, name="tiny", provenance="test", sizes=Sizes(engine.kv_tokens)).hardware
    latency = LatencyModel(found)
    assert latency.iteration_s(900, 405_000, 0, 0) > latency.iteration_s(90, 4_050, 0, 0) > 0.0
    assert not engine.engine.has_unfinished_requests()


def test_a_model_that_is_not_there(tmp_path) -> None:
    """One error of ours, with what vLLM says."""
    with pytest.raises(PeerError, match="vLLM does not start with"):
        start_vllm(str(tmp_path / "none"))
