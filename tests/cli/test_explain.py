"""A log tells the story of a session, and a bad log is named with its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga import commands as do
from saga import events as ev
from saga.cli.explain import explain, read_log
from saga.errors import TraceError, UsageError

HEADER = {"schema": 1, "kind": "log", "preset": "saga", "seed": 0, "workload": "swe_bench"}


def event(what: ev.Event) -> dict[str, object]:
    """A log line for what happened."""
    return {"event": msgspec.to_builtins(what)}


def command(what: do.Command, at_s: float) -> dict[str, object]:
    """A log line for what was decided."""
    return {"command": json.loads(msgspec.json.encode(what)), "at_s": at_s}


def story(session: str, first: int = 0) -> list[dict[str, object]]:
    """One step of a session: arrives, is held, is sent, ends, is let go."""
    step = f"{session}/{first}"
    return [
        event(ev.StepArrived(1.0, step, session, "task", 5_000, common_tokens=4_000)),
        command(do.Hold(step, "no room for 5,200 tokens"), 1.0),
        command(do.Dispatch(step, session, "w0", 3, "home has room again"), 4.0),
        event(ev.FirstToken(5.0, step, "w0")),
        event(ev.StepFinished(6.0, step, "w0", 5_000, 70, cached_tokens=4_000, tool_calls=("Bash",))),
        command(do.Release(session, "w0", do.Standing.PAUSED, "gap is long"), 6.0),
    ]


def write(path: Path, lines: list[dict[str, object]]) -> Path:
    """A log on disk."""
    path.write_text("".join(json.dumps(line) + "\n" for line in [HEADER, *lines]))
    return path


def test_a_session_gets_its_own_moments_and_no_others(tmp_path: Path) -> None:
    """Two interleaved sessions come apart; facts about workers belong to neither."""
    mixed = [line for pair in zip(story("a"), story("b"), strict=True) for line in pair]
    mixed.insert(0, event(ev.WorkerJoined(0.0, "w0", 100_000)))
    _, stories = read_log(write(tmp_path / "run.jsonl", mixed))
    assert list(stories) == ["a", "b"]
    assert [len(found.moments) for found in stories.values()] == [6, 6]


def test_reasons_are_printed_as_the_scheduler_gave_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every decision shows with its reason, in order of time."""
    explain(write(tmp_path / "run.jsonl", story("a")), session="a", step=None, as_json=False, verify=False)
    shown = capsys.readouterr().out
    places = [shown.index(words) for words in ("no room for 5,200 tokens", "home has room again", "gap is long")]
    assert places == sorted(places)
    assert shown.count("=> ") == 3
    assert "simulated" in shown


def test_one_step_can_be_picked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--step leaves the other steps out, and an unknown one names those there are."""
    log = write(tmp_path / "run.jsonl", [*story("a", 0), *story("a", 1)])
    explain(log, session="a", step="a/1", as_json=True, verify=False)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["what"].get("step") for line in lines} == {"a/1"}
    assert [line["decision"] for line in lines].count(True) == 2
    with pytest.raises(UsageError, match="has no step 'a/7'; it has a/0, a/1"):
        explain(log, session="a", step="a/7", as_json=False, verify=False)


def test_without_a_session_there_is_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The list counts steps and holds and names workers, in words and as JSON."""
    log = write(tmp_path / "run.jsonl", [*story("a"), *story("b", 0), *story("b", 1)])
    explain(log, session=None, step=None, as_json=True, verify=False)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["session"], row["steps"], row["held"], row["workers"]) for row in rows] == [
        ("b", 2, 2, ["w0"]),
        ("a", 1, 1, ["w0"]),
    ]


def test_unknown_session_names_the_near_ones(tmp_path: Path) -> None:
    """A slip of the finger is met with what is there."""
    log = write(tmp_path / "run.jsonl", story("task-17.root"))
    with pytest.raises(UsageError, match=r"no session 'task-17' .*near: task-17\.root"):
        explain(log, session="task-17", step=None, as_json=False, verify=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ('{"schema": 2, "kind": "log", "preset": "saga"}\n', "schema 2; expected kind 'log', schema 1"),
        ('{"schema": 1, "kind": "simulated", "preset": "saga"}\n', "kind 'simulated'"),
        (json.dumps(HEADER) + "\n" + '{"event": {"type": "Surprise", "at_s": 1}}\n', "run.jsonl:2: not a line"),
        (json.dumps(HEADER) + "\n" + '{"command": {"type": "Surprise"}, "at_s": 1}\n', "run.jsonl:2: neither"),
        (json.dumps(HEADER) + "\n" + '{"event": {"type": "Tick", "at_s": "x"}}\n', "event.at_s"),
        (json.dumps(HEADER) + "\n" + '{"event": {"type": "Ti', "run.jsonl:2: the file ends in the middle"),
        ("\x00\xff\n", "run.jsonl:1"),
    ],
)
def test_a_bad_log_is_named_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    """Empty, of another kind, unknown, mistyped, cut, binary: one message that says where."""
    log = tmp_path / "run.jsonl"
    log.write_text(text)
    with pytest.raises(TraceError) as error:
        read_log(log)
    assert words in str(error.value)


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    """Whatever a file holds, the reader reads it or raises TraceError."""
    lines = b"".join(json.dumps(line).encode() + b"\n" for line in [HEADER, *story("a")])

    class File:
        """A file with these bytes."""

        def open(self, mode: str) -> object:
            """As Path.open."""
            import io

            return io.BytesIO(lines + data)

    try:
        read_log(File())  # type: ignore[arg-type]
    except TraceError:
        return
    assert data == b"" or data.endswith(b"\n")


def test_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    """A wrong path is the caller's fault and named."""
    with pytest.raises(TraceError, match="nowhere"):
        read_log(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of a small, real run under memory pressure."""
    from saga.sim.config import SimConfig
    from saga.sim.driver import simulate
    from saga.workloads.catalogue import workload
    from saga.workloads.limits import Limits

    log = tmp_path_factory.mktemp("log") / "run.jsonl"
    config = SimConfig(
        preset="saga",
        workload="swe_bench",
        workers=1,
        kv_tokens=60_000,
        agents_per_worker=4,
        tasks=8,
        log_path=str(log),
    )
    simulate(config, workload("swe_bench", Limits(max_context_tokens=50_000), kv_tokens=60_000))
    return log


def test_a_recorded_run_replays_to_the_same_commands(saga: Callable[..., Any], recorded: Path) -> None:
    """Same events, same preset, same commands: said in one line."""
    answer = saga("explain", recorded, "--verify")
    assert (answer.code, answer.err) == (0, "")
    assert "same commands" in answer.out


def test_a_changed_log_is_found_out(saga: Callable[..., Any], recorded: Path, tmp_path: Path) -> None:
    """One altered reason makes the replay differ at that event, with exit code 1."""
    changed = recorded.read_text().replace("kept across the gap", "kept for no reason", 1)
    assert changed != recorded.read_text()
    (tmp_path / "changed.jsonl").write_text(changed)
    answer = saga("explain", tmp_path / "changed.jsonl", "--verify")
    assert answer.code == 1
    assert answer.err.startswith("saga: event ")
    assert "kept for no reason" in answer.err
    assert answer.err.count("\n") == 1


def test_every_session_of_a_real_run_can_be_told(saga: Callable[..., Any], recorded: Path) -> None:
    """Each listed session has a story that begins with its first step."""
    rows = [json.loads(line) for line in saga("explain", recorded, "--json").out.splitlines()]
    assert rows
    for row in rows[:5]:
        assert f"step {row['session']}/0 arrives" in saga("explain", recorded, "--session", row["session"]).out
