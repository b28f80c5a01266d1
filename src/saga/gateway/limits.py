"""How much clients and workers may take: bytes, connections, seconds. What is beyond is refused by whoever counts it.

It refuses to know who counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from saga.errors import UsageError


@dataclass(frozen=True, slots=True)
class _Limits:
    """Numbers that are all above 0; raises UsageError for one that is not."""

    def __post_init__(self) -> None:
        """Check each."""
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, int | float) and not value > 0:
                raise UsageError(f"{each.name} = {value}: must be more than 0")


@dataclass(frozen=True, slots=True)
class MessageLimits(_Limits):
    """How large a request may be, in bytes of each part; what is beyond is refused with 414, 431 or 413."""

    max_target_bytes: int = 8_192
    max_head_bytes: int = 65_536
    max_headers: int = 100
    max_body_bytes: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class UpstreamLimits(_Limits):
    """Bounds of the pool; times in seconds.

    idle_s stays below the keep-alive time of uvicorn (5 s), so that a connection is not taken while its worker closes
    it. answer_timeout_s: until the answer's head, long, because engines queue. silence_timeout_s: between two parts.
    """

    max_connections: int = 4_096
    max_idle_per_worker: int = 256
    idle_s: float = 4.0
    max_age_s: float = 300.0
    connect_timeout_s: float = 3.0
    answer_timeout_s: float = 1_800.0
    silence_timeout_s: float = 600.0
    max_head_bytes: int = 65_536


@dataclass(frozen=True, slots=True)
class FrontLimits(_Limits):
    """What a client may take; times in seconds.

    head_timeout_s: for a whole head, from its first byte (or from the connection's start). body_timeout_s: for a body,
    extended by one second for every min_body_bytes_per_s bytes that came. write_timeout_s: an answer that the client
    does not read. linger_s: reading on after a refusal, so that it arrives. max_held_bytes: of all bodies together that
    are arriving or wait for their answer; beyond it those still arriving are refused (503), the next to grow first, and
    those that grow when they are opened.
    """

    message: MessageLimits = field(default_factory=MessageLimits)
    upstream: UpstreamLimits = field(default_factory=UpstreamLimits)
    max_connections: int = 10_000
    max_held_bytes: int = 2 * 1024 * 1024 * 1024
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    min_body_bytes_per_s: int = 16_384
    idle_timeout_s: float = 75.0
    write_timeout_s: float = 120.0
    linger_s: float = 2.0
    tick_s: float = 0.5

    def share(self, number: int) -> FrontLimits:
        """Those of one of so many fronts: its part of the memory for bodies, but at least one body."""
        return replace(self, max_held_bytes=max(self.max_held_bytes // number, self.message.max_body_bytes))
