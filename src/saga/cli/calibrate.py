"""`saga calibrate`: a live engine's cost model, measured and written as a table for `saga engine` and `saga sim`.

It checks flags, shows progress and prints; it refuses to know what is asked of the engine (`saga.engine.probes`) and
how the answers are fitted (`saga.engine.calibration`).
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saga.errors import UsageError

if TYPE_CHECKING:
    from saga.bench.probed_url import ProbedUrl
    from saga.engine.calibration import Fit
    from saga.engine.hardware import Hardware
    from saga.engine.probes import Probed, ProbedEngine
    from saga.vllm_plugin.in_process import InProcessEngine

SCHEMA = 1
_SERVER, _PROCESS, _SIZES, _OUTPUT = "A server", "An engine in this process", "Sizes", "Output"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CHUNK_TOKENS = 2048
_MOST_REPEATS = 100
_HEAD = (
    "# Written by `saga calibrate`, for --hardware FILE.toml:NAME. What the fields mean: the built-in hardware.toml.\n"
)


def calibrate(
    model_path: Annotated[
        str, typer.Argument(metavar="MODEL", help="With --engine in-process: folder or name of the model.")
    ] = "",
    url: Annotated[str, typer.Option(help="OpenAI-compatible server to measure.", rich_help_panel=_SERVER)] = "",
    model: Annotated[
        str, typer.Option(help="Model to ask for [default: the first served].", rich_help_panel=_SERVER)
    ] = "",
    key_env: Annotated[
        str, typer.Option(help="Environment variable that holds the API key.", rich_help_panel=_SERVER)
    ] = "",
    engine: Annotated[
        str, typer.Option(help="in-process: start vLLM here, in this process.", rich_help_panel=_PROCESS)
    ] = "",
    clock: Annotated[
        str,
        typer.Option(
            help="wall, or cpu: this process's CPU time, for an engine of one thread on a busy machine.",
            rich_help_panel=_PROCESS,
        ),
    ] = "wall",
    max_context: Annotated[
        int | None,
        typer.Option(min=1, help="Prompt and answer, tokens [default: the engine's].", rich_help_panel=_SIZES),
    ] = None,
    kv_tokens: Annotated[
        int | None, typer.Option(min=1, help="KV tokens [default: by the engine's metrics].", rich_help_panel=_SIZES)
    ] = None,
    block_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a KV block [default: the engine's].", rich_help_panel=_SIZES)
    ] = None,
    chunk_tokens: Annotated[
        int, typer.Option(min=64, help="Tokens of one engine step, as the engine was told.", rich_help_panel=_SIZES)
    ] = _CHUNK_TOKENS,
    repeats: Annotated[int, typer.Option(min=1, max=_MOST_REPEATS, help="Of each probe; the middle one counts.")] = 3,
    name: Annotated[str, typer.Option(help="Of the table [default: the model's].", rich_help_panel=_OUTPUT)] = "",
    out: Annotated[
        Path | None,
        typer.Option(help="Table to write, or to add to [default: NAME.toml].", rich_help_panel=_OUTPUT),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write all figures here.", rich_help_panel=_OUTPUT)] = None,
) -> None:
    """Measure a live engine with a few hundred short calls and write its cost model as a TOML table.

    saga calibrate --url http://127.0.0.1:8000 --name my-gpu --out my.toml

    saga sim --workload swe_bench --hardware my.toml:my-gpu --oversubscription 1.2

    saga calibrate --engine in-process ./model --block-tokens 16

    Best on an engine that serves nobody else, started with `--enable-prompt-tokens-details`.
    """
    from saga.cli.output import check_writable

    _check_source(model_path, url, engine, clock, key_env)
    if name and not _NAME.fullmatch(name):
        raise UsageError(f"--name {name!r}: must be letters, digits, '.', '_' and '-', 64 at most")
    for flag, path in (("--json", json), ("--out", out)):
        if path is not None:
            check_writable(path, flag)
    if out is not None and out.exists():
        _entries(out)
    sizes = {"max_context_tokens": max_context, "kv_tokens": kv_tokens, "block_tokens": block_tokens}
    if url:
        key = _key(key_env)
        found = asyncio.run(_of_url(url, model, key, sizes, chunk_tokens, repeats))
    else:
        found = _in_process(model_path, clock, sizes, chunk_tokens, repeats)
    name = name or _as_name(found.model)
    fitted = found.fit(name)
    out = out or Path(f"{name}.toml")
    check_writable(out, "--out")
    _write(out, fitted.hardware)
    _show(found, fitted, out)
    if json is not None:
        from saga.bench.files import write_whole
        from saga.cli.output import as_json

        write_whole(json, as_json(found.as_document(fitted)))


@dataclass(frozen=True)
class _Measured:
    """What the probes of one engine brought."""

    engine: ProbedEngine
    model: str
    version: str
    where: str
    probed: Probed
    took_s: float

    def fit(self, name: str) -> Fit:
        """The cost model, with where it comes from."""
        from saga.engine.calibration import Sizes, fit

        provenance = (
            f"saga calibrate {datetime.now(UTC):%Y-%m-%d}: {self.model} on engine {self.version}, {self.where}; "
            f"{len(self.probed.observations)} probes; transfers not measured"
        )
        return fit(self.probed.observations, name=name, provenance=provenance, sizes=Sizes(self.engine.kv_tokens))

    def as_document(self, fitted: Fit) -> dict[str, Any]:
        """Everything, schema 1."""
        return {
            "schema": SCHEMA,
            "kind": "calibrated",
            "model": self.model,
            "engine": self.version,
            "chunk_tokens": self.engine.chunk_tokens,
            "hardware": asdict(fitted.hardware),
            "call_s": fitted.call_s,
            "residuals": [asdict(residual) for residual in fitted.residuals],
            "probes": [
                {"kind": one.kind, "about": one.about, "held_out": one.held_out, "measured_s": one.seconds}
                | {"model_s": fitted.seconds(one)}
                for one in self.probed.observations
            ],
            "disturbed": self.probed.num_disturbed,
            "dropped": self.probed.num_dropped,
            "took_s": self.took_s,
        }


async def _of_url(
    url: str, model: str, key: str, sizes: dict[str, int | None], chunk_tokens: int, repeats: int
) -> _Measured:
    from saga.bench.probed_url import ProbedUrl

    engine = ProbedUrl(url, model=model, key=key, chunk_tokens=chunk_tokens)
    try:
        await engine.open()
        _fill_in(engine, sizes)
        under_way = await engine.num_under_way()
        if under_way:
            typer.echo(f"{url}: {under_way} calls of others are under way; times will be too long", err=True)
        return await _measured(engine, engine.model, engine.version, url, repeats)
    finally:
        await engine.close()


def _fill_in(engine: ProbedUrl, sizes: dict[str, int | None]) -> None:
    """Flags before what the engine says. Raises UsageError where nobody says it."""
    flags = {"max_context_tokens": "--max-context", "kv_tokens": "--kv-tokens", "block_tokens": "--block-tokens"}
    for size, flag in flags.items():
        setattr(engine, size, sizes[size] or getattr(engine, size))
        if not getattr(engine, size):
            raise UsageError(f"{engine.url}: does not say its {size.replace('_', ' ')}; give {flag}")


def _in_process(model: str, clock: str, sizes: dict[str, int | None], chunk_tokens: int, repeats: int) -> _Measured:
    from saga.vllm_plugin.in_process import InProcessEngine, start_vllm

    llm = start_vllm(model, chunk_tokens=chunk_tokens, **sizes)
    engine: InProcessEngine = InProcessEngine(llm, clock=_CLOCKS[clock])
    return asyncio.run(_measured(engine, model, engine.version, f"in one process, {clock} clock", repeats))


async def _measured(engine: ProbedEngine, model: str, version: str, where: str, repeats: int) -> _Measured:
    from saga.cli.replay import progress
    from saga.engine.probes import probe

    began_s = time.perf_counter()
    with progress() as advance:
        tell = (lambda done, of: advance("probes", done, of)) if advance else (lambda *_: None)
        probed = await probe(engine, repeats=repeats, seed=time.time_ns() >> 20, on_progress=tell)
    return _Measured(engine, model, version, where, probed, time.perf_counter() - began_s)


_CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def _check_source(model_path: str, url: str, engine: str, clock: str, key_env: str) -> None:
    """Exactly one engine. Raises UsageError."""
    if engine not in ("", "in-process"):
        raise UsageError(f"--engine {engine!r}: must be in-process; a server is given with --url")
    if bool(url) == bool(engine):
        raise UsageError("give exactly one of --url URL and --engine in-process MODEL")
    if engine and not model_path:
        raise UsageError("--engine in-process needs a model: saga calibrate --engine in-process MODEL")
    if url and model_path:
        raise UsageError(f"{model_path!r}: with --url the model is given with --model")
    if clock not in _CLOCKS or (url and clock != "wall"):
        raise UsageError(f"--clock {clock!r}: must be wall, or cpu with --engine in-process")
    if engine and key_env:
        raise UsageError("--key-env is of a server: give --url")


def _key(variable: str) -> str:
    """The API key in this environment variable, "" where none is named. Raises UsageError."""
    if variable and not os.environ.get(variable):
        raise UsageError(f"--key-env {variable}: there is no such environment variable, or it is empty")
    return os.environ.get(variable, "") if variable else ""


def _as_name(model: str) -> str:
    """A model's name or path as the name of a table."""
    last = model.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")[:64] or "calibrated"


def _entries(out: Path) -> dict[str, Hardware]:
    """What is in the table that is to be added to. Raises UsageError where the file is something else."""
    from saga.engine.hardware import load_hardware

    return load_hardware(out)


def _write(out: Path, worker: Hardware) -> None:
    """The table with this worker in it, others that it had stay."""
    from saga.bench.files import write_whole
    from saga.engine.hardware import as_toml

    entries = (_entries(out) if out.exists() else {}) | {worker.name: worker}
    write_whole(out, "\n".join([_HEAD, *map(as_toml, entries.values())]))


def _show(found: _Measured, fitted: Fit, out: Path) -> None:
    """The residuals, and how the table is used."""
    from saga.bench.tables import Table
    from saga.cli.output import print_table

    rows = tuple(
        (
            residual.kind + (" (held out)" if residual.held_out else ""),
            f"{residual.num_observations}",
            f"{residual.median_error:.1%}",
            f"{residual.p95_error:.1%}",
            f"{residual.bias:+.1%}",
        )
        for residual in fitted.residuals
    )
    typer.echo(fitted.hardware.provenance)
    title = "The model against the probes; those held out were not fitted"
    print_table(Table(title, ("probe", "count", "median error", "p95 error", "bias"), rows))
    typer.echo(f"outside the engine: {fitted.call_s * 1e3:.1f} ms per call, which the table does not hold")
    if found.probed.num_disturbed:
        typer.echo(
            f"{found.probed.num_disturbed} probes ran beside calls of others: believe the times accordingly", err=True
        )
    if found.probed.num_dropped:
        typer.echo(f"{found.probed.num_dropped} probes were dropped: a batch did not stay together", err=True)
    typer.echo(f"saga sim --hardware {out}:{fitted.hardware.name} ...   ({found.took_s:.0f} s of probing)")
