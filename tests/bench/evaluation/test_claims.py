"""The paper's figures are all there, as claims and as nothing else, and agree with each other where they must."""

from __future__ import annotations

import math
from importlib.resources import files

import pytest

from saga.bench.evaluation.claims import Claim, paper_claims, parse_claims
from saga.bench.evaluation.systems import CONSTANTS
from saga.errors import UsageError
from saga.presets import PRESETS

COUNTS = {
    "main": 14 + 6 + 1,
    "competitive": 6,
    "slo": 16,
    "ablation": 7,
    "queue": 9,
    "variance": 15,
    "sensitivity": 8,
    "regeneration": 6,
    "overheads": 3,
    "kernels": 6,
}
TEXT = files("saga.bench.evaluation").joinpath("paper.toml").read_text(encoding="utf-8")


def test_every_figure_of_every_table_is_there() -> None:
    """As many as the paper's tables have; each is said of one thing once."""
    assert {table.id: len(table.claims) for table in paper_claims().tables} == COUNTS
    for table in paper_claims().tables:
        assert table.where
        keys = [(claim.figure, claim.system, claim.workload, claim.setting) for claim in table.claims]
        assert len(set(keys)) == len(keys)


def test_claims_name_systems_that_exist() -> None:
    """A preset, a cache policy or a constant for each, so that something can be put beside it."""
    policies = {"lru", "prefix_lru", "workflow_lru"}
    assert {claim.system for claim in paper_claims() if claim.system} <= PRESETS.keys() | policies
    assert [claim.setting for claim in paper_claims().table("sensitivity").claims] == list(CONSTANTS)


def test_the_claimed_ratios_are_those_of_the_claimed_times() -> None:
    """To the digits that are given: times, speed-ups and their geometric mean agree."""
    main = paper_claims().table("main")
    for claim in main.claims:
        if claim.figure == "speedup":
            names = {"workload": "swe_bench"}
            ratio = main.ratio("tct_mean_s", {"system": claim.system, **names}, {"system": "saga_paper", **names})
            assert ratio == pytest.approx(claim.value, abs=0.006)
    ratios = [
        main.ratio("tct_mean_s", {"system": "vllm_apc", "workload": name}, {"system": "saga_paper", "workload": name})
        for name in ("swe_bench", "web_arena")
    ]
    assert math.sqrt(math.prod(ratio for ratio in ratios if ratio)) == pytest.approx(
        main.value("geomean_speedup", system="vllm_apc"), abs=0.006
    )


def test_one_system_has_one_time_in_all_tables() -> None:
    """Ablation, queues and variance start from the main table's figure."""
    claims, names = paper_claims(), {"workload": "swe_bench"}
    whole = claims.table("main").value("tct_mean_s", system="saga_paper", **names)
    assert whole == claims.table("ablation").value("tct_mean_s", system="saga_paper", **names)
    assert whole == claims.table("queue").value("tct_mean_s", setting="Hybrid", **names)
    assert whole == claims.table("variance").value("tct_mean_s", setting="1.0", **names)


def test_figures_are_what_their_names_say() -> None:
    """Shares lie in 0..1, everything is positive, bounds of constants have a range, spreads are smaller than means."""
    for claim in paper_claims():
        assert claim.value > 0.0
        if claim.figure.endswith("_share") or claim.figure == "tct_change":
            assert claim.value <= 1.0
        if claim.figure == "tct_change":
            assert claim.low is not None
            assert claim.high is not None
            assert claim.low < claim.high
            assert claim.at_most
        assert claim.sd is None or 0.0 < claim.sd < claim.value


def test_what_is_not_claimed_is_none() -> None:
    """No figure is made up where the paper has none."""
    main = paper_claims().table("main")
    assert main.value("tct_mean_s", system="saga", workload="swe_bench") is None
    assert main.ratio("tct_mean_s", {"system": "saga"}, {"system": "vllm"}) is None
    assert main.find("speedup", system="vllm", workload="swe_bench") == Claim("speedup", 3.01, "vllm", "swe_bench")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('kind = "claim"', 'kind = "simulated"'), "simulated"),
        (("schema = 1", "schema = 2"), "schema"),
        (("value = 612.3", 'value = "much"'), "value"),
        (("sd = 32.1", "deviation = 32.1"), "deviation"),
        (("[source]", "[source"), "not a file of claims"),
    ],
)
def test_a_file_that_is_not_one_of_claims_is_refused(change: tuple[str, str], words: str) -> None:
    """Results cannot be loaded as claims, nor figures under names that nobody reads."""
    assert change[0] in TEXT
    with pytest.raises(UsageError, match=words):
        parse_claims(TEXT.replace(*change, 1))
