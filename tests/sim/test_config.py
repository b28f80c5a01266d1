"""A run is checked before it starts: every bad field is named with its value."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields

import pytest

from saga.errors import UnknownName, UsageError
from saga.sim.config import SimConfig

GOOD: dict[str, object] = {"preset": "saga", "workload": "swe_bench", "rate_per_s": 1.0}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("seed", 1.5),
        ("seed", True),
        ("workers", 0),
        ("workers", 10_001),
        ("workers", "4"),
        ("tasks", 0),
        ("tasks", 10_000_001),
        ("block_tokens", 0),
        ("block_tokens", 8_192),
        ("max_running", 0),
        ("chunk_tokens", 0),
        ("check_every", -1),
        ("kv_tokens", 0),
        ("kv_tokens", 31),
        ("kv_tokens", 1e5),
        ("dram_tokens", -1),
        ("rate_per_s", 0.0),
        ("rate_per_s", -1.0),
        ("rate_per_s", float("nan")),
        ("rate_per_s", float("inf")),
        ("agents_per_worker", 0.0),
        ("agents_per_worker", 1e7),
        ("oversubscription", -0.5),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_what_would_be_right(field: str, value: object) -> None:
    """One message that needs no other: field, value, and what was expected."""
    facts = GOOD | {field: value}
    if field in ("agents_per_worker", "oversubscription"):
        del facts["rate_per_s"]
    with pytest.raises(UsageError) as refused:
        SimConfig(**facts)  # type: ignore[arg-type]
    said = str(refused.value)
    assert said.startswith(f"{field} = {value!r}: expected ")


@pytest.mark.parametrize(
    ("field", "value", "near"), [("preset", "sagaa", "saga"), ("hardware", "llama3-8b-a10", "llama3-8b-a100")]
)
def test_a_name_that_nobody_knows_is_refused_with_a_near_one(field: str, value: str, near: str) -> None:
    """Typing mistakes are answered with what was probably meant."""
    with pytest.raises(UnknownName, match=f"{field} '{value}'; did you mean '{near}'"):
        SimConfig(**(GOOD | {field: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("load", "said"),
    [
        ({}, "none of them"),
        ({"rate_per_s": 1.0, "as_recorded": True}, "rate_per_s and as_recorded"),
        ({"agents_per_worker": 1.0, "oversubscription": 1.0}, "agents_per_worker and oversubscription"),
    ],
)
def test_exactly_one_field_says_how_much_load(load: dict, said: str) -> None:
    """None is a run without work, two contradict each other."""
    with pytest.raises(UsageError, match=f"expected exactly one of .*; got {said}$"):
        SimConfig(preset="saga", workload="swe_bench", **load)


@pytest.mark.parametrize(
    "load", [{"agents_per_worker": 0.5}, {"oversubscription": 1.2}, {"rate_per_s": 3}, {"as_recorded": True}]
)
def test_any_one_of_them_is_enough(load: dict) -> None:
    """Each way to say the load is a way; whole numbers are numbers."""
    SimConfig(preset="saga", workload="swe_bench", **load)


def test_what_runs_is_what_is_written_down() -> None:
    """The dictionary for the log names every field, is plain JSON, and makes the same run again."""
    config = SimConfig(preset="saga", workload="swe_bench", oversubscription=1.5, kv_tokens=30_000, dram_tokens=0)
    written = json.loads(json.dumps(config.as_dict()))
    assert list(written) == [field.name for field in fields(SimConfig)]
    assert SimConfig(**written) == config


def test_a_run_does_not_change_under_way() -> None:
    """All choices are made before the first event."""
    config = SimConfig(**GOOD)  # type: ignore[arg-type]
    with pytest.raises(FrozenInstanceError):
        config.seed = 3  # type: ignore[misc]
