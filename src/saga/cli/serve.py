"""`saga serve`: the gateway, until it is told to stop.

It joins flags and file, starts embedded engines, prints where to go, and drains at SIGTERM. It refuses to know what a
gateway is made of (`saga.gateway.serve`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saga.errors import UsageError

if TYPE_CHECKING:
    from saga.gateway.config import GatewayConfig
    from saga.gateway.embedded import EmbeddedEngines
    from saga.gateway.serve import Gateway

_WHERE, _WORKERS, _RULES, _FILES = "Where it listens", "Workers", "How it schedules", "Files and logs"
_DEFAULT_EMBEDDED = 2


def serve(
    host: Annotated[str | None, typer.Option(help="Address for clients.", rich_help_panel=_WHERE)] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port for clients [default: 8000].", rich_help_panel=_WHERE)
    ] = None,
    admin_host: Annotated[str | None, typer.Option(help="Address for admin.", rich_help_panel=_WHERE)] = None,
    admin_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port for admin [default: 8001].", rich_help_panel=_WHERE)
    ] = None,
    admin_key: Annotated[
        str | None, typer.Option(help="Key for admin.", envvar="SAGA_ADMIN_KEY", rich_help_panel=_WHERE)
    ] = None,
    coordinator_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Port for engines that link up, see `saga worker` [default: none].",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    coordinator_host: Annotated[str | None, typer.Option(help="Address for engines.", rich_help_panel=_WHERE)] = None,
    coordinator_key: Annotated[
        str | None, typer.Option(help="Key for engines.", envvar="SAGA_COORDINATOR_KEY", rich_help_panel=_WHERE)
    ] = None,
    allow_unauthenticated: Annotated[
        bool,
        typer.Option("--allow-unauthenticated", help="Let anybody in who can reach it.", rich_help_panel=_WHERE),
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(help="Processes that take calls for one scheduler [default: 1].", rich_help_panel=_WHERE),
    ] = None,
    worker: Annotated[
        list[str] | None, typer.Option(help="URL of a worker; as often as needed.", rich_help_panel=_WORKERS)
    ] = None,
    config: Annotated[Path | None, typer.Option(help="saga.toml.", rich_help_panel=_WORKERS)] = None,
    embedded: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="Modelled engines to start here [default: 2 without workers].", rich_help_panel=_WORKERS
        ),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="Of embedded engines, as in `saga engine`.", rich_help_panel=_WORKERS)
    ] = None,
    speed: Annotated[
        float | None, typer.Option(help="Of embedded engines: modelled per real second.", rich_help_panel=_WORKERS)
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Policies; see `saga presets` [default: saga].", rich_help_panel=_RULES)
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(min=0, help="Calls that may wait [default: 1000].", rich_help_panel=_RULES)
    ] = None,
    max_wait_s: Annotated[
        float | None, typer.Option(min=0.0, help="How long they may wait [default: 120].", rich_help_panel=_RULES)
    ] = None,
    session_idle_s: Annotated[
        float | None, typer.Option(min=1.0, help="A session has ended after [default: 3600].", rich_help_panel=_RULES)
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check the scheduler's laws now and then.", rich_help_panel=_RULES)
    ] = False,
    tenants: Annotated[
        Path | None, typer.Option(help="Tenants and hashes of their keys, TOML.", rich_help_panel=_FILES)
    ] = None,
    db: Annotated[
        Path | None, typer.Option(help="SQLite file that keeps what was learned.", rich_help_panel=_FILES)
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(help="debug, info (every decision), warning [default], error.", rich_help_panel=_FILES),
    ] = None,
    otel_endpoint: Annotated[
        str | None,
        typer.Option(help="Send traces to this OTLP collector (http://host:4318).", rich_help_panel=_FILES),
    ] = None,
    drain_s: Annotated[
        float | None, typer.Option(min=0.0, help="For calls to end at SIGTERM [default: 30].", rich_help_panel=_FILES)
    ] = None,
) -> None:
    """Serve an OpenAI-compatible endpoint that schedules agent workflows over your engines.

    saga serve --worker http://gpu1:8000 --worker http://gpu2:8000

    saga serve --config saga.toml --processes 4

    Without workers it starts modelled engines of its own, so that there is something to talk to.
    """
    from dataclasses import replace

    from saga.cli.engine import DEFAULT_HARDWARE
    from saga.engine.hardware import hardware as find_hardware
    from saga.engine.latency import LatencyModel
    from saga.gateway.embedded import EmbeddedEngines
    from saga.gateway.tracing import TRACES_ENDPOINT, is_wanted, traces_endpoint

    settings = _joined(
        config,
        {
            "host": host,
            "port": port,
            "admin_host": admin_host,
            "admin_port": admin_port,
            "admin_key": admin_key,
            "coordinator_port": coordinator_port,
            "coordinator_host": coordinator_host,
            "coordinator_key": coordinator_key,
            "allow_unauthenticated": allow_unauthenticated or None,
            "processes": processes,
            "tenants": None if tenants is None else str(tenants),
            "db": None if db is None else str(db),
            "log_level": log_level,
            "drain_s": drain_s,
            "otel_endpoint": otel_endpoint,
        },
        {
            "preset": preset,
            "max_queue": max_queue,
            "max_wait_s": max_wait_s,
            "session_idle_s": session_idle_s,
            "check_every": 1_000 if check else None,
        },
    )
    settings = replace(settings, workers=(*settings.workers, *_named(worker or [])))
    expected = settings.workers or config is not None or settings.coordinator_port is not None
    number = embedded or (0 if expected else _DEFAULT_EMBEDDED)
    if not number and (hardware is not None or speed is not None):
        raise UsageError("--hardware and --speed are of embedded engines: give --embedded N too")
    arguments = (*(("--hardware", hardware) if hardware else ()), *(("--speed", str(speed)) if speed else ()))
    settings.check()
    if settings.otel_endpoint:
        os.environ[TRACES_ENDPOINT] = traces_endpoint(settings.otel_endpoint)  # front processes read it too
    is_wanted(os.environ)
    rate = LatencyModel(find_hardware(hardware or DEFAULT_HARDWARE)).prefill_tokens_per_s * (speed or 1.0)
    engines = EmbeddedEngines(number, arguments, rate)
    _run(lambda: _serve(settings, config, engines))


def _joined(file: Path | None, gateway: dict[str, Any], scheduling: dict[str, Any]) -> GatewayConfig:
    """The file's settings (or the defaults), with what flags say put over them."""
    from dataclasses import replace

    from saga.gateway.config import GatewayConfig, load_config

    base = GatewayConfig() if file is None else load_config(file)
    rules = replace(base.scheduling, **{name: value for name, value in scheduling.items() if value is not None})
    said = {name: value for name, value in gateway.items() if value is not None}
    return replace(base, scheduling=rules, **said)


def _named(urls: list[str]) -> list[Any]:
    from saga.gateway.worker_config import WorkerConfig

    workers = [WorkerConfig(url if "://" in url else f"http://{url}").named() for url in urls]
    for worker in workers:
        if workers.count(worker) > 1:
            raise UsageError(f"--worker {worker.url} is there twice")
    return workers


def _run(work: Callable[[], Any]) -> None:
    """On uvloop's event loop where it is installed, on asyncio's where not."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        from uvloop import new_event_loop as factory
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work())


async def _serve(settings: GatewayConfig, file: Path | None, engines: EmbeddedEngines) -> None:
    """Until SIGTERM or SIGINT; a second one does not wait."""
    from dataclasses import replace

    from saga.gateway.journal import log_to_stderr
    from saga.gateway.serve import Gateway
    from saga.gateway.sweeping import Sweeper

    log_to_stderr(settings.log_level)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    settings = replace(settings, workers=(*settings.workers, *await engines.start()))
    try:
        gateway = Gateway(settings, file=file)
        await gateway.start()
        sweeping = asyncio.create_task(Sweeper(lambda: gateway.scheduling.num_running == 0).run())
        _greet(gateway, settings)
        await stopped.wait()
        stopped.clear()
        draining = asyncio.create_task(gateway.stop())
        hurrying = asyncio.create_task(stopped.wait())
        await asyncio.wait((draining, hurrying), return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        if not draining.done():
            await gateway.hurry()
        await draining
        sweeping.cancel()
    finally:
        await engines.stop()


def _greet(gateway: Gateway, settings: GatewayConfig) -> None:
    """Where to go, and something to try."""
    url, admin_url = gateway.url, gateway.admin_url
    key = '-H "Authorization: Bearer $KEY" ' if settings.tenants else ""
    names = f"{gateway.workers.num_up} of {len(settings.workers)} workers up"
    typer.echo(f"SAGA ({settings.scheduling.preset}) at {url}/v1, {names}. Admin: {admin_url}")
    model = min((name for worker in gateway.workers for name in worker.models or ()), default="MODEL")
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "model": model})
    typer.echo(f"Models:   curl {key}{url}/v1/models")
    typer.echo(f"Try:      curl {key}{url}/v1/chat/completions -d {shlex.quote(body)}")
    typer.echo(f"Watch:    saga top --url {admin_url}")
    if gateway.coordinator:
        typer.echo(f"Engines:  saga worker MODEL --coordinator {gateway.coordinator}")
    sys.stdout.flush()
