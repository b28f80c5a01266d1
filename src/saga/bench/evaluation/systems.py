"""Systems of the evaluation by name: the presets, and the paper's system with one of its constants made otherwise.

`saga_paper~NAME=VALUE` is `saga_paper` with that constant, by the paper's name for it. This module refuses to know what
is compared with what.
"""

from __future__ import annotations

from saga.errors import UnknownName, UsageError
from saga.presets import preset, saga_paper
from saga.scheduler.composition import Composition

PAPER = "saga_paper"
"""The preset that takes the paper's rules literally: what its claims are about."""

CONSTANTS = ("alpha", "beta", "gamma", "theta", "t_idle_s", "r_max", "ttl_max_s", "theta_conf")
"""What the paper's sensitivity study varies; arguments of `presets.saga_paper`."""


def varied(constant: str, value: float) -> str:
    """The name of the paper's system with this constant."""
    return f"{PAPER}~{constant}={value:g}"


def system(name: str) -> Composition:
    """The composition of that name. UnknownName for a preset or constant nobody knows, UsageError for no number."""
    base, changed, change = name.partition("~")
    if not changed:
        return preset(base)
    constant, _, value = change.partition("=")
    if base != PAPER or constant not in CONSTANTS:
        raise UnknownName("variation", name, [f"{PAPER}~{known}=NUMBER" for known in CONSTANTS])
    try:
        number = float(value)
    except ValueError:
        raise UsageError(f"system {name!r}: {value!r} is no number") from None
    return saga_paper(**{constant: number})  # type: ignore[arg-type]
