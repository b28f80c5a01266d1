"""The cost table of a GPU, measured with PyTorch alone: one tensor-parallel shard of Llama-3-8B or 70B, by the layer.

    python measure_hardware.py                                 # llama3-8b, TP 1: writes llama3-8b-DEVICE.toml
    python measure_hardware.py --model llama3-70b --tp 4       # a shard of four; all-reduce where four GPUs are here
    python measure_hardware.py --device cpu --small            # the same code on tiny shapes: does it run at all?

What is timed, on random weights, and how it becomes the table that `--hardware FILE.toml:NAME` takes:

    linear      norms, projections, rotary, MLP and residuals of one or more layers with weights of their own (together
                more than caches hold), at every number of tokens of the grid
    prefill     causal attention of a chunk after a context, to 200,000 tokens: constant + per token + per token pair
    decode      attention of a batch, one token each, to 200,000 tokens: constant + per call + per token of context
    lm_head     the logits of eight calls
    all-reduce  a row of the hidden size per token, two per layer, where as many GPUs as `--tp` are here; else
                the table has zeros, and says so
    copies      pinned host memory to the device and back; `load_tokens_per_s` is of one GPU's link, whatever `--tp`

On CUDA each is captured as a graph and replayed back to back, so no launch is timed; figures are medians of repeats.
The faster of two ways to compute decode attention counts. Not measured: the network (`--move-gb-per-s`), sizes of
memory (computed from the device's, at 0.9 after weights), the CPU time of a scheduler's step. Kernels are PyTorch's;
those of an engine may be faster or slower: `saga calibrate` measures a whole engine.

It needs the standard library and PyTorch 2.5 or newer; where `saga` is importable the table is read back by it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

try:
    import torch
except ModuleNotFoundError:
    sys.exit("measure_hardware: PyTorch is not installed here; right is `pip install torch`, 2.5 or newer")
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

SCHEMA = 1
HEAD = (
    "# Written by benchmarks/measure_hardware.py, for --hardware FILE.toml:NAME. Fields: the built-in hardware.toml.\n"
)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
USABLE = 0.9
COLD_BYTES = 256 << 20
CONTEXT_SHARE = 0.5
PIECE_TOKENS = 1_000
TIMED_MS, MOST_REPLAYS = 20.0, 1_000
WARM_S = 1.0
LM_HEAD_ROWS = 8
OWN_SHARES = tuple(0.5 + 0.05 * step for step in range(11))

Run: TypeAlias = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """A model. heads, kv_heads: of query, and of key and value, `head_dim` wide."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @property
    def weights(self) -> int:
        """Parameters: layers, embedding and lm_head."""
        return self.layers * self.layer_weights + 2 * self.vocabulary * self.hidden + self.hidden

    @property
    def layer_weights(self) -> int:
        """Parameters of one layer."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.inner + 2 * self.hidden


@dataclass(frozen=True)
class Plan:
    """What is measured: tokens of the grid, contexts and chunks of prefill, contexts and batches of decode."""

    tokens: tuple[int, ...]
    contexts: tuple[int, ...]
    chunks: tuple[int, ...]
    batches: tuple[int, ...]
    copy_bytes: tuple[int, ...]
    cold_bytes: int = COLD_BYTES


SHAPES = {
    "llama3-8b": Shape(32, 4_096, 14_336, 32, 8, 128, 128_256),
    "llama3-70b": Shape(80, 8_192, 28_672, 64, 8, 128, 128_256),
}
SMALL_SHAPE = Shape(2, 64, 128, 8, 8, 16, 256)
GRID = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1_024, 1_536, 2_048, 3_072, 4_096, 8_192)
FULL = Plan(
    tokens=(*GRID, 16_384),
    contexts=(0, 1_000, 4_000, 16_000, 32_000, 64_000, 128_000, 200_000),
    chunks=(128, 512, 2_048, 8_192),
    batches=(1, 4, 16, 64, 256),
    copy_bytes=(16 << 20, 64 << 20, 256 << 20, 1 << 30),
)
SMALL = Plan(
    tokens=(1, 2, 4, 8, 16, 32, 64),
    contexts=(0, 64, 256, 1_024),
    chunks=(16, 64),
    batches=(1, 4),
    copy_bytes=(1 << 20,),
    cold_bytes=1 << 16,
)


@dataclass
class Point:
    """One time. ms: median of the repeats, per layer (copies, lm_head: as a whole); least_ms: the fastest of them."""

    what: str
    ms: float
    least_ms: float
    about: dict[str, int | str] = field(default_factory=dict)


# ---------------------------------------------------------------------- time


class Clock:
    """Times a function on one device."""

    def __init__(self, device: str, repeats: int) -> None:
        self.device = torch.device(device)
        self.repeats = repeats

    def times_ms(self, run: Run) -> list[float]:
        """Milliseconds of each repeat, after two runs that do not count."""
        if self.device.type != "cuda":
            return [self._once_ms(run) for _ in range(self.repeats + 2)][2:]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        once_ms = self._event_ms(graph.replay)
        count = max(1, min(MOST_REPLAYS, int(TIMED_MS / max(once_ms, 1e-3))))

        def replay() -> None:
            for _ in range(count):
                graph.replay()

        return [self._event_ms(replay) / count for _ in range(self.repeats)]

    def warm_up(self) -> None:
        """Let the device's clocks rise."""
        if self.device.type == "cuda":
            square = torch.ones((4_096, 4_096), device=self.device, dtype=torch.bfloat16)
            until_s = time.monotonic() + WARM_S
            while time.monotonic() < until_s:
                torch.matmul(square, square)
                torch.cuda.synchronize()

    def copy_ms(self, run: Run) -> list[float]:
        """The same without a graph: copies from pinned memory."""
        once = self._event_ms if self.device.type == "cuda" else self._once_ms
        return [once(run) for _ in range(self.repeats + 2)][2:]

    @staticmethod
    def _once_ms(run: Run) -> float:
        began_s = time.perf_counter()
        run()
        return (time.perf_counter() - began_s) * 1e3

    @staticmethod
    def _event_ms(run: Run) -> float:
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        run()
        ended.record()
        ended.synchronize()
        return float(began.elapsed_time(ended))


# ---------------------------------------------------------------------- what is timed


class Layer:
    """The linear operators of one layer's shard, as an engine fuses them; attention apart."""

    def __init__(self, shape: Shape, tp: int, make: dict[str, Any]) -> None:
        self._heads, self._kv_heads = shape.heads // tp, shape.kv_heads // tp
        self._head_dim = shape.head_dim
        width = (self._heads + 2 * self._kv_heads) * shape.head_dim
        self._norm = torch.ones(shape.hidden, **make)
        self._qkv = _random((width, shape.hidden), make)
        self._out = _random((shape.hidden, self._heads * shape.head_dim), make)
        self._up = _random((2 * shape.inner // tp, shape.hidden), make)
        self._down = _random((shape.hidden, shape.inner // tp), make)

    def __call__(self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) to the same."""
        normed = functional.rms_norm(hidden, self._norm.shape, self._norm)
        mixed = functional.linear(normed, self._qkv).view(len(hidden), -1, self._head_dim)
        rotated = _rotated(mixed[:, : self._heads + self._kv_heads], cos, sin)
        hidden = hidden + functional.linear(rotated[:, : self._heads].flatten(1), self._out)
        normed = functional.rms_norm(hidden, self._norm.shape, self._norm)
        gate, up = functional.linear(normed, self._up).chunk(2, dim=-1)
        return hidden + functional.linear(functional.silu(gate) * up, self._down)


def _random(size: tuple[int, ...], make: dict[str, Any]) -> torch.Tensor:
    return torch.empty(size, **make).normal_(0.0, 0.02)


def _rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    one, other = heads.chunk(2, dim=-1)
    return torch.cat((one * cos - other * sin, other * cos + one * sin), dim=-1)


def chunk_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention of the last tokens of a context.

    query: (KV heads, heads of each, new, dim). The others: (KV heads, 1, context + new, dim), one for all heads of it.
    """
    heads = query.shape[1]
    key, value = key.expand(-1, heads, -1, -1), value.expand(-1, heads, -1, -1)
    return functional.scaled_dot_product_attention(query, key, value, causal_lower_right(query.shape[2], key.shape[2]))


def whole_decode(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One token per call. query: (calls * KV heads, heads of each, dim); the others (the same, context, dim)."""
    out = functional.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])
    return out[:, 0]


def split_decode(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, piece_tokens: int = PIECE_TOKENS
) -> torch.Tensor:
    """The same, the context in pieces side by side, as flash decoding does; in one where pieces do not fill it."""
    groups, context, dim = key.shape
    size = context if context % piece_tokens else piece_tokens
    keys, values = key.view(groups, -1, size, dim), value.view(groups, -1, size, dim)
    scores = torch.matmul(query[:, None] / math.sqrt(dim), keys.transpose(-1, -2))
    weights = torch.exp(scores - scores.amax(dim=(1, 3), keepdim=True))
    total = weights.sum(dim=(1, 3), dtype=torch.float32)
    return torch.matmul(weights, values).sum(dim=1) / total[:, :, None].to(query.dtype)


DECODE_KERNELS = {"whole": whole_decode, "split": split_decode}


class Bench:
    """All measurements of one shard."""

    def __init__(
        self, shape: Shape, tp: int, plan: Plan, clock: Clock, dtype: torch.dtype, tell: Callable[[str], None]
    ) -> None:
        self.shape, self.tp, self.plan, self.clock, self.dtype = shape, tp, plan, clock, dtype
        self.make = {"device": clock.device, "dtype": dtype}
        self.points: list[Point] = []
        self.left_out: list[str] = []
        self._tell = tell
        self._kv_heads = shape.kv_heads // tp
        self._group = shape.heads // shape.kv_heads

    @property
    def kv_bytes(self) -> int:
        """Of one token in one layer of the shard."""
        return 2 * self._kv_heads * self.shape.head_dim * self.dtype.itemsize

    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        """Everything, in the order in which it is measured."""
        todo: list[tuple[str, Callable[[], None]]] = []
        todo += [(f"linear, {tokens} tokens", self._bound(self._linear, tokens)) for tokens in self.plan.tokens]
        todo.append(("lm_head", self._lm_head))
        for context in self.plan.contexts:
            todo += [
                (f"prefill of {chunk} after {context}", self._bound(self._prefill, chunk, context))
                for chunk in self.plan.chunks
            ]
        for context in self.plan.contexts:
            todo += [
                (f"decode of {batch} at {context}", self._bound(self._decode, batch, context))
                for batch in self.plan.batches
                if context
            ]
        todo += [(f"copies of {size >> 20} MiB", self._bound(self._copies, size)) for size in self.plan.copy_bytes]
        return todo

    def run(self) -> None:
        """All steps; one that does not fit into the device's memory is left out, and said."""
        steps = self.steps()
        self.clock.warm_up()
        for number, (name, step) in enumerate(steps):
            self._tell(f"{number + 1}/{len(steps)} {name}")
            try:
                step()
            except torch.OutOfMemoryError:
                self.left_out.append(name)
            self._release()

    def _bound(self, step: Callable[..., None], *arguments: int) -> Callable[[], None]:
        return lambda: step(*arguments)

    def _release(self) -> None:
        if self.clock.device.type == "cuda":
            torch.cuda.empty_cache()

    def _note(self, what: str, times_ms: Sequence[float], share: float = 1.0, **about: int | str) -> None:
        median, least = statistics.median(times_ms), min(times_ms)
        self.points.append(Point(what, median * share, least * share, about))

    def _num_cold(self, size_bytes: int, most: int) -> int:
        """How many of such a thing are more than the caches hold."""
        return max(1, min(most, -(-self.plan.cold_bytes // max(1, size_bytes))))

    def _linear(self, tokens: int) -> None:
        shape, tp = self.shape, self.tp
        count = self._num_cold(shape.layer_weights // tp * self.dtype.itemsize, shape.layers)
        layers = [Layer(shape, tp, self.make) for _ in range(count)]
        hidden = _random((tokens, shape.hidden), self.make)
        angles = torch.rand((tokens, 1, shape.head_dim // 2), **self.make)
        cos, sin = angles.cos(), angles.sin()

        def run() -> None:
            after = hidden
            for layer in layers:
                after = layer(after, cos, sin)

        self._note("linear", self.clock.times_ms(run), 1.0 / count, tokens=tokens)

    def _lm_head(self) -> None:
        weight = _random((self.shape.vocabulary // self.tp, self.shape.hidden), self.make)
        hidden = _random((LM_HEAD_ROWS, self.shape.hidden), self.make)
        self._note("lm_head", self.clock.times_ms(lambda: functional.linear(hidden, weight)), rows=LM_HEAD_ROWS)

    def _caches(self, groups: int, context: int, most: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of so many (call, KV head) pairs, often enough to be cold."""
        size = (groups, context, self.shape.head_dim)
        count = self._num_cold(2 * math.prod(size) * self.dtype.itemsize, most)
        return [(_random(size, self.make), _random(size, self.make)) for _ in range(count)]

    def _prefill(self, chunk: int, context: int) -> None:
        caches = self._caches(self._kv_heads, context + chunk, most=8)
        query = _random((self._kv_heads, self._group, chunk, self.shape.head_dim), self.make)

        def run() -> None:
            for key, value in caches:
                chunk_attention(query, key[:, None], value[:, None])

        self._note("prefill", self.clock.times_ms(run), 1.0 / len(caches), new=chunk, context=context)

    def _decode(self, batch: int, context: int) -> None:
        if batch * context * self.kv_bytes > CONTEXT_SHARE * self._free_bytes():
            self.left_out.append(f"decode of {batch} at {context}")
            return
        caches = self._caches(batch * self._kv_heads, context)
        query = _random((batch * self._kv_heads, self._group, self.shape.head_dim), self.make)
        found = {}
        for name, kernel in DECODE_KERNELS.items():

            def run(kernel: Callable[..., torch.Tensor] = kernel) -> None:
                for key, value in caches:
                    kernel(query, key, value)

            found[name] = self.clock.times_ms(run)
        best = min(found, key=lambda name: statistics.median(found[name]))
        self._note("decode", found[best], 1.0 / len(caches), batch=batch, context=context, kernel=best)

    def _free_bytes(self) -> int:
        if self.clock.device.type == "cuda":
            return int(torch.cuda.mem_get_info()[0])
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")

    def _copies(self, size: int) -> None:
        on_host = torch.ones(size, dtype=torch.uint8, pin_memory=self.clock.device.type == "cuda")
        on_device = torch.empty(size, dtype=torch.uint8, device=self.clock.device)
        times = self.clock.copy_ms(lambda: on_device.copy_(on_host, non_blocking=True))
        self._note("to_device", times, num_bytes=size)
        times = self.clock.copy_ms(lambda: on_host.copy_(on_device, non_blocking=True))
        self._note("to_host", times, num_bytes=size)


# ---------------------------------------------------------------------- all-reduce


def allreduce(
    shape: Shape, tp: int, tokens: Sequence[int], device: str, dtype: torch.dtype, repeats: int
) -> list[Point]:
    """One all-reduce of (tokens, hidden) between `tp` processes, each with a GPU of its own (gloo on CPUs)."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "points.json")
        arguments = (tp, folder, shape.hidden, tuple(tokens), device, dtype, repeats)
        torch.multiprocessing.spawn(_reduce, arguments, nprocs=tp)
        return [Point("allreduce", median, least, {"tokens": n}) for n, median, least in json.loads(told.read_text())]


def _reduce(
    rank: int, tp: int, folder: str, hidden: int, tokens: Sequence[int], device: str, dtype: torch.dtype, repeats: int
) -> None:
    from torch import distributed

    cuda = device == "cuda"
    if cuda:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if cuda else "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=tp
    )
    clock, found = Clock(device, repeats), []
    for count in tokens:
        rows = torch.ones((count, hidden), device=device, dtype=dtype)
        times = clock.copy_ms(lambda rows=rows: distributed.all_reduce(rows))
        found.append((count, statistics.median(times), min(times)))
    if rank == 0:
        Path(folder, "points.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


# ---------------------------------------------------------------------- what is made of it


def non_decreasing(values: Sequence[float]) -> list[float]:
    """The closest non-decreasing sequence (least squares; pool adjacent violators). O(n)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] > mean:
            before, number = pools.pop()
            mean, count = (before * number + mean * count) / (number + count), number + count
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


def fit(rows: Sequence[Sequence[float]], wanted: Sequence[float]) -> tuple[list[float], float]:
    """Non-negative coefficients with the least squared relative error, and that error; all subsets are tried."""
    matrix = torch.tensor(rows, dtype=torch.float64) / torch.tensor(wanted, dtype=torch.float64)[:, None]
    ones = torch.ones(len(rows), 1, dtype=torch.float64)
    width = matrix.shape[1]
    best, least = [0.0] * width, math.inf
    for mask in range(1, 1 << width):
        chosen = [column for column in range(width) if mask >> column & 1]
        part = matrix[:, chosen]
        scale = part.norm(dim=0).clamp_min(1e-300)
        found = (torch.linalg.pinv(part / scale) @ ones)[:, 0] / scale
        error = float(((part @ found) - 1.0).square().sum())
        if bool((found >= 0.0).all()) and error < least:
            best, least = [0.0] * width, error
            for column, value in zip(chosen, found.tolist(), strict=True):
                best[column] = value
    return best, least


@dataclass(frozen=True)
class Fit:
    """Coefficients of one iteration of one layer, ms, and how far they are from what was measured."""

    coefficients: tuple[float, float, float]
    own_share: float
    errors: tuple[float, ...]

    @property
    def median_error(self) -> float:
        """Share of what was measured."""
        return statistics.median(self.errors)

    @property
    def p95_error(self) -> float:
        """Likewise, the 95th percentile."""
        return sorted(self.errors)[min(len(self.errors) - 1, int(0.95 * len(self.errors)))]


def fit_prefill(points: Iterable[Point]) -> Fit:
    """Constant, per new token, per new * (context + own_share * new); the best own share of a grid."""
    facts = [(int(p.about["new"]), int(p.about["context"]), p.ms) for p in points if p.what == "prefill"]
    wanted = [ms for _, _, ms in facts]

    def rows(share: float) -> list[tuple[float, ...]]:
        return [(1.0, new, new * (context + share * new)) for new, context, _ in facts]

    share = min(OWN_SHARES, key=lambda share: fit(rows(share), wanted)[1])
    return _fitted(rows(share), wanted, share)


def fit_decode(points: Iterable[Point]) -> Fit:
    """Constant, per call, per token of context."""
    facts = [(int(p.about["batch"]), int(p.about["context"]), p.ms) for p in points if p.what == "decode"]
    return _fitted([(1.0, batch, batch * context) for batch, context, _ in facts], [ms for _, _, ms in facts], 1.0)


def _fitted(rows: Sequence[Sequence[float]], wanted: Sequence[float], share: float) -> Fit:
    if len(wanted) < 3:
        raise SystemExit(f"measure_hardware: {len(wanted)} points of attention were measured, 3 are needed")
    found, _ = fit(rows, wanted)
    said = [sum(a * b for a, b in zip(found, row, strict=True)) for row in rows]
    errors = tuple(abs(one / other - 1.0) for one, other in zip(said, wanted, strict=True))
    return Fit((found[0], found[1], found[2]), round(share, 2), errors)


def rate(points: Iterable[Point], what: str) -> float:
    """Bytes per second of the largest copy that was measured."""
    largest = max((p for p in points if p.what == what), key=lambda p: int(p.about["num_bytes"]))
    return int(largest.about["num_bytes"]) / largest.ms * 1e3


def table(given: argparse.Namespace, shape: Shape, points: list[Point], where: dict[str, str]) -> dict[str, Any]:
    """The fields of one [[hardware]]. Raises SystemExit (2) where the weights do not fit."""
    prefill, decode = fit_prefill(points), fit_decode(points)
    linear = {int(p.about["tokens"]): p.ms for p in points if p.what == "linear"}
    reduced = {int(p.about["tokens"]): p.ms for p in points if p.what == "allreduce"}
    grid = sorted(linear)
    kv_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * 2
    per_token = 2 * shape.layers
    return {
        "name": given.name,
        "tokens": grid,
        "linear_ms": non_decreasing([shape.layers * linear[n] for n in grid]),
        "allreduce_ms": non_decreasing([per_token * reduced.get(n, 0.0) for n in grid]),
        "lm_head_ms": next(p.ms for p in points if p.what == "lm_head"),
        "prefill_attention_ms": [shape.layers * each for each in prefill.coefficients],
        "decode_attention_ms": [shape.layers * each for each in decode.coefficients],
        "kv_tokens": given.kv_tokens,
        "host_kv_tokens": _two_digits(given.host_gb * 1e9 / kv_bytes),
        "kv_bytes_per_token": kv_bytes,
        "load_tokens_per_s": rate(points, "to_device") / kv_bytes,
        "move_tokens_per_s": given.move_gb_per_s * 1e9 / kv_bytes,
        "provenance": _provenance(given, prefill, decode, where, reduced=bool(reduced)),
        "prefill_own_share": prefill.own_share,
    }


def _provenance(given: argparse.Namespace, prefill: Fit, decode: Fit, where: dict[str, str], *, reduced: bool) -> str:
    between = "" if given.tp == 1 else "all-reduce measured; " if reduced else "all-reduce NOT measured (zeros); "
    return (
        f"measure_hardware.py {where['date']}: {where['device']}, torch {where['torch']}, {where['dtype']}, "
        f"{'tiny shapes' if given.small else given.model}, shard of TP {given.tp}; {between}"
        f"prefill attention fitted (error median {prefill.median_error:.0%}, p95 {prefill.p95_error:.0%}), "
        f"decode attention fitted ({decode.median_error:.0%}, {decode.p95_error:.0%}); "
        f"sizes computed, network not measured"
    )


def _two_digits(number: float) -> int:
    """Rounded down to two digits."""
    digits = 10 ** max(0, len(str(int(number))) - 2)
    return int(number) // digits * digits


def as_toml(fields: dict[str, Any]) -> str:
    """One [[hardware]] table."""

    def shown(value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(shown(item) for item in value)}]"
        if isinstance(value, float):
            return repr(float(f"{value:.6g}"))
        return json.dumps(value, ensure_ascii=False)

    return "[[hardware]]\n" + "".join(f"{name} = {shown(value)}\n" for name, value in fields.items())


# ---------------------------------------------------------------------- the command


class Bar:
    """Progress on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self._shows = sys.stderr.isatty()
        self._began_s = time.monotonic()

    def tell(self, at: str) -> None:
        """Where it is: `number/total what`."""
        if self._shows:
            number, total = (int(each) for each in at.split(" ", maxsplit=1)[0].split("/"))
            done = 30 * number // total
            spent_s = time.monotonic() - self._began_s
            sys.stderr.write(f"\r\x1b[K[{'#' * done}{'.' * (30 - done)}] {at}, {spent_s:.0f} s")
            sys.stderr.flush()

    def end(self) -> None:
        """Take it away."""
        if self._shows:
            sys.stderr.write("\r\x1b[K")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags, checked; `name`, `out`, `kv_tokens` and `host_gb` filled in. Exits with code 2 where they cannot be."""
    parser = argparse.ArgumentParser(
        prog="measure_hardware", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(SHAPES), default="llama3-8b", help="whose layer shapes [llama3-8b]")
    parser.add_argument("--tp", type=int, choices=(1, 2, 4, 8), default=1, help="size of the tensor-parallel group [1]")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: only with --small [cuda]")
    parser.add_argument("--small", action="store_true", help="tiny shapes, seconds: to see that it runs")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16", help="[bfloat16]")
    parser.add_argument("--repeats", type=int, default=9, help="of each measurement; the median counts [9]")
    parser.add_argument("--name", default="", help="of the table [model, device, TP]")
    parser.add_argument("--out", type=Path, help="table to write, or to add to [NAME.toml]")
    parser.add_argument("--json", type=Path, help="write every point and fit here")
    parser.add_argument(
        "--kv-tokens", type=int, default=0, help="KV capacity of the worker [0.9 of memory less weights]"
    )
    parser.add_argument("--host-gb", type=float, default=0.0, help="host memory of the worker for KV [0: no tier]")
    parser.add_argument("--move-gb-per-s", type=float, default=0.0, help="of the network, not measured [0: no moves]")
    given = parser.parse_args(arguments)
    _check_device(given, parser)
    for flag, least in (("repeats", 1), ("kv_tokens", 0), ("host_gb", 0.0), ("move_gb_per_s", 0.0)):
        if not getattr(given, flag) >= least:
            parser.error(f"--{flag.replace('_', '-')} {getattr(given, flag)}: must be at least {least}")
    given.name = given.name or _named(given)
    given.out = given.out or Path(f"{given.name}.toml")
    _check_output(given, parser)
    if not given.kv_tokens:
        given.kv_tokens = _capacity(given, SMALL_SHAPE if given.small else SHAPES[given.model])
        if given.kv_tokens < 1:
            parser.error(f"--tp {given.tp}: the weights of {given.model} leave no memory for KV; give a larger --tp")
    return given


def _check_device(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; to see that the script runs: --device cpu --small")
    if given.device == "cpu" and not given.small:
        parser.error("--device cpu: only the small check makes sense on a CPU: --device cpu --small")


def _check_output(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if not NAME.fullmatch(given.name):
        parser.error(f"--name {given.name!r}: must be letters, digits, '.', '_' and '-', 64 at most")
    for path in (given.out, given.json):
        if path is not None and not path.resolve().parent.is_dir():
            parser.error(f"{path}: there is no folder {path.resolve().parent}")
    if given.out.exists() and given.name in _names(given.out, parser):
        parser.error(f"{given.out} has a table {given.name!r} already; give another --name or another --out")


def _named(given: argparse.Namespace) -> str:
    device = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower().removeprefix("nvidia ")).strip("-")
    model = "small" if given.small else given.model
    return f"{model}-{slug}" + (f"x{given.tp}" if given.tp > 1 else "")


def _names(out: Path, parser: argparse.ArgumentParser) -> set[str]:
    try:
        entries = tomllib.loads(out.read_text(encoding="utf-8")).get("hardware", [])
        return {entry["name"] for entry in entries}
    except (OSError, tomllib.TOMLDecodeError, AttributeError, KeyError, TypeError) as error:
        parser.error(f"{out}: is there, and is no table of hardware ({error}); give another --out")


def _capacity(given: argparse.Namespace, shape: Shape) -> int:
    """KV tokens of the whole group at 0.9 of its memory after the weights, rounded down to two digits."""
    if given.device == "cuda":
        memory = int(torch.cuda.get_device_properties(0).total_memory)
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kv_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * 2
    return _two_digits(max(0.0, USABLE * memory * given.tp - 2 * shape.weights) / kv_bytes)


def _where(given: argparse.Namespace, dtype: torch.dtype) -> dict[str, str]:
    device = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    cuda = f" (CUDA {torch.version.cuda})" if given.device == "cuda" else ""
    return {
        "device": device,
        "torch": f"{torch.__version__}{cuda}",
        "dtype": str(dtype).removeprefix("torch."),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def measure(given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The table's fields, and everything else that is worth keeping."""
    shape, plan = (SMALL_SHAPE, SMALL) if given.small else (SHAPES[given.model], FULL)
    dtype = torch.float32 if given.device == "cpu" else getattr(torch, given.dtype)
    torch.manual_seed(0)
    if given.device == "cpu":
        torch.set_num_threads(1)  # threads that wait for each other on a busy machine take longer than the work
    bar, began_s = Bar(), time.monotonic()
    with torch.inference_mode():
        bench = Bench(shape, given.tp, plan, Clock(given.device, given.repeats), dtype, bar.tell)
        bench.run()
    points = bench.points
    if given.tp > 1 and (given.device == "cpu" or torch.cuda.device_count() >= given.tp):
        points += allreduce(shape, given.tp, plan.tokens, given.device, dtype, given.repeats)
    bar.end()
    where = _where(given, dtype)
    fields = table(given, shape, points, where)
    fits = {"prefill": asdict(fit_prefill(points)), "decode": asdict(fit_decode(points))}
    document = {
        "schema": SCHEMA,
        "kind": "measured",
        **where,
        "model": "small" if given.small else given.model,
        "tp": given.tp,
        "took_s": round(time.monotonic() - began_s, 1),
        "to_device_bytes_per_s": rate(points, "to_device"),
        "to_host_bytes_per_s": rate(points, "to_host"),
        "left_out": bench.left_out,
        "fits_per_layer": fits,
        "points": [asdict(point) for point in points],
        "hardware": fields,
    }
    return fields, document


def check(out: Path, name: str) -> str:
    """Read the table back as `saga` does, where it is installed; what came of it, in a line."""
    try:
        from saga.engine.hardware import load_hardware
        from saga.engine.latency import LatencyModel
    except ImportError:
        return "saga is not installed here: the table was not read back"
    model = LatencyModel(load_hardware(out)[name])
    return f"read back by saga: {model.prefill_tokens_per_s:,.0f} tokens/s in chunks of 2,048 at 16,384 of context"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    given = parse(arguments)
    fields, document = measure(given)
    text = given.out.read_text(encoding="utf-8").rstrip("\n") + "\n" if given.out.exists() else HEAD
    given.out.write_text(f"{text}\n{as_toml(fields)}", encoding="utf-8")
    if given.json is not None:
        given.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    print(fields["provenance"])
    linear = zip(fields["tokens"], fields["linear_ms"], strict=True)
    print("linear, ms per iteration: " + ", ".join(f"{tokens:,}: {ms:.3g}" for tokens, ms in linear))
    for what in ("to_device", "to_host"):
        print(f"copies {what.replace('_', ' ')}: {document[f'{what}_bytes_per_s'] / 1e9:.1f} GB/s")
    if given.tp > 1 and not any(fields["allreduce_ms"]):
        print(f"all-reduce was not measured: {given.tp} GPUs are needed for it; the table has zeros", file=sys.stderr)
    if document["left_out"]:
        print(f"left out, not enough memory: {'; '.join(document['left_out'])}", file=sys.stderr)
    print(check(given.out, given.name))
    print(f"saga sim --hardware {given.out}:{given.name} ...   ({document['took_s']:.0f} s)")


if __name__ == "__main__":
    main()
