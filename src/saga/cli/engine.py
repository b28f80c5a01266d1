"""`saga engine`: one modelled engine behind vLLM's endpoints, until it is told to stop.

It checks flags and waits for signals; it refuses to know what is served (`saga.engine.server`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga.cli import child
from saga.errors import UsageError

if TYPE_CHECKING:
    from saga.engine.answers import Caller
    from saga.engine.server import EngineServer

_MODEL, _ANSWERS, _CHILD = "What is modelled", "What it answers", "As a child process"
DEFAULT_HARDWARE = "llama3-8b-h100"
_PARENT_CHECK_S = 0.5


def engine(
    hardware: Annotated[
        str, typer.Option(help="Model and machine: a built-in name, or FILE.toml:NAME.", rich_help_panel=_MODEL)
    ] = DEFAULT_HARDWARE,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8100,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    speed: Annotated[float, typer.Option(help="Modelled seconds per real second.")] = 1.0,
    model: Annotated[str, typer.Option(help="Name it serves under [default: the hardware's].")] = "",
    kv_tokens: Annotated[
        int | None, typer.Option(help="KV tokens [default: by hardware].", rich_help_panel=_MODEL)
    ] = None,
    dram_tokens: Annotated[
        int, typer.Option(help="KV tokens in host memory, 0 for no such tier.", rich_help_panel=_MODEL)
    ] = 0,
    block_tokens: Annotated[int, typer.Option(help="Tokens of a KV block.", rich_help_panel=_MODEL)] = 16,
    max_running: Annotated[int, typer.Option(help="Calls in one batch.", rich_help_panel=_MODEL)] = 256,
    max_model_len: Annotated[
        int | None, typer.Option(help="Longest prompt + answer [default: the KV tokens].", rich_help_panel=_MODEL)
    ] = None,
    queue: Annotated[str, typer.Option(help="Waiting calls: fcfs or priority.", rich_help_panel=_MODEL)] = "fcfs",
    script: Annotated[
        Path | None, typer.Option(help="Tool calls turn by turn, JSON or TOML.", rich_help_panel=_ANSWERS)
    ] = None,
    tools: Annotated[
        str,
        typer.Option(help="none, or random[:P]: call an offered tool with probability P.", rich_help_panel=_ANSWERS),
    ] = "none",
    announce: Annotated[
        bool, typer.Option("--announce", help="Print READY and the URL, nothing else.", rich_help_panel=_CHILD)
    ] = False,
    die_with_parent: Annotated[
        bool, typer.Option("--die-with-parent", help="Stop when the parent process ends.", rich_help_panel=_CHILD)
    ] = False,
) -> None:
    """Serve a modelled engine behind vLLM's endpoints: real protocol, real timing, words without meaning.

    saga engine --hardware llama3-8b-h100 --port 8100 --speed 20

    curl http://127.0.0.1:8100/v1/completions -d '{"prompt": "Say something"}'
    """
    from saga.engine.hardware import hardware as find_hardware
    from saga.engine.server import EngineServer, ServerSettings

    settings = ServerSettings(
        hardware=find_hardware(hardware),
        model=model,
        speed=speed,
        kv_tokens=kv_tokens,
        dram_tokens=dram_tokens,
        block_tokens=block_tokens,
        max_running=max_running,
        queue=queue,
        caller=_caller(script, tools),
        max_model_len=max_model_len,
    )
    parent = os.getppid()
    if die_with_parent:
        child.die_with_parent()
    server = EngineServer(settings)
    serving = _serve(server, host, port, announce=announce, parent=parent if die_with_parent else None)
    with asyncio.Runner(loop_factory=_fastest_loop()) as runner:
        runner.run(serving)


def _fastest_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """That of uvloop where it is installed (the extra `fast`), else asyncio's own."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.new_event_loop
    return new_event_loop


def _caller(script: Path | None, tools: str) -> Caller:
    """Who decides about tool calls."""
    from saga.engine.answers import Chance, load_script

    if script is not None:
        if tools != "none":
            raise UsageError("--script and --tools: give one of them")
        return load_script(script)
    kind, _, share = tools.partition(":")
    try:
        probability = {"none": 0.0, "random": float(share or 0.7)}[kind]
    except (KeyError, ValueError):
        raise UsageError(f"--tools {tools!r}: must be none, random or random:P, e.g. random:0.7") from None
    if not 0.0 <= probability <= 1.0:
        raise UsageError(f"--tools {tools!r}: the probability must be between 0 and 1")
    return Chance(probability)


async def _serve(server: EngineServer, host: str, port: int, *, announce: bool, parent: int | None) -> None:
    """Until SIGTERM, SIGINT, or the parent's death."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    url = await server.start(host, port)
    typer.echo(f"READY {url}" if announce else f"{server.model} at {url}/v1, {server.settings.speed:g}x real time")
    sys.stdout.flush()
    while not stopped.is_set() and parent in (None, os.getppid()):
        try:
            await asyncio.wait_for(stopped.wait(), None if parent is None else _PARENT_CHECK_S)
        except TimeoutError:
            continue
    await server.close()
