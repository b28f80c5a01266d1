"""Round trip of a directive from the coordinator to an engine and back, under load, and what it costs the gateway.

    python benchmarks/bench_link.py [--seconds 5] [--repeats 3] [--engines 4] [--json FILE]

The coordinator runs in this process, on the event loop that a gateway would use. Each engine is a process: it polls its
link every millisecond, as between steps, answers at once, and reports 25 times a second with 20 sessions and 5 finished
steps. 1,000 directives a second go to all of them together. Three contenders take turns:

    echo           a bare gRPC stream with the same messages and no bookkeeping: the baseline
    link           `engines` + `engine_port` here, `vllm_plugin.link` there
    link, thread   the same with the port on an event loop of its own thread: is the data plane better off?

One more process sends 64 bytes to a socket on this event loop every 4 ms and waits for them: `data plane`, also without
any load (`idle`). Milliseconds; ratios are to the baseline of the same run. Everything is on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import grpc.aio

from saga import commands as do
from saga.gateway.engine_port import EnginePort
from saga.gateway.engines import Engines
from saga.gateway.worker_config import WorkerConfig
from saga.gateway.workers import Workers
from saga.protocol import METHOD, SERVICE, read_from_engine, read_to_engine, write
from saga.protocol import coordinator_pb2 as wire
from saga.vllm_plugin.contracts import EngineFacts, Finished, Held, LinkConfig, Outcome, Report
from saga.vllm_plugin.link import connect

DIRECTIVES_PER_S, REPORTS_PER_S, PINGS_PER_S = 1_000, 25, 250
NUM_SESSIONS, NUM_FINISHED = 20, 5
START_S, WARM_UP_S = 60.0, 1.0


def new_loop() -> asyncio.AbstractEventLoop:
    """As `saga serve` has it."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def report(number: int) -> Report:
    """What an engine says in a report."""
    held = tuple(Held(f"tenant/session-{number}-{place}", 4_096, 8_192) for place in range(NUM_SESSIONS))
    steps = tuple(
        Finished(f"step-{number}-{place}", "tenant/session", 4_096, 60, 4_000) for place in range(NUM_FINISHED)
    )
    return Report(10, 3, 500, 100, 50, held, steps, {"past_deadline": number})


# ---------------------------------------------------------------------- the engines


def play_engine(coordinator: str, name: str) -> None:
    """An engine with the plug-in's link."""
    link = connect(LinkConfig(coordinator, name), EngineFacts("m", 16, 10_000))
    number = 0
    next_s = time.monotonic()
    while True:
        for directive, _ in link.poll():
            link.answer(directive, Outcome.ACCEPTED)
        if time.monotonic() >= next_s:
            number += 1
            next_s += 1.0 / REPORTS_PER_S
            link.report(report(number))
        time.sleep(0.001)


def play_echo(coordinator: str, name: str) -> None:
    """An engine that answers within gRPC's own threads, and sends as many reports of the same size."""
    waiting: deque[wire.FromEngine] = deque()
    ready = threading.Condition()
    sample = wire.FromEngine(report=wire.Report(running=10, waiting=3, used_blocks=500))
    for held in report(1).sessions:
        sample.report.sessions.add(session=held.session, device_tokens=4_096, host_tokens=8_192)
    for step in report(1).finished:
        sample.report.finished.add(step=step.step, session=step.session, prompt_tokens=4_096, output_tokens=60)

    def put(message: wire.FromEngine) -> None:
        with ready:
            waiting.append(message)
            ready.notify()

    def messages():
        yield wire.FromEngine(hello=wire.Hello(worker=name))
        while True:
            with ready:
                while not waiting:
                    ready.wait()
                message = waiting.popleft()
            yield message

    def reports() -> None:
        while True:
            time.sleep(1.0 / REPORTS_PER_S)
            put(sample)

    threading.Thread(target=reports, daemon=True).start()
    with grpc.insecure_channel(coordinator) as channel:
        stream = channel.stream_stream(
            f"/{SERVICE}/{METHOD}", request_serializer=write, response_deserializer=read_to_engine
        )
        for message in stream(messages()):
            put(wire.FromEngine(answer=wire.Answer(id=message.directive.id, outcome=wire.OUTCOME_ACCEPTED)))


def engine_main(kind: str, coordinator: str, name: str) -> None:
    """An engine, until the parent is gone."""
    play = play_echo if kind == "echo" else play_engine
    threading.Thread(target=play, args=(coordinator, name), daemon=True).start()
    sys.stdin.read()


async def pinger_main(port: int) -> None:
    """Print the round trips of a socket, ms, when the parent closes our standard input."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    trips = []
    while not ended.done():
        began = time.perf_counter()
        writer.write(b"x" * 64)
        await reader.readexactly(64)
        trips.append(1e3 * (time.perf_counter() - began))
        await asyncio.sleep(1.0 / PINGS_PER_S)
    sys.stdout.write(json.dumps(trips))


# ---------------------------------------------------------------------- the coordinators


class Meter:
    """Round trips in ms."""

    def __init__(self) -> None:
        self.trips: list[float] = []
        self.num_lost = 0

    def answered(self, worker, directive, outcome, seconds):
        if seconds is None:
            self.num_lost += 1
        else:
            self.trips.append(1e3 * seconds)

    def engine_finished(self, worker, finished):
        pass

    def misunderstood(self, why):
        raise RuntimeError(why)


class Health:
    """Nobody looks after the engines."""

    def follow(self, worker):
        pass

    def wake(self, worker, wanted):
        pass


Order = Callable[[str, int], None]


@contextlib.asynccontextmanager
async def echo(meter: Meter, number: int) -> AsyncIterator[tuple[str, Order]]:
    """The baseline."""
    queues: dict[str, asyncio.Queue[int]] = {}
    since_s: dict[int, float] = {}

    async def serve(_, context):
        name = (await context.read()).hello.worker
        queue = queues[name] = asyncio.Queue()

        async def send():
            while True:
                directive = wire.Directive(
                    id=await queue.get(), retain=wire.Retain(session="tenant/session", for_s=1.0)
                )
                await context.write(wire.ToEngine(directive=directive))

        sending = asyncio.create_task(send())
        try:
            while isinstance(message := await context.read(), wire.FromEngine):
                if message.HasField("answer"):
                    meter.answered(name, "", "", time.perf_counter() - since_s.pop(message.answer.id, 0.0))
        finally:
            sending.cancel()

    def order(name: str, place: int) -> None:
        if name in queues:
            since_s[place] = time.perf_counter()
            queues[name].put_nowait(place)

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(serve, read_from_engine, write)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}", order
    await server.stop(None)


def coordinator(meter: Meter, number: int) -> tuple[Engines, EnginePort]:
    """What `saga serve` has, without the scheduler behind it."""
    workers = Workers()
    for place in range(number):
        workers.add(WorkerConfig(f"http://127.0.0.1:{place + 1}", name=f"w{place}"), 0.0)
    engines = Engines(workers, Health(), lambda event: None, meter, time.perf_counter)
    return engines, EnginePort(engines, meter)


def retain(place: int) -> do.Retain:
    """Of one session of many."""
    now_s = time.perf_counter()
    return do.Retain(f"tenant/session-{place % 500}", "", now_s + 1.0, now_s + 0.5, "")


@contextlib.asynccontextmanager
async def link(meter: Meter, number: int) -> AsyncIterator[tuple[str, Order]]:
    """On this event loop."""
    engines, port = coordinator(meter, number)
    bound = await port.start("127.0.0.1", 0)
    yield f"127.0.0.1:{bound}", lambda name, place: engines.order(name, retain(place), time.perf_counter()) and None
    await port.stop()


@contextlib.asynccontextmanager
async def link_in_thread(meter: Meter, number: int) -> AsyncIterator[tuple[str, Order]]:
    """On an event loop of its own; orders cross over to it."""
    other = new_loop()
    thread = threading.Thread(target=other.run_forever, daemon=True)
    thread.start()
    engines, port = coordinator(meter, number)
    bound = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(port.start("127.0.0.1", 0), other))

    def order(name: str, place: int) -> None:
        other.call_soon_threadsafe(engines.order, name, retain(place), time.perf_counter())

    yield f"127.0.0.1:{bound}", order
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(port.stop(), other))
    other.call_soon_threadsafe(other.stop)
    thread.join()


@contextlib.asynccontextmanager
async def idle(meter: Meter, number: int) -> AsyncIterator[tuple[str, Order]]:
    """Nobody."""
    yield "", lambda name, place: None


CONTENDERS = {"idle": idle, "echo": echo, "link": link, "link, thread": link_in_thread}


# ---------------------------------------------------------------------- a run


async def pong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The data plane's stand-in."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            writer.write(await reader.readexactly(64))
    writer.close()


async def measure(name: str, number: int, seconds: float) -> tuple[list[float], list[float], int, float]:
    """(round trips ms, data plane's round trips ms, directives without an answer, share of a core taken here)."""
    meter = Meter()
    server = await asyncio.start_server(pong, "127.0.0.1", 0)
    async with CONTENDERS[name](meter, number) as (address, order):
        children = []
        if address:
            kind = "echo" if name == "echo" else "link"
            children += [child("--engine", kind, "--coordinator", address, "--name", f"w{n}") for n in range(number)]
            await all_answer(order, meter, number)
        await load(order, number, WARM_UP_S)
        pinging = child("--pinger", str(server.sockets[0].getsockname()[1]), stdout=subprocess.PIPE)
        await asyncio.sleep(0.7)
        meter.trips.clear()
        cpu_s = time.process_time()
        num_ordered = await load(order, number, seconds)
        await asyncio.sleep(0.2)
        cpu_s = time.process_time() - cpu_s
        trips = list(meter.trips)
        out, _ = await asyncio.to_thread(pinging.communicate, b"")
        for process in children:
            process.stdin.close()
            process.terminate()
            process.wait()
    server.close()
    lost = max(0, num_ordered - len(trips)) if address else 0
    return trips, json.loads(out), lost, cpu_s / (seconds + 0.2)


async def all_answer(order: Order, meter: Meter, number: int) -> None:
    """Until every engine is there; a TimeoutError where one does not come."""
    async with asyncio.timeout(START_S):
        for place in range(number):
            before = len(meter.trips)
            while len(meter.trips) == before:
                order(f"w{place}", 2**40 + place)
                await asyncio.sleep(0.2)


async def load(order: Order, number: int, seconds: float) -> int:
    """DIRECTIVES_PER_S, spread evenly over time and engines; how many."""
    began_s = time.perf_counter()
    placed = 0
    while (passed_s := time.perf_counter() - began_s) < seconds:
        while placed < passed_s * DIRECTIVES_PER_S:
            order(f"w{placed % number}", placed)
            placed += 1
        await asyncio.sleep(0.001)
    return placed


def child(*arguments: str, stdout: int | None = None) -> subprocess.Popen[bytes]:
    """A process of this file that ends with us."""
    return subprocess.Popen([sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=stdout)


def quantiles(values: list[float]) -> dict[str, float]:
    """p50, p99 and the largest, ms."""
    if not values:
        return {}
    ordered = sorted(values)
    last = len(ordered) - 1
    return {"p50": ordered[last // 2], "p99": ordered[int(0.99 * last)], "max": ordered[-1]}


def main() -> None:
    """Measure all contenders in turn and print them beside the baseline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    parser.add_argument("--pinger", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        engine_main(args.engine, args.coordinator, args.name)
        return
    if args.pinger:
        asyncio.run(pinger_main(args.pinger))
        return
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(args.repeats):
        for name in CONTENDERS:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                trips, pings, lost, cpu = runner.run(measure(name, args.engines, args.seconds))
            row = {f"trip_{key}": value for key, value in quantiles(trips).items()}
            row |= {f"ping_{key}": value for key, value in quantiles(pings).items()}
            rows[name].append(row | {"lost": lost, "cpu": cpu})
    show(rows, args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def show(rows: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> None:
    """Medians over the repeats."""

    def median(name: str, key: str) -> float:
        return statistics.median(row.get(key, float("nan")) for row in rows[name])

    per_s = args.engines * REPORTS_PER_S
    print(
        f"{DIRECTIVES_PER_S} directives/s, {per_s} reports/s, {args.engines} engines, {args.repeats} x {args.seconds} s"
    )
    print("                     round trip, ms               data plane, ms             this process")
    print("                p50    p99    max  p99/echo    p50    p99  p99/idle   no answer  CPU share")
    for name in CONTENDERS:
        trips = "  ".join(f"{median(name, f'trip_{key}'):5.2f}" for key in ("p50", "p99", "max"))
        pings = "  ".join(f"{median(name, f'ping_{key}'):5.2f}" for key in ("p50", "p99"))
        of_echo = median(name, "trip_p99") / median("echo", "trip_p99")
        of_idle = median(name, "ping_p99") / median("idle", "ping_p99")
        print(
            f"{name:13s} {trips}  {of_echo:8.2f}  {pings}  {of_idle:8.2f}  {median(name, 'lost'):10.0f}"
            f"  {median(name, 'cpu'):9.2f}"
        )


if __name__ == "__main__":
    main()
