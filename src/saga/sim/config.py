"""What a simulated run is: every choice in one frozen object, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite

from saga.engine.hardware import hardware
from saga.errors import UsageError
from saga.presets import preset

_MAX_WORKERS = 10_000
_MAX_TASKS = 10_000_000
_MAX_AGENTS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class SimConfig:
    """One run. Exactly one of agents_per_worker, oversubscription, rate_per_s, as_recorded says how much load.

    oversubscription X: agents per worker = X x KV tokens / mean context (closed loop). rate_per_s: tasks per second
    (open loop). tasks: tasks that are measured, the first wave of a closed loop included in the count but not in
    the figures. dram_tokens: host tier per worker for presets that have one; None: what the hardware names.
    detail: also collect what the report draws. check_every: events between two checks of the laws, 0 for none.
    Raises UsageError naming field, value and what would be right.
    """

    preset: str
    workload: str
    seed: int = 0
    workers: int = 4
    hardware: str = "llama3-70b-a100x4"
    kv_tokens: int | None = None
    dram_tokens: int | None = None
    agents_per_worker: float | None = None
    oversubscription: float | None = None
    rate_per_s: float | None = None
    as_recorded: bool = False
    tasks: int = 1000
    block_tokens: int = 16
    max_running: int = 256
    chunk_tokens: int = 2048
    log_path: str | None = None
    detail: bool = False
    check_every: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        preset(self.preset)
        hardware(self.hardware)
        for name, low, high in (
            ("seed", 0, 2**63),
            ("workers", 1, _MAX_WORKERS),
            ("tasks", 1, _MAX_TASKS),
            ("block_tokens", 1, 4096),
            ("max_running", 1, 100_000),
            ("chunk_tokens", 1, 10_000_000),
            ("check_every", 0, 2**63),
        ):
            self._check_int(name, getattr(self, name), low, high)
        for name in ("kv_tokens", "dram_tokens"):
            value = getattr(self, name)
            if value is not None:
                self._check_int(name, value, 0 if name == "dram_tokens" else 2 * self.block_tokens, 10**12)
        for name in ("agents_per_worker", "oversubscription", "rate_per_s"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and 0 < value <= _MAX_AGENTS):
                raise UsageError(f"{name} = {value!r}: expected a number above 0 and at most {_MAX_AGENTS}")
        self._check_load()

    def _check_int(self, name: str, value: object, low: int, high: int) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise UsageError(f"{name} = {value!r}: expected a whole number from {low} to {high}")

    def _check_load(self) -> None:
        numbers = ("agents_per_worker", "oversubscription", "rate_per_s")
        given = [name for name in numbers if getattr(self, name) is not None]
        given += ["as_recorded"] if self.as_recorded else []
        if len(given) != 1:
            said = " and ".join(given) if given else "none of them"
            raise UsageError(
                "load: expected exactly one of agents_per_worker, oversubscription, rate_per_s, as_recorded; "
                f"got {said}"
            )

    def as_dict(self) -> dict[str, object]:
        """Plain data for the JSON and the log header."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
