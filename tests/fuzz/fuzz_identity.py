"""Coverage-guided fuzzing of bodies, conventions and answers, where atheris is installed.

Run: python tests/fuzz/fuzz_identity.py -max_total_time=60

Anything but `Refused` out of `identify`, or any error out of a watcher, is a finding. Hypothesis does the same with
less patience in tests/gateway/.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress

from saga.gateway.contracts import Answer, Kind, Refused, Request

try:
    import atheris
except ImportError:
    sys.exit("atheris is not installed: pip install atheris")

with atheris.instrument_imports():
    from saga.gateway.answers import watch
    from saga.gateway.identity import GatewayIdentity
    from saga.wire import DEFAULT

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"]
HEADERS = sorted({field.header for convention in DEFAULT for field in convention.fields if field.header})
KEYS = sorted({key for convention in DEFAULT for field in convention.fields for key in field.path})
KEYS += ["messages", "input", "prompt", "role", "content", "tool_calls", "type", "text", "output", "arguments", "name"]
KEYS += ["stream", "stream_options", "max_tokens", "choices", "delta", "message", "usage", "prompt_tokens", "index"]
KEYS += ["function", "response", "item", "error", "finish_reason", "content_block", "object", "system", "tools"]
TEXTS = [
    "user",
    "assistant",
    "system",
    "tool",
    "function_call",
    "tool_use",
    "Bash",
    "m",
    "{}",
    '{"command":"git x"}',
    "",
]
IDENTITY = GatewayIdentity()


def value(source: atheris.FuzzedDataProvider, depth: int) -> object:
    """Any JSON value, with keys and texts that mean something."""
    kind = source.ConsumeIntInRange(0, 9 if depth < 5 else 5)
    if kind < 2:
        return TEXTS[source.ConsumeIntInRange(0, len(TEXTS) - 1)]
    if kind < 6:
        plain = (None, source.ConsumeBool(), source.ConsumeInt(8), source.ConsumeUnicodeNoSurrogates(8))
        return plain[kind - 2]
    inside = [value(source, depth + 1) for _ in range(source.ConsumeIntInRange(0, 4))]
    if kind < 8:
        return inside
    return {KEYS[source.ConsumeIntInRange(0, len(KEYS) - 1)]: one for one in inside}


def written(source: atheris.FuzzedDataProvider) -> bytes:
    """A body: a JSON object of known fields, now and then with some bytes put in its place."""
    if source.ConsumeIntInRange(0, 9) == 0:
        return source.ConsumeBytes(source.remaining_bytes())
    body = {KEYS[source.ConsumeIntInRange(0, len(KEYS) - 1)]: value(source, 0) for _ in range(6)}
    if source.ConsumeBool():
        messages = [
            {"role": TEXTS[source.ConsumeIntInRange(0, 3)], "content": value(source, 2), KEYS[0]: 1} for _ in range(3)
        ]
        body = {**body, "model": "m", "messages": messages, "input": messages, "prompt": "p" * 100}
    return json.dumps(body).encode()


def one(data: bytes) -> None:
    """One request and one answer from these bytes."""
    source = atheris.FuzzedDataProvider(data)
    path = PATHS[source.ConsumeIntInRange(0, len(PATHS) - 1)]
    headers = [
        (HEADERS[source.ConsumeIntInRange(0, len(HEADERS) - 1)].encode(), source.ConsumeBytes(32))
        for _ in range(source.ConsumeIntInRange(0, 3))
    ]
    kind = list(Kind)[source.ConsumeIntInRange(0, len(Kind) - 1)]
    stream = source.ConsumeBool()
    body = written(source)
    with suppress(Refused):
        call = IDENTITY.identify(Request("POST", path, path, headers, body), 0.0)
        IDENTITY.answered(call, Answer(complete=True), 1.0)
    watcher = watch(kind, stream=stream)
    cut = source.ConsumeIntInRange(0, len(body))
    watcher.feed(b"data: " + body[:cut] if stream else body[:cut])
    watcher.feed(body[cut:] + b"\n\n" if stream else body[cut:])
    watcher.close()


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
