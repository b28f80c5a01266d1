"""How long an iteration takes: the cost model of continuous batching, with closed forms for runs of decode.

iteration = linear operators (all new tokens) + all-reduce + lm_head + prefill attention + decode attention.
The CPU time of a scheduler step is not included. Source of the form and the figures: `data/hardware.toml`
(microsoft/vidur profiles). This module refuses to know requests, blocks and queues: it sees sums only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import sqrt

import numpy as np

from saga.engine.hardware import Hardware

_TABLE_TOKENS = 8192


class Latency(ABC):
    """Seconds of iterations; everything non-decreasing in each argument.

    own_share: how much of its own chunk a prefilled token costs as context, from 0.5 (what stands before it) to 1.
    """

    own_share: float

    @abstractmethod
    def iteration_s(
        self, prefill_tokens: int, prefill_work: float, num_decodes: int, decode_context_tokens: int
    ) -> float:
        """One iteration.

        prefill_work: sum over chunks of new * (context + own_share * new), context before the chunk.
        decode_context_tokens: sum over decoding calls of the context they attend to, their new token included.
        """

    @abstractmethod
    def decode_run_s(self, num_decodes: int, context_tokens: int, num_iterations: int) -> float:
        """`num_iterations` decode-only iterations; context_tokens as in iteration_s for the first of them."""

    @abstractmethod
    def decode_iterations_within(
        self, num_decodes: int, context_tokens: int, num_iterations: int, seconds: float
    ) -> int:
        """The fewest iterations (0..num_iterations) of that run that last at least `seconds`."""

    @abstractmethod
    def isolated_s(self, cached_tokens: int, prompt_tokens: int, output_tokens: int, chunk_tokens: int) -> float:
        """One call alone on an idle worker."""

    @property
    @abstractmethod
    def prefill_tokens_per_s(self) -> float:
        """A representative rate: full chunks of 2,048 at 16,384 tokens of context."""


class LatencyModel(Latency):
    """The cost model of one worker. Construction O(8192); every question O(1) except isolated_s, O(chunks)."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self.own_share = hardware.prefill_own_share
        self._grid = np.asarray(hardware.tokens, dtype=float)
        self._cost = (np.asarray(hardware.linear_ms) + np.asarray(hardware.allreduce_ms)) / 1e3
        table = self._interpolate(np.arange(_TABLE_TOKENS + 1, dtype=float)) + hardware.lm_head_ms / 1e3
        self._dense: list[float] = table.tolist()
        self._c0, self._c1, self._c2 = (ms / 1e3 for ms in hardware.prefill_attention_ms)
        self._d0, self._d1, self._d2 = (ms / 1e3 for ms in hardware.decode_attention_ms)

    def _interpolate(self, tokens: np.ndarray) -> np.ndarray:
        """Piecewise linear over the grid, beyond its last point with the slope of its last segment."""
        grid, cost = self._grid, self._cost
        slope = (cost[-1] - cost[-2]) / (grid[-1] - grid[-2])
        beyond = np.maximum(tokens - grid[-1], 0.0) * slope
        return np.asarray(np.interp(tokens, grid, cost) + beyond)

    def _dense_s(self, tokens: int) -> float:
        if tokens <= _TABLE_TOKENS:
            return self._dense[tokens]
        return float(self._interpolate(np.asarray([float(tokens)]))[0]) + self.hardware.lm_head_ms / 1e3

    def iteration_s(
        self, prefill_tokens: int, prefill_work: float, num_decodes: int, decode_context_tokens: int
    ) -> float:
        """See Latency."""
        seconds = self._dense_s(prefill_tokens + num_decodes)
        if prefill_tokens:
            seconds += self._c0 + self._c1 * prefill_tokens + self._c2 * prefill_work
        if num_decodes:
            seconds += self._d0 + self._d1 * num_decodes + self._d2 * decode_context_tokens
        return seconds

    def decode_run_s(self, num_decodes: int, context_tokens: int, num_iterations: int) -> float:
        """See Latency: iteration i attends to context_tokens + i * num_decodes tokens, an arithmetic series."""
        fixed = self._dense_s(num_decodes) + self._d0 + self._d1 * num_decodes
        context = num_iterations * context_tokens + num_decodes * (num_iterations * (num_iterations - 1) // 2)
        return num_iterations * fixed + self._d2 * context

    def decode_iterations_within(
        self, num_decodes: int, context_tokens: int, num_iterations: int, seconds: float
    ) -> int:
        """See Latency: the root of the series' quadratic, corrected for rounding."""
        if seconds <= 0:
            return 0
        square = self._d2 * num_decodes / 2
        linear = self._dense_s(num_decodes) + self._d0 + self._d1 * num_decodes + self._d2 * context_tokens - square
        root = 2 * seconds / (linear + sqrt(linear * linear + 4 * square * seconds))
        count = min(num_iterations, max(1, int(root)))
        while count < num_iterations and self.decode_run_s(num_decodes, context_tokens, count) < seconds:
            count += 1
        while count > 1 and self.decode_run_s(num_decodes, context_tokens, count - 1) >= seconds:
            count -= 1
        return count

    def isolated_s(self, cached_tokens: int, prompt_tokens: int, output_tokens: int, chunk_tokens: int) -> float:
        """See Latency: chunks one after the other, then output_tokens - 1 decode iterations of a batch of one."""
        seconds, done = 0.0, min(cached_tokens, prompt_tokens - 1)
        while done < prompt_tokens:
            new = min(chunk_tokens, prompt_tokens - done)
            seconds += self.iteration_s(new, new * (done + self.own_share * new), 0, 0)
            done += new
        return seconds + self.decode_run_s(1, prompt_tokens + 1, output_tokens - 1)

    @property
    def prefill_tokens_per_s(self) -> float:
        """See Latency."""
        return 2048 / self.iteration_s(2048, 2048 * (16_384 + self.own_share * 2048), 0, 0)


class ConstantLatency(Latency):
    """Every iteration takes the same time: the twin for tests and for teaching."""

    def __init__(self, seconds: float = 1.0, own_share: float = 1.0) -> None:
        self.seconds = seconds
        self.own_share = own_share

    def iteration_s(
        self, prefill_tokens: int, prefill_work: float, num_decodes: int, decode_context_tokens: int
    ) -> float:
        """Always `seconds`."""
        return self.seconds

    def decode_run_s(self, num_decodes: int, context_tokens: int, num_iterations: int) -> float:
        """Iterations times `seconds`."""
        return num_iterations * self.seconds

    def decode_iterations_within(
        self, num_decodes: int, context_tokens: int, num_iterations: int, seconds: float
    ) -> int:
        """See Latency."""
        if seconds <= 0:
            return 0
        count = min(num_iterations, max(1, int(seconds / self.seconds)))
        return count if count == num_iterations or count * self.seconds >= seconds else count + 1

    def isolated_s(self, cached_tokens: int, prompt_tokens: int, output_tokens: int, chunk_tokens: int) -> float:
        """See Latency."""
        to_prefill = prompt_tokens - min(cached_tokens, prompt_tokens - 1)
        return (-(-to_prefill // chunk_tokens) + output_tokens - 1) * self.seconds

    @property
    def prefill_tokens_per_s(self) -> float:
        """Full chunks of 2,048 tokens."""
        return 2048 / self.seconds
