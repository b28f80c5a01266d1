"""The flags that say which sessions of a trace count: declared once, for every command that reads one."""

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
