"""`saga workload`: what a workload or a trace of one's own is like, before anything is simulated.

Refuses to know how tasks are made (`saga.workloads`) and what a scheduler would do with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from saga.cli.selection import PANEL, GapCap, MaxCalls, MaxContext, MinCalls

if TYPE_CHECKING:
    from saga.workloads.describe import Description, Spread

workload_app = typer.Typer(help="Workloads: built-in ones by name, traces by path.")


@workload_app.callback(invoke_without_command=True)
def workload_root(context: typer.Context) -> None:
    """List the built-in workloads, or describe one, or a trace.

    saga workload list

    saga workload describe my_trace.jsonl --max-context 100000
    """
    if context.invoked_subcommand is None:
        list_workloads()


@workload_app.command("list")
def list_workloads() -> None:
    """The built-in workloads and where they come from."""
    from rich.console import Console
    from rich.table import Table

    from saga.workloads.catalogue import BUILT_IN

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for name, source in BUILT_IN.items():
        table.add_row(name, source().provenance)
    Console(highlight=False).print(table)


@workload_app.command("describe")
def describe_workload(
    name: Annotated[str, typer.Argument(help="Built-in name or path of a trace (JSON lines, plain or gzip).")],
    tasks: Annotated[int, typer.Option(help="Tasks to look at.")] = 500,
    seed: Annotated[int, typer.Option(help="Which tasks.")] = 0,
    max_context: MaxContext = None,
    kv_tokens: Annotated[
        int | None, typer.Option(help="Leave out sessions beyond a worker's KV tokens.", rich_help_panel=PANEL)
    ] = None,
    min_calls: MinCalls = 1,
    max_calls: MaxCalls = None,
    gap_cap_s: GapCap = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Lengths, gaps, growth and reuse of a workload.

    saga workload describe swe_bench --json
    """
    import msgspec

    from saga.workloads.catalogue import workload
    from saga.workloads.describe import describe
    from saga.workloads.limits import Limits

    limits = Limits(max_context_tokens=max_context, min_calls=min_calls, max_calls=max_calls, gap_cap_s=gap_cap_s)
    description = describe(workload(name, limits, kv_tokens=kv_tokens), tasks, seed)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(description), indent=2).decode())
    else:
        _print(description)


def _print(description: Description) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"[bold]{description.name}[/bold]  {description.provenance}")
    console.print(
        f"{description.num_tasks:,} tasks, {description.num_sessions:,} sessions, {description.num_calls:,} calls; "
        f"mean context {description.mean_context_tokens:,.0f} tokens"
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for head in ("mean", "p50", "p95", "max"):
        table.add_column(head, justify="right")
    for label, spread in _spreads(description):
        table.add_row(label, *(_number(value) for value in (spread.mean, spread.p50, spread.p95, spread.max)))
    console.print(table)
    reuse = description.reuse
    console.print(
        f"Reuse with an infinite cache: {reuse.all:.1%} of prompt tokens "
        f"({reuse.own_session:.1%} own session, {reuse.other_sessions:.1%} others); "
        f"prompt shrinks at {description.shrinking:.1%} of steps"
    )
    console.print("Tools: " + ", ".join(f"{tool} {count:,}" for tool, count in description.tools.items()))
    if len(description.tenants) > 1:
        console.print("Tenants: " + ", ".join(f"{tenant} {count:,}" for tenant, count in description.tenants.items()))
    for reason, count in description.skipped.items():
        console.print(f"[yellow]Left out: {count:,} sessions, {reason}[/yellow]")


def _spreads(description: Description) -> list[tuple[str, Spread]]:
    rows = [
        ("calls per session", description.calls_per_session),
        ("input tokens", description.input_tokens),
        ("output tokens", description.output_tokens),
    ]
    if description.growth_tokens is not None:
        rows.append(("input growth per step", description.growth_tokens))
    return rows + [(f"{kind} gap, s", spread) for kind, spread in description.gaps_s.items()]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
