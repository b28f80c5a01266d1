"""The cost model: closed forms equal sums, more work never takes less time, the tables come back out."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.engine.hardware import HARDWARE, hardware
from saga.engine.latency import ConstantLatency, Latency, LatencyModel

MODELS = {name: LatencyModel(worker) for name, worker in HARDWARE.items()}
BOTH: list[Latency] = [MODELS["llama3-70b-a100x4"], ConstantLatency(0.5)]


@pytest.mark.parametrize("latency", BOTH)
@given(batch=st.integers(1, 256), context=st.integers(0, 4_000_000), iterations=st.integers(0, 60))
def test_a_run_is_the_sum_of_its_iterations(latency: Latency, batch: int, context: int, iterations: int) -> None:
    """The arithmetic series equals stepping."""
    stepped = sum(latency.iteration_s(0, 0, batch, context + index * batch) for index in range(iterations))
    assert latency.decode_run_s(batch, context, iterations) == pytest.approx(stepped)


@pytest.mark.parametrize("latency", BOTH)
@given(
    batch=st.integers(1, 256),
    context=st.integers(0, 4_000_000),
    iterations=st.integers(1, 5_000),
    seconds=st.floats(0, 400),
)
def test_the_inverse_finds_the_first_boundary(
    latency: Latency, batch: int, context: int, iterations: int, seconds: float
) -> None:
    """The fewest iterations that last at least so long: one less would not, unless the run ends before."""
    count = latency.decode_iterations_within(batch, context, iterations, seconds)
    assert 0 <= count <= iterations
    assert count == iterations or latency.decode_run_s(batch, context, count) >= seconds
    assert count == 0 or latency.decode_run_s(batch, context, count - 1) < seconds


@pytest.mark.parametrize("name", MODELS)
@given(data=st.data())
def test_more_work_never_takes_less_time(name: str, data: st.DataObject) -> None:
    """Every argument of iteration_s can only add seconds."""
    arguments = (
        data.draw(st.integers(1, 20_000)),
        data.draw(st.integers(0, 10**9)),
        data.draw(st.integers(0, 256)),
        data.draw(st.integers(0, 10**7)),
    )
    which = data.draw(st.integers(0, 3))
    more = tuple(value + (data.draw(st.integers(0, 3_000)) if at == which else 0) for at, value in enumerate(arguments))
    model = MODELS[name]
    assert model.iteration_s(*more) >= model.iteration_s(*arguments) > 0


@pytest.mark.parametrize("latency", BOTH)
def test_a_call_alone_is_its_chunks_and_its_answer(latency: Latency) -> None:
    """isolated_s adds up whole iterations; what is cached is not computed, the last token always is."""
    expected = latency.iteration_s(512, 512 * 612, 0, 0) + latency.iteration_s(88, 88 * 700, 0, 0)
    assert latency.isolated_s(100, 700, 1, 512) == pytest.approx(expected)
    assert latency.isolated_s(100, 700, 3, 512) == pytest.approx(expected + latency.decode_run_s(1, 701, 2))
    assert latency.isolated_s(700, 700, 1, 512) == pytest.approx(latency.iteration_s(1, 700, 0, 0))


def test_beyond_the_grid_the_last_slope_goes_on() -> None:
    """Doubling a batch that is already beyond the dense table about doubles its time."""
    model = MODELS["llama3-70b-a100x4"]
    assert model.iteration_s(16_384, 0, 0, 0) == pytest.approx(2 * model.iteration_s(8192, 0, 0, 0), rel=0.05)


def test_the_representative_rate_is_near_the_study_s() -> None:
    """Prefill of Llama-3-70B on four A100 runs at a few thousand tokens per second."""
    assert 3_000 < MODELS["llama3-70b-a100x4"].prefill_tokens_per_s < 6_000


@pytest.mark.parametrize(("device", "model", "tp"), [("a100", "llama3-70b", 4), ("a100", "llama3-8b", 1)])
def test_the_profiles_come_back_out(shared_dir: Path, device: str, model: str, tp: int) -> None:
    """Median error against the tables that the coefficients were taken from is under 2 %.

    The rest is the smoothing of noisy all-reduces.
    """
    latency = LatencyModel(hardware(f"{model}-{device}" + (f"x{tp}" if tp > 1 else "")))
    errors = []
    with (shared_dir / "costs" / "cost_prefill_ms.csv").open() as file:
        for row in csv.DictReader(file):
            if (row["device"], row["model"], int(row["tp"])) == (device, model, tp):
                new, context = int(row["new_tokens"]), int(row["context_tokens"])
                ours = latency.iteration_s(new, new * (context + new), 0, 0) * 1e3
                errors.append(abs(ours / float(row["total_ms_measured_kernel"]) - 1))
    with (shared_dir / "costs" / "cost_decode_ms.csv").open() as file:
        for row in csv.DictReader(file):
            if (row["device"], row["model"], int(row["tp"])) == (device, model, tp):
                batch, context = int(row["batch"]), int(row["context_tokens_each"])
                ours = latency.iteration_s(0, 0, batch, batch * context) * 1e3
                errors.append(abs(ours / float(row["total_ms"]) - 1))
    assert len(errors) > 100
    assert sorted(errors)[len(errors) // 2] < 0.02


def test_a_kernel_that_skips_what_it_masks_costs_half_of_its_own_chunk() -> None:
    """The own share counts a chunk's own tokens only: no context, no difference in the other terms."""
    machine = hardware("llama3-8b-h100")
    whole, half = LatencyModel(machine), LatencyModel(replace(machine, prefill_own_share=0.5))
    per_pair_s = machine.prefill_attention_ms[2] / 1e3
    saved_s = whole.isolated_s(1_000, 2_000, 1, 2_048) - half.isolated_s(1_000, 2_000, 1, 2_048)
    assert saved_s == pytest.approx(0.5 * 1_000 * 1_000 * per_pair_s)
