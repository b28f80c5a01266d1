"""The modelled engine: what stock vLLM does, said in small scenes; laws under random lives."""

from __future__ import annotations

import random
from dataclasses import replace
from heapq import heapify, heappop, heappush
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga.cache.eviction import EvictionPolicy
from saga.cache.lru import Lru
from saga.cache.prefix_lru import PrefixLru
from saga.cache.tiers import PausedLast
from saga.commands import Standing
from saga.engine.batching import ModelledEngine
from saga.engine.calls import EngineRequest, EngineSettings, Outcome
from saga.engine.hardware import hardware
from saga.engine.kv_pool import spans_of
from saga.engine.latency import ConstantLatency, Latency, LatencyModel
from saga.errors import InvariantViolated, UnknownName, UsageError
from saga.views import PromptPath

SMALL = EngineSettings(kv_tokens=320, block_tokens=16, max_running=8, chunk_tokens=64)
MODEL = LatencyModel(hardware("llama3-70b-a100x4"))


def engine(latency: Latency | None = None, **changes: object) -> ModelledEngine:
    """20 blocks of 16 tokens, chunks of 64, one second per iteration."""
    return ModelledEngine(replace(SMALL, **changes), latency or ConstantLatency(1.0))  # type: ignore[arg-type]


def call(step: str, prompt: int, output: int, *, path: PromptPath | None = None, priority: int = 0) -> EngineRequest:
    """A call of the session named by the step's first letter, by default with content of its own."""
    return EngineRequest(step, step[0], path or ((ord(step[0]), prompt),), prompt, output, priority)


def drain(worker: ModelledEngine) -> list[Outcome]:
    """Run until idle, checking the laws at every event."""
    outcomes: list[Outcome] = []
    while (at_s := worker.next_event_s()) < inf:
        outcomes += worker.advance(at_s)
        worker.check()
    assert worker.report()[:3] == (0, 0, 0)
    return outcomes


def finished(outcomes: list[Outcome]) -> dict[str, float]:
    """When each call ended."""
    return {outcome.step: outcome.at_s for outcome in outcomes if outcome.kind == "finished"}


# One call


def test_a_call_alone_takes_its_isolated_time() -> None:
    """Chunks, then one iteration per token; first token and end are where the cost model puts them."""
    worker = engine(MODEL, kv_tokens=100_000, chunk_tokens=2048)
    request = call("a", 5000, 40)
    worker.submit(request, 3.0)
    outcomes = drain(worker)
    assert [outcome.kind for outcome in outcomes] == ["first_token", "finished"]
    assert request.first_token_s - 3.0 == pytest.approx(MODEL.isolated_s(0, 5000, 1, 2048))
    assert request.finished_s - 3.0 == pytest.approx(MODEL.isolated_s(0, 5000, 40, 2048))
    assert request.service_s == pytest.approx(request.finished_s - 3.0)
    assert (request.arrival_s, request.started_s, request.prefilled_tokens) == (3.0, 3.0, 5000)


def test_an_answer_of_one_token_ends_with_its_first() -> None:
    """First token and end in one iteration."""
    worker = engine()
    worker.submit(call("a", 10, 1), 0.0)
    assert [(outcome.kind, outcome.at_s) for outcome in drain(worker)] == [("first_token", 1.0), ("finished", 1.0)]


def test_an_idle_engine_has_no_next_event() -> None:
    """inf, before and after."""
    worker = engine()
    assert worker.next_event_s() == inf
    assert worker.advance(5.0) == []


# The iteration


def test_who_arrives_during_an_iteration_starts_with_the_next() -> None:
    """A jump is cut at the end of the iteration in progress."""
    worker = engine()
    worker.submit(call("a", 10, 50), 0.0)
    assert worker.next_event_s() == 1.0
    worker.advance(1.0)
    assert worker.next_event_s() == 50.0
    late = call("b", 10, 2)
    worker.submit(late, 7.25)
    outcomes = drain(worker)
    assert (late.started_s, late.first_token_s) == (8.0, 9.0)
    assert finished(outcomes) == {"a": 50.0, "b": 10.0}


def test_running_calls_come_before_the_prompt_in_the_budget() -> None:
    """With one call decoding, a prompt of 65 tokens needs two chunks of 63 and 2."""
    worker = engine()
    worker.submit(call("a", 10, 30), 0.0)
    worker.advance(5.0)
    worker.submit(prompt := call("b", 65, 1), 5.0)
    drain(worker)
    assert (prompt.started_s, prompt.first_token_s) == (5.0, 7.0)


def test_at_most_max_running() -> None:
    """The third call waits until one of two has finished."""
    worker = engine(max_running=2)
    requests = [call(name, 10, 5) for name in "abc"]
    for request in requests:
        worker.submit(request, 0.0)
    drain(worker)
    assert [request.started_s for request in requests] == [0.0, 0.0, 5.0]


# The cache


def test_the_next_call_of_a_session_finds_prompt_and_answer() -> None:
    """Whole blocks of prompt + output - 1 computed tokens are found; the tail is computed again."""
    worker = engine()
    worker.submit(call("a1", 40, 10), 0.0)
    drain(worker)
    again = call("a2", 60, 1)
    worker.submit(again, 100.0)
    drain(worker)
    assert (again.cached_tokens, again.prefilled_tokens) == (48, 12)


def test_never_a_full_hit() -> None:
    """The same prompt again computes its last block: the hit is capped at prompt - 1, block aligned."""
    worker = engine()
    worker.submit(call("a1", 48, 1), 0.0)
    drain(worker)
    worker.submit(again := call("a2", 48, 1), 5.0)
    drain(worker)
    assert again.cached_tokens == 32


def test_blocks_are_hashed_when_scheduled() -> None:
    """A call admitted in the same iteration hits what the call before it is about to compute."""
    worker = engine()
    worker.submit(call("a", 40, 2, path=((1, 32), (2, 8))), 0.0)
    worker.submit(second := call("b", 40, 2, path=((1, 32), (3, 8))), 0.0)
    drain(worker)
    assert (second.started_s, second.cached_tokens) == (0.0, 32)


def test_without_prefix_caching_nothing_is_kept() -> None:
    """No hit, and nothing resident once idle."""
    worker = engine(prefix_caching=False)
    worker.submit(call("a1", 48, 5), 0.0)
    drain(worker)
    worker.submit(again := call("a2", 48, 5), 9.0)
    drain(worker)
    assert (again.cached_tokens, worker.report()[3]) == (0, 0)


def test_infinite_kv_forgets_nothing() -> None:
    """More sessions than the worker has room for, and all of them are still there."""
    worker = engine(infinite_kv=True)
    for name in "abcdefghij":
        worker.submit(call(name + "1", 100, 5), 0.0)
    drain(worker)
    assert worker.report()[3] == 10 * 96


def test_a_waiting_call_s_prefix_is_not_protected() -> None:
    """The lookup comes at admission: what was cached at submission is evicted by the calls in front."""
    worker = engine(max_running=1)
    worker.submit(call("a1", 96, 1), 0.0)
    drain(worker)
    worker.submit(call("b", 200, 20), 10.0)
    worker.submit(again := call("a2", 100, 1), 10.0)
    worker.advance(10.0)
    assert worker.export_tokens("a") == 96
    drain(worker)
    assert again.cached_tokens == 96
    worker.submit(call("c", 300, 1), 50.0)
    worker.submit(again := call("a3", 110, 1), 50.0)
    drain(worker)
    assert again.cached_tokens < 96


# Admission and preemption


def test_the_head_that_does_not_fit_stops_the_rest() -> None:
    """The whole prompt must fit; a smaller call behind waits although it would fit."""
    worker = engine()
    worker.submit(call("a", 160, 40), 0.0)
    worker.submit(big := call("b", 200, 1), 1.0)
    worker.submit(small := call("c", 10, 1), 2.0)
    outcomes = drain(worker)
    assert big.started_s == finished(outcomes)["a"]
    assert small.started_s >= big.started_s


def test_idle_blocks_that_are_hit_count_as_demand() -> None:
    """A hit does not make room: its blocks are no longer there for the rest of the prompt."""
    worker = engine(kv_tokens=160)
    worker.submit(call("a1", 80, 1), 0.0)
    drain(worker)
    worker.submit(call("b", 60, 12), 10.0)
    worker.submit(again := call("a2", 112, 1), 10.5)
    drain(worker)
    assert again.started_s == 22.0  # 4 or 5 blocks are held, 7 of 10 needed, 5 of them hits


def test_the_last_running_is_preempted_and_comes_back_first() -> None:
    """Out of blocks: the youngest gives up, restarts at 0 behind its own cached blocks, before who waits."""
    worker = engine(kv_tokens=160)
    worker.submit(old := call("a", 60, 60), 0.0)
    worker.submit(young := call("b", 60, 60), 1.0)
    worker.submit(waiting := call("c", 150, 1), 2.0)
    drain(worker)
    assert (old.num_preemptions, young.num_preemptions) == (0, 1)
    assert waiting.started_s >= young.finished_s
    assert young.finished_s > old.finished_s
    assert young.prefilled_tokens > 60


def test_with_priorities_the_one_that_matters_least_is_preempted() -> None:
    """The victim is the maximum of (priority, arrival), wherever it runs."""
    worker = engine(kv_tokens=160, queue="priority")
    worker.submit(low := call("a", 60, 60, priority=9), 0.0)
    worker.submit(high := call("b", 60, 60, priority=1), 1.0)
    drain(worker)
    assert (low.num_preemptions, high.num_preemptions) == (1, 0)


def test_priorities_order_the_queue_and_can_change() -> None:
    """Lower first; a call that is made urgent passes the others; running calls are never pushed out for it."""
    worker = engine(max_running=1, queue="priority")
    requests = [call(name, 10, 5, priority=priority) for name, priority in (("a", 5), ("b", 6), ("c", 7))]
    for request in requests:
        worker.submit(request, 0.0)
        worker.next_event_s()
    worker.reprioritize("c", 0, at_s=1.0)
    worker.reprioritize("nobody", 0)
    drain(worker)
    assert [request.started_s for request in requests] == [0.0, 10.0, 5.0]


def test_what_can_never_fit_is_refused() -> None:
    """A prompt and answer beyond the worker's memory, an empty one, and a step that is already there."""
    worker = engine()
    with pytest.raises(UsageError, match="'a' needs 21 KV blocks, the worker has 20"):
        worker.submit(call("a", 300, 30), 0.0)
    with pytest.raises(UsageError, match="at least 1"):
        worker.submit(call("a", 10, 0), 0.0)
    worker.submit(call("a", 10, 1), 0.0)
    with pytest.raises(UsageError, match="already here"):
        worker.submit(call("a", 10, 1), 0.0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kv_tokens", 0, "kv_tokens = 0 must be at least 1"),
        ("kv_tokens", 8, "at least one block of 16"),
        ("chunk_tokens", 8, "chunk_tokens = 8 must be above max_running = 8"),
        ("block_tokens", 0, "block_tokens = 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(field: str, value: int, message: str) -> None:
    """One message with the field and the value."""
    with pytest.raises(UsageError, match=message):
        replace(SMALL, **{field: value})  # type: ignore[arg-type]


def test_an_unknown_queue_is_refused() -> None:
    """The known ones are named."""
    with pytest.raises(UnknownName, match="fcfs, priority"):
        replace(SMALL, queue="lifo")


# Taking calls back


def test_a_cancelled_call_leaves_nothing_but_cache() -> None:
    """Waiting or running, it is gone at once and can go to another worker; unknown ones are answered False."""
    worker, other = engine(max_running=1), engine()
    running, waiting = call("a", 40, 50), call("b", 40, 2)
    worker.submit(running, 0.0)
    worker.submit(waiting, 0.5)
    worker.advance(10.0)
    assert worker.cancel("b", 10.2)
    assert worker.cancel("a", 10.5)
    assert not worker.cancel("a", 10.5)
    worker.check()
    assert worker.report()[:3] == (0, 0, 0)
    other.submit(running, 11.0)
    assert worker.next_event_s() == 11.0  # the iteration in progress
    assert drain(worker) == []
    assert worker.export_tokens("a") == 48
    assert finished(drain(other)) == {"a": 61.0}


def test_the_calls_around_a_cancelled_one_keep_their_times() -> None:
    """With constant iterations nobody else ends earlier or later."""
    worker = engine()
    for name in "abc":
        worker.submit(call(name, 10, 30), 0.0)
    worker.advance(3.0)
    worker.cancel("b", 12.5)
    assert finished(drain(worker)) == {"a": 30.0, "c": 30.0}


# Tiers and transfers


def test_the_tier_gives_up_what_the_device_has_before_what_only_it_has() -> None:
    """a, let go and back at work, is on the device; b, expected later, is not: the tier makes room with a."""
    worker = engine(kv_tokens=640, host_kv_tokens=160, load_tokens_per_s=32.0, host_eviction=PausedLast())
    for step, prompt, back_s in (("a1", 96, 100.0), ("b1", 48, 1000.0)):
        worker.submit(call(step, prompt, 1), 0.0 if step == "a1" else 10.0)
        drain(worker)
        worker.set_standing(step[0], Standing.PAUSED, at_s=0.0, expected_use_s=back_s)
    assert worker.host is not None
    worker.submit(call("a2", 100, 20), 20.0)
    worker.submit(call("c1", 48, 1), 20.0)
    drain(worker)
    assert worker.host.lookup(spans_of(((ord("b"), 48),), 16), 100) == 3


def test_the_host_tier_brings_back_what_the_device_lost() -> None:
    """The prefix is loaded at 32 tokens per second while another call runs; then only the rest is computed."""
    worker = engine(host_kv_tokens=3200, load_tokens_per_s=32.0)
    worker.submit(call("a1", 96, 1), 0.0)
    worker.submit(call("b", 300, 1), 10.0)
    worker.advance(30.0)
    assert worker.export_tokens("a") == 96
    worker.submit(again := call("a2", 100, 1), 30.0)
    worker.submit(beside := call("c", 10, 20), 30.0)
    drain(worker)
    assert (again.cached_tokens, again.host_tokens, again.prefilled_tokens) == (16, 80, 4)
    assert (beside.started_s, again.started_s) == (30.0, 33.0)


def test_prefetch_makes_the_next_call_a_device_hit() -> None:
    """Loaded before the call comes; a call that comes too early waits for the rest of the load."""
    for arrival_s, started_s in ((20.0, 20.0), (12.0, 13.0)):
        worker = engine(host_kv_tokens=3200, load_tokens_per_s=32.0)
        worker.submit(call("a1", 96, 1), 0.0)
        worker.submit(call("b", 310, 1), 4.0)
        worker.advance(9.0)
        worker.prefetch("a", 10.0)
        worker.advance(arrival_s)
        worker.submit(again := call("a2", 100, 1), arrival_s)
        drain(worker)
        assert (again.started_s, again.cached_tokens, again.host_tokens) == (started_s, 96, 0)


def test_a_prefix_moves_between_workers() -> None:
    """The target waits for the network, then computes only what is new."""
    source, target = engine(), engine(move_tokens_per_s=48.0)
    source.submit(call("a1", 96, 1), 0.0)
    source.advance(5.0)
    request = call("a2", 100, 1)
    assert target.import_prefix("a", request.path, source.export_tokens("a"), 6.0) == 8.0
    target.submit(request, 6.0)
    drain(target)
    assert (request.started_s, request.moved_tokens, request.cached_tokens, request.prefilled_tokens) == (8.0, 96, 0, 4)


def test_a_move_needs_a_network_or_a_time() -> None:
    """A worker without a network is told when, or refuses."""
    worker = engine()
    with pytest.raises(UsageError, match="move_tokens_per_s"):
        worker.import_prefix("a", ((1, 64),), 64, 0.0)
    assert worker.import_prefix("a", ((1, 64),), 64, 0.0, ready_s=2.0) == 2.0
    drain(worker)
    assert worker.export_tokens("a") == 64


def test_what_idle_sessions_lose_is_reported() -> None:
    """The tokens left, from the front."""
    worker = engine(report_residency=True)
    worker.submit(call("a", 160, 1), 0.0)
    worker.submit(call("b", 224, 1), 10.0)
    removed = [outcome for outcome in drain(worker) if outcome.kind == "removed"]
    assert {outcome.session for outcome in removed} == {"a"}
    assert removed[-1].device_tokens == worker.export_tokens("a") == 96


def test_standing_decides_who_is_evicted() -> None:
    """Under a policy that looks at it, an ended session goes before an older live one."""

    class EndedFirst:
        def key(self, owner: object) -> tuple[float]:
            return (float(owner.standing != "ended"),)  # type: ignore[attr-defined]

    worker = engine(eviction=EndedFirst())
    worker.submit(call("a", 96, 1), 0.0)
    worker.submit(call("b", 96, 1), 10.0)
    worker.advance(20.0)
    worker.set_standing("b", Standing.ENDED, at_s=20.0)
    worker.submit(call("c", 160, 1), 20.0)
    drain(worker)
    assert worker.export_tokens("a") == 96
    assert worker.export_tokens("b") < 96


# Laws


def test_check_sees_a_broken_law() -> None:
    """Tampered sums are named by their law."""
    worker = engine()
    worker.submit(call("a", 10, 50), 0.0)
    worker.advance(5.0)
    worker._context += 1
    with pytest.raises(InvariantViolated, match="E3"):
        worker.check()


def test_device_seconds_are_shared_out_exactly() -> None:
    """The calls' shares add up to the time the engine was busy."""
    worker = engine(MODEL, kv_tokens=4000, chunk_tokens=256)
    requests = [call(name, 100 * index + 50, 30 * index + 1) for index, name in enumerate("abcdefg")]
    for request in requests:
        worker.submit(request, 0.0)
    outcomes = drain(worker)
    assert sum(request.service_s for request in requests) == pytest.approx(outcomes[-1].at_s)


def closed_loop(worker: ModelledEngine, seed: int, num_streams: int = 8) -> list[tuple[object, ...]]:
    """Eight growing sessions behind two shared prompts, gaps of whole seconds; what became of every call.

    With fewer streams than sessions several write the same answers, at the same time or not.
    """
    rng = random.Random(seed)
    plans = [
        [(rng.randrange(1, 90), rng.randrange(1, 70), rng.randrange(0, 25), rng.randrange(3)) for _ in range(5)]
        for _ in range(8)
    ]
    arrivals = [(plan[0][2], index, 0) for index, plan in enumerate(plans)]
    heapify(arrivals)
    contexts = [48 + 8 * (index % 2) for index in range(8)]
    log: list[tuple[object, ...]] = []
    while True:
        event_s = worker.next_event_s()
        at_s = min(event_s, arrivals[0][0] if arrivals else inf)
        if at_s == inf:
            break
        for outcome in worker.advance(at_s):
            if outcome.request is not None:
                done = outcome.request
                index, number = int(done.session), int(done.step.split(".")[1]) + 1
                contexts[index] = done.prompt_tokens + done.output_tokens
                counts = (done.started_s, done.cached_tokens, done.host_tokens, done.num_preemptions)
                log.append((done.step, outcome.at_s, *counts, done.prefilled_tokens, done.service_s))
                if number < len(plans[index]):
                    heappush(arrivals, (int(outcome.at_s) + plans[index][number][2] + 1, index, number))
            elif outcome.kind == "first_token":
                log.append((outcome.step, outcome.at_s))
        while arrivals and arrivals[0][0] <= at_s:
            _, index, number = heappop(arrivals)
            new, output, _, priority = plans[index][number]
            shared, prompt = 48 + 8 * (index % 2), contexts[index] + new
            path = ((index % 2, shared), (10 + index % num_streams, prompt - shared))
            worker.submit(EngineRequest(f"{index}.{number}", str(index), path, prompt, output, priority), at_s)
        worker.check()
    assert len(log) == 80
    return log


LIVES = {
    "fcfs": SMALL,
    "priority": replace(SMALL, queue="priority"),
    "lru": replace(SMALL, eviction=Lru()),
    "host tier": replace(SMALL, host_kv_tokens=1000, load_tokens_per_s=100.0),
    "small host tier": replace(SMALL, host_kv_tokens=480, load_tokens_per_s=100.0),
    "no cache": replace(SMALL, prefix_caching=False),
    "infinite": replace(SMALL, infinite_kv=True),
    "few running": replace(SMALL, max_running=3, queue="priority"),
}


@pytest.mark.parametrize("num_streams", [8, 2])
@pytest.mark.parametrize("life", LIVES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=8)
def test_jumping_and_stepping_are_the_same(life: str, num_streams: int, seed: int) -> None:
    """Every call starts, ends, hits and is preempted at the same time in both; the laws hold all along."""
    told = replace(LIVES[life], kv_tokens=960)
    jumped = closed_loop(ModelledEngine(told, ConstantLatency(1.0)), seed, num_streams)
    stepping = ModelledEngine(replace(told, max_jump_iterations=1), ConstantLatency(1.0))
    stepped = closed_loop(stepping, seed, num_streams)
    assert [entry[:-1] for entry in jumped] == [entry[:-1] for entry in stepped]
    assert [entry[-1] for entry in jumped] == [pytest.approx(entry[-1]) for entry in stepped]


def test_the_lives_above_are_not_peaceful() -> None:
    """They preempt, evict and load, else the law above says little."""
    told = replace(LIVES["host tier"], kv_tokens=960)
    log = [entry for seed in range(5) for entry in closed_loop(ModelledEngine(told, ConstantLatency(1.0)), seed)]
    calls = [entry for entry in log if len(entry) > 2]
    assert any(entry[4] for entry in calls)
    assert any(entry[5] for entry in calls)


EVICTIONS: list[EvictionPolicy] = [Lru(), PrefixLru()]
LATENCIES: list[Latency] = [MODEL, ConstantLatency(0.05)]


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40)
def test_the_laws_hold_whatever_a_driver_does(seed: int) -> None:
    """Calls, cancellations, transfers, offloads and changes of standing at random: conserved, and all calls end."""
    rng = random.Random(seed)
    worker = ModelledEngine(
        EngineSettings(
            kv_tokens=rng.choice([1280, 2560]),
            chunk_tokens=64,
            max_running=rng.choice([3, 10]),
            queue=rng.choice(["fcfs", "priority"]),
            eviction=EVICTIONS[rng.randrange(2)],
            host_kv_tokens=rng.choice([0, 800, 5000]),
            load_tokens_per_s=rng.choice([200.0, 5000.0]),
            move_tokens_per_s=500.0,
            report_residency=rng.random() < 0.5,
        ),
        LATENCIES[rng.randrange(2)],
    )
    contexts = [((index % 2, 40), (10 + index, 1)) for index in range(6)]
    live: dict[str, EngineRequest] = {}
    at_s = last_s = 0.0
    for number in range(120):
        at_s += rng.choice([0.0, 0.01, 0.3, 2.0]) * rng.random()
        for outcome in worker.advance(at_s):
            assert last_s <= outcome.at_s <= at_s
            last_s = outcome.at_s
            if outcome.request is not None:
                assert live.pop(outcome.step) is outcome.request
                _prompt_is_accounted_for(outcome.request)
        session = rng.randrange(6)
        _act(worker, rng, at_s, session, number, contexts, live)
        worker.check()
    while live:
        at_s = max(at_s, worker.next_event_s())
        assert at_s < inf
        for outcome in worker.advance(at_s):
            live.pop(outcome.step, None)
        worker.check()
    drain(worker)


def _prompt_is_accounted_for(request: EngineRequest) -> None:
    found = request.cached_tokens + request.host_tokens + request.moved_tokens
    assert found < request.prompt_tokens
    if not request.num_preemptions:
        assert found + request.prefilled_tokens == request.prompt_tokens
    assert request.service_s > 0


def _act(
    worker: ModelledEngine,
    rng: random.Random,
    at_s: float,
    session: int,
    number: int,
    contexts: list[tuple[tuple[int, int], tuple[int, int]]],
    live: dict[str, EngineRequest],
) -> None:
    """One thing that a driver may do."""
    name, busy = str(session), any(request.session == str(session) for request in live.values())
    what = rng.choice(["submit"] * 6 + ["cancel", "prefetch", "offload", "stand", "import", "reprioritize", "peek"])
    if what == "submit" and not busy:
        request = _next_call(rng, session, number, contexts)
        live[request.step] = request
        worker.submit(request, at_s)
    elif what == "cancel" and live:
        request = live.pop(rng.choice(sorted(live)))
        assert worker.cancel(request.step, at_s)
        if rng.random() < 0.5:
            live[request.step] = request
            worker.submit(request, at_s)
    elif what == "import" and not busy:
        tokens = sum(tokens for _, tokens in contexts[session])
        worker.import_prefix(name, contexts[session], tokens, at_s, rng.choice([None, at_s, at_s + 3]))
    elif what == "reprioritize" and live:
        worker.reprioritize(rng.choice(sorted(live)), rng.randrange(4), at_s)
    elif what == "stand":
        worker.set_standing(name, rng.choice(list(Standing)), expected_use_s=at_s + 5, at_s=at_s)
    elif what in ("prefetch", "offload"):
        getattr(worker, what)(name, at_s)
    else:
        assert worker.next_event_s() >= at_s


def _next_call(
    rng: random.Random, session: int, number: int, contexts: list[tuple[tuple[int, int], tuple[int, int]]]
) -> EngineRequest:
    """The session's context grows, or begins again when it is long."""
    shared, (stream, tokens) = contexts[session]
    tokens += rng.randrange(1, 120)
    if tokens > 900:
        stream, tokens = 1000 + number, 60
    contexts[session] = (shared, (stream, tokens))
    prompt = shared[1] + tokens
    path, output = contexts[session], rng.randrange(1, 90)
    return EngineRequest(f"{session}.{number}", str(session), path, prompt, output, rng.randrange(3))
