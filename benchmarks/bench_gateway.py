"""What the gateway's data plane adds to a call: latency, requests per second, CPU per streamed token.

    python benchmarks/bench_gateway.py [--quick] [--rivals VENV] [--rival NAME="COMMAND {workers} {port}"] [--json FILE]

Mock workers with a constant answer run in a process of their own; each contender (the front with trivial parts, with
and without uvloop; `saga serve` with all its parts, as Python and compiled by `make native`; the aiohttp twin; rivals)
in another; the load comes from this process. All are measured in turn, block by block, in the same run, so ratios hold
where absolute figures do not.
Baselines are named: `direct` for latency added, `--baseline` (the twin) for ratios.

--rivals VENV starts `vllm-router` (with consistent hashing, with program scheduling) and `sglang-router` from
VENV/bin where they are there. Everything listens on loopback, everything ends with the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httptools

from saga.gateway.addresses import WorkerAddress
from saga.gateway.contracts import Answer, Call, Request, Ticket, kind_of
from saga.gateway.front import Front
from saga.gateway.twin import Twin

SIZES = {"2 KB": 2_000, "200 KB": 200_000, "1 MB": 1_000_000}
NUM_WORKERS = 4
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 60}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 500, "completion_tokens": 60, "total_tokens": 560},
    }
).encode()
CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"word "},"logprobs":null,"finish_reason":null}]}\n\n'  # noqa: E501
NUM_STREAMS = 64
NUM_TOKENS = 120
TOKEN_EVERY_S = 0.01


def install_uvloop() -> None:
    """Use uvloop where it is installed and not switched off."""
    if os.environ.get("NO_UVLOOP"):
        return
    try:
        import uvloop
    except ImportError:
        return
    uvloop.install()


# ---------------------------------------------------------------------- mock worker


class Worker(asyncio.Protocol):
    """Answers every POST with the same bytes, or with paced events where it says `"stream": true`."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.body: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.body = []

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        if b'"stream":true' in b"".join(self.body)[:4_000]:
            self.stream = asyncio.get_running_loop().create_task(self.events())
            return
        answer = ANSWER if self.parser.get_method() == b"POST" else b'{"object":"list","data":[{"id":"m"}]}'
        head = b"HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(head % len(answer) + answer)

    async def events(self) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        chunk = b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK)
        for _ in range(NUM_TOKENS):
            self.transport.write(chunk)
            await asyncio.sleep(TOKEN_EVERY_S)
        self.transport.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


async def serve_workers(ports: list[int]) -> None:
    """All mock workers on one loop: they cost little and are the same for every contender."""
    for port in ports:
        await asyncio.get_running_loop().create_server(Worker, "127.0.0.1", port)
    await asyncio.Event().wait()


# ---------------------------------------------------------------------- contenders


class Anyone:
    """An identity that asks nothing."""

    def __init__(self) -> None:
        self.num = 0

    def identify(self, request: Request, at_s: float) -> Call:
        self.num += 1
        name = str(self.num)
        return Call(
            kind_of(request.method, request.path), request, "t", name, name, name, body=request.body, retryable=True
        )

    def answered(self, call: Call, answer: Answer, at_s: float) -> None:
        """Learn nothing."""


class RoundRobin:
    """Workers in turn."""

    def __init__(self, addresses: list[WorkerAddress]) -> None:
        self.addresses = addresses
        self.num = 0

    def admit_at_once(self, call: Call) -> Ticket:
        self.num += 1
        return Ticket(call, self.addresses[self.num % len(self.addresses)], 0.0, "its turn")

    async def admit(self, call: Call) -> Ticket:
        return self.admit_at_once(call)

    def first_byte(self, ticket: Ticket) -> None: ...

    def finished(self, ticket: Ticket, answer: Answer) -> None: ...

    async def failed(self, ticket: Ticket, why: str, *, retry: bool) -> Ticket | None:
        return None

    def cancelled(self, ticket: Ticket) -> None: ...


class Unseeing:
    """A watcher that counts."""

    def __init__(self) -> None:
        self.num = 0

    def feed(self, chunk: bytes) -> None:
        self.num += len(chunk)

    def close(self) -> Answer:
        return Answer(complete=True, num_bytes=self.num)


async def serve_contender(name: str, port: int, workers: list[int]) -> None:
    """One of the built-in contenders."""
    addresses = [WorkerAddress(f"w{i}", "127.0.0.1", p) for i, p in enumerate(workers)]
    kind = Twin if name == "twin" else Front
    server = kind(Anyone(), RoundRobin(addresses), lambda *_: Unseeing())
    await server.start("127.0.0.1", port)
    await asyncio.Event().wait()


# ---------------------------------------------------------------------- load


class Client(asyncio.Protocol):
    """One keep-alive connection that sends a request, waits for the whole answer and takes the time."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpResponseParser(self)
        self.done: asyncio.Future[int] | None = None
        self.num_bytes = 0

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self.num_bytes += len(data)

    def on_message_complete(self) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_result(self.parser.get_status_code())

    def connection_lost(self, exc: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(ConnectionError("lost"))

    async def call(self, request: bytes) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        status = await self.done
        if status != 200:
            raise RuntimeError(f"status {status}")


async def connect(port: int) -> Client:
    """A client on that port."""
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    return client


def request_of(num_bytes: int, *, stream: bool = False, session: str = "s") -> bytes:
    """A chat request of about that many bytes in messages of 2 KB."""
    text = "lorem ipsum " * 160
    num_messages = max(1, num_bytes // 2_000)
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i in range(num_messages)]
    said: dict[str, Any] = {"model": "m"}
    if stream:
        said["stream"] = True
    said |= {"vllm_xargs": {"agentic_context": {"program_id": session}}, "messages": messages}
    body = json.dumps(said, separators=(",", ":")).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\nUser-Agent: bench\r\n"
        f"Content-Type: application/json\r\nAuthorization: Bearer k\r\nx-session-id: {session}\r\n"
        f"Accept-Encoding: gzip, deflate\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def latencies_us(port: int, request: bytes, num: int) -> list[float]:
    """Microseconds of each of `num` calls, one after the other on one connection."""
    client = await connect(port)
    await client.call(request)
    taken = []
    for _ in range(num):
        begin = time.perf_counter_ns()
        await client.call(request)
        taken.append((time.perf_counter_ns() - begin) / 1e3)
    client.transport.close()
    return taken


async def throughput(port: int, size: int, concurrency: int, duration_s: float) -> float:
    """Requests per second of that many clients, each with its own session."""
    end = time.perf_counter() + duration_s

    async def drive(index: int) -> int:
        client, num = await connect(port), 0
        request = request_of(size, session=f"s{index}")
        while time.perf_counter() < end:
            await client.call(request)
            num += 1
        client.transport.close()
        return num

    begin = time.perf_counter()
    counts = await asyncio.gather(*(drive(i) for i in range(concurrency)))
    return sum(counts) / (time.perf_counter() - begin)


async def stream_all(port: int) -> None:
    """Stream to NUM_STREAMS clients at once."""

    async def drive(index: int) -> None:
        client = await connect(port)
        await client.call(request_of(2_000, stream=True, session=f"s{index}"))
        client.transport.close()

    await asyncio.gather(*(drive(i) for i in range(NUM_STREAMS)))


# ---------------------------------------------------------------------- the run


@dataclass
class Contender:
    """Who is measured. process is None for the direct way."""

    name: str
    port: int
    process: subprocess.Popen[bytes] | None = None
    latency_us: dict[str, list[float]] = field(default_factory=dict)
    requests_per_s: dict[str, list[float]] = field(default_factory=dict)
    cpu_us_per_request: dict[str, list[float]] = field(default_factory=dict)
    cpu_us_per_token: list[float] = field(default_factory=list)
    failure: str = ""

    def cpu_s(self) -> float:
        """CPU time of the process, all threads, and of its children."""
        if self.process is None:
            return 0.0
        ticks = 0
        for pid in [self.process.pid, *children_of(self.process.pid)]:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def children_of(pid: int) -> list[int]:
    """Processes started by a process, and by those."""
    found = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in tasks.read_text().split():
            found += [int(child), *children_of(int(child))]
    return found


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(command: list[str], **env: str) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own."""
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | env, start_new_session=True
    )


def wait_for(port: int, process: subprocess.Popen[bytes], timeout_s: float = 30.0) -> bool:
    """Whether the process listens before the time is over."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.05)
    return False


def rival_commands(venv: Path) -> dict[str, str]:
    """The rivals whose commands are in that environment."""
    known = {
        "vllm-router consistent_hash": (
            "vllm-router",
            "--host 127.0.0.1 --port {port} --policy consistent_hash --worker-urls {workers} --prometheus-port {spare}",
        ),
        "vllm-router program": (
            "vllm-router",
            (
                "--host 127.0.0.1 --port {port} --policy consistent_hash --enable-program-scheduling"
                " --worker-urls {workers} --prometheus-port {spare}"
            ),
        ),
        "sglang-router cache_aware": (
            "sglang-router",
            (
                "launch --host 127.0.0.1 --port {port} --policy cache_aware --worker-urls {workers}"
                " --prometheus-port {spare}"
            ),
        ),
    }
    return {
        name: f"{shlex.quote(str(venv / 'bin' / program))} {arguments}"
        for name, (program, arguments) in known.items()
        if (venv / "bin" / program).exists()
    }


def set_up(arguments: argparse.Namespace) -> tuple[list[Contender], list[subprocess.Popen[bytes]]]:
    """Start the workers and all contenders."""
    me = [sys.executable, str(Path(__file__).resolve())]
    workers = [free_port() for _ in range(NUM_WORKERS)]
    processes = [spawn([*me, "--serve", "workers", *map(str, workers)])]
    if not all(wait_for(port, processes[0]) for port in workers):
        raise SystemExit("the mock workers did not start")
    contenders = [Contender("direct", workers[0])]
    urls = " ".join(f"http://127.0.0.1:{port}" for port in workers)
    saga = shlex.quote(str(Path(sys.executable).with_name("saga")))
    flags = " ".join(f"--worker http://127.0.0.1:{port}" for port in workers)
    commands = {
        "front": "",
        "front without uvloop": "",
        "saga serve": f"{saga} serve --port {{port}} --admin-port {{spare}} {flags}",
        "saga serve native": f"env SAGA_CORE=native {saga} serve --port {{port}} --admin-port {{spare}} {flags}",
        "twin": "",
    }
    if arguments.only:
        commands = {name: command for name, command in commands.items() if name in arguments.only}
    if arguments.rivals:
        commands |= rival_commands(arguments.rivals)
    commands |= dict(rival.split("=", 1) for rival in arguments.rival)
    for name, command in commands.items():
        port = free_port()
        if command:
            line = shlex.split(command.format(workers=urls, port=port, spare=free_port()))
            process = spawn(line)
        else:
            env = {"NO_UVLOOP": "1"} if "without" in name else {}
            process = spawn([*me, "--serve", name.split()[0], str(port), *map(str, workers)], **env)
        processes.append(process)
        contender = Contender(name, port, process)
        if not wait_for(port, process):
            contender.failure = "did not start"
        contenders.append(contender)
    return contenders, processes


async def warm_up(contenders: list[Contender]) -> None:
    """A rival may listen before it serves."""
    for contender in contenders:
        for _ in range(60):
            if contender.failure:
                break
            try:
                client = await connect(contender.port)
                await client.call(request_of(2_000))
                client.transport.close()
                break
            except (OSError, RuntimeError) as error:
                last = str(error)
                await asyncio.sleep(0.25)
        else:
            contender.failure = f"does not serve: {last}"


async def measure(contenders: list[Contender], arguments: argparse.Namespace) -> None:
    """All contenders in turn, block by block."""
    await warm_up(contenders)
    alive = [c for c in contenders if not c.failure]
    rounds, scale = (2, 0.2) if arguments.quick else (6, 1.0)
    for _ in range(rounds):
        for label, size in SIZES.items():
            request, num = request_of(size), int(scale * (600 if size < 10_000 else 150))
            for contender in alive:
                contender.latency_us.setdefault(label, []).extend(await latencies_us(contender.port, request, num))
    for _ in range(max(1, rounds // 2)):
        for concurrency, label, size in ((16, "2 KB", 2_000), (64, "2 KB", 2_000), (16, "200 KB", 200_000)):
            for contender in alive:
                cpu_s = contender.cpu_s()
                rate = await throughput(contender.port, size, concurrency, 1.5 * max(scale, 0.4))
                key = f"{label} x{concurrency}"
                contender.requests_per_s.setdefault(key, []).append(rate)
                spent_us = 1e6 * (contender.cpu_s() - cpu_s) / (rate * 1.5 * max(scale, 0.4))
                contender.cpu_us_per_request.setdefault(key, []).append(spent_us)
        for contender in alive:
            if contender.process is not None:
                cpu_s = contender.cpu_s()
                await stream_all(contender.port)
                contender.cpu_us_per_token.append(1e6 * (contender.cpu_s() - cpu_s) / (NUM_STREAMS * NUM_TOKENS))


def summary(contenders: list[Contender]) -> dict[str, dict[str, float]]:
    """Figures per contender: added latency in microseconds, requests per second, CPU microseconds."""
    direct = contenders[0]
    rows: dict[str, dict[str, float]] = {}
    for contender in contenders:
        row: dict[str, float] = {}
        for label, taken in contender.latency_us.items():
            base = direct.latency_us[label]
            for name, quantile in (("p50", 49), ("p95", 94)):
                own = statistics.quantiles(taken, n=100)[quantile]
                zero = 0.0 if contender is direct else statistics.quantiles(base, n=100)[quantile]
                row[f"{label} {name} us"] = own - zero
        for key, rates in contender.requests_per_s.items():
            row[f"{key} req/s"] = statistics.median(rates)
            if contender.process is not None:
                row[f"{key} CPU us"] = statistics.median(contender.cpu_us_per_request[key])
        if contender.cpu_us_per_token:
            row["SSE CPU us/token"] = statistics.median(contender.cpu_us_per_token)
        rows[contender.name] = row
    return rows


def show(contenders: list[Contender], baseline: str) -> dict[str, dict[str, float]]:
    """Print the table; returns its figures."""
    rows = summary(contenders)
    names = [c.name for c in contenders if not c.failure]
    figures = list(dict.fromkeys(key for row in rows.values() for key in row))
    print("Latency is what is added to the direct call (for `direct`: the call itself).")
    print(f"In brackets: baseline {baseline!r} divided by it (latency, CPU), it divided by the baseline (req/s).\n")
    print(f"{'':18}" + "".join(f"{name[-21:]:>22}" for name in names))
    for figure in figures:
        line = f"{figure:18}"
        for name in names:
            value, base = rows[name].get(figure), rows.get(baseline, {}).get(figure)
            if value is None:
                line += f"{'-':>22}"
                continue
            ratio = ""
            if base and value and name not in {"direct", baseline}:
                ratio = f" ({value / base if 'req/s' in figure else base / value:.1f}x)"
            line += f"{value:>14,.1f}{ratio:>8}"
        print(line)
    for contender in contenders:
        if contender.failure:
            print(f"{contender.name}: {contender.failure}")
    return rows


def main() -> None:
    """Run it all, or serve as one of its processes."""
    install_uvloop()
    if sys.argv[1:2] == ["--serve"]:
        role, ports = sys.argv[2], [int(port) for port in sys.argv[3:]]
        asyncio.run(serve_workers(ports) if role == "workers" else serve_contender(role, ports[0], ports[1:]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the work: noisy")
    parser.add_argument("--rivals", type=Path, help="environment with vllm-router, sglang-router")
    parser.add_argument("--rival", action="append", default=[], metavar="NAME=COMMAND", help="{workers} {port} {spare}")
    parser.add_argument("--only", action="append", default=[], help="built-in contenders to measure")
    parser.add_argument("--baseline", default="twin")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    contenders, processes = set_up(arguments)
    try:
        asyncio.run(measure(contenders, arguments))
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    rows = show(contenders, arguments.baseline)
    if arguments.json:
        arguments.json.write_text(json.dumps({"kind": "measured", "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
