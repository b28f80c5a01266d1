"""What the plug-in relies on in vLLM and vLLM does not promise: one test each, so that a release fails here first."""

from __future__ import annotations

import pytest

from saga.errors import UsageError
from saga.vllm_plugin import compatibility

from .standalone import BLOCK, Loop, real_vllm, scheduler_class, words


def test_this_vllm_has_all_that_is_relied_on():
    """Names and parameters, and attributes of a scheduler once made."""
    compatibility.check()
    compatibility.check_scheduler(Loop("Stock").scheduler)


@pytest.mark.parametrize(
    ("path", "parameters", "what"),
    [
        ("vllm.v1.core.sched.scheduler:Scheduler._no_such", (), "Scheduler._no_such is not there"),
        ("vllm.v1.no_such_module:Thing", (), "no_such_module:Thing is not there"),
        ("vllm.v1.core.sched.scheduler:Scheduler._preempt_request", ("why",), "does not take why"),
    ],
)
def test_a_vllm_that_lacks_something_is_refused_by_name(monkeypatch, path, parameters, what):
    """The internal, vLLM's version and the way out are named."""
    monkeypatch.setitem(compatibility.NEEDED, path, parameters)
    with pytest.raises(UsageError, match=what) as refused:
        compatibility.check()
    assert compatibility.engine_version() in str(refused.value)
    assert "without --scheduler-cls" in str(refused.value)


def test_a_free_queue_that_can_do_more_is_refused(monkeypatch):
    """A method that the plug-in does not replace would see a queue that is not there."""
    monkeypatch.delitem(compatibility.NEEDED, "vllm.v1.core.kv_cache_utils:FreeKVCacheBlockQueue.prepend_n")
    with pytest.raises(UsageError, match="methods that the plug-in does not know: prepend_n"):
        compatibility.check()


def test_a_scheduler_without_an_attribute_is_refused():
    """What only instances have is looked for at the start of the engine."""
    scheduler = Loop("Stock").scheduler
    del scheduler.prev_step_scheduled_req_ids
    with pytest.raises(UsageError, match="no attribute prev_step_scheduled_req_ids"):
        compatibility.check_scheduler(scheduler)


def test_vllm_resolves_the_schedulers_path_and_hands_over_the_settings():
    """--scheduler-cls and --additional-config arrive where they are read."""
    real_vllm()
    from vllm.config import SchedulerConfig

    path = "saga.vllm_plugin.scheduler.SagaScheduler"
    config = SchedulerConfig.default_factory(scheduler_cls=path)
    assert config.get_scheduler_cls() is scheduler_class("Saga")
    assert Loop("Saga", max_sessions=7).scheduler.vllm_config.additional_config == {"saga": {"max_sessions": 7}}


class Recorder:
    """Which methods were called, with how many blocks; in front of vLLM's own queue."""

    def __init__(self, queue) -> None:
        self._queue = queue
        self.calls: list[tuple[str, list[int]]] = []

    def __getattr__(self, name):
        found = getattr(self._queue, name)
        if not callable(found):
            return found

        def called(*arguments):
            answer = found(*arguments)
            blocks = answer if name.startswith("popleft") else arguments[0]
            blocks = blocks if isinstance(blocks, list) else [blocks]
            self.calls.append((name, [block.block_id for block in blocks]))
            return answer

        return called


def recorded(loop: Loop) -> Recorder:
    """The loop's pool, from now on with a recorder before its queue."""
    loop.pool.free_block_queue = Recorder(loop.pool.free_block_queue)
    return loop.pool.free_block_queue


def test_a_pool_asks_its_queue_in_four_ways_and_no_other():
    """New blocks by popleft_n, hits by remove, back by prepend_n if nothing can hit them, else append_n, tail first."""
    loop = Loop("Stock")
    recorder = recorded(loop)
    loop.ask("a", words(1, 100))
    loop.ask("b", words(1, 100))
    taken, _, back = recorder.calls[:3]
    assert taken == ("popleft_n", taken[1])
    assert recorder.calls[1][0] == "prepend_n"
    assert back == ("append_n", taken[1][5::-1])
    assert {name for name, _ in recorder.calls} == {"popleft_n", "prepend_n", "append_n", "remove"}


@pytest.mark.parametrize("name", ["Stock", "StockAsync"])
def test_finish_abort_and_preemption_give_blocks_back_through_one_method(name):
    """`_free_request_blocks` sees all three, before the blocks are free, with the request's final status."""
    seen = []
    base = scheduler_class(name)

    class Spy(base):
        def _free_request_blocks(self, request):
            free = self.kv_cache_manager.block_pool.get_num_free_blocks()
            seen.append((request.request_id, request.is_finished(), free))
            super()._free_request_blocks(request)

    loop = Loop(name, blocks=40, running=2)
    loop.scheduler.__class__ = Spy
    loop.submit("finished", words(1, 100), 3)
    loop.submit("aborted", words(2, 100), 50)
    loop.submit("waiting", words(3, 100), 50)
    for _ in range(6):
        loop.step()
    loop.abort("aborted")
    loop.abort("waiting")
    assert [(call, finished) for call, finished, _ in seen] == [
        ("finished", True),
        ("aborted", True),
        ("waiting", True),
    ]
    loop.submit("kept", words(4, 300), 100, priority=0)
    loop.submit("preempted", words(5, 250), 100, priority=5)
    loop.run()
    assert ("preempted", False) in {(call, finished) for call, finished, _ in seen}
    assert all(free < 40 for call, _, free in seen if call != "waiting")


def test_requests_carry_what_is_read_of_them():
    """The session's name, xargs, salt, hashes of full blocks from the front, and what a prefill found."""
    loop = Loop("Stock")
    loop.submit("a", words(1, 100), 5, session="s", salt="pepper", saga_step="x")
    request = loop.requests["a"]
    assert (request.session_id, request.cache_salt, request.priority) == ("s", "pepper", 0)
    assert request.sampling_params.extra_args == {"saga_step": "x"}
    assert (request.lora_request, request.num_preemptions, request.num_prompt_tokens) == (None, 0, 100)
    loop.run()
    assert (len(request.all_token_ids), len(request.block_hashes), request.num_output_tokens) == (105, 105 // BLOCK, 5)
    loop.submit("b", words(1, 100), 5, salt="pepper")
    decision = loop.scheduler.schedule()
    stats = loop.requests["b"].prefill_stats
    assert [new.req_id for new in decision.scheduled_new_reqs] == ["b"]
    assert (stats.num_local_cached_tokens, stats.num_external_cached_tokens) == (96, 0)


def test_a_preempted_call_is_named_when_it_runs_again():
    """As resumed, or among the new ones, by vLLM's model runner."""
    loop = Loop("Stock", blocks=40, running=2)
    loop.submit("kept", words(4, 300), 100, priority=0)
    loop.submit("preempted", words(5, 250), 100, priority=5)
    named, schedule = [], loop.scheduler.schedule

    def noted():
        decision = schedule()
        named.extend(decision.scheduled_cached_reqs.resumed_req_ids)
        named.extend(new.req_id for new in decision.scheduled_new_reqs)
        return decision

    loop.scheduler.schedule = noted
    loop.run()
    assert named == ["kept", "preempted", "preempted"]


def test_cached_blocks_are_found_by_the_requests_hashes():
    """`get_cached_block` with a hash of `Request.block_hashes` and the group's number."""
    loop = Loop("Stock")
    loop.ask("a", words(1, 100))
    hashes = loop.requests["a"].block_hashes
    found = [loop.pool.get_cached_block(each, [0]) for each in hashes]
    assert [len(each) for each in found] == [1] * 6
    assert loop.pool.get_cached_block(b"0" * 32, [0]) is None


def test_touched_blocks_stay_and_come_back_tail_first():
    """Pins are touch and free_blocks: not free in between, in the order given afterwards."""
    loop = Loop("Stock")
    loop.ask("a", words(1, 100))
    blocks = [loop.pool.get_cached_block(each, [0])[0] for each in loop.requests["a"].block_hashes]
    loop.pool.touch(blocks)
    assert loop.pool.get_num_free_blocks() == 300 - 6
    loop.pool.free_blocks(reversed(blocks))
    assert loop.pool.free_block_queue.get_all_free_blocks()[-6:] == blocks[::-1]


def test_only_priorities_order_a_priority_queue_and_a_rebuilt_one_takes_new_ones():
    """Whole numbers of any size, lower first, arrival among equals."""
    loop = Loop("Stock", running=1)
    for at, priority in enumerate([3 << 130, 2 << 130, 2 << 130, -5]):
        loop.submit(f"c{at}", words(at, 40), 2, priority=priority)
    from vllm.v1.core.sched.request_queue import create_request_queue

    loop.requests["c2"].priority = -9
    queue = create_request_queue(loop.scheduler.policy)
    for request in list(loop.scheduler.waiting):
        queue.add_request(request)
    loop.scheduler.waiting = queue
    loop.run()
    assert loop.order == ["c2", "c3", "c1", "c0"]


def test_a_waiting_call_never_preempts_by_itself():
    """What the plug-in adds is not there without it."""
    loop = Loop("Stock", running=1)
    loop.submit("long", words(1, 100), 300, priority=9)
    loop.step()
    loop.submit("urgent", words(2, 100), 2, priority=-9)
    loop.run()
    assert loop.order == ["long", "urgent"]
    assert loop.requests["long"].num_preemptions == 0


@pytest.mark.parametrize(("name", "depth"), [("Stock", 1), ("StockAsync", 1), ("StockAsync", 2)])
def test_a_call_preempted_from_outside_loses_no_token(name, depth):
    """`_preempt_request` after `running.remove`, with as many steps in flight; it may run again in the same step."""
    loop = Loop(name, depth=depth)
    loop.submit("a", words(1, 100), 60)
    for at in range(70):
        loop.step()
        if at % 9 == 5 and loop.scheduler.running:
            request = loop.scheduler.running[0]
            loop.scheduler.running.remove(request)
            loop.scheduler._preempt_request(request, 0.0, drop_stale_output=loop.scheduler.requires_kv_delivery)
            loop.scheduler.prev_step_scheduled_req_ids.discard("a")
    loop.run()
    loop.check()
    assert (len(loop.answers["a"]), loop.requests["a"].num_preemptions > 3) == (60, True)


def test_the_whole_prompt_must_fit_before_a_call_is_let_in():
    """Why a call that gives way counts blocks for all of the prompt, and not for its first part."""
    loop = Loop("Stock", blocks=100)
    loop.submit("runs", words(1, 800), 50)
    loop.step()
    loop.submit("large", words(2, 900), 2)
    for _ in range(10):
        loop.step()
    assert loop.order == ["runs"]
    loop.run()
    assert loop.order == ["runs", "large"]


def test_every_queue_of_waiting_calls_is_known():
    """Calls in a queue that the plug-in does not know would keep the places that they came with."""
    from vllm.v1.core.sched.request_queue import RequestQueue

    scheduler = Loop("StockAsync").scheduler
    queues = {name for name, value in vars(scheduler).items() if isinstance(value, RequestQueue)}
    assert {"waiting"} <= queues <= set(compatibility.QUEUES)


def test_a_call_says_which_step_it_was_last_in_and_the_scheduler_which_have_landed():
    """Where steps overlap, blocks of a call in flight do not fall free before its last step has landed."""
    loop = Loop("StockAsync", depth=2)
    loop.scheduler.defer_block_free = True  # as with a connector
    loop.submit("a", words(1, 100), 5)
    loop.step()
    request = loop.requests["a"]
    assert request.last_sched_seq > loop.scheduler.processed_step_seq
    loop.run()
    assert request.last_sched_seq <= loop.scheduler.processed_step_seq


def test_a_call_preempted_in_flight_counts_the_tokens_that_still_come():
    """Until they have come it cannot run again, so nobody needs to make room for it."""
    loop = Loop("StockAsync", depth=2)
    loop.submit("a", words(1, 100), 20)
    for _ in range(3):
        loop.step()
    request, scheduler = loop.requests["a"], loop.scheduler
    assert request.num_stale_output_tokens == 0
    scheduler.running.remove(request)
    scheduler._preempt_request(request, 0.0, drop_stale_output=scheduler.requires_kv_delivery)
    scheduler.prev_step_scheduled_req_ids.discard("a")
    assert request.num_stale_output_tokens > 0
    loop.run()
    assert (request.num_stale_output_tokens, len(loop.answers["a"])) == (0, 20)
