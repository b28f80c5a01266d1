"""SAGA's whole gateway against other routers, on the same mock workers, in the same run.

    python benchmarks/rivals.py [--quick] [--venv .venv-rivals] [--no-install] [--json FILE]

Installs the routers' wheels (`PINNED`) into an environment of their own if they are not there, compiles SAGA's core if
it is not (`native/build.py`; minutes), then measures, block by block in turn: the direct call, `saga serve` (scheduler,
identity, metrics, all on), the same compiled (SAGA_CORE=native), `vllm-router` with consistent hashing, `vllm-router`
with program scheduling (the same job as ours, and the baseline), `sglang-router` cache-aware. Added latency p50 and
p95 at 2 KB, 200 KB and 1 MB (one client); requests/s of 16 and 64 clients and the CPU they cost;
CPU per streamed token of 64 paced streams. Ratios in brackets: above 1 is better than the baseline. A second table
holds the median of the rounds' own ratios: on a busy machine rounds differ, and within one all had the same weather.

A router that cannot be installed or does not start is left out with a word. All of it listens on loopback and ends with
the run. `environment` and `gateways` serve the other benchmarks against rivals.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import venv
from pathlib import Path

import bench_gateway
from bench_gateway import Contender
from mock_fleet import Gateway, saga_command

PINNED = ("vllm-router==0.1.17", "sglang-router==0.3.2")
BASELINE = "vllm-router program"
ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".venv-rivals"
BUILD = ROOT / "native" / "build.py"


def environment(home: Path, *, install: bool = True) -> Path:
    """The routers' environment, made where it is missing; what cannot be installed is told and left out."""
    if not install:
        return home
    if not (home / "bin" / "python").exists():
        venv.create(home, with_pip=True)
    for requirement in PINNED:
        if not (home / "bin" / requirement.partition("=")[0]).exists():
            command = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", requirement]
            if subprocess.run(command, check=False).returncode:
                print(f"{requirement} cannot be installed: left out", file=sys.stderr)
    return home


def gateways(home: Path, urls: list[str], *saga_options: str) -> list[Gateway]:
    """`saga serve` and the routers of that environment, not started."""
    rivals = bench_gateway.rival_commands(home)
    found = [Gateway("saga serve", saga_command(urls, *saga_options))]
    return found + [Gateway(name, command) for name, command in rivals.items()]


def paired(contenders: list[Contender], num_rounds: int) -> dict[str, dict[str, float]]:
    """Medians of each round's own ratio to the baseline, by figure and contender; above 1 is better than it."""
    alive = {contender.name: contender for contender in contenders if not contender.failure}
    direct, base = alive["direct"], alive.get(BASELINE)
    ratios: dict[str, dict[str, float]] = {}
    if base is None:
        return ratios
    for name, contender in alive.items():
        if contender in (direct, base):
            continue
        for label in contender.latency_us:
            for what, quantile in (("p50", 0.5), ("p95", 0.95)):
                zero, theirs, ours = (
                    [sorted(part)[int(quantile * len(part))] for part in _parts(one.latency_us[label], num_rounds)]
                    for one in (direct, base, contender)
                )
                found = [(b - z) / (o - z) for z, b, o in zip(zero, theirs, ours, strict=True) if o > z and b > z]
                if found:
                    ratios.setdefault(f"{label} {what}", {})[name] = statistics.median(found)
        for key, rates in contender.requests_per_s.items():
            found = [ours / theirs for ours, theirs in zip(rates, base.requests_per_s[key], strict=True)]
            ratios.setdefault(f"{key} req/s", {})[name] = statistics.median(found)
            costs = zip(contender.cpu_us_per_request[key], base.cpu_us_per_request[key], strict=True)
            ratios.setdefault(f"{key} CPU", {})[name] = statistics.median(theirs / ours for ours, theirs in costs)
        tokens = zip(contender.cpu_us_per_token, base.cpu_us_per_token, strict=True)
        ratios.setdefault("SSE CPU/token", {})[name] = statistics.median(theirs / ours for ours, theirs in tokens)
    return ratios


def _parts(values: list[float], num: int) -> list[list[float]]:
    size = len(values) // num
    return [values[place * size : (place + 1) * size] for place in range(num)]


def show_paired(ratios: dict[str, dict[str, float]]) -> None:
    """The second table."""
    names = list(dict.fromkeys(name for row in ratios.values() for name in row))
    print(f"\nMedian of the rounds' ratios to {BASELINE!r}; above 1 is better.\n")
    print(f"{'':18}" + "".join(f"{name[-21:]:>22}" for name in names))
    for figure, row in ratios.items():
        print(f"{figure:18}" + "".join(f"{row[name]:>21.2f}x" if name in row else f"{'-':>22}" for name in names))


def main() -> None:
    """Run it all."""
    bench_gateway.install_uvloop()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the work: noisy")
    parser.add_argument("--venv", type=Path, default=HOME)
    parser.add_argument("--no-install", action="store_true", help="take what is in the environment")
    parser.add_argument("--front", action="store_true", help="also the data plane without scheduler and identity")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    home = environment(arguments.venv, install=not arguments.no_install)
    if not arguments.no_install:
        subprocess.run([sys.executable, str(BUILD)], check=False)
    settings = argparse.Namespace(
        quick=arguments.quick,
        rivals=home,
        rival=[],
        only=["saga serve", "saga serve native", *(["front"] if arguments.front else [])],
    )
    contenders, processes = bench_gateway.set_up(settings)
    try:
        asyncio.run(bench_gateway.measure(contenders, settings))
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    rows = bench_gateway.show(contenders, BASELINE)
    ratios = paired(contenders, 2 if settings.quick else 6)
    show_paired(ratios)
    if arguments.json:
        said = {"kind": "measured", "baseline": BASELINE, "pinned": PINNED, "rows": rows, "ratios": ratios}
        arguments.json.write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
