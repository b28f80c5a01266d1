"""Here vLLM's own scheduler runs without an engine.

Its runner "samples" the position of each token, so an answer that lost, doubled or reordered a token shows it.
"""

from __future__ import annotations

import warnings
from collections import deque
from functools import cache
from typing import Any

BLOCK = 16


@cache
def real_vllm() -> Any:
    """benchmarks/real_vllm.py, which knows how to make a scheduler of vLLM."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import real_vllm
    return real_vllm


def scheduler_class(name: str) -> type:
    """By name: Stock and StockAsync of vLLM, SagaSync and Saga of the plug-in."""
    real_vllm()
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    from saga.vllm_plugin.scheduler import SagaScheduler, SagaSyncScheduler

    return {"Stock": Scheduler, "StockAsync": AsyncScheduler, "SagaSync": SagaSyncScheduler, "Saga": SagaScheduler}[
        name
    ]


def words(seed: int, count: int) -> list[int]:
    """A prompt; more words of the same seed begin with the same ones."""
    return real_vllm().tokens_of(seed, 0, count)


class Loop:
    """A scheduler, its clock and its calls. depth: steps that are scheduled before the first one's tokens come."""

    def __init__(self, name="Saga", *, blocks=300, queue="priority", running=16, depth=1, **saga) -> None:
        real = real_vllm()
        settings = real.Settings(num_blocks=blocks, block_tokens=BLOCK, max_running=running, queue=queue)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = real.RealScheduler(settings, scheduler_cls=scheduler_class(name), saga=saga)
        self.scheduler = made.scheduler
        self.hasher = made._hasher
        self.now_s = 0.0
        self.saga = getattr(self.scheduler, "saga", None)
        if self.saga is not None:
            self.saga.now_s = lambda: self.now_s
        self.blocks = blocks
        self.depth = depth
        self.flying: deque[tuple[Any, Any]] = deque()
        self.answers: dict[str, list[int]] = {}
        self.cached: dict[str, int] = {}
        self.order: list[str] = []
        self.requests: dict[str, Any] = {}

    @property
    def pool(self):
        return self.scheduler.kv_cache_manager.block_pool

    @property
    def queue(self):
        return self.pool.free_block_queue

    def submit(self, name, prompt, tokens=8, *, session=None, priority=0, salt=None, **xargs) -> None:
        """Put a call into the queue."""
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        self.answers[name] = []
        self.requests[name] = Request(
            request_id=name,
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(max_tokens=tokens, ignore_eos=True, extra_args=xargs or None),
            pooling_params=None,
            arrival_time=self.now_s + 1e-6 * len(self.requests),
            block_hasher=self.hasher,
            priority=priority,
            session_id=session,
            cache_salt=salt,
        )
        self.scheduler.add_request(self.requests[name])

    def step(self, seconds=0.01) -> None:
        """One iteration of this many seconds."""
        from vllm.v1.outputs import ModelRunnerOutput

        decision = self.scheduler.schedule()
        for new in decision.scheduled_new_reqs:
            if new.req_id not in self.cached:
                self.cached[new.req_id] = new.num_computed_tokens
                self.order.append(new.req_id)
        names = list(decision.num_scheduled_tokens)
        requests = [self.scheduler.requests[name] for name in names]
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: at for at, name in enumerate(names)},
            sampled_token_ids=[[] if each.is_prefill_chunk else [each.num_computed_tokens] for each in requests],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        self.now_s += seconds
        self.flying.append((decision, output))
        if len(self.flying) >= self.depth:
            self._land()

    def _land(self) -> None:
        for client in self.scheduler.update_from_output(*self.flying.popleft()).values():
            for each in client.outputs:
                self.answers[each.request_id] += each.new_token_ids

    def run(self, seconds=0.01, most=5_000) -> None:
        """Until nothing is left to do."""
        for _ in range(most):
            if not self.scheduler.get_num_unfinished_requests():
                break
            self.step(seconds)
        else:
            raise AssertionError(f"still at work after {most} steps")
        while self.flying:
            self._land()

    def ask(self, name, prompt, tokens=8, **more) -> int:
        """One call by itself; tokens of its prompt that were found."""
        self.submit(name, prompt, tokens, **more)
        self.run()
        return self.cached[name]

    def flood(self, calls=6, tokens=1_000) -> None:
        """Strangers that need the whole pool several times."""
        for _ in range(calls):
            number = len(self.requests) + 10_000
            self.ask(f"flood-{number}", words(number, tokens))

    def abort(self, name) -> None:
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def check(self) -> None:
        """Every answer is whole, every block is there."""
        for name, answer in self.answers.items():
            begin = self.requests[name].num_prompt_tokens
            assert answer == list(range(begin, begin + len(answer))), name
        if self.saga is not None and self.scheduler._saga_queue is not None:
            self.queue.check()
        if not self.scheduler.get_num_unfinished_requests() and not (self.saga and len(self.saga.pins)):
            assert self.pool.get_num_free_blocks() == self.blocks
