"""Stock vLLM on the tiny model: what the other tests here compare with."""

from __future__ import annotations

from .engines import BLOCK_TOKENS, tokens


def test_the_same_prompt_gets_the_same_answer_and_is_found_again(engines):
    """Greedy answers repeat, and the second call finds all full blocks but the last token's."""
    engine = engines.get()
    prompt = tokens(1, 1_000)
    first, second = engine.ask(prompt, 16), engine.ask(prompt, 16)
    assert first.token_ids == second.token_ids
    assert len(first.token_ids) == 16
    assert (first.cached, second.cached) == (0, 999 // BLOCK_TOKENS * BLOCK_TOKENS)
    engine.check_conserved()


def test_stock_forgets_an_idle_session(engines):
    """What was used longest ago leaves the device when others need room."""
    engine = engines.get()
    prompt = tokens(2, 1_000)
    engine.ask(prompt)
    engine.flood()
    assert engine.ask(prompt).cached == 0
    engine.check_conserved()
