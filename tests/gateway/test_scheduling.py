"""Tests of the scheduler's asyncio driver, with workers that exist only in its registry."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga import commands as do
from saga.gateway.contracts import MAX_CLASS, Answer, Call, Kind, Refused, Request
from saga.gateway.scheduling import GatewayScheduling, _classed
from saga.gateway.settings import SchedulingSettings
from saga.gateway.worker_config import Capacity, WorkerConfig
from saga.gateway.workers import Workers
from saga.scheduler.invariants import check

OK = Answer(prompt_tokens=100, output_tokens=10, complete=True)
_steps = itertools.count()


def call(session="s", **fields) -> Call:
    """A call of a session, a new step."""
    request = Request("POST", "/v1/chat/completions", "/v1/chat/completions", [], b"")
    given_fields = {"tenant": "t", "task": session, "prompt_tokens": 100, "retryable": True, "model": "m"} | fields
    step = given_fields.pop("step", f"{session}/{next(_steps)}")
    return Call(given_fields.pop("kind", Kind.CHAT), request, session=session, step=step, **given_fields)


def gateway(num_workers=2, *, models=("m",), kv_tokens=1_000, **fields):
    """A driver over workers a, b, ... that are up. Needs a running loop."""
    workers = Workers()
    scheduling = GatewayScheduling(workers, SchedulingSettings(**({"check_every": 1} | fields)))
    for name in "abcdefgh"[:num_workers]:
        add(workers, name, models=models, kv_tokens=kv_tokens)
    return scheduling


def add(workers, name, **fields):
    """One more worker that is up."""
    config = WorkerConfig(f"http://{name}:1", name=name, **({"models": ("m",), "kv_tokens": 1_000} | fields))
    workers.passed(workers.add(config, 0.0), 0.0)


def lawful(scheduling) -> None:
    """All laws hold, and nothing is left over where nothing runs."""
    for pool in scheduling.pools:
        check(pool.scheduler)
        assert sum(seat.num_steps for seat in pool.seats.values()) == sum(w.num_running for w in pool.scheduler.fleet)
    if not scheduling.num_running and not scheduling.num_waiting:
        assert not scheduling._steps
        assert not any(worker.num_calls for worker in scheduling.workers)


def test_a_session_returns_to_its_worker_and_strangers_spread():
    """Affinity and balance come through."""

    async def scene():
        scheduling = gateway()
        first = await scheduling.admit(call("one"))
        other = await scheduling.admit(call("two"))
        assert first.address.worker != other.address.worker
        for _ in range(3):
            scheduling.finished(first, OK)
            again = await scheduling.admit(call("one"))
            assert again.address.worker == first.address.worker
            first = again
        scheduling.finished(first, OK)
        scheduling.finished(other, OK)
        lawful(scheduling)

    asyncio.run(scene())


def test_a_call_that_overflows_the_working_set_waits_and_is_let_in_when_room_comes():
    """Admission holds and releases; the ticket says how long it took."""

    async def scene():
        scheduling = gateway(1)
        first = await scheduling.admit(call("one", prompt_tokens=900))
        second = asyncio.create_task(scheduling.admit(call("two", prompt_tokens=900)))
        await asyncio.sleep(0.02)
        assert (second.done(), scheduling.num_waiting) == (False, 1)
        first.call.final = True
        scheduling.finished(first, OK)
        ticket = await second
        assert ticket.queued_s >= 0.02
        scheduling.cancelled(ticket)
        lawful(scheduling)

    asyncio.run(scene())


def test_a_full_queue_refuses_with_429_and_retry_after():
    """One call more than may wait is told when to come back."""

    async def scene():
        scheduling = gateway(1, max_queue=1)
        await scheduling.admit(call("one", prompt_tokens=900))
        waiting = asyncio.create_task(scheduling.admit(call("two", prompt_tokens=900)))
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            await scheduling.admit(call("three", prompt_tokens=900))
        assert (refused.value.status, refused.value.retry_after_s >= 1.0) == (429, True)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        lawful(scheduling)

    asyncio.run(scene())


def test_a_flood_of_one_tenant_keeps_no_other_out():
    """The queue is full for who fills it; another one waits beside it, up to its part; nothing is counted for ever."""

    async def scene():
        scheduling = gateway(1, max_queue=4)
        await scheduling.admit(call("first", prompt_tokens=900, tenant="greedy"))
        waiting = []

        async def come(tenant, name):
            waiting.append(asyncio.create_task(scheduling.admit(call(name, prompt_tokens=900, tenant=tenant))))
            await asyncio.sleep(0)
            return not waiting[-1].done()

        assert [await come("greedy", f"g{i}") for i in range(6)] == [True] * 4 + [False] * 2
        assert [await come("modest", f"m{i}") for i in range(4)] == [True, True, False, False]
        assert [await come(f"t{i}", f"t{i}") for i in range(4)] == [True, True, False, False]  # twice the bound
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (scheduling.num_waiting, scheduling._num_waiting_of) == (0, {})
        lawful(scheduling)

    asyncio.run(scene())


def test_an_answer_that_is_an_error_is_charged_for_what_it_took():
    """Whoever can provoke late errors is not served for nothing."""

    async def scene():
        scheduling = gateway(1)
        ticket = await scheduling.admit(call("one", tenant="t"))
        await asyncio.sleep(0.02)
        scheduling.finished(ticket, Answer(error=True, complete=True))
        (pool,) = scheduling.pools
        assert pool.scheduler.accounts.tenants["t"].attained_s > 0.0
        lawful(scheduling)

    asyncio.run(scene())


def test_a_wait_that_takes_too_long_ends_with_503():
    """The bound on time holds, and the step is gone."""

    async def scene():
        scheduling = gateway(1, max_wait_s=0.02)
        await scheduling.admit(call("one", prompt_tokens=900))
        with pytest.raises(Refused) as refused:
            await scheduling.admit(call("two", prompt_tokens=900))
        assert (refused.value.status, refused.value.code) == (503, "waited_too_long")
        assert scheduling.num_waiting == 0
        lawful(scheduling)

    asyncio.run(scene())


def test_a_client_that_leaves_the_queue_leaves_nothing_behind():
    """Cancelling the awaiting task cancels the step."""

    async def scene():
        scheduling = gateway(1)
        ticket = await scheduling.admit(call("one", prompt_tokens=900))
        waiting = asyncio.create_task(scheduling.admit(call("two", prompt_tokens=900)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert scheduling.num_waiting == 0
        scheduling.finished(ticket, OK)
        lawful(scheduling)

    asyncio.run(scene())


def test_a_failed_call_goes_elsewhere_once_and_its_session_stays_at_home():
    """One failure is a detour, not a move; a second one is the client's to know."""

    async def scene():
        scheduling = gateway()
        first = await scheduling.admit(call("one"))
        home = first.address.worker
        scheduling.finished(first, OK)
        second = await scheduling.admit(call("one"))
        again = await scheduling.failed(second, "reset by peer", retry=True)
        assert again is not None
        assert again.attempt == 2
        assert again.address.worker != home
        assert await scheduling.failed(again, "reset by peer", retry=True) is None
        lawful(scheduling)
        third = await scheduling.admit(call("one"))
        assert third.address.worker == home
        scheduling.finished(third, OK)
        lawful(scheduling)

    asyncio.run(scene())


def test_all_calls_of_a_worker_that_dies_are_served_elsewhere():
    """Connection refused takes the worker out of the fleet; none of its calls is lost, later ones avoid it."""

    async def scene():
        scheduling = gateway(kv_tokens=10_000)
        tickets = [await scheduling.admit(call(f"s{i}")) for i in range(6)]
        dead = tickets[0].address.worker
        for ticket in tickets:
            if ticket.address.worker == dead:
                again = await scheduling.failed(ticket, "no connection to it: refused", retry=True)
                assert again is not None
                assert again.address.worker != dead
                scheduling.finished(again, OK)
            else:
                scheduling.finished(ticket, OK)
        for i in range(6):
            ticket = await scheduling.admit(call(f"s{i}"))
            assert ticket.address.worker != dead
            scheduling.finished(ticket, OK)
        lawful(scheduling)

    asyncio.run(scene())


def test_a_call_that_may_not_be_repeated_is_not():
    """retry=False, or a pinned call: no other ticket."""

    async def scene():
        scheduling = gateway()
        assert await scheduling.failed(await scheduling.admit(call()), "reset", retry=False) is None
        assert await scheduling.failed(await scheduling.admit(call(pinned="a")), "reset", retry=True) is None
        lawful(scheduling)

    asyncio.run(scene())


def test_calls_go_only_to_workers_that_serve_their_model():
    """A model that nobody serves is a 404 that names the field."""

    async def scene():
        scheduling = gateway(1, models=("x",))
        add(scheduling.workers, "y", models=("y",))
        for _ in range(3):
            ticket = await scheduling.admit(call("s", model="y"))
            assert ticket.address.worker == "y"
            scheduling.finished(ticket, OK)
        with pytest.raises(Refused) as refused:
            await scheduling.admit(call("s", model="z"))
        assert (refused.value.status, refused.value.code, refused.value.param) == (404, "model_not_found", "model")
        lawful(scheduling)

    asyncio.run(scene())


def test_without_a_worker_calls_wait_a_little_for_one_to_come_back():
    """A restart of the only worker is ridden out; a long absence is a 503."""

    async def scene():
        scheduling = gateway(1, no_worker_wait_s=0.05)
        worker = scheduling.workers.get("a")
        scheduling.workers.failed(worker, "refused", 0.0, unreachable=True)
        waiting = asyncio.create_task(scheduling.admit(call()))
        await asyncio.sleep(0.01)
        scheduling.workers.passed(worker, 100.0)
        scheduling.finished(await waiting, OK)
        scheduling.workers.failed(worker, "refused", 0.0, unreachable=True)
        with pytest.raises(Refused) as refused:
            await scheduling.admit(call())
        assert (refused.value.status, refused.value.code) == (503, "no_worker")
        lawful(scheduling)

    asyncio.run(scene())


def test_a_pinned_call_goes_to_its_worker_or_nowhere():
    """Stored responses are where they are."""

    async def scene():
        scheduling = gateway()
        for name in ("a", "b", "a"):
            ticket = await scheduling.admit(call("s", pinned=name))
            assert ticket.address.worker == name
            scheduling.finished(ticket, OK)
        with pytest.raises(Refused) as refused:
            await scheduling.admit(call("s", pinned="gone"))
        assert refused.value.status == 404
        scheduling.workers.failed(scheduling.workers.get("a"), "refused", 0.0, unreachable=True)
        with pytest.raises(Refused) as refused:
            await scheduling.admit(call("s", pinned="a"))
        assert refused.value.status == 503
        lawful(scheduling)

    asyncio.run(scene())


def test_a_clients_retry_joins_the_step_that_still_lives():
    """Two calls, one step, one end; whichever call ends first ends it."""

    async def scene():
        scheduling = gateway(1)
        first = await scheduling.admit(call("s", step="s/a"))
        second = await scheduling.admit(call("s", step="s/b", retry_of="s/a"))
        assert len(scheduling.pools.choose("m", "s").scheduler.sessions.steps) == 1
        scheduling.cancelled(first)
        assert len(scheduling.pools.choose("m", "s").scheduler.sessions.steps) == 1
        scheduling.finished(second, OK)
        lawful(scheduling)
        session = scheduling.pools.choose("m", "s").scheduler.sessions.get("s")
        assert session.steps_done == 1

    asyncio.run(scene())


def test_calls_that_are_no_steps_open_no_session():
    """Embeddings go to the least busy worker and leave no trace; a failed one goes elsewhere."""

    async def scene():
        scheduling = gateway()
        one = await scheduling.admit(call("e", kind=Kind.EMBEDDINGS))
        two = await scheduling.admit(call("e", kind=Kind.EMBEDDINGS))
        assert {one.address.worker, two.address.worker} == {"a", "b"}
        again = await scheduling.failed(one, "reset", retry=True)
        assert again.address.worker == two.address.worker
        scheduling.finished(again, OK)
        scheduling.cancelled(two)
        assert not len(scheduling.pools.choose("m", "e").scheduler.sessions)
        lawful(scheduling)

    asyncio.run(scene())


def test_a_drained_worker_finishes_what_it_has_and_its_sessions_move():
    """Drain: no failed call, no new call, then no seat."""

    async def scene():
        scheduling = gateway()
        ticket = await scheduling.admit(call("s"))
        name = ticket.address.worker
        scheduling.workers.drain(name, 1.0)
        pool = scheduling.pools.choose("m", "s")
        assert len(pool.seats) == 2
        scheduling.finished(ticket, OK)
        assert len(pool.seats) == 1
        moved = await scheduling.admit(call("s"))
        assert moved.address.worker != name
        scheduling.finished(moved, OK)
        lawful(scheduling)

    asyncio.run(scene())


def test_extension_fields_go_only_to_engines_that_accept_them():
    """The forecast travels with the call, flat; other engines get nothing."""

    async def scene():
        workers = Workers()
        scheduling = GatewayScheduling(workers, SchedulingSettings())
        add(workers, "plain", models=("p",))
        add(workers, "vllm", models=("v",), extensions=True)
        assert (await scheduling.admit(call("s", model="p"))).extra == {}
        extra = (await scheduling.admit(call("s", model="v"))).extra
        assert extra["session_id"] == "s"
        assert isinstance(extra["priority"], int)
        assert all(isinstance(value, str | int | float) for value in extra["vllm_xargs"].values())

    asyncio.run(scene())


def test_classes_of_clients_come_before_the_schedulers_order_and_keep_it():
    """A lower class goes first whatever the scheduler's priorities are; inside a class their order stays."""
    ranks = (-(2**62), -1_000_000_000, 0, 7, 1_000_000_000, 2**62)
    classed = [[_classed(rank, own) for rank in ranks] for own in (-MAX_CLASS, -1, 1, MAX_CLASS)]
    assert all(inside == sorted(inside) and len(set(inside)) == len(ranks) for inside in classed)
    assert all(max(lower) < min(higher) for lower, higher in itertools.pairwise(classed))
    assert [_classed(rank, 0) for rank in ranks] == list(ranks)
    assert _classed(1_000_000_000, -1) < _classed(-1_000_000_000, 0) < _classed(1_000_000_000, 0)
    assert _classed(1_000_000_000, 0) < _classed(-1_000_000_000, 1)


def test_a_calls_class_reaches_an_engine_that_takes_it():
    """As one priority, lower first."""

    async def scene():
        workers = Workers()
        scheduling = GatewayScheduling(workers, SchedulingSettings())
        add(workers, "vllm", extensions=True)
        got = []
        for place, own in enumerate((-1, 0, 1)):
            one = call(f"s{place}")
            one.priority = own
            got.append((await scheduling.admit(one)).extra["priority"])
        assert got == sorted(got)
        assert len(set(got)) == 3

    asyncio.run(scene())


def test_an_estimate_never_refuses_a_call():
    """A prompt that seems larger than any worker is the engine's to judge."""

    async def scene():
        scheduling = gateway(1)
        ticket = await scheduling.admit(call(prompt_tokens=10**9))
        scheduling.finished(ticket, Answer(prompt_tokens=10**9, output_tokens=5))
        scheduling.finished(await scheduling.admit(call(prompt_tokens=10**9)), OK)
        lawful(scheduling)

    asyncio.run(scene())


def test_a_ticket_ends_once():
    """Late and double news of a ticket change nothing."""

    async def scene():
        scheduling = gateway(1)
        ticket = await scheduling.admit(call())
        scheduling.first_byte(ticket)
        scheduling.finished(ticket, OK)
        scheduling.finished(ticket, OK)
        scheduling.cancelled(ticket)
        scheduling.first_byte(ticket)
        assert await scheduling.failed(ticket, "late", retry=True) is None
        lawful(scheduling)

    asyncio.run(scene())


def test_a_reservation_expires_by_the_timer():
    """A session that does not come back gives its place up without any other event."""

    async def scene():
        scheduling = gateway(1, housekeeping_s=1_000.0)
        for i in range(40):  # learn that this kind returns at once
            for _ in range(3):
                ticket = await scheduling.admit(call(f"s{i}"))
                scheduling.finished(ticket, OK)
            scheduling.forget(f"s{i}")
        ticket = await scheduling.admit(call("away", prompt_tokens=900))
        scheduling.finished(ticket, Answer(prompt_tokens=900, output_tokens=10))
        pool = scheduling.pools.choose("m", "away")
        for _ in range(300):
            if not next(iter(pool.scheduler.fleet)).num_active:
                break
            await asyncio.sleep(0.01)
        assert next(iter(pool.scheduler.fleet)).num_active == 0
        scheduling.stop()

    asyncio.run(scene())


def test_preset_names_are_checked():
    """A name that is in no table is the caller's fault."""
    from saga.errors import UnknownName

    with pytest.raises(UnknownName):
        SchedulingSettings(preset="sega").composition()


_ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["call", "call", "call", "end", "fail", "refuse", "cancel", "down", "up"]), st.integers(0, 7)
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(_ACTIONS, st.sampled_from(["saga", "vllm_apc", "saga_paper", "session_cap"]))
def test_whatever_happens_the_laws_hold_and_nobody_is_stuck(actions, preset):
    """Random lives of calls and workers: laws after each event, and in the end every call has one end."""

    async def scene():
        scheduling = gateway(3, preset=preset, kv_tokens=2_000, max_queue=5)
        tasks, tickets = [], []
        for at_s, (what, which) in enumerate(actions, 1):
            await _happen(scheduling, what, which, at_s, tasks, tickets)
        for name in "abc":
            scheduling.workers.passed(scheduling.workers.get(name), 1e9)
        for _ in range(200):
            await _wind_down(scheduling, tasks, tickets)
        assert (tasks, tickets) == ([], [])
        lawful(scheduling)
        scheduling.stop()

    asyncio.run(scene())


async def _happen(scheduling, what, which, at_s, tasks, tickets) -> None:
    worker = scheduling.workers.get("abc"[which % 3])
    if what == "call":
        tasks.append(asyncio.create_task(scheduling.admit(call(f"s{which}", prompt_tokens=100 + 200 * which))))
    elif what == "down":
        scheduling.workers.failed(worker, "refused", float(at_s), unreachable=True)
    elif what == "up":
        scheduling.workers.passed(worker, at_s + 1e6)
    elif tickets:
        await _end(scheduling, tickets.pop(which % len(tickets)), what, tasks)
    await asyncio.sleep(0)
    tickets += _collect(tasks)


async def _wind_down(scheduling, tasks, tickets) -> None:
    while tickets:
        await _end(scheduling, tickets.pop(), "end", tasks)
    for i in range(8):
        scheduling.forget(f"s{i}")
    await asyncio.sleep(0)
    tickets += _collect(tasks)


async def _end(scheduling, ticket, what, tasks) -> None:
    if what == "end":
        scheduling.first_byte(ticket)
        scheduling.finished(ticket, OK)
    elif what == "cancel":
        scheduling.cancelled(ticket)
    else:
        tasks.append(asyncio.create_task(scheduling.failed(ticket, "reset", retry=what == "fail")))


def _collect(tasks) -> list:
    """Tickets of the tasks that are done; a refusal is an end too."""
    done = [task for task in tasks if task.done()]
    tasks[:] = [task for task in tasks if not task.done()]
    got = []
    for task in done:
        error = task.exception()
        assert error is None or isinstance(error, Refused)
        if error is None and task.result() is not None:
            got.append(task.result())
    return got


# ---------------------------------------------------------------------- what engines are told


class Told:
    """Engines that write down what they are told; moves are answered by hand."""

    def __init__(self) -> None:
        self.orders = []
        self.moves = []
        self.answers = []

    def order(self, worker, command, at_s):
        self.orders.append((worker, command))
        return True

    def move(self, worker, command, at_s):
        self.moves.append((worker, command))
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]


def test_a_new_order_keeps_a_call_inside_its_clients_class():
    """What is said over the link and what came with the call mean the same."""

    async def scene():
        scheduling = gateway(1)
        scheduling.engines = told = Told()
        (pool,) = scheduling.pools
        for place, own in enumerate((-1, 0, 1)):
            one = call(f"s{place}", prompt_tokens=10, priority=own)
            await scheduling.admit(one)
            scheduling._carry_out(pool, do.Reprioritize(one.step, "a", -place, ""))
        got = [command.priority for _, command in told.orders if type(command) is do.Reprioritize]
        assert got == [_classed(0, -1), -1, _classed(-2, 1)]
        assert got == sorted(got)

    asyncio.run(scene())


def on_the_move(scheduling):
    """Engines that are told, and a session "s" with a prefix on "a", from where it must go to "b": in the next call."""

    async def scene():
        scheduling.engines = told = Told()
        scheduling.workers.drain("b", 0.0)
        scheduling.finished(await scheduling.admit(call("s")), OK)
        busy = await scheduling.admit(call("other"))
        scheduling.workers.resume("b", 0.0)
        worker = scheduling.workers.get("b")
        scheduling.workers.passed(worker, 0.0)
        scheduling.workers.told(worker, Capacity(1_000, 16, 1_000, 8, 1_000.0, 2_000.0, 2_000.0))
        scheduling.workers.drain("a", 0.0)
        return told, busy

    return scene()


def test_a_step_waits_until_its_prefix_is_on_its_way():
    """The source is asked, the step leaves with its answer, and the prefix counts as held where the session went."""

    async def scene():
        scheduling = gateway(2, max_move_s=60.0)
        told, busy = await on_the_move(scheduling)
        moving = asyncio.create_task(scheduling.admit(call("s")))
        await asyncio.sleep(0.02)
        ((source, command),) = told.moves
        assert (source, command.session, moving.done()) == ("a", "s", False)
        told.answers[0].set_result(None)
        ticket = await moving
        assert ticket.address.worker == "b"
        (pool,) = scheduling.pools
        assert pool.scheduler.sessions.get("s").home_tokens == command.tokens > 0
        scheduling.finished(ticket, OK)
        scheduling.finished(busy, OK)
        lawful(scheduling)

    asyncio.run(scene())


def test_a_step_does_not_wait_for_ever_for_its_prefix():
    """A source that says nothing costs so much time and no more."""

    async def scene():
        scheduling = gateway(2, max_move_s=0.02)
        told, busy = await on_the_move(scheduling)
        ticket = await scheduling.admit(call("s"))
        assert (ticket.address.worker, len(told.moves), told.answers[0].done()) == ("b", 1, False)
        assert ticket.queued_s >= 0.02
        scheduling.finished(ticket, OK)
        scheduling.finished(busy, OK)
        lawful(scheduling)

    asyncio.run(scene())


def test_a_client_that_leaves_while_its_prefix_moves_leaves_nothing_behind():
    """The step has its end, and its worker its place."""

    async def scene():
        scheduling = gateway(2, max_move_s=60.0)
        _, busy = await on_the_move(scheduling)
        moving = asyncio.create_task(scheduling.admit(call("s")))
        await asyncio.sleep(0.02)
        moving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await moving
        scheduling.finished(busy, OK)
        lawful(scheduling)

    asyncio.run(scene())
