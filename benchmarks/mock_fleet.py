"""Mock workers that can be killed, gateways in front of them, and a client that says exactly how a call ended.

    python benchmarks/mock_fleet.py PORT NAME [LATENCY_S]        one worker, in the foreground

What the other benchmarks of this folder share. A worker answers every POST alike, after LATENCY_S, and signs with its
NAME (field `system_fingerprint`), so that a client sees who served it whatever stands between; with `"stream":true` it
sends paced events. It knows no prompts and keeps nothing. Everything listens on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httptools

NUM_TOKENS = 20
TOKEN_EVERY_S = 0.01
_SIGNED = re.compile(rb'"system_fingerprint":"([^"]*)"')
_MOST_KEPT = 4_000
MODEL = "m"


def install_uvloop() -> None:
    """Use uvloop where it is installed."""
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.install()


# ---------------------------------------------------------------------- workers


def _answer(name: str) -> bytes:
    message = {"role": "assistant", "content": "fine"}
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "system_fingerprint": name,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 500, "completion_tokens": 2, "total_tokens": 502},
        },
        separators=(",", ":"),
    ).encode()


def _event(name: str) -> bytes:
    said = {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "system_fingerprint": name,
        "choices": [{"index": 0, "delta": {"content": "fine "}, "finish_reason": None}],
    }
    return b"data: " + json.dumps(said, separators=(",", ":")).encode() + b"\n\n"


class MockWorker(asyncio.Protocol):
    """One connection of a worker."""

    def __init__(self, name: str, latency_s: float) -> None:
        self._latency_s = latency_s
        self._answer = _answer(name)
        self._event = _event(name)
        self._body: list[bytes] = []
        self._stream: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream is not None:
            self._stream.cancel()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = []

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        loop = asyncio.get_running_loop()
        if self.parser.get_method() != b"POST":
            self._whole(b'{"object":"list","data":[{"id":"m","object":"model","max_model_len":1000000}]}')
        elif b'"stream":true' in b"".join(self._body)[:_MOST_KEPT]:
            self._stream = loop.create_task(self._events())
        elif self._latency_s:
            loop.call_later(self._latency_s, self._whole, self._answer)
        else:
            self._whole(self._answer)

    def _whole(self, answer: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(head % len(answer) + answer)

    async def _events(self) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self.transport.write(head)
        await asyncio.sleep(self._latency_s)
        chunk = b"%x\r\n%b\r\n" % (len(self._event), self._event)
        for _ in range(NUM_TOKENS):
            self.transport.write(chunk)
            await asyncio.sleep(TOKEN_EVERY_S)
        self.transport.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


async def _serve(port: int, name: str, latency_s: float) -> None:
    await asyncio.get_running_loop().create_server(lambda: MockWorker(name, latency_s), "127.0.0.1", port)
    await asyncio.Event().wait()


# ---------------------------------------------------------------------- processes


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int, process: subprocess.Popen[bytes], timeout_s: float = 30.0) -> bool:
    """Whether the process listens before the time is over."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.02)
    return False


def spawn(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a quiet process in a group of its own."""
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that was spawned here, with its children."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Fleet:
    """Mock workers, a process each, on ports that stay theirs when they are killed and started again."""

    def __init__(self, number: int, latency_s: float = 0.0) -> None:
        self.ports = [free_port() for _ in range(number)]
        self._latency_s = latency_s
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * number

    def __len__(self) -> int:
        return len(self.ports)

    @property
    def urls(self) -> list[str]:
        """Where they are."""
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    def start(self, index: int) -> None:
        """Start one that does not run."""
        port = self.ports[index]
        command = [sys.executable, str(Path(__file__).resolve()), str(port), f"w{index}", str(self._latency_s)]
        process = self._processes[index] = spawn(command)
        if not listens(port, process):
            raise SystemExit(f"the mock worker on port {port} did not start")

    def start_all(self) -> None:
        """Start all of them."""
        for index in range(len(self.ports)):
            self.start(index)

    def kill(self, index: int) -> None:
        """SIGKILL, without a word to anybody."""
        process, self._processes[index] = self._processes[index], None
        if process is not None:
            end(process)

    def stop(self) -> None:
        """End all of them."""
        for index in range(len(self.ports)):
            self.kill(index)


@dataclass
class Gateway:
    """What stands between. command: with {workers}, {port}, {spare}."""

    name: str
    command: str
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self, urls: list[str]) -> bool:
        """Start it before these workers; whether it listens."""
        self.port = free_port()
        line = self.command.format(workers=" ".join(urls), port=self.port, spare=free_port())
        self.process = spawn(shlex.split(line))
        return listens(self.port, self.process)

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            end(self.process)
            self.process = None


def saga_command(urls: list[str], *more: str) -> str:
    """`saga serve` of this environment before these workers."""
    saga = shlex.quote(str(Path(sys.executable).with_name("saga")))
    flags = " ".join(f"--worker {url}" for url in urls)
    return " ".join([saga, "serve --port {port} --admin-port {spare}", flags, *more])


# ---------------------------------------------------------------------- client


@dataclass(slots=True)
class Outcome:
    """How a call ended. status: 0 where the connection was lost before an answer. worker: "" where nobody signed.

    first_s, total_s: from sending to the first byte of the body, and to the end. begun: a byte of the body came.
    complete: the answer ended as HTTP asks. error_event: a stream ended with an error that the gateway put there.
    """

    status: int = 0
    worker: str = ""
    first_s: float = 0.0
    total_s: float = 0.0
    begun: bool = False
    complete: bool = False
    error_event: bool = False

    @property
    def served(self) -> bool:
        """Whether the client has what it asked for."""
        return self.status == 200 and self.complete and not self.error_event


class Caller(asyncio.Protocol):
    """One keep-alive connection: one call at a time."""

    def __init__(self) -> None:
        self.transport: Any = None
        self._outcome: Outcome | None = None
        self._done: asyncio.Future[None] | None = None
        self._since_s = 0.0
        self._body: list[bytes] = []
        self.open = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpResponseParser(self)
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._finish(complete=False)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_body(self, data: bytes) -> None:
        outcome = self._outcome
        if outcome is None:
            return
        if not outcome.begun:
            outcome.begun = True
            outcome.first_s = time.perf_counter() - self._since_s
        self._body.append(data)

    def on_message_complete(self) -> None:
        if not self.parser.should_keep_alive():
            self.transport.close()
        self._finish(complete=True)

    def _finish(self, *, complete: bool) -> None:
        outcome, self._outcome = self._outcome, None
        if outcome is None or self._done is None or self._done.done():
            return
        body = b"".join(self._body)
        signed = _SIGNED.search(body)
        outcome.worker = signed[1].decode() if signed is not None else ""
        outcome.complete = complete
        outcome.error_event = b'data: {"error"' in body or b"event: error" in body
        if complete:
            outcome.status = self.parser.get_status_code()
        outcome.total_s = time.perf_counter() - self._since_s
        self._done.set_result(None)

    async def call(self, request: bytes) -> Outcome:
        """Send it and wait for the end, whichever it is."""
        outcome = self._outcome = Outcome()
        self._body = []
        self._done = asyncio.get_running_loop().create_future()
        self._since_s = time.perf_counter()
        self.transport.write(request)
        await self._done
        return outcome


async def connect(port: int) -> Caller:
    """A caller on that port. Raises OSError."""
    _, caller = await asyncio.get_running_loop().create_connection(Caller, "127.0.0.1", port)
    return caller


class Redialling:
    """A caller that dials again where its connection was closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._caller: Caller | None = None

    async def call(self, request: bytes) -> Outcome:
        """Send it and wait for the end. A gateway that takes no connection is an outcome too."""
        if self._caller is None or not self._caller.open:
            try:
                self._caller = await connect(self._port)
            except OSError:
                return Outcome()
        return await self._caller.call(request)

    def close(self) -> None:
        """Hang up."""
        if self._caller is not None and self._caller.transport is not None:
            self._caller.transport.abort()


def request_of(
    messages: list[dict[str, Any]],
    headers: dict[str, str] | None = None,
    fields: dict[str, Any] | None = None,
    *,
    stream: bool = False,
) -> bytes:
    """A chat request."""
    said: dict[str, Any] = {"model": MODEL}
    if stream:
        said["stream"] = True
    body = json.dumps(said | (fields or {}) | {"messages": messages}, separators=(",", ":")).encode()
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: */*\r\nuser-agent: bench\r\n"
        f"content-type: application/json\r\nauthorization: Bearer k\r\n{lines}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def serves(port: int, timeout_s: float = 20.0) -> bool:
    """Whether calls are answered; a gateway may listen before it serves."""
    request = request_of([{"role": "user", "content": "are you there?"}])
    until_s = time.monotonic() + timeout_s
    caller = Redialling(port)
    while time.monotonic() < until_s:
        outcome = await caller.call(request)
        if outcome.served:
            caller.close()
            return True
        await asyncio.sleep(0.2)
    return False


if __name__ == "__main__":
    install_uvloop()
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 0.0))
