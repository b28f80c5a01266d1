"""`saga top`: workers, calls, sessions and tenants of a running gateway, live.

It asks the admin port again and again and draws what it says. It refuses to know more than that answer.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saga.errors import PeerError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

_TIMEOUT_S = 5.0


def top(
    url: Annotated[str, typer.Option(help="The gateway's admin port.")] = "http://127.0.0.1:8001",
    key: Annotated[str, typer.Option(help="The admin key.", envvar="SAGA_ADMIN_KEY")] = "",
    interval_s: Annotated[float, typer.Option(min=0.1, help="Between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, do not clear the screen.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What the gateway says, as JSON.")] = False,
) -> None:
    """Watch a running gateway: workers, queue, sessions, tenants.

    saga top --url http://127.0.0.1:8001
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--url {url!r}: expected http://host:port, the admin port of `saga serve`")
    if as_json:
        typer.echo(json.dumps(_ask(url, key), indent=2))
        return
    from rich.console import Console
    from rich.live import Live

    if once:
        Console(highlight=False).print(draw(_ask(url, key)))
        return
    with Live(draw(_ask(url, key)), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            live.update(draw(_ask(url, key)), refresh=True)


def draw(said: dict[str, Any]) -> RenderableType:
    """The screen for one answer of /admin/overview."""
    from rich.console import Group
    from rich.text import Text

    calls = said["calls"]
    up = sum(worker["state"] == "up" for worker in said["workers"])
    head = (
        f"SAGA {said['version']} ({said['preset']}), up {_span(said['uptime_s'])}: "
        f"{up} of {len(said['workers'])} workers up, {calls['running']} calls running, {calls['waiting']} waiting, "
        f"{said['sessions']} sessions"
    )
    return Group(Text(head, style="bold"), _workers(said["workers"]), _tenants(said["tenants"]))


def _workers(workers: list[dict[str, Any]]) -> RenderableType:
    rows = []
    for worker in workers:
        capacity = worker["kv_tokens"] or 1
        rows.append(
            (
                worker["name"],
                worker["state"] if worker["state"] == "up" else f"{worker['state']}: {worker['why']}"[:60],
                str(worker["calls"]),
                f"{_or_dash(worker['running'])}/{_or_dash(worker['waiting'])}",
                str(worker["sessions"]),
                f"{worker['reserved_tokens'] / capacity:.0%} of {capacity:,}",
                "-" if worker["kv_usage"] is None else f"{worker['kv_usage']:.0%}",
                f"{worker['served']:,}",
                f"{worker['failed']:,}",
            )
        )
    names = ("worker", "state", "calls", "run/wait", "sessions", "reserved", "KV", "served", "failed")
    return _table(names, rows)


def _tenants(tenants: list[dict[str, Any]]) -> RenderableType:
    names = ("tenant", "weight", "sessions", "in flight", "device s")
    rows = [
        (t["name"], f"{t['weight']:g}", str(t["sessions"]), str(t["calls_in_flight"]), f"{t['attained_s']:,.1f}")
        for t in tenants
    ]
    return _table(names, rows)


def _table(names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(names):
        table.add_column(name, justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _ask(url: str, key: str) -> dict[str, Any]:
    """The answer of /admin/overview. Raises PeerError where there is none."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{url.rstrip('/')}/admin/overview", headers=headers)  # noqa: S310 - checked: http
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            said: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        hint = ": give --key (SAGA_ADMIN_KEY)" if error.code in {401, 403} else ""
        raise PeerError(f"{url} answered {error.code}{hint}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise PeerError(f"no gateway answers at {url}: {reason}{os.linesep}start one with `saga serve`") from error
    return said


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def _or_dash(number: int | None) -> str:
    return "-" if number is None else str(number)
