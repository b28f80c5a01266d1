"""Every error SAGA raises on purpose, in one tree.

    SagaError
    ├── UsageError          the caller's fault: bad flag, file, field or value  (exit code 2)
    │   ├── UnknownName     a preset, workload, hardware or policy nobody knows
    │   ├── TraceError      a trace that cannot be read: file, line, field, value
    │   └── ProtocolError   an event that contradicts what was said before it
    ├── PeerError           the other side's fault: an engine, a worker, a coordinator
    └── InvariantViolated   our own bug: a law of the scheduler or the engine does not hold

This module refuses to know how errors are shown; `saga.cli` turns them into exit codes.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SagaError(Exception):
    """Root of the tree; never raised itself."""


class UsageError(SagaError):
    """The caller asked for something that cannot be; the message names field, value and what would be right."""


class UnknownName(UsageError):
    """A name that is in no table."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        self._args = (kind, name, names)
        near = get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        super().__init__(f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}")

    def __reduce__(self) -> tuple[type[UnknownName], tuple[str, str, list[str]]]:
        """Errors cross process borders whole."""
        return UnknownName, self._args


class TraceError(UsageError):
    """A trace that cannot be read. Names the file, the line (1-based), the field and the value where known."""

    def __init__(self, path: object, problem: str, *, line: int | None = None) -> None:
        self._args = (str(path), problem, line)
        where = f"{path}:{line}" if line is not None else f"{path}"
        super().__init__(f"{where}: {problem}")

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process borders whole."""
        path, problem, line = self._args
        return _trace_error, (path, problem, line)


class ProtocolError(UsageError):
    """An event that contradicts the events before it, e.g. a step finished that never arrived."""


class PeerError(SagaError):
    """An engine, worker or coordinator broke its side of the contract."""


class InvariantViolated(SagaError):
    """A numbered law does not hold. Always our own bug."""


def _trace_error(path: str, problem: str, line: int | None) -> TraceError:
    return TraceError(path, problem, line=line)
