"""Flags of several commands, declared once: the workload, which sessions of a trace count, presets, one worker."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

PANEL = "Which sessions of a trace"

MaxContext: TypeAlias = Annotated[
    int | None, typer.Option(help="Leave out sessions that grow beyond this.", rich_help_panel=PANEL)
]
MinCalls: TypeAlias = Annotated[int, typer.Option(help="Leave out shorter sessions.", rich_help_panel=PANEL)]
MaxCalls: TypeAlias = Annotated[int | None, typer.Option(help="Leave out longer sessions.", rich_help_panel=PANEL)]
GapCap: TypeAlias = Annotated[
    float | None, typer.Option(help="Cut gaps between calls to this many seconds.", rich_help_panel=PANEL)
]

WorkloadName: TypeAlias = Annotated[str, typer.Option(help="Built-in name or path of a trace; see `saga workload`.")]
PresetNames: TypeAlias = Annotated[
    str, typer.Option(help="Names with commas between; the first is what the others are compared with.")
]

FLEET = "Fleet"
Workers: TypeAlias = Annotated[int, typer.Option(help="Engines in the fleet.", rich_help_panel=FLEET)]
Hardware: TypeAlias = Annotated[
    str, typer.Option(help="One worker: a built-in name, or FILE.toml:NAME.", rich_help_panel=FLEET)
]
KvTokens: TypeAlias = Annotated[
    int | None, typer.Option(help="KV tokens of a worker [default: by hardware].", rich_help_panel=FLEET)
]
DramTokens: TypeAlias = Annotated[
    int | None, typer.Option(help="KV tokens in its host memory [default: by hardware].", rich_help_panel=FLEET)
]
