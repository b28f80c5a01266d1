"""A session that moves to another engine: its prefix comes over through the tier behind both, if that is cheaper."""

from __future__ import annotations

from saga.vllm_plugin.config import PluginConfig

from .engines import tiered, tokens


def test_a_moved_session_brings_its_prefix_and_its_answer_stays_the_same(engines, tmp_path):
    """What one engine computed the next one loads from the shared tier; nothing is computed again."""
    prompt = tokens(1, 1_000)
    here = tiered(engines, shared_folder=str(tmp_path), name="here").ask(prompt, 16, session="a")
    there = tiered(engines, shared_folder=str(tmp_path), name="there").ask(prompt, 16, session="a")
    assert (here.cached, there.cached) == (0, 992)
    assert there.token_ids == here.token_ids


def test_a_move_that_is_dearer_than_prefilling_is_not_made(engines, tmp_path):
    """Over a slow link the second engine computes the prompt, with the same answer."""
    prompt = tokens(2, 1_000)
    here = tiered(engines, shared_folder=str(tmp_path), name="here").ask(prompt, 16, session="a")
    slow = {"carry_bytes_per_s": 1_000.0, "prefill_tokens_per_s": 10_000.0}
    engine = tiered(engines, shared_folder=str(tmp_path), name="there", **slow)
    there = engine.ask(prompt, 16, session="a")
    assert there.cached == 0
    assert there.token_ids == here.token_ids
    engine.flood()
    assert engine.ask(prompt, 16, session="a").cached == 992, "what lies in its own memory is loaded all the same"


def test_the_coordinator_is_told_the_rates_of_what_is_there(engines, tmp_path):
    """What was set; no rate of a tier that the engine lacks or shares with nobody."""
    rates = {"prefill_tokens_per_s": 1e3, "load_tokens_per_s": 2e3, "move_tokens_per_s": 3e3}
    config = PluginConfig(**rates)

    def told(scheduler):
        facts = scheduler._saga_facts(config)
        return facts.prefill_tokens_per_s, facts.load_tokens_per_s, facts.move_tokens_per_s

    alone = engines.get(scheduler_cls="saga.vllm_plugin.scheduler.SagaScheduler")
    assert told(alone.scheduler) == (1e3, 0.0, 0.0)
    assert told(tiered(engines).scheduler) == (1e3, 2e3, 0.0)
    assert told(tiered(engines, shared_folder=str(tmp_path)).scheduler) == (1e3, 2e3, 3e3)
