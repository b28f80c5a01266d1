"""Calls per second of the modelled engine, against the same engine stepping through every iteration.

Run: python benchmarks/bench_engine.py [--calls 5000] [--sessions 30]

One llama3-70b-a100x4 worker, sessions in a closed loop: a prompt that grows by about 300 tokens per call, about 200
tokens of output, gaps of a few seconds. Both engines serve the same calls and end at the same virtual time. CPU time
includes everything: submit, plan, commit, cache, and the loop below that drives the engine.
"""

from __future__ import annotations

import argparse
import heapq
import random
import time

from saga.engine import EngineRequest, EngineSettings, LatencyModel, ModelledEngine, hardware


def run(engine: ModelledEngine, num_calls: int, num_sessions: int) -> tuple[float, float, float]:
    """Serve num_calls calls; (CPU seconds, virtual seconds, mean running calls when one finished)."""
    rng = random.Random(1)
    sizes = [(rng.randint(50, 550), rng.randint(50, 350), rng.expovariate(1 / 4)) for _ in range(num_calls)]
    contexts = [1500] * num_sessions
    generations = [0] * num_sessions
    arrivals = [(rng.random() * 60, session) for session in range(num_sessions)]
    heapq.heapify(arrivals)
    submitted = running = 0
    finished_s = 0.0
    started_s = time.process_time()
    while True:
        event_s = engine.next_event_s()
        at_s = min(event_s, arrivals[0][0]) if arrivals else event_s
        if at_s == float("inf"):
            break
        for outcome in engine.advance(at_s):
            if outcome.request is not None:
                request = outcome.request
                session = int(request.session)
                contexts[session] = request.prompt_tokens + request.output_tokens
                running += engine.report()[0]
                finished_s = outcome.at_s
                if submitted < num_calls:
                    heapq.heappush(arrivals, (at_s + sizes[submitted][2], session))
        while arrivals and arrivals[0][0] <= at_s:
            session = heapq.heappop(arrivals)[1]
            if submitted == num_calls:
                continue
            new_tokens, output_tokens, _ = sizes[submitted]
            if contexts[session] > 20_000:
                generations[session] += 1
                contexts[session] = 1500
            prompt_tokens = contexts[session] + new_tokens
            stream = 1000 + session + num_sessions * generations[session]
            path = ((0, 1500), (stream, prompt_tokens - 1500))
            engine.submit(EngineRequest(str(submitted), str(session), path, prompt_tokens, output_tokens), at_s)
            submitted += 1
    return time.process_time() - started_s, finished_s, running / num_calls


def main() -> None:
    """Print both engines' rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--sessions", type=int, default=30)
    arguments = parser.parse_args()
    latency = LatencyModel(hardware("llama3-70b-a100x4"))
    calls = arguments.calls
    for name, longest in (("jumping", 1 << 30), ("every iteration", 1)):
        engine = ModelledEngine(EngineSettings(kv_tokens=450_000, max_jump_iterations=longest), latency)
        cpu_s, virtual_s, running = run(engine, calls, arguments.sessions)
        print(
            f"{name:16} {calls / cpu_s:9.0f} calls/s  {cpu_s / calls * 1e6:7.1f} us/call  "
            f"{running:5.1f} running  {virtual_s:8.1f} virtual s for {calls} calls"
        )


if __name__ == "__main__":
    main()
