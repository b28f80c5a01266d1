"""The measuring of hardware: that it times what it says, and that its table is one that the simulator takes."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.engine.hardware import load_hardware
from saga.engine.latency import LatencyModel

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "measure_hardware.py"
pytestmark = pytest.mark.slow  # PyTorch alone takes seconds to be imported
ALONE = ("saga", "numpy", "rich", "typer", "msgspec")  # as where there is nothing but PyTorch


@pytest.fixture(scope="module")
def measuring() -> Any:
    """The script as a module; it needs PyTorch, which is imported for the first test that wants it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch", reason="PyTorch comes with `make test`")
        import measure_hardware
    return measure_hardware


def run(*flags: object, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own, where some modules cannot be imported."""
    hidden = "".join(f"sys.modules[{name!r}] = None; " for name in without)
    code = f"import sys, runpy; {hidden}sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, str(SCRIPT), *map(str, flags)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_small_check_writes_a_table_that_the_simulator_takes(tmp_path: Path, measuring: Any) -> None:
    """With PyTorch alone: every kind of point, provenance, two tables in one file; more work never takes less time."""
    out, figures = tmp_path / "mine.toml", tmp_path / "mine.json"
    common = ("--device", "cpu", "--small", "--repeats", 3, "--out", out)
    done = run(*common, "--tp", 2, "--host-gb", 1, "--json", figures, without=ALONE)
    assert done.returncode == 0, done.stderr
    assert "the table was not read back" in done.stdout
    again = run(*common, "--name", "second", "--kv-tokens", 1234)
    assert again.returncode == 0, again.stderr
    assert "read back by saga" in again.stdout
    found = load_hardware(out)
    assert list(found) == ["small-cpux2", "second"]
    assert found["second"].kv_tokens == 1234
    one = found["small-cpux2"]
    for part in (
        f"torch {measuring.torch.__version__}",
        "CPU",
        "float32",
        "TP 2",
        "all-reduce measured",
        "network not measured",
    ):
        assert part in one.provenance
    assert min(one.allreduce_ms) > 0.0
    assert max(found["second"].allreduce_ms) == 0.0
    assert one.load_tokens_per_s > 0.0
    assert one.host_kv_tokens == 970_000  # of 1,024 bytes, rounded down to two digits
    latency = LatencyModel(one)
    works = [(0, 0, 1, 64), (0, 0, 4, 256), (0, 0, 4, 4_096), (64, 4_096, 4, 4_096), (64, 40_960, 4, 4_096)]
    times = [latency.iteration_s(*work) for work in works]
    assert times[0] > 0.0
    assert times == sorted(times)
    document = json.loads(figures.read_text())
    assert (document["schema"], document["kind"], document["left_out"]) == (1, "measured", [])
    kinds = {point["what"] for point in document["points"]}
    assert kinds == {"linear", "lm_head", "prefill", "decode", "allreduce", "to_device", "to_host"}
    assert all(0.0 < point["least_ms"] <= point["ms"] for point in document["points"])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "no CUDA device here; to see that the script runs: --device cpu --small"),
        (["--device", "cpu"], "--device cpu --small"),
        (["--device", "cpu", "--small", "--name", "a b"], "--name 'a b': must be letters"),
        (["--device", "cpu", "--small", "--repeats", "0"], "--repeats 0: must be at least 1"),
        (["--device", "cpu", "--small", "--out", "/nowhere/x.toml"], "there is no folder /nowhere"),
        (["--device", "cpu", "--small", "--out", __file__], "is no table of hardware"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_measured(
    flags: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], measuring: Any
) -> None:
    """One line, exit code 2."""
    monkeypatch.setattr(measuring.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as left:
        measuring.parse(flags)
    assert left.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_a_name_that_is_taken_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], measuring: Any
) -> None:
    """No table is overwritten by accident."""
    out = tmp_path / "mine.toml"
    out.write_text('[[hardware]]\nname = "small-cpu"\n')
    with pytest.raises(SystemExit):
        measuring.parse(["--device", "cpu", "--small", "--out", str(out)])
    assert "has a table 'small-cpu' already" in capsys.readouterr().err


def test_the_shapes_are_those_of_the_models(measuring: Any) -> None:
    """8.03 and 70.6 thousand million parameters, as published."""
    assert measuring.SHAPES["llama3-8b"].weights == pytest.approx(8.03e9, rel=1e-3)
    assert measuring.SHAPES["llama3-70b"].weights == pytest.approx(70.6e9, rel=1e-3)


def test_the_timed_prefill_is_causal_attention_after_a_context(measuring: Any) -> None:
    """Against softmax written out: each new token sees the context and what stands before it, itself included."""
    kv_heads, group, new, context, dim = 2, 3, 5, 7, 4
    query = measuring.torch.randn(kv_heads, group, new, dim)
    key, value = measuring.torch.randn(2, kv_heads, context + new, dim)
    found = measuring.chunk_attention(query, key[:, None], value[:, None])
    for at in range(new):
        seen = context + at + 1
        weights = measuring.torch.softmax(query[:, :, at] @ key[:, :seen].transpose(-1, -2) / dim**0.5, dim=-1)
        assert measuring.torch.allclose(found[:, :, at], weights @ value[:, :seen], atol=1e-5)


@pytest.mark.parametrize("piece_tokens", [4, 5, 1_000])
def test_both_ways_to_decode_compute_the_same(piece_tokens: int, measuring: Any) -> None:
    """Whatever the pieces, also where they do not fill the context."""
    query = measuring.torch.randn(6, 4, 8)
    key, value = measuring.torch.randn(2, 6, 20, 8)
    expected = measuring.torch.softmax(query @ key.transpose(-1, -2) / 8**0.5, dim=-1) @ value
    assert measuring.torch.allclose(measuring.whole_decode(query, key, value), expected, atol=1e-5)
    assert measuring.torch.allclose(measuring.split_decode(query, key, value, piece_tokens), expected, atol=1e-5)


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_a_layer_takes_and_gives_the_hidden_size(tp: int, measuring: Any) -> None:
    """Every shard of a model does."""
    make = {"device": "cpu", "dtype": measuring.torch.float32}
    layer = measuring.Layer(measuring.SMALL_SHAPE, tp, make)
    angles = measuring.torch.zeros(3, 1, measuring.SMALL_SHAPE.head_dim // 2)
    hidden = measuring.torch.randn(3, measuring.SMALL_SHAPE.hidden)
    after = layer(hidden, angles.cos(), angles.sin())
    assert after.shape == hidden.shape
    assert not measuring.torch.equal(after, hidden)


def test_known_coefficients_are_found_again(measuring: Any) -> None:
    """Without noise exactly, the share of its own chunk included."""
    contexts, chunks = (0, 1_000, 200_000), (128, 512, 2_048)
    points = [
        measuring.Point("prefill", 0.02 + 1e-5 * n + 4e-8 * n * (c + 0.65 * n), 0.0, {"new": n, "context": c})
        for c in contexts
        for n in chunks
    ]
    points += [
        measuring.Point("decode", 0.01 + 2e-4 * b + 3e-8 * b * c, 0.0, {"batch": b, "context": c})
        for b in (1, 4, 64)
        for c in contexts
    ]
    prefill, decode = measuring.fit_prefill(points), measuring.fit_decode(points)
    assert prefill.coefficients == pytest.approx((0.02, 1e-5, 4e-8), rel=1e-6)
    assert prefill.own_share == 0.65
    assert decode.coefficients == pytest.approx((0.01, 2e-4, 3e-8), rel=1e-6)
    assert max(*prefill.errors, *decode.errors) < 1e-6


ROWS = st.lists(st.tuples(*[st.floats(0.1, 100.0)] * 3), min_size=4, max_size=12)


@given(ROWS, st.data())
def test_no_coefficient_is_negative(
    measuring: Any, rows: list[tuple[float, float, float]], data: st.DataObject
) -> None:
    """Time never falls with work, whatever was measured, and nothing is fitted worse than by one column alone."""
    wanted = data.draw(st.lists(st.floats(0.1, 100.0), min_size=len(rows), max_size=len(rows)))
    found, error = measuring.fit(rows, wanted)
    assert all(each >= 0.0 for each in found)
    for column in range(3):
        parts = [row[column] / ms for row, ms in zip(rows, wanted, strict=True)]
        best = sum(parts) / sum(part * part for part in parts)
        assert error <= sum((best * part - 1.0) ** 2 for part in parts) + 1e-6


@given(st.lists(st.floats(0.0, 1e3), max_size=30))
def test_columns_of_the_table_never_fall(measuring: Any, values: list[float]) -> None:
    """Sorted, the sum kept, and what ascends already left alone."""
    found = measuring.non_decreasing(values)
    assert all(a <= b + 1e-9 for a, b in pairwise(found))
    assert sum(found) == pytest.approx(sum(values))
    assert measuring.non_decreasing(sorted(values)) == pytest.approx(sorted(values))
