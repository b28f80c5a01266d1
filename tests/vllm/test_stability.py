"""SAGA in the engine changes when and where tokens are computed, never which; nothing grows with the calls served."""

from __future__ import annotations

import gc
import logging
import time
from random import Random

from .engines import tiered, tokens

NUM_SESSIONS, NUM_TURNS, AT_ONCE, MAX_TOKENS = 14, 3, 10, 12
HASTY = {"saga": {"epoch_s": 0.001, "preempt_after_s": 0.0, "max_sessions": 64}}


def crowd(engine, order_seed):
    """Sessions in turns, ten calls at once on a device that holds a third of them; every seventh call is aborted.

    The answers by (session, turn), those of aborted calls left out, and how many calls were preempted. What a session
    asks next does not depend on what it was answered, so every run asks the same.
    """
    dice = Random(order_seed)
    plan = [(session, turn) for turn in range(NUM_TURNS) for session in range(NUM_SESSIONS)]
    plan.sort(key=lambda each: (each[1], dice.random()))
    names, live, preempted = {}, [], set()
    while plan or live:
        while plan and len(live) < AT_ONCE:
            session, turn = plan.pop(0)
            prompt = tokens(7, 64) + tokens(1_000 + session, 150 + 130 * turn + 7 * session)
            gap = {"saga_expected_gap_s": 0.05 * (session % 4)} if session % 3 else {}
            name = engine.submit(prompt, MAX_TOKENS, session=f"s{session}", priority=session % 5, **gap)
            names[session, turn] = name
            live.append(name)
            if (session * NUM_TURNS + turn) % 7 == 3:
                engine.step()
                engine.abort(name)
                live.remove(name)
                del names[session, turn]
        engine.step()
        preempted.update(name for name, request in engine.scheduler.requests.items() if request.num_preemptions)
        live = [name for name in live if not engine.has(name)]
    engine.run()
    engine.check_conserved()
    return {key: engine.find(name) for key, name in names.items()}, len(preempted)


def num_different(one, other):
    """Answers that are not equal."""
    return sum(one[key].token_ids != other[key].token_ids for key in one)


def test_answers_are_as_stable_as_those_of_stock(engines):
    """Under eviction, loads, preemption and aborts they differ from stock's no more than stock's among themselves."""
    stock = engines.get(scheduling_policy="priority")
    (first, _), (second, _) = crowd(stock, 1), crowd(stock, 2)
    assert len({tuple(answer.token_ids) for answer in first.values()}) > len(first) // 2, "prompts matter"
    engine = tiered(engines, scheduling_policy="priority", additional_config=HASTY)
    mine, num_preempted = crowd(engine, 1)
    assert num_preempted > 0
    assert sum(answer.cached for answer in mine.values()) > sum(answer.cached for answer in first.values())
    assert num_different(first, mine) <= num_different(first, second) + len(first) // 20


def test_nothing_grows_with_the_calls_served(engines):
    """After many hundreds of calls of ever new sessions, as many objects live as after the first hundreds."""
    engine = tiered(engines, host_blocks=200, scheduling_policy="priority", additional_config=HASTY)
    logging.disable()  # pytest keeps what is logged

    def serve(first, last):
        for begin in range(first, last, 40):
            for i in range(begin, begin + 40):
                engine.submit(tokens(i, 70), 1, session=f"s{i}", saga_expected_gap_s=0.01)
            engine.run()
        engine.answers.clear()
        gc.collect()
        return len(gc.get_objects())

    try:
        before, after = serve(0, 320), serve(320, 1_120)
    finally:
        logging.disable(logging.NOTSET)
    saga = engine.scheduler.saga
    assert after < before + 800 // 2, "less than one object in two calls"
    assert (len(saga.calls), len(saga.sessions)) == (0, 64)
    engine.check_conserved()


def test_a_call_that_gave_way_does_not_load_in_the_same_step(engines):
    """Two make room for an urgent call that needs less than it seems: one of them comes back, but a step later."""
    engine = tiered(engines, scheduling_policy="priority", additional_config=HASTY)
    victims = [engine.submit(tokens(1, 600), 40, priority=9)]  # its blocks leave first: it names no session
    victims += [engine.submit(tokens(2, 1_000), 40, session="victim", priority=9)]
    engine.submit(tokens(3, 2_060), 40, session="stays", priority=0)
    for _ in range(8):
        engine.step()
    urgent = engine.submit(tokens(3, 640) + tokens(4, 790), 4, session="urgent", priority=1)
    time.sleep(0.01)
    requests = dict(engine.scheduler.requests)
    engine.run()
    assert sum(request.num_preemptions > 0 for request in requests.values()) == 2
    assert [len(engine.find(name).token_ids) for name in (*victims, urgent)] == [40, 40, 4]
    engine.check_conserved()
