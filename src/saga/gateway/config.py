"""`saga.toml` and flags as frozen dataclasses.

    [gateway]      host, port, admin_host, admin_port, admin_key, tenants, db, drain_s, log_level, ...
    [scheduling]   preset, max_queue, max_wait_s, ...            (settings.SchedulingSettings)
    [health]       interval_s, timeout_s, ...                    (health.HealthSettings)
    [circuit]      failures_to_open, open_s                      (worker_config.CircuitRules)
    [limits]       max_connections, ...; [limits.message], [limits.upstream]      (limits.FrontLimits)
    [[worker]]     url, name, models, kv_tokens, key, ca_file    (worker_config.WorkerConfig; or `key_env`, a variable)

A field that nobody knows is an error that names what was meant. The workers of the file are read again when it changes,
the rest is read once. It refuses to open sockets and to know what the values do.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from saga.errors import UnknownName, UsageError
from saga.gateway.health import HealthSettings
from saga.gateway.limits import FrontLimits, MessageLimits, UpstreamLimits
from saga.gateway.settings import SchedulingSettings
from saga.gateway.worker_config import CircuitRules, WorkerConfig

T = TypeVar("T")

MAX_PROCESSES = 64
"""Of one gateway: far beyond what one scheduler can feed."""

_SECTIONS = ("gateway", "scheduling", "health", "circuit", "limits", "worker")


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Everything that `saga serve` is told.

    tenants, db: files, "" for none. admin_key: asked for on the admin port, which needs one where it is not loopback.
    coordinator_port: where engines link up, None for nowhere; coordinator_key: asked for there, likewise.
    otel_endpoint: of an OTLP/HTTP collector that traces go to, "" for what the environment says.
    drain_s: how long calls may finish after SIGTERM. processes: that take calls; more than one share one scheduler.
    kv_events: endpoint to bind by worker's name.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    admin_host: str = "127.0.0.1"
    admin_port: int = 8001
    admin_key: str = ""
    coordinator_host: str = "127.0.0.1"
    coordinator_port: int | None = None
    coordinator_key: str = ""
    tenants: str = ""
    db: str = ""
    save_every_s: float = 30.0
    drain_s: float = 30.0
    otel_endpoint: str = ""
    log_level: str = "warning"
    allow_unauthenticated: bool = False
    processes: int = 1
    workers: tuple[WorkerConfig, ...] = ()
    scheduling: SchedulingSettings = field(default_factory=SchedulingSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    circuit: CircuitRules = field(default_factory=CircuitRules)
    limits: FrontLimits = field(default_factory=FrontLimits)
    kv_events: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse what cannot be or would be open to strangers. Raises UsageError."""
        self.scheduling.composition()
        for name in ("port", "admin_port", "coordinator_port"):
            if not 0 <= (getattr(self, name) or 0) <= 65_535:
                raise UsageError(f"{name} = {getattr(self, name)}: expected 0 (any free one) to 65535")
        if not 1 <= self.processes <= MAX_PROCESSES:
            raise UsageError(f"processes = {self.processes}: expected 1 to {MAX_PROCESSES}")
        if self.log_level not in {"debug", "info", "warning", "error", "critical"}:
            raise UsageError(f"log_level = {self.log_level!r}: expected debug, info, warning, error or critical")
        if not is_loopback(self.host) and not self.tenants and not self.allow_unauthenticated:
            raise UsageError(
                f"--host {self.host} is open to others and no tenants' keys are given: "
                "give --tenants FILE, or --allow-unauthenticated"
            )
        if not is_loopback(self.admin_host) and not self.admin_key and not self.allow_unauthenticated:
            raise UsageError(f"admin_host {self.admin_host} is open to others: set admin_key (SAGA_ADMIN_KEY)")
        if self.coordinator_port is not None:
            self._check_coordinator()

    def _check_coordinator(self) -> None:
        host = self.coordinator_host
        if not is_loopback(host) and not self.coordinator_key and not self.allow_unauthenticated:
            raise UsageError(f"coordinator_host {host} is open to others: set coordinator_key (SAGA_COORDINATOR_KEY)")
        if find_spec("grpc") is None:
            raise UsageError("coordinator_port needs grpcio: pip install 'saga-sched[coordinator]'")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def load_config(path: Path) -> GatewayConfig:
    """The file's settings. Raises UsageError with file, field, value and what would be right."""
    table = _read(path)
    gateway = dict(table.get("gateway", {}))
    kv_events = {}
    workers = []
    for number, entry in enumerate(table.get("worker", []), 1):
        entry = dict(entry)  # noqa: PLW2901 - a copy to take from
        endpoint = entry.pop("kv_events", "")
        worker = _worker(path, number, entry)
        workers.append(worker)
        if endpoint:
            kv_events[worker.name] = str(endpoint)
    names = [worker.name for worker in workers]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{path}: worker {name!r} is there {names.count(name)} times; names are unique")
    base = _convert(path, "gateway", gateway, GatewayConfig, but=("workers", *_SECTIONS, "kv_events"))
    return replace(
        base,
        workers=tuple(workers),
        scheduling=_convert(path, "scheduling", table.get("scheduling", {}), SchedulingSettings),
        health=_convert(path, "health", table.get("health", {}), HealthSettings),
        circuit=_convert(path, "circuit", table.get("circuit", {}), CircuitRules),
        limits=_limits(path, dict(table.get("limits", {}))),
        kv_events=kv_events,
    )


def load_worker(data: Mapping[str, Any], where: str = "worker") -> WorkerConfig:
    """One worker from plain data, as the admin API sends it. Raises UsageError."""
    return _worker(Path(where), 0, dict(data))


def _read(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not TOML: {error}") from error
    for section in table:
        if section not in _SECTIONS:
            raise UnknownName(f"section in {path}:", section, _SECTIONS)
    for section in _SECTIONS[:-1]:
        if not isinstance(table.get(section, {}), dict):
            raise UsageError(f"{path}: {section} must be a table, written [{section}]")
    workers = table.get("worker", [])
    if not isinstance(workers, list) or not all(isinstance(entry, dict) for entry in workers):
        raise UsageError(f"{path}: worker must be a list of tables, each written [[worker]]")
    return table


def _worker(path: Path, number: int, entry: dict[str, Any]) -> WorkerConfig:
    where = f"worker {number}" if number else "worker"
    variable = entry.pop("key_env", "")
    if variable:
        key = os.environ.get(str(variable), "")
        if not key:
            raise UsageError(f"{path}: {where}: key_env = {variable!r}: there is no such variable, or it is empty")
        entry["key"] = key
    if "url" not in entry:
        raise UsageError(f"{path}: {where} has no url; expected http://host:port")
    ca_file = entry.get("ca_file", "")
    if ca_file and not Path(str(ca_file)).is_file():
        raise UsageError(f"{path}: {where}: ca_file = {ca_file!r}: there is no such file")
    return _convert(path, where, entry, WorkerConfig).named()


def _limits(path: Path, data: dict[str, Any]) -> FrontLimits:
    """What a front may take, from the table and the two within it."""
    message = _convert(path, "limits.message", _table(path, data, "message"), MessageLimits)
    upstream = _convert(path, "limits.upstream", _table(path, data, "upstream"), UpstreamLimits)
    own = _convert(path, "limits", data, FrontLimits, but=("message", "upstream"))
    return replace(own, message=message, upstream=upstream)


def _table(path: Path, data: dict[str, Any], name: str) -> dict[str, Any]:
    part = data.pop(name, {})
    if not isinstance(part, dict):
        raise UsageError(f"{path}: limits.{name} must be a table, written [limits.{name}]")
    return part


def _convert(path: Path, section: str, data: Mapping[str, Any], into: type[T], but: tuple[str, ...] = ()) -> T:
    """Plain data as a dataclass: no unknown field, each of its type."""
    known = [entry.name for entry in fields(into) if entry.name not in but]  # type: ignore[arg-type]
    for name in data:
        if name not in known:
            raise UnknownName(f"field in {path}: {section}:", name, known)
    try:
        return msgspec.convert(data, into)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {section}: {error}") from error
