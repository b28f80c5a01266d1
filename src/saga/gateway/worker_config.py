"""A worker as somebody wrote it down, what it can hold, and when its circuit opens.

A file of its own because classes that msgspec makes stay as they are where the rest is compiled (`native/build.py`).
It refuses to know how a worker is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from saga.errors import UsageError
from saga.gateway.addresses import WorkerAddress

DEFAULT_KV_TOKENS: Final = 450_000
"""Assumed of a worker that does not say: what an 80 GB device holds beside an 8B model."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """A worker as somebody wrote it down; None and () mean: ask it.

    url: http(s)://host:port[/base]. name: for headers, metrics and logs; host:port by default. models: served ids.
    kv_tokens, host_kv_tokens, block_tokens, max_running, prefill_tokens_per_s: as in `events.WorkerJoined`. extensions:
    whether it accepts vLLM's fields. key: sent as `key_header` (with "Bearer " before it in authorization).
    ca_file: certificates to trust instead of the system's. Raises UsageError where a value cannot be.
    """

    url: str
    name: str = ""
    models: tuple[str, ...] = ()
    kv_tokens: int | None = None
    host_kv_tokens: int = 0
    block_tokens: int = 16
    max_running: int = 256
    prefill_tokens_per_s: float = 5_000.0
    extensions: bool | None = None
    key: str = ""
    key_header: str = "authorization"
    verify_tls: bool = True
    ca_file: str = ""

    def __post_init__(self) -> None:
        """Check each value."""
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise UsageError(f"worker url {self.url!r}: expected http://host:port or https://host:port[/path]")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if port == 0:
            raise UsageError(f"worker url {self.url!r}: the port must lie between 1 and 65535")
        if parts.username or parts.password:
            raise UsageError(f"worker url of {parts.hostname!r} holds a password; give `key` instead")
        for name, low in (("kv_tokens", 1), ("host_kv_tokens", 0), ("block_tokens", 1), ("max_running", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"worker {self.url}: {name} = {value!r}; expected a number from {low}")
        if not self.prefill_tokens_per_s > 0:
            raise UsageError(f"worker {self.url}: prefill_tokens_per_s = {self.prefill_tokens_per_s!r}; expected > 0")
        if not self.key_header.isascii() or not self.key_header.replace("-", "").isalnum():
            raise UsageError(f"worker {self.url}: key_header = {self.key_header!r} is no header name")
        if not self.key.isascii() or not (self.key + "x").isprintable():
            raise UsageError(f"worker {self.url}: key holds characters that no header can carry")

    def named(self) -> WorkerConfig:
        """The same with its name: host:port where none was given."""
        if self.name:
            return self
        address = self.address()
        return replace(self, name=f"{address.host}:{address.port}{address.base_path}")

    def capacity(self) -> Capacity:
        """What is assumed of it until it says more itself."""
        return Capacity(
            self.kv_tokens or DEFAULT_KV_TOKENS,
            self.block_tokens,
            self.host_kv_tokens,
            self.max_running,
            self.prefill_tokens_per_s,
        )

    def address(self) -> WorkerAddress:
        """Where it is, for the data plane."""
        parts = urlsplit(self.url)
        tls = parts.scheme == "https"
        host = parts.hostname or ""
        headers: tuple[tuple[bytes, bytes], ...] = ()
        if self.key:
            header = self.key_header.lower()
            value = f"Bearer {self.key}" if header == "authorization" else self.key
            headers = ((header.encode(), value.encode()),)
        base_path = parts.path.rstrip("/")
        return WorkerAddress(
            worker=self.name,
            host=host,
            port=parts.port or (443 if tls else 80),
            tls=tls,
            verify_tls=self.verify_tls,
            base_path=base_path.removesuffix("/v1"),
            headers=headers,
        )


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a worker can hold and how fast, as in `events.WorkerJoined`; 0 tokens per second: none, or unknown."""

    kv_tokens: int
    block_tokens: int
    host_kv_tokens: int
    max_running: int
    prefill_tokens_per_s: float
    load_tokens_per_s: float = 0.0
    move_tokens_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CircuitRules:
    """failures_to_open: in a row. open_s: how long a circuit stays open the first time, seconds."""

    failures_to_open: int = 3
    open_s: float = 1.0
