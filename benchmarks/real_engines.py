"""SAGA on real engines: task completion time of small agents on real vLLM servers, against stock vLLM and its router.

    python benchmarks/real_engines.py [--workloads B,A,B07,haiku] [--systems ...] [--servers 1] [--repeats 3]

Every server is vLLM's own OpenAI server on the CPU backend: a tiny random model, blocks of 32 tokens, 513 blocks, one
thread. Wall clock, closed loop, systems in turn (A B B A ...), every run with words of its own. Systems:

    sticky      stock vLLM behind `vllm-router` with consistent hashing                       the baseline
    program     stock vLLM behind `vllm-router` with program scheduling
    priority    stock vLLM with `--scheduling-policy priority`, behind the sticky router; a call has its task's arrival
    gateway     stock vLLM behind `saga serve`
    plugin      vLLM with SAGA's plug-in, linked to `saga serve` before it
    dram        the same with a tier in host memory

Every call has its session in `X-Session-ID`, which all of them read. (`vllm_xargs.agentic_context`, the router's other
convention, is refused by vLLM 0.32 itself: values there are flat.) All servers and gateways run all the time, one
system works at a time. The router's wheel goes into an environment of its own (`rivals.py`). Needs vLLM beside SAGA
(`make test` puts it there). Everything listens on loopback and ends with the run. It refuses to know what any system
does: all figures are what the client saw.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_gateway import rival_commands
from mock_fleet import end, free_port
from rich.console import Console
from rich.table import Table
from rivals import HOME, environment
from small_agents import WORKLOADS, Agents
from tiny_model import ENVIRONMENT, make_tiny_model

from saga.bench.openai_client import Measured, OpenAiClient
from saga.bench.replay import Replay, ReplayConfig, Target
from saga.workloads.catalogue import workload
from saga.workloads.limits import Limits
from saga.workloads.plan import Task, Workload

MODEL = "tiny"
BLOCK_TOKENS, NUM_BLOCKS = 32, 513
SERVER_FLAGS = (
    f"--block-size {BLOCK_TOKENS} --num-gpu-blocks-override {NUM_BLOCKS} --max-model-len 4096 --enforce-eager "
    "--enable-prefix-caching --enable-prompt-tokens-details"
)
SHARED_MEMORY, OFFLOADED = Path("/dev/shm"), "vllm_offload_*"  # noqa: S108 - what vLLM makes there
STARTED_WITHIN_S, ENDS_WITHIN_S = 240.0, 30.0
SYSTEMS = ("sticky", "program", "priority", "gateway", "plugin", "dram")
BASELINE = "sticky"
RIVALS = ("sticky", "program", "priority")


# ---------------------------------------------------------------------- workloads


@dataclass(frozen=True)
class Slice:
    """A slice of a recorded trace, lengths scaled so that its longest context fits."""

    name: str
    agents: int
    of: Workload
    scale: float
    speed: float = 1.0

    @property
    def mean_context_tokens(self) -> float:
        """At this scale."""
        return self.of.mean_context_tokens * self.scale

    def tasks(self, num_tasks: int, seed: int) -> Iterator[Task]:
        """The trace's own."""
        return self.of.tasks(num_tasks, seed)


SLICE_CONTEXT_TOKENS, SLICE_LONGEST_TOKENS = 3_600, 60_000


def haiku(oversubscription: float, speed: float) -> Slice:
    """agentcgroup_haiku: sessions of 5 to 25 calls up to 60,000 tokens, scaled to 3,600, with their recorded gaps."""
    shared = Path(os.environ.get("SAGA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    file = shared / "traces" / "agentcgroup_haiku.jsonl"
    if not file.exists():
        raise SystemExit(f"{file} is not there: set SAGA_SHARED, or leave haiku out of --workloads")
    limits = Limits(max_context_tokens=SLICE_LONGEST_TOKENS, min_calls=5, max_calls=25, gap_cap_s=60.0)
    trace = workload(str(file), limits)
    scale = SLICE_CONTEXT_TOKENS / SLICE_LONGEST_TOKENS
    agents = max(1, round(oversubscription * NUM_BLOCKS * BLOCK_TOKENS / (trace.mean_context_tokens * scale)))
    return Slice("haiku", agents, trace, scale, speed)


# ---------------------------------------------------------------------- systems


class Arrival(OpenAiClient):
    """A client that gives each call the arrival of its task as its priority."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        super().__init__(url, timeout_s=timeout_s)
        self._arrivals: dict[str, int] = {}

    async def chat(self, body: dict[str, Any], headers: dict[str, str], tenant: str) -> Measured:
        """With `priority`."""
        arrival = self._arrivals.setdefault(headers["X-Session-ID"], len(self._arrivals))
        return await super().chat({**body, "priority": arrival}, headers, tenant)


@dataclass
class System:
    """One way of serving: who the client speaks to."""

    name: str
    url: str
    client: type[OpenAiClient]


class Fleet:
    """Every server and gateway that the chosen systems need; all end with the stack."""

    def __init__(self, arguments: argparse.Namespace, stack: ExitStack, folder: Path) -> None:
        self._arguments = arguments
        self._folder = folder
        self._starting: list[tuple[str, subprocess.Popen[bytes], str]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._shared_before = set(SHARED_MEMORY.glob(OFFLOADED))
        stack.callback(self._end)

    def start(self) -> list[System]:
        """All systems, ready. Raises SystemExit where a part does not start."""
        chosen = self._arguments.systems
        stock = self._servers("stock") if {"sticky", "program", "gateway"} & set(chosen) else []
        by_name: dict[str, list[str]] = dict.fromkeys(("sticky", "program", "gateway"), stock)
        coordinators: dict[str, int] = {}
        if "priority" in chosen:
            by_name["priority"] = self._servers("priority", "--scheduling-policy priority")
        for name in ("plugin", "dram"):
            if name in chosen:
                coordinators[name] = free_port()
                by_name[name] = self._workers(name, coordinators[name])
        self._wait()
        systems = [self._system(name, by_name[name], coordinators.get(name)) for name in chosen]
        self._wait()
        return systems

    def _servers(self, name: str, more: str = "") -> list[str]:
        """Stock: the server of vLLM itself."""
        module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        return [
            self._server(f"{name}{index}", [*module, "--model", str(self._folder / MODEL)], more)
            for index in range(self._arguments.servers)
        ]

    def _workers(self, name: str, coordinator: int) -> list[str]:
        """`saga worker`."""
        saga = str(Path(sys.executable).with_name("saga"))
        more = f"--dram-gb {self._arguments.dram_gb}" if name == "dram" else ""
        urls = []
        for index in range(self._arguments.servers):
            command = [saga, "worker", str(self._folder / MODEL), "--coordinator", f"127.0.0.1:{coordinator}"]
            urls.append(self._server(f"{name}{index}", [*command, *shlex.split(more)]))
        return urls

    def _server(self, name: str, command: list[str], more: str = "") -> str:
        port = free_port()
        flags = shlex.split(f"{SERVER_FLAGS} {more} --host 127.0.0.1 --port {port} --served-model-name {MODEL}")
        self._spawn(name, [*command, *flags], f"http://127.0.0.1:{port}/health")
        return f"http://127.0.0.1:{port}"

    def _system(self, name: str, urls: list[str], coordinator: int | None) -> System:
        port, admin = free_port(), free_port()
        client: type[OpenAiClient] = Arrival if name == "priority" else OpenAiClient
        if name in RIVALS:
            kind = "vllm-router program" if name == "program" else "vllm-router consistent_hash"
            line = rival_commands(self._arguments.venv)[kind]
            command = shlex.split(line.format(workers=" ".join(urls), port=port, spare=admin))
        else:
            saga = str(Path(sys.executable).with_name("saga"))
            command = [saga, "serve", "--port", str(port), "--admin-port", str(admin)]
            command += [flag for url in urls for flag in ("--worker", url)]
            command += [] if coordinator is None else ["--coordinator-port", str(coordinator)]
            command += shlex.split(self._arguments.saga_options)
        self._spawn(f"{name} gateway", command, f"http://127.0.0.1:{port}/v1/models")
        return System(name, f"http://127.0.0.1:{port}", client)

    def _spawn(self, name: str, command: list[str], answers_at: str) -> None:
        """Start it; `_wait` sees it through."""
        with self._log(name).open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | ENVIRONMENT, start_new_session=True
            )
        self._processes.append(process)
        self._starting.append((name, process, answers_at))

    def _end(self) -> None:
        """Ask all to end, so that servers take their shared memory along, and end those that have not done so."""
        for process in self._processes:
            process.terminate()
        until_s = time.monotonic() + ENDS_WITHIN_S
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until_s - time.monotonic()))
            end(process)
        for left in set(SHARED_MEMORY.glob(OFFLOADED)) - self._shared_before:  # vLLM leaves it where it is
            left.unlink(missing_ok=True)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name.replace(' ', '-')}.log"

    def _wait(self) -> None:
        """Until all that were started answer: they come up side by side, which is what fits two cores best."""
        until_s = time.monotonic() + STARTED_WITHIN_S * max(1, len(self._starting) // 2)
        while self._starting:
            name, process, answers_at = self._starting[0]
            if process.poll() is not None or time.monotonic() > until_s:
                raise SystemExit(f"{name} did not start:\n{self._log(name).read_text(errors='replace')[-3_000:]}")
            if answers(answers_at):
                self._starting.pop(0)
            else:
                time.sleep(0.25)


def answers(url: str) -> bool:
    """Whether it is up."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  a loopback address of ours
            return bool(answer.status == 200)
    except OSError:
        return False


# ---------------------------------------------------------------------- the measurement


async def measure(
    systems: list[System], shape: Agents | Slice, arguments: argparse.Namespace, console: Console
) -> dict[str, list[dict[str, Any]]]:
    """Figures of every run, by system."""
    agents = shape.agents * arguments.servers
    config = ReplayConfig(
        agents=agents,
        tasks=agents * arguments.waves,
        repeats=arguments.repeats,
        speed=shape.speed if isinstance(shape, Slice) else 1.0,
        seed=arguments.seed,
        scale=shape.scale if isinstance(shape, Slice) else 1.0,
        model=MODEL,
        tool_calls=False,
        timeout_s=1_800.0,
    )
    clients = {system.url: system.client for system in systems}
    done: dict[str, int] = {}

    def tell(label: str, number: int, of: int) -> None:
        if number == of:
            done[label] = done.get(label, 0) + 1
            console.print(f"  {shape.name}: {label}, run {done[label]}", highlight=False)

    replay = Replay(
        [Target(system.name, system.url) for system in systems],
        shape,
        config,
        on_progress=tell,
        dial=lambda url, *, timeout_s: clients[url](url, timeout_s=timeout_s),
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for record in await replay.run():
        found.setdefault(record.label, []).append(record.figures())
    return found


def show(name: str, found: dict[str, list[dict[str, Any]]], console: Console) -> dict[str, Any]:
    """A row per system; ratios are medians over repeats of the same repeat's baseline."""

    def median(system: str, figure: str) -> float:
        return statistics.median(float(run.get(figure, 0.0)) for run in found[system])

    def speedup(system: str, over: str) -> float:
        pairs = zip(found[over], found[system], strict=True)
        return statistics.median(a["tct_mean_s"] / b["tct_mean_s"] for a, b in pairs)

    rivals = [rival for rival in RIVALS if rival in found]
    best = min(rivals, key=lambda rival: median(rival, "tct_mean_s"), default="")
    table = Table(title=f"{name}: measured, {len(next(iter(found.values())))} repeats, medians")
    headings = ["mean TCT s", "p95 TCT s", "spread", "cached", "tasks/min", f"x {BASELINE}", f"x {best}", "failed"]
    table.add_column("system")
    for heading in headings:
        table.add_column(heading, justify="right")
    rows: dict[str, Any] = {}
    for system, runs in found.items():
        means = [run["tct_mean_s"] for run in runs]
        row = {
            "tct_mean_s": median(system, "tct_mean_s"),
            "tct_p95_s": median(system, "tct_p95_s"),
            "tct_mean_spread": (max(means) - min(means)) / statistics.median(means),
            "prefix_hit_share": median(system, "prefix_hit_share"),
            "tasks_per_min": median(system, "tasks_per_min"),
            "over_baseline": speedup(system, BASELINE) if BASELINE in found else None,
            "over_best_rival": speedup(system, best) if best else None,
            "tasks_failed": sum(int(run["tasks_failed"]) for run in runs),
        }
        rows[system] = row
        shares = [f"{row['tct_mean_spread']:.0%}", f"{row['prefix_hit_share']:.1%}"]
        ratios = ["-" if row[key] is None else f"{row[key]:.2f}" for key in ("over_baseline", "over_best_rival")]
        figures = [f"{row['tct_mean_s']:.2f}", f"{row['tct_p95_s']:.2f}", *shares, f"{row['tasks_per_min']:.1f}"]
        table.add_row(system, *figures, *ratios, str(row["tasks_failed"]))
    console.print(table)
    return {"best_rival": best, "systems": rows}


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workloads", default="B,A,B07", type=lambda text: text.split(","))
    parser.add_argument("--systems", default=",".join(SYSTEMS), type=lambda text: text.split(","))
    parser.add_argument("--servers", type=int, default=1, help="per system")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--waves", type=int, default=2, help="tasks per agent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", type=float, default=1.0, help="gaps of haiku are divided by it")
    parser.add_argument("--oversubscription", type=float, default=1.5, help="of haiku")
    parser.add_argument("--dram-gb", type=float, default=0.25)
    parser.add_argument("--saga-options", default="", help="more flags of `saga serve`")
    parser.add_argument("--venv", type=Path, default=HOME, help="environment with vllm-router")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    for chosen, known in ((arguments.systems, SYSTEMS), (arguments.workloads, [*WORKLOADS, "haiku"])):
        for name in chosen:
            if name not in known:
                parser.error(f"{name!r} is none of {', '.join(known)}")
    return arguments


def main() -> None:
    """Start all, measure in turn, end all, whoever ends it."""
    arguments = parse()
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    console = Console(width=max(110, Console().width))
    shapes = [
        haiku(arguments.oversubscription, arguments.speed) if name == "haiku" else WORKLOADS[name]
        for name in arguments.workloads
    ]
    if set(RIVALS) & set(arguments.systems):
        environment(arguments.venv)
    document: dict[str, Any] = {"kind": "measured", "servers": arguments.servers, "workloads": {}}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="saga-real-")))
        make_tiny_model(folder / MODEL)
        console.print("starting servers ...", highlight=False)
        systems = Fleet(arguments, stack, folder).start()
        for shape in shapes:
            contexts = shape.agents * shape.mean_context_tokens / (NUM_BLOCKS * BLOCK_TOKENS)
            console.print(f"{shape.name}: {shape.agents} agents per server, oversubscription {contexts:.2f}")
            found = asyncio.run(measure(systems, shape, arguments, console))
            for system, runs in list(found.items()):
                errors = [run["errors_by_kind"] for run in runs if run["errors"]]
                if errors:
                    console.print(f"  {shape.name}: {system} had errors: {errors}", highlight=False)
                if not all(run["tasks_completed"] for run in runs):
                    console.print(f"  {shape.name}: {system} is left out: a run completed no task", highlight=False)
                    document.setdefault("left_out", []).append({"system": system, "runs": found.pop(system)})
            document["workloads"][shape.name] = show(shape.name, found, console) | {"runs": found}
            if arguments.json is not None:
                arguments.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
