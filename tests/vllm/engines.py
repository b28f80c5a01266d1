"""Helpers of the tests on a real engine: an engine in this process, and a server in its own."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tiny_model import ENVIRONMENT

BLOCK_TOKENS = 32
KV_BYTES_PER_TOKEN = 2_048  # 4 layers, 2 KV heads of 64, keys and values, bfloat16
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  vLLM's own choice
_BEFORE = frozenset(_SHARED_MEMORY.glob("vllm_offload_*"))


def clean_shared_memory() -> None:
    """Remove what stopped engines of this run left in shared memory."""
    for left in set(_SHARED_MEMORY.glob("vllm_offload_*")) - _BEFORE:
        with suppress(OSError):
            left.unlink()


def tokens(seed: int, count: int) -> list[int]:
    """`count` token ids, none of them special; more of the same seed begin with the same ones."""
    dice = Random(seed)
    return [dice.randrange(300, 2_000) for _ in range(count)]


@dataclass
class Answer:
    """What a call brought. cached: tokens of its prompt that were not computed, from device or tier."""

    token_ids: list[int]
    cached: int
    finished: bool = True


def _asked(name: str) -> str:
    """The name that a call was given, before vLLM added to it."""
    return "-".join(name.split("-")[:2])


@dataclass
class Engine:
    """vLLM in this process, with its scheduler at hand."""

    llm: Any
    answers: dict[str, Answer] = field(default_factory=dict)
    _count: int = 0

    @property
    def scheduler(self) -> Any:
        """The scheduler object."""
        return self.llm.llm_engine.engine_core.engine_core.scheduler

    @property
    def pool(self) -> Any:
        """The block pool."""
        return self.scheduler.kv_cache_manager.block_pool

    def submit(self, prompt: Sequence[int], max_tokens: int = 8, *, session: str | None = None, **more: Any) -> str:
        """Queue a greedy call; its name. more: `vllm_xargs` of it, apart from priority and logprobs."""
        from vllm import SamplingParams

        self._count += 1
        priority = more.pop("priority", 0)
        params = SamplingParams(
            max_tokens=max_tokens, temperature=0.0, ignore_eos=True, detokenize=False, extra_args=more or None
        )
        return self.llm.llm_engine.add_request(
            f"call-{self._count}",
            {"prompt_token_ids": list(prompt)},
            params,
            priority=priority,
            session_id=session,
        )

    def step(self) -> None:
        """One iteration; what has finished is in `answers`."""
        for output in self.llm.llm_engine.step():
            completion = output.outputs[0]
            self.answers[output.request_id] = Answer(
                list(completion.token_ids), output.num_cached_tokens or 0, finished=output.finished
            )

    def run(self, max_steps: int = 20_000) -> None:
        """Step until nothing is left to do, transfers included."""
        for _ in range(max_steps):
            if not (self.llm.llm_engine.has_unfinished_requests() or self.scheduler.has_requests()):
                return
            self.step()
        raise AssertionError(f"still at work after {max_steps} steps")

    def ask(self, prompt: Sequence[int], max_tokens: int = 8, **more: Any) -> Answer:
        """One call, alone."""
        name = self.submit(prompt, max_tokens, **more)
        self.run()
        return self.find(name)

    def ask_all(self, prompts: Iterable[Sequence[int]], max_tokens: int = 8, **more: Any) -> list[Answer]:
        """Several at once, in their order."""
        names = [self.submit(prompt, max_tokens, **more) for prompt in prompts]
        self.run()
        return [self.find(name) for name in names]

    def has(self, name: str) -> bool:
        """Whether a call is answered."""
        return _asked(name) in self.answers

    def find(self, name: str) -> Answer:
        """The answer of a call."""
        return self.answers[_asked(name)]

    def abort(self, name: str) -> None:
        """The client went away."""
        self.llm.llm_engine.abort_request([name], internal=True)

    def flood(self, num_tokens: int = 5_000, seed: int = 900_000) -> None:
        """Other sessions, one after the other, until everything idle has left the device."""
        self._count += 1
        for i in range(num_tokens // 1_000):
            self.ask(tokens(seed + 1_000 * self._count + i, 1_000), 1)

    def check_conserved(self) -> None:
        """Every block is free or the null block, none twice, and no call is left."""
        queue = self.pool.free_block_queue
        free = [block.block_id for block in queue.get_all_free_blocks()]
        assert len(free) == len(set(free)) == queue.num_free_blocks == self.pool.num_gpu_blocks - 1
        assert all(block.ref_cnt == 0 for block in self.pool.blocks if not block.is_null)
        assert not self.scheduler.requests

    def reset(self) -> None:
        """Forget every prefix, on the device and in the tier."""
        self.answers.clear()
        self.scheduler.reset_prefix_cache(reset_connector=True)


class Engines:
    """One engine in this process at a time."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._settings: str | None = None
        self._engine: Engine | None = None

    def get(self, **settings: Any) -> Engine:
        """An engine with these arguments of `vllm.LLM`, its caches empty; the last one where it has them already."""
        wanted = json.dumps(settings, sort_keys=True, default=str)
        if self._engine is None or wanted != self._settings:
            self.close()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # those of vLLM, torch and what they import
                from vllm import LLM

                self._engine = Engine(
                    LLM(
                        str(self._model),
                        **{
                            "max_model_len": 4_096,
                            "enforce_eager": True,
                            "block_size": BLOCK_TOKENS,
                            "num_gpu_blocks_override": 129,
                            "enable_prefix_caching": True,
                            "distributed_executor_backend": "uni",
                            "disable_log_stats": True,
                            "seed": 0,
                            **settings,
                        },
                    )
                )
            self._settings = wanted
        self._engine.reset()
        return self._engine

    def close(self) -> None:
        """End the engine and free what it held."""
        if self._engine is None:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from vllm.distributed import cleanup_dist_env_and_memory

            self._engine.llm.llm_engine.engine_core.shutdown()
            self._engine = None
            cleanup_dist_env_and_memory()
            gc.collect()
        clean_shared_memory()


def tiered(
    engines: Engines,
    host_blocks: int = 1_000,
    *,
    name: str = "",
    scheduling_policy: str = "fcfs",
    additional_config: dict[str, Any] | None = None,
    **tier: Any,
) -> Engine:
    """An engine with SAGA's scheduler and a host tier of so many blocks. name: another engine for another name."""
    from saga.vllm_plugin.transfer_config import transfer_config

    return engines.get(
        scheduler_cls="saga.vllm_plugin.scheduler.SagaScheduler",
        kv_transfer_config=transfer_config(host_blocks * BLOCK_TOKENS * KV_BYTES_PER_TOKEN, **tier),
        served_model_name=name or "tiny",
        scheduling_policy=scheduling_policy,
        additional_config=additional_config or {},
    )


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """vLLM's OpenAI server in a process of its own."""

    def __init__(self, model: Path, folder: Path) -> None:
        self._model = model
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self, *flags: str, start_s: float = 180.0) -> Server:
        """Start it, where it does not run yet, and wait until it answers."""
        if self._process is not None:
            return self
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self._model)]
        command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--block-size", str(BLOCK_TOKENS), "--num-gpu-blocks-override", "129", "--max-model-len", "4096"]
        command += ["--enable-prefix-caching", "--enable-prompt-tokens-details", "--enforce-eager", *flags]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=os.environ | ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + start_s
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=2):  # noqa: S310
                return self
            time.sleep(0.2)
        tail = self._log.read_text(errors="replace")[-4_000:]
        self.stop()
        raise AssertionError(f"the server did not start:\n{tail}")

    def ask(self, prompt: Sequence[int] | str, max_tokens: int = 8, **body: Any) -> dict[str, Any]:
        """The answer of a greedy completion."""
        asked = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        data = json.dumps(asked | body).encode()
        request = urllib.request.Request(  # noqa: S310  loopback
            f"{self.url}/v1/completions", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.load(answer)

    def metrics(self) -> str:
        """The text of /metrics."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=20) as answer:  # noqa: S310
            return answer.read().decode()

    def stop(self) -> None:
        """End it, with every process it started."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait(10)


def cached_tokens(answer: dict[str, Any]) -> int:
    """Tokens of the prompt that were found, as the server says."""
    return (answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0
