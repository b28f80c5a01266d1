"""Tests of pools of workers and their seats."""

from __future__ import annotations

from saga.gateway.pools import Pools
from saga.gateway.worker_config import WorkerConfig
from saga.gateway.workers import Worker
from saga.presets import preset
from saga.scheduler.composition import Caps


def worker(name, *models):
    """A worker that serves these models; any where none is named."""
    return Worker(WorkerConfig(f"http://{name}:1", name=name, models=models), 0.0)


def pools():
    """None yet."""
    return Pools(preset("saga"), Caps(), {})


def test_workers_with_equal_models_share_a_scheduler():
    """The order of models does not matter; other models are another pool."""
    made = pools()
    one, two, three = (made.sit(w) for w in (worker("a", "x", "y"), worker("b", "y", "x"), worker("c", "x")))
    assert one.pool is two.pool
    assert three.pool is not one.pool
    assert set(map(id, made.serving("x"))) == {id(one.pool), id(three.pool)}
    assert made.serving("y") == [one.pool]
    assert made.serving("z") == []


def test_all_pools_learn_into_one_model():
    """What is learned of a workflow does not depend on who served it."""
    made = pools()
    one, two = made.sit(worker("a", "x")), made.sit(worker("b", "y"))
    assert one.pool.scheduler.model is two.pool.scheduler.model is made.model


def test_a_worker_that_does_not_say_gets_any_model():
    """None is a wildcard, and names of models are not remembered for ever."""
    made = pools()
    seat = made.sit(worker("a"))
    for i in range(5_000):
        assert made.serving(f"model {i}") == [seat.pool]
    assert len(made._by_model) <= 1_024


def test_a_worker_that_comes_back_before_its_seat_is_empty_gets_another():
    """Nothing that ran there is confused with what runs there now."""
    made = pools()
    again = worker("a", "x")
    first = made.sit(again)
    assert made.rise(again) is first
    assert (first.leaving, made.seat_of(again)) == (True, None)
    second = made.sit(again)
    assert second.name != first.name
    assert made.seat_of(again) is second
    assert first.pool.num_up == 1
    made.clear(first)
    assert list(second.pool.seats) == [second.name]


def test_a_call_prefers_the_pool_with_room():
    """Without a session anywhere: the least busy pool; none without workers."""
    made = pools()
    one, two = made.sit(worker("a", "x")), made.sit(worker("b", "x", "y"))
    one.num_steps = 3
    assert made.choose("x", "s") is two.pool
    two.leaving = True
    assert made.choose("x", "s") is one.pool
    assert made.choose("z", "s") is None


def test_homes_are_remembered_once():
    """A session that comes back after a restart is told its seat, if its worker is in the pool."""
    made = pools()
    seat = made.sit(worker("a", "x"))
    made.remember([("s", "a", 100), ("t", "gone", 50)])
    assert sorted(next(made.homes(10))) == [("s", "a", 100), ("t", "gone", 50)]
    assert next(made.homes(1)) == [("t", "gone", 50)]
    assert made.home_of("s", seat.pool) == ("a", 100)
    assert made.home_of("s", seat.pool) == ("", 0)
    assert made.home_of("t", seat.pool) == ("", 0)


def test_the_largest_worker_is_known_as_workers_come_and_go():
    """Capacity counts from a worker's coming to its leaving, not to when its seat is empty."""
    made = pools()
    small, large = worker("a", "x"), worker("b", "x")
    small.kv_tokens, large.kv_tokens = 1_000, 2_000
    pool = made.sit(small).pool
    assert pool.largest_kv_tokens == 1_000
    made.sit(large)
    assert pool.largest_kv_tokens == 2_000
    made.rise(large)
    assert pool.largest_kv_tokens == 1_000
    made.rise(small)
    assert pool.largest_kv_tokens == 0
