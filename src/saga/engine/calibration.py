"""The cost model fitted to what a live engine was seen to do: observations in, `Hardware` and residuals out.

An observation is a time and the iterations that passed in it. The model of `latency.py` is linear in its coefficients,
so the fit is least squares of relative errors with every coefficient (and every slope between two points of the grid)
non-negative: times never fall with tokens. Outliers weigh less (Huber). What no iteration explains is `call_s`, once
per call: HTTP, tokenising, the way back. It refuses to know how observations are made (`probes.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saga.engine.hardware import Hardware
from saga.engine.latency import LatencyModel
from saga.errors import UsageError

_ROUNDS = 12
_HUBER = 1.5
_OWN_SHARES = tuple(round(0.5 + 0.05 * step, 2) for step in range(11))
_AS_ZERO = 1e-12


class Spell(NamedTuple):
    """`iterations` alike: a chunk of `prefill_tokens` after `context_tokens`, and calls that decode.

    decode_context_tokens: as in `Latency.iteration_s`; its mean where it varies.
    """

    iterations: float
    prefill_tokens: int
    context_tokens: int
    num_decodes: int
    decode_context_tokens: float

    def work(self, own_share: float) -> float:
        """`prefill_work` of `Latency.iteration_s`."""
        return self.prefill_tokens * (self.context_tokens + own_share * self.prefill_tokens)


@dataclass(frozen=True)
class Observation:
    """One measured time. kind: of the probe; num_calls: how often `call_s` is in it; held_out: not to be fitted."""

    kind: str
    about: str
    seconds: float
    spells: tuple[Spell, ...]
    num_calls: int = 0
    held_out: bool = False


@dataclass(frozen=True)
class Sizes:
    """What is not measured but known of a worker; see `Hardware`."""

    kv_tokens: int
    host_kv_tokens: int = 0
    kv_bytes_per_token: int = 1
    load_tokens_per_s: float = 0.0
    move_tokens_per_s: float = 0.0


@dataclass(frozen=True)
class Residual:
    """How far the fitted model is from one kind of probe. Errors are shares of what was measured."""

    kind: str
    held_out: bool
    num_observations: int
    median_error: float
    p95_error: float
    bias: float


@dataclass(frozen=True)
class Fit:
    """A calibrated worker. call_s: seconds per call outside the iterations."""

    hardware: Hardware
    call_s: float
    residuals: tuple[Residual, ...]

    def seconds(self, observation: Observation) -> float:
        """What the fitted model says of an observation."""
        return predicted_s(LatencyModel(self.hardware), observation, self.call_s)


def predicted_s(latency: LatencyModel, observation: Observation, call_s: float = 0.0) -> float:
    """What a cost model says of an observation."""
    return call_s * observation.num_calls + sum(
        spell.iterations
        * latency.iteration_s(
            spell.prefill_tokens,
            spell.work(latency.own_share),
            spell.num_decodes,
            round(spell.decode_context_tokens),
        )
        for spell in observation.spells
    )


def fit(observations: Sequence[Observation], *, name: str, provenance: str, sizes: Sizes) -> Fit:
    """Fit all observations that are not held out. O(observations). Raises UsageError where they are too few.

    Not told apart, because no time depends on it: a cost per prefilled token in attention (0) from the linear layers.
    """
    used = _typical(observation for observation in observations if not observation.held_out)
    kinds = {"prefill": any(_prefills(o) for o in used), "decode": any(not _prefills(o) for o in used)}
    missing = [kind for kind, found in kinds.items() if not found]
    if missing:
        raise UsageError(f"calibration: no {' and no '.join(missing)} was measured; at least one of each is needed")
    grid = _grid(spell for observation in used for spell in observation.spells)
    seconds = np.array([observation.seconds for observation in used])
    fits = [(*_robust(_rows(used, grid, share), seconds), share) for share in _OWN_SHARES]
    found, _, own_share = min(fits, key=lambda each: each[1])
    call_s, base_s, c0, c2, d0, d1, d2, *slopes = found.tolist()
    linear_s = base_s + np.concatenate(([0.0], np.cumsum(np.array(slopes) * np.diff(grid))))
    hardware = Hardware(
        name=name,
        tokens=grid,
        linear_ms=tuple((linear_s * 1e3).tolist()),
        allreduce_ms=(0.0,) * len(grid),
        lm_head_ms=0.0,
        prefill_attention_ms=(c0 * 1e3, 0.0, c2 * 1e3),
        decode_attention_ms=(d0 * 1e3, d1 * 1e3, d2 * 1e3),
        provenance=provenance,
        prefill_own_share=own_share,
        **vars(sizes),
    )
    return Fit(hardware, call_s, residuals(observations, LatencyModel(hardware), call_s))


def residuals(observations: Iterable[Observation], latency: LatencyModel, call_s: float) -> tuple[Residual, ...]:
    """Errors per kind of probe, those held out apart."""
    errors: dict[tuple[bool, str], list[float]] = {}
    for observation in observations:
        error = predicted_s(latency, observation, call_s) / observation.seconds - 1.0
        errors.setdefault((observation.held_out, observation.kind), []).append(error)
    return tuple(
        Residual(
            kind,
            held_out,
            len(found),
            float(np.median(np.abs(found))),
            float(np.quantile(np.abs(found), 0.95)),
            float(np.median(found)),
        )
        for (held_out, kind), found in sorted(errors.items())
    )


def _typical(observations: Iterable[Observation]) -> list[Observation]:
    """Of each probe's repeats the one in the middle: a disturbed one does not count."""
    repeats: dict[str, list[Observation]] = {}
    for observation in observations:
        repeats.setdefault(observation.about, []).append(observation)
    return [sorted(found, key=_per_iteration)[(len(found) - 1) // 2] for found in repeats.values()]


def _per_iteration(observation: Observation) -> float:
    return observation.seconds / sum(spell.iterations for spell in observation.spells)


def _prefills(observation: Observation) -> bool:
    return any(spell.prefill_tokens for spell in observation.spells)


def _grid(spells: Iterable[Spell]) -> tuple[int, ...]:
    """Powers of two up to 512, then straight to the most tokens that were seen.

    Bends of large prefills are attention's: two reasons for the same bend could not be told apart.
    """
    most = max(spell.prefill_tokens + spell.num_decodes for spell in spells)
    points = [1 << power for power in range(10) if 1 << power <= most / 2]
    return (*points, most) if points else (1, 2)


def _rows(observations: Sequence[Observation], grid: Sequence[int], own_share: float) -> NDArray[np.float64]:
    """A row per observation: its seconds are these, times the coefficients (see `fit` for their order)."""
    points = np.array(grid, dtype=float)
    rows = np.zeros((len(observations), 6 + len(grid)))
    for row, observation in zip(rows, observations, strict=True):
        row[0] = observation.num_calls
        for spell in observation.spells:
            prefills, decodes = float(spell.prefill_tokens > 0), float(spell.num_decodes > 0)
            tokens = spell.prefill_tokens + spell.num_decodes
            # Beyond the last point the last slope goes on, as in `LatencyModel`.
            inside = np.clip(tokens - points[:-1], 0.0, np.append(np.diff(points)[:-1], np.inf))
            own = [1.0, prefills, spell.work(own_share), decodes, spell.num_decodes, spell.decode_context_tokens]
            row[1:] += spell.iterations * np.concatenate((own, inside))
    return rows


def _robust(rows: NDArray[np.float64], seconds: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Coefficients, and the mean absolute error that is left: least squares of relative errors, outliers weigh less."""
    relative = rows / seconds[:, None]
    weights = np.ones(len(seconds))
    found, errors = np.zeros(rows.shape[1]), np.ones(len(seconds))
    for _ in range(_ROUNDS):
        found = _non_negative(relative * weights[:, None], weights)
        errors = np.abs(relative @ found - 1.0)
        limit = _HUBER * max(1.48 * float(np.median(errors)), 1e-6)
        weights = np.sqrt(np.minimum(1.0, limit / np.maximum(errors, 1e-12)))
    return found, float(errors.mean())


def _non_negative(matrix: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Argmin |matrix x - wanted| with x >= 0: the active-set method of Lawson and Hanson (1974, chapter 23)."""
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0.0] = 1.0
    scaled = matrix / scale
    found = np.zeros(scaled.shape[1])
    free = np.zeros(scaled.shape[1], dtype=bool)
    for _ in range(10 * len(found)):
        gradient = scaled.T @ (wanted - scaled @ found)
        if free.all() or gradient[~free].max() <= _AS_ZERO * len(wanted):
            break
        free[np.argmax(np.where(free, -np.inf, gradient))] = True
        while True:
            trial = np.zeros_like(found)
            trial[free] = np.linalg.lstsq(scaled[:, free], wanted, rcond=None)[0]
            if trial[free].min() > 0.0:
                break
            falling = free & (trial <= 0.0)
            step = np.min(found[falling] / np.maximum(found[falling] - trial[falling], 1e-300))
            found = found + step * (trial - found)
            free &= found > _AS_ZERO
            found[~free] = 0.0
            if not free.any():
                break
        found = trial if free.any() else found
    return np.asarray(found / scale)
