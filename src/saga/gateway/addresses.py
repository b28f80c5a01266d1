"""Where a worker is, for whoever sends bytes there.

A file of its own because it crosses processes, which a compiled class cannot (`native/build.py`). It refuses to know
what the worker serves and how it is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """Where a worker is and how to talk to it; `headers` (its own key) replace the client's authorization."""

    worker: str
    host: str
    port: int
    tls: bool = False
    verify_tls: bool = True
    base_path: str = ""
    headers: tuple[tuple[bytes, bytes], ...] = ()
