"""What it costs to know whose call it is, against parsing the body with `json.loads` and nothing else.

Run: python benchmarks/bench_identity.py [--calls 300] [--conversations 100000]

Each call is identified and answered as in the gateway, without a client key, so that the session is found by content.
Two cases: a conversation that goes on (the usual one) and one that is asked again unchanged (the dearest one). Best of
five rounds, in microseconds of wall time. Then the memory of so many conversations of 13 messages, by resident set.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from saga.gateway.contracts import Answer, Request
from saga.gateway.identity import GatewayIdentity

PATH = "/v1/chat/completions"
HEADERS = [
    (b"host", b"localhost:8000"),
    (b"user-agent", b"OpenAI/Python 1.99.0"),
    (b"accept", b"application/json"),
    (b"content-type", b"application/json"),
    (b"content-length", b"2000"),
    (b"authorization", b"Bearer sk-anything"),
    (b"x-stainless-lang", b"python"),
    (b"x-stainless-retry-count", b"0"),
]
ANSWER = Answer(prompt_tokens=500, output_tokens=20, complete=True, text="ok")
SIZES = ((2_000, 5), (200_000, 99), (1_000_000, 199))


def request(body: object) -> Request:
    """A request with a JSON body."""
    return Request("POST", PATH, PATH, HEADERS, json.dumps(body).encode())


def conversation(num_bytes: int, num_messages: int, name: str = "x") -> list[dict[str, str]]:
    """Messages of about num_bytes, a tenth of them the system prompt."""
    each = num_bytes * 9 // 10 // num_messages
    turns = [
        {"role": ("user", "assistant")[place % 2], "content": f"{name} {place} " + "x" * (each - 10)}
        for place in range(num_messages)
    ]
    return [{"role": "system", "content": "s" * (num_bytes // 10)}, *turns]


def turns(num_bytes: int, num_messages: int, calls: int) -> Iterator[Request]:
    """Calls that each extend what went before by an answer and a question, from about num_bytes on."""
    messages = conversation(num_bytes, num_messages)
    for place in range(calls):
        yield request({"model": "m", "messages": messages})
        messages = [*messages, {"role": "assistant", "content": "ok"}, {"role": "user", "content": f"go on {place}"}]


def best_us(work: Callable[[], object], per: int, rounds: int = 5) -> float:
    """The shortest of some rounds, microseconds per call."""
    shortest_s = float("inf")
    for _ in range(rounds):
        began_s = time.perf_counter()
        work()
        shortest_s = min(shortest_s, time.perf_counter() - began_s)
    return shortest_s / per * 1e6


def serve(calls: list[Request]) -> None:
    """Identify and answer calls in a gateway of their own."""
    identity = GatewayIdentity()
    for place, call in enumerate(calls):
        at_s = float(place)
        identity.answered(identity.identify(call, at_s), ANSWER, at_s + 0.5)


def resident_bytes() -> int:
    """Resident set of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4_096


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--conversations", type=int, default=100_000)
    options = parser.parse_args()
    print(f"{'body':>10} {'going on':>10} {'again':>10} {'json.loads':>11}   microseconds per call")
    for num_bytes, num_messages in SIZES:
        going = list(turns(num_bytes, num_messages, options.calls))
        again = [going[0]] * options.calls
        print(
            f"{len(going[0].body):>10}"
            f" {best_us(lambda calls=going: serve(calls), options.calls):>10.0f}"
            f" {best_us(lambda calls=again: serve(calls), options.calls):>10.0f}"
            f" {best_us(lambda calls=going: [json.loads(call.body) for call in calls], options.calls):>11.0f}"
        )
    identity = GatewayIdentity()
    before = resident_bytes()
    for place in range(options.conversations):
        body = {"model": "m", "messages": conversation(1_500, 12, f"agent {place}")}
        identity.answered(identity.identify(request(body), float(place) / 1_000), ANSWER, float(place) / 1_000)
    grown = resident_bytes() - before
    each = grown / options.conversations
    print(f"{len(identity.conversations)} conversations: {grown / 2**20:.0f} MiB, {each:.0f} bytes each")


if __name__ == "__main__":
    main()
