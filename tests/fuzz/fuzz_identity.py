"""Coverage-guided fuzzing of bodies, conventions and answers, where atheris is installed.

Run: python tests/fuzz/fuzz_identity.py -max_total_time=60

Anything but `Refused` out of `identify`, or any error out of a watcher, is a finding. Hypothesis does the same with
less patience in tests/gateway/.
"""

from __future__ import annotations

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
IDENTITY = GatewayIdentity()


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
    body = source.ConsumeBytes(source.remaining_bytes())
    with suppress(Refused):
        call = IDENTITY.identify(Request("POST", path, path, headers, body), 0.0)
        IDENTITY.answered(call, Answer(complete=True), 1.0)
    watcher = watch(kind, stream=stream)
    watcher.feed(body)
    watcher.close()


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
