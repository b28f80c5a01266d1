"""The one list of built-in workloads, and the door through which everybody gets one by name or path."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from saga.errors import UnknownName
from saga.workloads import generators
from saga.workloads.limits import Fit
from saga.workloads.plan import Limits, Workload
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


def workload(name_or_path: str, limits: Limits, *, kv_tokens: int | None = None) -> Workload:
    """The workload of that name, else the trace in that file.

    kv_tokens: KV capacity of one worker; sessions whose context (output included) does not fit are skipped and counted.
    Raises UnknownName where it is neither a name nor a file, TraceError for a file that cannot be read, UsageError for
    a limit that makes no sense or where no session fits.
    """
    fit = Fit(limits, kv_tokens)
    source = BUILT_IN.get(name_or_path)
    if source is not None:
        return SyntheticWorkload(source(), fit)
    path = Path(name_or_path)
    if not path.is_file():
        raise UnknownName("workload, or trace file,", name_or_path, BUILT_IN)
    return TraceWorkload(path, fit)
