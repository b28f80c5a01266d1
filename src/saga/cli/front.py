"""`saga front`: a front process of `saga serve --processes N`, which starts it. Nobody else does, so it is hidden.

It refuses to know what a front is made of (`saga.gateway.front_process`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from saga.cli.child import die_with_parent

_CUT_OFF = 3


def front(
    socket: Annotated[Path, typer.Argument(help="The coordinator's socket.")],
    log_level: Annotated[str, typer.Option(help="As in `saga serve`.")] = "warning",
) -> None:
    """Serve clients for the coordinator at a socket. Exit code 3: calls were cut off at the end."""
    from saga.gateway.front_process import serve_front
    from saga.gateway.journal import log_to_stderr

    parent = os.getppid()
    die_with_parent()
    log_to_stderr(log_level)
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        from uvloop import new_event_loop as factory
    with asyncio.Runner(loop_factory=factory) as runner:
        if not runner.run(serve_front(socket, parent)):
            raise typer.Exit(_CUT_OFF)
