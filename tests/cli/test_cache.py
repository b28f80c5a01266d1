"""`saga cache`: what it prints and writes, and what it refuses before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from saga.sim import cache_replay

from .conftest import Answer

Saga = Callable[..., Answer]

BASE = ("cache", "--workload", "swe_bench")
SMALL = (*BASE, "--kv-tokens", 60_000, "--tasks", 20, "--seeds", 1)


def test_it_prints_a_table_per_replay_and_what_it_means(saga: Saga) -> None:
    """Policies in the order asked for, Belady among them though nobody asked, sentences below."""
    answer = saga(*SMALL, "--policy", "lru,next_use")
    assert answer.code == 0, answer
    for words in (
        "swe_bench:",
        "simulated, pinned",
        "simulated, free",
        "lru",
        "next_use",
        "belady",
        "even the optimum",
    ):
        assert words in answer.out
    assert "bound" not in answer.out


def test_the_json_holds_runs_summary_and_how_they_came_about(saga: Saga, tmp_path: Path) -> None:
    """Simulated, complete, with every pressure and replay; tokens add up."""
    file = tmp_path / "cache.json"
    answer = saga(*SMALL, "--policy", "lru,bound", "--pressure", "1.5,2", "--replay", "free", "--json", file)
    assert answer.code == 0, answer
    document = json.loads(file.read_text())
    assert (document["schema"], document["kind"], document["complete"]) == (1, "simulated", True)
    assert document["config"]["kv_tokens"] == 60_000
    assert [(run["pressure"], run["policy"]) for run in document["runs"]] == [
        (pressure, policy) for pressure in (1.5, 2.0) for policy in ("lru", "bound", "belady")
    ]
    for run in document["runs"]:
        if run["policy"] != "bound":
            assert run["hit_tokens"] + run["regenerated_tokens"] + run["new_tokens"] == run["input_tokens"]
    assert len(document["summary"]) == 6


def test_the_report_is_written(saga: Saga, tmp_path: Path) -> None:
    """One page, named at the end."""
    file = tmp_path / "cache.html"
    answer = saga(*SMALL, "--policy", "lru", "--replay", "free", "--report", file)
    assert f"report: {file}" in answer.out
    assert "<svg" in file.read_text()


@pytest.mark.parametrize(
    ("service", "said"),
    [("recorded", "50.0 % of calls as long as recorded, the others as on"), ("modelled", "calls as long as on")],
)
def test_it_says_how_long_calls_lasted(saga: Saga, tmp_path: Path, service: str, said: str) -> None:
    """A trace that knows half of its service times, and the same without looking at them."""
    rows = [
        {"session_id": f"s{number}", "step": step, "input_tokens": 900 + 500 * step, "output_tokens": 20}
        | ({"llm_s": 3.0} if step else {"gap_s": 0.0})
        for number in range(6)
        for step in range(2)
    ]
    trace = tmp_path / "mine.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ("cache", "--workload", trace, "--policy", "lru", "--kv-tokens", 4_000, "--tasks", 6, "--seeds", 1)
    answer = saga(*asked, "--pressure", "8", "--replay", "free", "--service", service)
    assert answer.code == 0, answer
    assert said in " ".join(answer.out.split())


def test_tasks_are_enough_for_the_agents_where_nobody_says_how_many(
    saga: Saga, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten per agent: the first wave is a small part of what is played."""
    asked: list[int] = []

    def note(config: cache_replay.CacheConfig, *_rest: object) -> object:
        asked.append(config.tasks)
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_replay, "replay_cache", note)
    assert saga("cache", "--workload", "chat", "--pressure", "3").code == 130
    assert asked[0] > 500


def test_an_interrupt_leaves_what_was_finished(saga: Saga, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second replay is interrupted: the first one is in a valid file that says so, and the exit code is 130."""
    real, calls = cache_replay.replay_cache, []

    def once(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache_replay, "replay_cache", once)
    file = tmp_path / "cache.json"
    answer = saga(*SMALL, "--policy", "lru", "--pressure", "1.5,2", "--replay", "free", "--json", file)
    assert answer.code == 130
    document = json.loads(file.read_text())
    assert not document["complete"]
    assert {run["pressure"] for run in document["runs"]} == {1.5}


def test_too_few_tasks_are_said_to_be(saga: Saga) -> None:
    """A replay that never gets steady warns."""
    assert (
        "more tasks would give a steady load"
        in saga(*BASE, "--kv-tokens", 60_000, "--tasks", 2, "--seeds", 1, "--policy", "lru").out
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--pressure", ""), "--pressure '': the sweep is empty"),
        (("--pressure", " , "), "the sweep is empty"),
        (("--pressure", "1,two"), "--pressure 'two': is not a number"),
        (("--pressure", "0"), "pressure = 0.0: expected a number above 0"),
        (("--pressure", "-1.5"), "pressure = -1.5"),
        (("--pressure", "nan"), "pressure = nan"),
        (("--pressure", "1.5,1.5"), "twice"),
        (("--policy", ""), "--policy '': the sweep is empty"),
        (("--policy", "lru,nextuse"), "did you mean 'next_use'"),
        (("--policy", "lru,lru"), "twice"),
        (("--replay", ""), "--replay '': the sweep is empty"),
        (("--replay", "loose"), "replay = 'loose': expected pinned or free"),
        (("--ends", "maybe"), "--ends maybe: expected told or untold"),
        (("--service", "quick"), "service = 'quick': expected recorded or modelled"),
        (("--seeds", 0), "--seeds 0"),
        (("--tasks", 0), "tasks = 0"),
        (("--kv-tokens", 3), "kv_tokens = 3"),
        (("--block-tokens", 0), "block_tokens = 0"),
        (("--hardware", "abacus"), "abacus"),
        (("--workload", "swe_bunch"), "did you mean 'swe_bench'"),
        (("--workload", "."), "unknown workload"),
        (("--max-context", 10), "no task of swe_bench fits"),
        (("--json", "/nowhere/x.json"), "--json /nowhere/x.json"),
        (("--report", "/"), "--report /"),
        (("--json", "x", "--report", "x"), "same file"),
    ],
)
def test_what_cannot_be_is_refused_before_any_replay(
    saga: Saga, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], words: str
) -> None:
    """Exit code 2, one line that names flag and value, no replay started, no file left."""
    monkeypatch.setattr(cache_replay, "replay_cache", lambda *_: pytest.fail("a replay was started"))
    monkeypatch.chdir(tmp_path)
    assert words in saga(*BASE, *arguments).complaint
    assert list(tmp_path.iterdir()) == []
