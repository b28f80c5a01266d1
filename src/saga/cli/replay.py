"""`saga replay`: a workload against running servers, and what its agents would have felt.

It checks flags, shows progress and prints; it refuses to know how a call is made (`saga.bench.replay`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saga.cli.selection import GapCap, MaxCalls, MaxContext, MinCalls, WorkloadName
from saga.errors import UsageError

if TYPE_CHECKING:
    from saga.bench.measured import RunRecord
    from saga.bench.replay import Replay, ReplayConfig

SCHEMA = 1
EXIT_INTERRUPTED = 130
_WIRE = "What goes over the wire"


def replay(
    urls: Annotated[
        list[str], typer.Argument(metavar="[NAME=]URL...", help="Servers; several are compared with the first.")
    ],
    workload: WorkloadName = "swe_bench",
    agents: Annotated[int, typer.Option(help="Agents at work, closed loop.")] = 16,
    tasks: Annotated[int, typer.Option(help="Tasks per run.")] = 100,
    speed: Annotated[float, typer.Option(help="Divide gaps between calls by this.")] = 1.0,
    repeats: Annotated[int, typer.Option(help="Runs per server; servers take turns (A B B A).")] = 1,
    seed: Annotated[int, typer.Option(help="Of the tasks drawn.")] = 0,
    model: Annotated[
        str, typer.Option(help="Model to ask for [default: the first served].", rich_help_panel=_WIRE)
    ] = "",
    stream: Annotated[bool, typer.Option(help="Streaming answers.", rich_help_panel=_WIRE)] = True,
    tenant_keys: Annotated[
        Path | None,
        typer.Option(help='API key by tenant, JSON or TOML; "*" for all others.', rich_help_panel=_WIRE),
    ] = None,
    session_header: Annotated[
        str, typer.Option(help="Header that names the session.", rich_help_panel=_WIRE)
    ] = "X-Session-ID",
    no_session_key: Annotated[
        bool, typer.Option("--no-session-key", help="Send no session name at all.", rich_help_panel=_WIRE)
    ] = False,
    vllm_fields: Annotated[
        bool, typer.Option(help="Send ignore_eos: answers as long as recorded.", rich_help_panel=_WIRE)
    ] = True,
    tool_calls: Annotated[
        bool, typer.Option(help="Offer tools and choose the recorded one.", rich_help_panel=_WIRE)
    ] = True,
    max_tokens_cap: Annotated[
        int | None, typer.Option(help="No answer longer than this.", rich_help_panel=_WIRE)
    ] = None,
    scale_tokens: Annotated[float, typer.Option(help="Multiply all lengths by this.", rich_help_panel=_WIRE)] = 1.0,
    timeout_s: Annotated[float, typer.Option(help="Longest time for one call.", rich_help_panel=_WIRE)] = 600.0,
    max_context: MaxContext = None,
    min_calls: MinCalls = 1,
    max_calls: MaxCalls = None,
    gap_cap_s: GapCap = None,
    json: Annotated[Path | None, typer.Option(help="Write all figures here.")] = None,
) -> None:
    """Live a workload against OpenAI-compatible servers: real gaps, real lengths, the trace's shared prefixes.

    saga replay http://127.0.0.1:8000 --workload swe_bench --agents 24 --speed 20

    saga replay plain=http://127.0.0.1:8100 saga=http://127.0.0.1:8000 --workload my_trace.jsonl --repeats 4
    """
    from saga.bench.replay import Replay, ReplayConfig, parse_target
    from saga.cli.output import check_writable
    from saga.workloads.catalogue import workload as find_workload
    from saga.workloads.limits import Limits

    if json is not None:
        check_writable(json, "--json")
    config = ReplayConfig(
        agents=agents,
        tasks=tasks,
        speed=speed,
        seed=seed,
        repeats=repeats,
        model=model,
        stream=stream,
        session_header="" if no_session_key else session_header,
        scale=scale_tokens,
        max_tokens_cap=max_tokens_cap,
        vllm_fields=vllm_fields,
        tool_calls=tool_calls,
        timeout_s=timeout_s,
        keys={} if tenant_keys is None else read_keys(tenant_keys),
    )
    limits = Limits(max_context_tokens=max_context, min_calls=min_calls, max_calls=max_calls, gap_cap_s=gap_cap_s)
    source = find_workload(workload, limits)
    with progress() as advance:
        run = Replay([parse_target(url) for url in urls], source, config, on_progress=advance)
        stopped = asyncio.run(_until_done_or_interrupted(run))
    if not run.records:
        raise typer.Exit(EXIT_INTERRUPTED)
    typer.echo(f"{source.name}: {source.provenance}")
    _show(run.records, config, document=as_document(run.records, workload, config, limits), json=json)
    if stopped:
        raise typer.Exit(EXIT_INTERRUPTED)


async def _until_done_or_interrupted(replay_: Replay) -> bool:
    """Run; True where Ctrl-C ended it."""
    interrupted = asyncio.Event()

    def stop() -> None:
        interrupted.set()
        replay_.stop()

    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop)
    await replay_.run()
    return interrupted.is_set()


@contextmanager
def progress() -> Iterator[Any]:
    """A bar on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        bar = shown.add_task("tasks")

        def advance(label: str, done: int, total: int) -> None:
            shown.update(bar, description=label, completed=done, total=total)

        yield advance


def read_keys(path: Path) -> dict[str, str]:
    """API keys by tenant. Raises UsageError."""
    import msgspec

    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text) if path.suffix == ".toml" else msgspec.json.decode(text)
        return msgspec.convert(table, dict[str, str])
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--tenant-keys {path}: cannot be read: {error}") from error
    except (tomllib.TOMLDecodeError, msgspec.MsgspecError) as error:
        raise UsageError(f'--tenant-keys {path}: {error}; right is {{"tenant": "key", "*": "key"}}') from error


def as_document(records: list[RunRecord], workload: str, config: ReplayConfig, limits: object) -> dict[str, Any]:
    """The whole measurement, schema 1. Keys are secret and stay out."""
    from saga.bench.measured import summary_of

    runs = [record.figures() for record in records]
    told = {name: value for name, value in vars(config).items() if name != "keys"}
    return {
        "schema": SCHEMA,
        "kind": "measured",
        "workload": workload,
        "url": list(dict.fromkeys(record.url for record in records)),
        "partial": any(record.partial for record in records),
        "config": told | {"limits": dataclasses.asdict(limits)},  # type: ignore[call-overload]
        "runs": runs,
        "summary": summary_of(runs),
    }


def _show(records: list[RunRecord], config: ReplayConfig, *, document: dict[str, Any], json: Path | None) -> None:
    """Print the tables, write the file."""
    from saga.bench.files import write_whole
    from saga.bench.measured import measured_table, measured_tenants
    from saga.cli.output import as_json, print_table

    runs, summary = document["runs"], document["summary"]
    typer.echo(f"{config.agents} agents, {config.tasks:,} tasks per run, gaps divided by {config.speed:g}")
    typer.echo()
    print_table(measured_table(runs, summary))
    tenants = measured_tenants(runs)
    if tenants is not None:
        print_table(tenants)
    for record in records:
        kinds = record.figures()["errors_by_kind"]
        if isinstance(kinds, dict) and kinds:
            example = next(call for call in record.calls if call.error)
            said = " ".join(example.detail.split())[:160]
            counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            typer.echo(f"{record.label}, run {record.repeat + 1}: errors: {counted}; e.g. {example.error}: {said}")
    if document["partial"]:
        typer.echo("Interrupted: the last run is partial, and its figures are of what was done by then.")
    if json is not None:
        write_whole(json, as_json(document))
