"""vLLM's scheduler with SAGA inside: `--scheduler-cls saga.vllm_plugin.scheduler.SagaScheduler`.

    vllm serve MODEL --scheduler-cls saga.vllm_plugin.scheduler.SagaScheduler --scheduling-policy priority \
        --enable-prefix-caching --additional-config '{"saga": {"eviction": "next_use"}}'

vLLM decides what runs; this class gives its free blocks an order, its waiting calls their places, and hears what
happens: it calls `super()` everywhere and patches nothing. What it does with what it hears is `control`'s business.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from saga.vllm_plugin import compatibility

compatibility.check()

from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # noqa: E402 - refused clearly above where it is not there
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue  # noqa: E402
from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402
from vllm.v1.request import RequestStatus  # noqa: E402

from saga.vllm_plugin.block_order import DeviceCache, hashed, replace_queue, shared_front  # noqa: E402
from saga.vllm_plugin.config import EVICTION, PluginConfig  # noqa: E402
from saga.vllm_plugin.contracts import EngineFacts  # noqa: E402
from saga.vllm_plugin.control import Control  # noqa: E402

_CAN_START = (RequestStatus.WAITING, RequestStatus.PREEMPTED)


class SagaSyncScheduler(Scheduler):
    """With vLLM's plain scheduler, for engines without asynchronous scheduling. saga: what it decides by.

    saga_clock: seconds, of any origin.
    """

    saga_clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - vLLM's business
        """Raises UsageError for settings that cannot be, and for a vLLM that cannot be served."""
        super().__init__(*args, **kwargs)
        compatibility.check_scheduler(self)
        config = PluginConfig.read(dict(self.vllm_config.additional_config or {}).get("saga"))
        pool = self.kv_cache_manager.block_pool
        ordered = self.cache_config.enable_prefix_caching and config.eviction != "stock"
        queue = replace_queue(pool, EVICTION[config.eviction]) if ordered else None
        self._saga_queue = queue
        self._saga_gave_way: list[Any] = []
        self._saga_cache = DeviceCache(pool, self.kv_cache_config.kv_cache_groups, self.hash_block_size)
        self.saga = Control(
            config,
            queue=queue,
            pool=pool,
            cache=self._saga_cache,
            num_blocks=pool.num_gpu_blocks - 1,
            block_tokens=self._saga_cache.block_tokens,
            by_priority=self.policy == SchedulingPolicy.PRIORITY,
            now_s=self.saga_clock,
        )
        if self.connector is not None:
            from saga.vllm_plugin.host_tier import tier_of  # noqa: PLC0415 - vLLM's connectors are needed only here

            self.saga.tier = tier_of(self, self.saga)
        if config.coordinator:
            from saga.vllm_plugin.link import connect  # noqa: PLC0415 - needs grpcio, which engines without it lack

            self.saga.link = connect(config.link(), self._saga_facts(config))

    def _saga_facts(self, config: PluginConfig) -> EngineFacts:
        """A rate of a tier that is not there is none."""
        transfer = self.vllm_config.kv_transfer_config
        num_host_blocks = self.saga.tier.num_blocks
        is_shared = bool(num_host_blocks and transfer.kv_connector_extra_config.get("secondary_tiers"))
        return EngineFacts(
            model=str(self.vllm_config.model_config.model),
            block_tokens=self.saga.block_tokens,
            num_blocks=self.saga.num_blocks,
            num_host_blocks=num_host_blocks,
            max_running=self.max_num_running_reqs,
            prefill_tokens_per_s=config.prefill_tokens_per_s,
            load_tokens_per_s=config.load_tokens_per_s if num_host_blocks else 0.0,
            move_tokens_per_s=config.move_tokens_per_s if is_shared else 0.0,
            engine_version=compatibility.engine_version(),
        )

    # What vLLM calls

    def add_request(self, request: Any) -> None:  # noqa: ANN401
        """A call comes, or the next part of one that is here."""
        if request.request_id not in self.requests:
            self.saga.arrived(request)
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """One step: what SAGA has to say before, what became of it after."""
        saga = self.saga
        at_s = saga.now_s()
        if self._saga_queue is not None:
            self._saga_queue.now_s = at_s
        if at_s >= saga.next_epoch_s:
            self._saga_epoch(at_s)
        if len(saga.pins):
            self._saga_make_room()
        output = super().schedule(*args, **kwargs)
        while self._saga_gave_way:
            self.waiting.prepend_request(self._saga_gave_way.pop())
        if output.scheduled_new_reqs or output.scheduled_cached_reqs.resumed_req_ids:
            self._saga_started(output)
        if saga.prefill_rate is not None:
            scheduled = output.num_scheduled_tokens
            saga.prefill_rate.began(output, output.total_num_scheduled_tokens, len(scheduled), at_s)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:  # noqa: ANN401
        """One step's tokens; an engine that is about to sleep reports first."""
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        saga = self.saga
        if saga.prefill_rate is not None:
            saga.prefill_rate.ended(scheduler_output, saga.now_s())
        saga.tier.strip(outputs)
        running = len(self.running)
        waiting = sum(len(getattr(self, name, ())) for name in compatibility.QUEUES)
        saga.report(num_running=running, num_waiting=waiting, at_once=not running and not waiting)
        return outputs

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:  # noqa: ANN401
        """Everything cached is dropped, if vLLM can."""
        self.saga.forget_cache()
        done = bool(super().reset_prefix_cache(*args, **kwargs))
        if done:
            self.saga.cache_forgotten()
        return done

    def shutdown(self) -> None:
        """The engine ends."""
        self.saga.link.close()
        super().shutdown()

    def _free_request_blocks(self, request: Any) -> None:  # noqa: ANN401
        """A call ends, is aborted or preempted: all of them give their blocks back here."""
        queue = self._saga_queue
        session = self.saga.leaving(request, finished=request.is_finished())
        if queue is None or session is None:
            super()._free_request_blocks(request)
            return
        groups = self._saga_cache.blocks_of(self.kv_cache_manager.get_blocks(request.request_id).blocks)
        at_once = self._saga_falls_free(request)
        with queue.given_by(session, shared_front(groups) if at_once else hashed(groups)):
            super()._free_request_blocks(request)

    # Before and after a step

    def _saga_started(self, output: Any) -> None:  # noqa: ANN401
        for name in (*(new.req_id for new in output.scheduled_new_reqs), *output.scheduled_cached_reqs.resumed_req_ids):
            request = self.requests[name]
            stats = request.prefill_stats
            cached, host = (
                (0, 0) if stats is None else (stats.num_local_cached_tokens, stats.num_external_cached_tokens)
            )
            self.saga.started(name, request.num_prompt_tokens, cached, host)

    def _saga_epoch(self, at_s: float) -> None:
        self.saga.epoch()
        if self.saga.by_priority:
            if self.saga.calls.settle():
                self._saga_reorder()
            if self.waiting:
                self._saga_give_way(at_s)

    def _saga_reorder(self) -> None:
        """Every call gets its present place; heaps are built anew where one of theirs moved. O(calls * log)."""
        calls = self.saga.calls
        moved = False
        queues = {name: list(getattr(self, name)) for name in compatibility.QUEUES if hasattr(self, name)}
        for call in calls:
            request = self.requests.get(call.name)
            if request is not None:
                place = calls.place(call)
                moved |= call.waiting and place != request.priority
                request.priority = place
        for name, requests in queues.items() if moved else ():
            queue = create_request_queue(self.policy)
            for request in requests:
                queue.add_request(request)
            setattr(self, name, queue)

    def _saga_give_way(self, at_s: float) -> None:
        """Running calls make room for the head of the queue if it waits for long, goes before them, and then fits."""
        head = self.waiting.peek_request()
        call = self.saga.calls.get(head.request_id)
        if call is None or at_s - call.since_s < self.saga.config.preempt_after_s or head.status not in _CAN_START:
            return
        most = int(vars(self).get("max_num_active_reqs", self.max_num_running_reqs))
        num_slots = 1 + len(self.running) - most
        num_blocks = self._saga_blocks_for(head) - self.kv_cache_manager.block_pool.get_num_free_blocks()
        if (num_slots <= 0 and num_blocks <= 0) or getattr(head, "num_stale_output_tokens", 0):
            return  # it waits for something else
        victims = []
        for request in sorted(self.running, key=lambda each: (each.priority, each.arrival_time), reverse=True):
            if num_slots <= 0 and num_blocks <= 0:
                break
            if request.priority > head.priority and self._saga_can_give_way(request):
                victims.append(request)
                num_slots -= 1
                num_blocks -= self._saga_blocks_alone(request)
        if num_slots > 0 or num_blocks > 0:
            return
        for victim in victims:
            self._saga_preempt(victim)

    def _saga_can_give_way(self, request: Any) -> bool:  # noqa: ANN401
        call = self.saga.calls.get(request.request_id)
        return call is not None and call.gave_way < self.saga.config.max_preemptions and self._saga_falls_free(request)

    def _saga_falls_free(self, request: Any) -> bool:  # noqa: ANN401
        """Whether its blocks fall free when it gives them back, and not when a step in flight has landed."""
        return not self.defer_block_free or bool(request.last_sched_seq <= self.processed_step_seq)

    def _saga_preempt(self, request: Any) -> None:  # noqa: ANN401
        """As vLLM preempts where blocks run out; tokens in flight are delivered. It waits outside vLLM for this step.

        A connector may not see a request preempted and loading in one step (vLLM 0.32 would fail).
        """
        self.running.remove(request)
        self._preempt_request(request, time.monotonic(), drop_stale_output=self.requires_kv_delivery)
        self.prev_step_scheduled_req_ids.discard(request.request_id)
        self.waiting.remove_request(request)
        self._saga_gave_way.append(request)
        call = self.saga.calls.get(request.request_id)
        assert call is not None
        call.gave_way += 1

    def _saga_blocks_for(self, request: Any) -> int:  # noqa: ANN401
        """Blocks that vLLM wants free before it lets the request in: the whole of it must fit."""
        num_blocks = -(-int(request.num_tokens) // int(self.block_size))
        return num_blocks * len(self.kv_cache_config.kv_cache_groups)

    def _saga_blocks_alone(self, request: Any) -> int:  # noqa: ANN401
        """Blocks that fall free with the request."""
        groups = self.kv_cache_manager.get_blocks(request.request_id).blocks
        return sum(block.ref_cnt == 1 and not block.is_null for group in groups for block in group)

    def _saga_make_room(self) -> None:
        """Pins never keep a call from running: neither the head of the queue nor those that run already."""
        num_blocks = len(self.running) - (-int(self.max_num_scheduled_tokens) // self.block_size)
        if self.waiting:
            num_blocks += self._saga_blocks_for(self.waiting.peek_request())
        self.saga.pins.make_room(num_blocks)


class SagaScheduler(SagaSyncScheduler, AsyncScheduler):
    """With vLLM's asynchronous scheduler, its default."""
