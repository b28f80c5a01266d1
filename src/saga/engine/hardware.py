"""What a worker is made of: latency coefficients, KV capacity, transfer rates, and where the figures come from.

The built-in figures lie in `data/hardware.toml`; a user's own table of the same form (`saga calibrate` writes one) is
read by `load_hardware`.
This module refuses to know how the figures are turned into seconds (`latency.py`) or what runs on the worker.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, fields
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from saga.errors import UnknownName, UsageError


@dataclass(frozen=True)
class Hardware:
    """One worker: a tensor-parallel group that serves one model.

    tokens: grid of new tokens per iteration, ascending; linear_ms, allreduce_ms: milliseconds per iteration at
    these. lm_head_ms: per iteration. prefill_attention_ms: per iteration (constant, per new token, per
    new * (context + prefill_own_share * new)); decode_attention_ms: per iteration (constant, per call, per token of
    context).
    kv_tokens: device KV capacity at 0.9 memory utilisation after weights. host_kv_tokens: DRAM tier.
    """

    name: str
    tokens: tuple[int, ...]
    linear_ms: tuple[float, ...]
    allreduce_ms: tuple[float, ...]
    lm_head_ms: float
    prefill_attention_ms: tuple[float, float, float]
    decode_attention_ms: tuple[float, float, float]
    kv_tokens: int
    host_kv_tokens: int
    kv_bytes_per_token: int
    load_tokens_per_s: float
    move_tokens_per_s: float
    provenance: str
    prefill_own_share: float = 1.0


_NUMBERS = {
    "lm_head_ms": float,
    "kv_tokens": int,
    "host_kv_tokens": int,
    "kv_bytes_per_token": int,
    "load_tokens_per_s": float,
    "move_tokens_per_s": float,
}
_LISTS = {"linear_ms": None, "allreduce_ms": None, "prefill_attention_ms": 3, "decode_attention_ms": 3}
_FIELDS = {"name", "provenance", "tokens", *_NUMBERS, *_LISTS}
_OWN_SHARE = "prefill_own_share"


def hardware(name: str) -> Hardware:
    """The built-in worker of this name, or one of a user's table: `FILE.toml:NAME`. Raises UnknownName, UsageError."""
    path, _, entry = name.rpartition(":")
    known = load_hardware(path) if path.endswith(".toml") else HARDWARE
    wanted = entry if path.endswith(".toml") else name
    if wanted not in known:
        raise UnknownName("hardware", wanted, known)
    return known[wanted]


def load_hardware(path: str | Path) -> dict[str, Hardware]:
    """Read a table of the form of `data/hardware.toml`; name -> Hardware.

    Raises UsageError naming file, hardware, field and value where the table cannot be right.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    return _parse(text, str(path))


def as_toml(worker: Hardware) -> str:
    """One `[[hardware]]` table, as `load_hardware` reads it; numbers with nine significant digits."""
    lines = []
    for field in fields(Hardware):
        value = getattr(worker, field.name)
        if isinstance(value, str):
            shown = json.dumps(value, ensure_ascii=False)
        elif isinstance(value, tuple):
            shown = f"[{', '.join(_shown(item) for item in value)}]"
        else:
            shown = _shown(value)
        lines.append(f"{field.name} = {shown}")
    return "[[hardware]]\n" + "\n".join(lines) + "\n"


def _shown(number: float) -> str:
    return str(number) if isinstance(number, int) else repr(float(f"{number:.9g}"))


def _parse(text: str, where: str) -> dict[str, Hardware]:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: not TOML: {error}") from error
    entries = table.get("hardware")
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"{where}: no [[hardware]] table; each worker is one [[hardware]] with a name")
    found: dict[str, Hardware] = {}
    for index, entry in enumerate(entries):
        one = _hardware(entry, f"{where}: hardware {entry.get('name', index + 1)!r}")
        if one.name in found:
            raise UsageError(f"{where}: hardware {one.name!r} appears twice; names must differ")
        found[one.name] = one
    return found


def _hardware(entry: dict[str, Any], where: str) -> Hardware:
    missing, surplus = sorted(_FIELDS - entry.keys()), sorted(entry.keys() - _FIELDS - {_OWN_SHARE})
    if missing or surplus:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has unknown {', '.join(surplus)}"
        raise UsageError(f"{where}: {wrong}; the fields are {', '.join(sorted(_FIELDS))}")
    for name in ("name", "provenance"):
        if not isinstance(entry[name], str) or not entry[name]:
            raise UsageError(f"{where}: {name} = {entry[name]!r} must be text")
    grid = _grid(entry["tokens"], where)
    numbers = {name: _number(entry[name], kind, f"{where}: {name}") for name, kind in _NUMBERS.items()}
    lists = {name: _list(entry[name], length or len(grid), f"{where}: {name}") for name, length in _LISTS.items()}
    for name in ("kv_tokens", "kv_bytes_per_token"):
        if numbers[name] < 1:
            raise UsageError(f"{where}: {name} = {numbers[name]} must be at least 1")
    own_share = _number(entry.get(_OWN_SHARE, 1.0), float, f"{where}: {_OWN_SHARE}")
    if not own_share <= 1.0:
        raise UsageError(f"{where}: {_OWN_SHARE} = {own_share} must be at most 1")
    return Hardware(
        name=entry["name"],
        provenance=entry["provenance"],
        tokens=grid,
        prefill_own_share=own_share,
        **numbers,
        **lists,
    )


def _grid(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) < 2 or not all(type(tokens) is int for tokens in value):
        raise UsageError(f"{where}: tokens = {value!r} must be a list of two or more whole numbers")
    if value[0] < 1 or any(before >= after for before, after in pairwise(value)):
        raise UsageError(f"{where}: tokens = {value!r} must ascend from 1 or more")
    return tuple(value)


def _number(value: object, kind: type, where: str) -> Any:  # noqa: ANN401 - int or float, as `kind` says
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)) or not value >= 0:
        raise UsageError(f"{where} = {value!r} must be a {'whole ' if kind is int else ''}number, 0 or more")
    return kind(value)


def _list(value: object, length: int, where: str) -> Any:  # noqa: ANN401 - a tuple as long as the field asks
    if not isinstance(value, list) or len(value) != length:
        raise UsageError(f"{where} = {value!r} must be a list of {length} numbers")
    return tuple(_number(item, float, where) for item in value)


HARDWARE: dict[str, Hardware] = _parse(
    files("saga.engine").joinpath("data/hardware.toml").read_text(encoding="utf-8"), "hardware.toml"
)
