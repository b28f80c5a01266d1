"""What the plug-in costs vLLM's scheduler: its steps per second with the plug-in over those without.

    python benchmarks/bench_plugin.py [--repeats 5] [--calls 400]

vLLM's own scheduler, alone, with a runner that samples one fixed token: 64 calls run, 16,384 blocks of 16 tokens, 160
sessions whose contexts need twice the blocks there are, so that nearly every call finds part of its context and evicts
somebody else's. Requests are made before the clock starts, which counts CPU time of the thread in the scheduler. Stock,
stock again and the plug-in take turns of five steps each in one process; the ratio is to stock in the same repeat.
Aim: 0.93. Measured with vLLM 0.32.0 on two cores at a load average of 1 to 2: 0.908 (0.866-0.914) first come, first
served, 0.893 (0.885-0.938) by priority; stock against itself 1.017 and 1.011. On a busier machine it is less.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from dataclasses import replace
from random import Random

from real_vllm import VLLM_VERSION, Settings, make_scheduler
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from saga.vllm_plugin.scheduler import SagaScheduler

NUM_BLOCKS, BLOCK_TOKENS, NUM_RUNNING, NUM_WAITING, NUM_SESSIONS = 16_384, 16, 64, 8, 160
SIZES = Settings(NUM_BLOCKS - 1, BLOCK_TOKENS, chunk_tokens=8_192, max_running=NUM_RUNNING)


def requests_of(num_calls: int, seed: int) -> list[Request]:
    """Calls of sessions in turn, contexts growing by 64 tokens a call over a shared head of 512, 24-40 tokens out."""
    dice = Random(seed)
    hasher = get_request_block_hasher(BLOCK_TOKENS, sha256)
    head = [dice.randrange(10, 50_000) for _ in range(512)]
    contexts = [[dice.randrange(10, 50_000) for _ in range(dice.randrange(1_500, 4_500))] for _ in range(NUM_SESSIONS)]
    made = []
    for at in range(num_calls):
        number = dice.randrange(NUM_SESSIONS)
        contexts[number] += [dice.randrange(10, 50_000) for _ in range(64)]
        params = SamplingParams(
            max_tokens=dice.randrange(24, 40),
            ignore_eos=True,
            extra_args={
                "saga_session": f"s{number}",
                "saga_task": f"t{number}",
                "saga_step": f"step-{at}",
                "saga_tenant": f"tenant-{number % 4}",
                "saga_continue_probability": 0.9,
                "saga_expected_gap_s": dice.expovariate(0.2),
            },
        )
        made.append(
            Request(
                request_id=f"c{at}",
                prompt_token_ids=head + contexts[number],
                sampling_params=params,
                pooling_params=None,
                block_hasher=hasher,
                session_id=f"s{number}",
                priority=number,
            )
        )
    return made


class Turns:
    """One scheduler at work on its requests: steps, CPU seconds spent in it, tokens found and asked for."""

    def __init__(self, scheduler: AsyncScheduler, requests: list[Request]) -> None:
        self.scheduler = scheduler
        self.feed = iter(requests)
        self.steps = self.cached = self.prompt = 0
        self.spent_s = 0.0

    @property
    def rate(self) -> float:
        """Steps per CPU second."""
        return self.steps / self.spent_s

    def step(self) -> bool:
        """One step; False where all is done. The clock runs in the scheduler only."""
        scheduler = self.scheduler
        begin_s = time.thread_time()
        while len(scheduler.waiting) < NUM_WAITING:
            request = next(self.feed, None)
            if request is None:
                break
            scheduler.add_request(request)
        if not scheduler.get_num_unfinished_requests():
            return False
        decision = scheduler.schedule()
        self.spent_s += time.thread_time() - begin_s
        names = list(decision.num_scheduled_tokens)
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: at for at, name in enumerate(names)},
            sampled_token_ids=[[] if scheduler.requests[name].is_prefill_chunk else [5] for name in names],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        for new in decision.scheduled_new_reqs:
            self.cached += new.num_computed_tokens
            self.prompt += len(new.prompt_token_ids)
        begin_s = time.thread_time()
        scheduler.update_from_output(decision, output)
        self.spent_s += time.thread_time() - begin_s
        self.steps += 1
        return True


def main() -> None:
    """Stock against itself and against the plug-in, by queue."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--queue", choices=["fcfs", "priority"], action="append")
    options = parser.parse_args()
    init_none_hash(sha256)
    print(f"vLLM {VLLM_VERSION}: {NUM_RUNNING} running, {NUM_BLOCKS} blocks, {options.calls} calls per repeat")
    systems = {"stock": AsyncScheduler, "stock again": AsyncScheduler, "plug-in": SagaScheduler}
    for queue in options.queue or ["fcfs", "priority"]:
        sizes = replace(SIZES, queue=queue)
        rounds: list[dict[str, Turns]] = []
        for repeat in range(options.repeats):
            rounds.append(
                {
                    name: Turns(
                        make_scheduler(system, sizes, max_model_tokens=32_768, async_scheduling=True),
                        requests_of(options.calls, seed=repeat),
                    )
                    for name, system in systems.items()
                }
            )
            gc.collect()
            gc.disable()  # when it comes depends on all three
            alive = list(rounds[-1].values())
            while alive:
                alive = [turns for turns in alive if all(turns.step() for _ in range(5))]
            gc.enable()
            for turns in rounds[-1].values():
                turns.scheduler = None
        for name in rounds[0]:
            ratios = [each[name].rate / each["stock"].rate for each in rounds]
            rate = statistics.median(each[name].rate for each in rounds)
            cached = sum(each[name].cached for each in rounds) / sum(each[name].prompt for each in rounds)
            print(
                f"{queue:9s}{name:12s} {rate:6.0f} steps/s  ratio {statistics.median(ratios):.3f}"
                f" ({min(ratios):.3f}-{max(ratios):.3f})  cached {cached:.1%} of prompts"
            )


if __name__ == "__main__":
    main()
