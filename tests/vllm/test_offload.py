"""The host tier on a real engine: what the device lost comes back, and the answers stay the same."""

from __future__ import annotations

from saga.commands import Standing
from saga.vllm_plugin.contracts import Offload, Outcome, Release

from .engines import BLOCK_TOKENS, tiered, tokens


def test_an_evicted_prefix_comes_back_from_the_tier_with_the_same_answer(engines):
    """What others pushed off the device is loaded, not computed, and the greedy answer does not change."""
    engine = tiered(engines)
    prompt = tokens(1, 1_000)
    cold = engine.ask(prompt, 16, session="a")
    engine.flood()
    again = engine.ask(prompt, 16, session="a")
    assert again.token_ids == cold.token_ids
    assert (cold.cached, again.cached) == (0, 999 // BLOCK_TOKENS * BLOCK_TOKENS)
    engine.check_conserved()


def test_generated_tokens_are_in_the_tier_too(engines):
    """The next call of a session finds the answer of the one before, not only its prompt."""
    engine = tiered(engines)
    prompt = tokens(2, 400)
    answer = engine.ask(prompt, 100, session="a").token_ids
    engine.flood()
    context = prompt + answer
    assert (
        engine.ask([*context, *tokens(3, 40)], session="a").cached == (len(context) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    )


def test_a_full_tier_lets_ended_sessions_go_first_and_serves_on(engines):
    """Of two sessions that were stored alike, the ended one makes room for what comes; nothing fails."""
    engine = tiered(engines, host_blocks=100)
    saga = engine.scheduler.saga
    for name, seed in (("stays", 4), ("ended", 5)):
        engine.ask(tokens(seed, 1_000), session=name)
    saga.obey(Release("ended", Standing.ENDED))
    saga.obey(Release("stays", Standing.PAUSED, expected_use_s=5.0))
    engine.run()
    engine.flood()
    engine.ask(tokens(6, 1_000), session="new")
    stays, ended = saga.sessions.named("stays")[0], saga.sessions.named("ended")[0]
    assert saga.tier.used_blocks == saga.tier.num_blocks == 100
    assert (saga.tier.held_tokens(stays), saga.tier.held_tokens(ended)) == (992, 0)
    assert engine.ask(tokens(4, 1_000), session="stays").cached == 992
    engine.check_conserved()


def test_offload_stores_again_what_only_the_device_has(engines):
    """After the tier lost a session that is on the device, Offload copies it; what is nowhere is missing."""
    engine = tiered(engines)
    saga = engine.scheduler.saga
    engine.ask(tokens(7, 1_000), session="a")
    session = saga.sessions.named("a")[0]
    engine.scheduler.connector.reset_cache()
    assert saga.tier.held_tokens(session) == 0
    assert saga.obey(Offload("a")) == (Outcome.ACCEPTED, "")
    answered = len(engine.answers)
    engine.run()
    assert saga.tier.held_tokens(session) == saga.device_tokens(session) == 992
    assert len(engine.answers) == answered, "an errand is answered to nobody"
    engine.flood()
    engine.scheduler.connector.reset_cache()
    outcome, why = saga.obey(Offload("a"))
    assert (outcome, why) == (Outcome.MISSING, "neither device nor tier holds it")
    assert saga.obey(Offload("never seen"))[0] is Outcome.MISSING
    engine.check_conserved()


def test_the_end_of_a_retention_stores_what_the_tier_lacks(engines):
    """A session that is no longer kept on the device is copied before it leaves."""
    engine = tiered(engines)
    saga = engine.scheduler.saga
    engine.ask(tokens(8, 1_000), session="a", saga_expected_gap_s=100.0)
    session = saga.sessions.named("a")[0]
    engine.scheduler.connector.reset_cache()
    saga.obey(Release("a", Standing.PAUSED, expected_use_s=60.0))
    engine.run()
    assert saga.tier.held_tokens(session) == 992


def test_no_call_is_remembered_after_it_ended(engines):
    """Hundreds of calls, some aborted, leave no request in the tier's books and no block behind."""
    engine = tiered(engines, host_blocks=60)
    tier = engine.scheduler.saga.tier
    for round_ in range(20):
        names = [engine.submit(tokens(100 * round_ + i, 100), 2, session=f"s{i}") for i in range(10)]
        for _ in range(2):
            engine.step()
        engine.abort(names[round_ % 10])
        engine.run()
    engine.ask(tokens(1, 40))
    engine.ask(tokens(1, 40))
    assert len(tier._session_of) + len(tier._errands) + len(tier._policy._storing) <= 1
    tier._policy.order.check()
    engine.check_conserved()
