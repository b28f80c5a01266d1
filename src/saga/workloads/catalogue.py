"""The one list of built-in workloads, and the door through which everybody gets one by name or path."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from saga.errors import UnknownName, UsageError
from saga.workloads import generators
from saga.workloads.limits import Fit, Limits
from saga.workloads.plan import Workload
from saga.workloads.profiles import PROFILES, profile_source
from saga.workloads.synthetic import Source, SyntheticWorkload
from saga.workloads.traces import TraceWorkload

BUILT_IN: dict[str, Callable[[], Source]] = {
    "swe_bench": generators.swe_bench,
    "web_arena": generators.web_arena,
    "ten_tenants": generators.ten_tenants,
    **{name: partial(profile_source, name) for name in PROFILES},
}
"""Name -> what it is made of. A new built-in workload is one line here."""

TOOL_CV = "swe_bench:tool_cv="
"""With a number behind it: `swe_bench` with tool latencies of that coefficient of variation."""


def workload(name_or_path: str, limits: Limits, *, kv_tokens: int | None = None) -> Workload:
    """The workload of that name (or `swe_bench:tool_cv=NUMBER`), else the trace in that file.

    kv_tokens: KV capacity of one worker; sessions whose context (output included) does not fit are skipped and counted.
    Raises UnknownName where it is neither a name nor a file, TraceError for a file that cannot be read, UsageError for
    a limit that makes no sense or where no session fits.
    """
    fit = Fit(limits, kv_tokens)
    source = BUILT_IN.get(name_or_path)
    if source is not None:
        return SyntheticWorkload(source(), fit)
    if name_or_path.startswith(TOOL_CV):
        return SyntheticWorkload(generators.swe_bench_with_tool_cv(_number(name_or_path)), fit)
    path = Path(name_or_path)
    if not path.is_file():
        raise UnknownName("workload, or trace file,", name_or_path, BUILT_IN)
    return TraceWorkload(path, fit)


def _number(name: str) -> float:
    """What stands behind TOOL_CV."""
    try:
        return float(name.removeprefix(TOOL_CV))
    except ValueError:
        raise UsageError(f"workload {name!r}: a number must follow {TOOL_CV!r}, such as 1.5") from None
