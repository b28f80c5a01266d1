"""`saga presets`: which systems can be simulated, and what each is made of."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from saga.scheduler.composition import Composition

presets_app = typer.Typer(help="The systems that can be compared, by name.", no_args_is_help=False)

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]


@presets_app.callback(invoke_without_command=True)
def presets(context: typer.Context, as_json: AsJson = False) -> None:
    """List the presets, or show what one is made of.

    saga presets

    saga presets show saga --json
    """
    if context.invoked_subcommand is None:
        list_presets(as_json)


@presets_app.command("list")
def list_presets(as_json: AsJson = False) -> None:
    """Every preset with its mechanism, its source and what is left out of it."""
    from saga.presets import PRESETS

    if as_json:
        _write_json([_heading(composition) for composition in PRESETS.values()])
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for composition in PRESETS.values():
        said = f"{escape(composition.description)} [dim]({escape(composition.source)})[/dim]"
        left_out = f"\n[dim]Not modelled: {escape(composition.left_out)}[/dim]" if composition.left_out else ""
        table.add_row(composition.name, said + left_out)
    Console(highlight=False).print(table)


@presets_app.command("show")
def show_preset(name: Annotated[str, typer.Argument(help="Name of a preset.")], as_json: AsJson = False) -> None:
    """One preset, policy by policy, with every constant."""
    from saga.presets import preset

    composition = preset(name)
    parts = {field.name: _describe(getattr(composition, field.name)) for field in dataclasses.fields(composition)}
    if as_json:
        _write_json(parts)
        return
    width = max(map(len, parts))
    for key, value in parts.items():
        typer.echo(f"{key:{width}} {_in_words(value)}".rstrip())


def _heading(composition: Composition) -> dict[str, str]:
    """What tells presets apart at a glance."""
    return {name: getattr(composition, name) for name in ("name", "description", "source", "left_out")}


def _describe(part: object) -> object:
    """A policy as {"policy": class name, field: value, ...}; anything else as it is."""
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {field.name: _describe(getattr(part, field.name)) for field in dataclasses.fields(part)}
        return {"policy": type(part).__name__, **fields}
    if isinstance(part, tuple | list):
        return [_describe(item) for item in part]
    if isinstance(part, float) and not abs(part) < float("inf"):
        return str(part)
    return part if isinstance(part, str | int | float | bool | None) else repr(part)


def _in_words(value: object) -> str:
    """`Name(field=value, ...)` as in the source."""
    if isinstance(value, dict):
        fields = ", ".join(f"{key}={_in_words(item)}" for key, item in value.items() if key != "policy")
        return f"{value['policy']}({fields})"
    if isinstance(value, list):
        return "[" + ", ".join(_in_words(item) for item in value) + "]"
    return str(value)


def _write_json(value: object) -> None:
    """Indented JSON on standard output."""
    import msgspec

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
