"""The host tier: whether evicted prefixes have somewhere to go, and when they are copied there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class HostTier(Protocol):
    """A frozen dataclass: what is done with host memory."""

    @property
    def enabled(self) -> bool:
        """Whether workers keep a host tier at all."""
        ...

    @property
    def offload_on_pause(self) -> bool:
        """Whether a paused session's device copy is given up at once (its host copy stays)."""
        ...


@dataclass(frozen=True)
class NoHostTier:
    """What leaves the device is gone."""

    enabled: bool = False
    offload_on_pause: bool = False


@dataclass(frozen=True)
class WriteBack:
    """Every finished step is written back while its tool runs, so that eviction costs nothing later (POLICY item 6)."""

    enabled: bool = True
    offload_on_pause: bool = False
