"""Rows of each format become sessions, with the links that the format means."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from saga.errors import TraceError
from saga.workloads.sessions import Recording, read_recording


def _read(folder: Path, *rows: dict[str, Any]) -> Recording:
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_recording(path)


def _saga(session: str, step: int, **more: Any) -> dict[str, Any]:
    return {"session_id": session, "step": step, "input_tokens": 100, "output_tokens": 5, **more}


def test_calls_are_put_in_order_of_their_steps(tmp_path: Path) -> None:
    """Lines may come in any order; steps need not be dense; no output counts as one token."""
    recording = _read(tmp_path, _saga("a", 7, output_tokens=0), _saga("b", 0), _saga("a", 2))
    assert [[call.step for call in session.calls] for session in recording.sessions] == [[2, 7], [0]]
    assert recording.sessions[0].calls[1].output_tokens == 1


def test_tools_are_split_and_bash_names_its_command(tmp_path: Path) -> None:
    """Joined names are several tools; Bash carries the first word of its command."""
    recording = _read(tmp_path, _saga("a", 0, tool="Bash+Read", tool_cmd="git"), _saga("a", 1))
    assert [call.tools for call in recording.sessions[0].calls] == [("Bash:git", "Read"), ()]


def test_an_inferred_person_is_a_person(tmp_path: Path) -> None:
    """`user?` is `user`."""
    recording = _read(tmp_path, _saga("a", 0), _saga("a", 1, gap_kind="user?", gap_s=3.0))
    assert recording.sessions[0].calls[1].gap_kind == "user"


def test_children_point_to_their_parents(tmp_path: Path) -> None:
    """`parent` links sessions in either order of lines; a parent outside the file makes no link."""
    recording = _read(tmp_path, _saga("child", 0, parent="root"), _saga("root", 0), _saga("stray", 0, parent="gone"))
    assert [session.parent for session in recording.sessions] == [1, None, None]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([_saga("a", 0), _saga("a", 0)], ["trace.jsonl:2", "'a'", "step 0", "duplicate of line 1"]),
        ([_saga("a", 0, parent="b"), _saga("b", 0, parent="a")], ["'parent'", "spawn each other"]),
        ([_saga("a", 0, gap_kind="nap")], ["trace.jsonl:1", "'gap_kind'", "'nap'", "'tool'"]),
        ([_saga("a", 0, hash_ids=[1])], ["'block_size'", "null"]),
        ([_saga("a", 0, hash_ids=[1, 2, 3], block_size=50)], ["'hash_ids'", "longer than the prompt", "at most 2"]),
        (
            [_saga("a", 0, hash_ids=[1], block_size=64), _saga("a", 1, hash_ids=[1], block_size=32)],
            ["trace.jsonl:2", "'block_size'", "32", "64"],
        ),
        (
            [_saga("a", 0, hash_ids=[1], block_size=64), _saga("b", 0, hash_ids=[2, 1], block_size=40)],
            ["trace.jsonl:2", "'block_size'"],
        ),
        (
            [_saga("a", 0, hash_ids=[1, 2], block_size=50), _saga("b", 0, hash_ids=[2, 1], block_size=50)],
            ["trace.jsonl:2", "'hash_ids'", "one id is one whole prefix"],
        ),
    ],
)
def test_rows_that_contradict_each_other_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], words: list[str]
) -> None:
    """What is wrong only together with other lines is reported with line, field and value too."""
    with pytest.raises(TraceError) as error:
        _read(tmp_path, *rows)
    for word in words:
        assert word in str(error.value)


def _mooncake(timestamp_ms: float, ids: list[int], tokens: int, **more: Any) -> dict[str, Any]:
    return {"timestamp": timestamp_ms, "input_length": tokens, "output_length": 100, "hash_ids": ids, **more}


def test_mooncake_sessions_are_recovered_from_ids(tmp_path: Path) -> None:
    """A prompt with all full blocks of another and room for its answer is its next turn; a stranger's is not."""
    recording = _read(
        tmp_path,
        _mooncake(0, [1, 2, 3], 1_100),  # two full blocks and a part
        _mooncake(1_000, [1, 9], 1_024),  # shares the first block only
        _mooncake(60_000, [1, 2, 4, 5], 2_000),  # extends the first
        _mooncake(61_000, [1, 2, 6], 1_150),  # has its blocks, but no room for its answer
    )
    assert [len(session.calls) for session in recording.sessions] == [2, 1, 1]
    turn = recording.sessions[0].calls[1]
    assert turn.gap_kind == "user"
    assert turn.gap_s == pytest.approx(60.0 - 0.2 - 0.11 - 3.0)
    assert turn.arrival_s == 60.0


def test_mooncake_shared_front_glues_no_strangers(tmp_path: Path) -> None:
    """Two prompts that are nothing but the shared front are nobody's past."""
    recording = _read(
        tmp_path, _mooncake(0, [1, 7], 520), _mooncake(1, [1, 8], 530), _mooncake(2, [1, 2, 3], 1_300, output_length=1)
    )
    assert [len(session.calls) for session in recording.sessions] == [1, 1, 1]


def test_mooncake_extensions_name_sessions_and_delays(tmp_path: Path) -> None:
    """`session_id` is taken as it is, and `delay` is the gap in milliseconds."""
    recording = _read(
        tmp_path,
        _mooncake(0, [1], 600, session_id=4),
        {"input_length": 900, "output_length": 9, "session_id": 4, "delay": 2_500},
    )
    assert [len(session.calls) for session in recording.sessions] == [2]
    assert recording.sessions[0].calls[1].gap_s == 2.5


def _dynamo(request: str, wait_for: list[str], **more: Any) -> dict[str, Any]:
    return {"request_id": request, "wait_for": wait_for, "input_length": 900, "output_length": 9, **more}


def test_dynamo_rows_chain_and_spawn(tmp_path: Path) -> None:
    """Waiting within a session is its next step, waiting for another session makes a child of the call waited for."""
    recording = _read(
        tmp_path,
        _dynamo("r0", [], session_id="main", timestamp=1_000),
        _dynamo("r1", ["r0"], session_id="main", delay=100, tool_wait_ms=400, tool_events=[{"tool_class": "search"}]),
        _dynamo("s0", ["r1"], session_id="sub", delay=50),
        _dynamo("r2", ["s0", "r1"], session_id="main", delay=10),
    )
    main, sub = recording.sessions
    assert [call.gap_s for call in main.calls] == [0.0, 0.5, 0.01]
    assert main.calls[0].arrival_s == 1.0
    assert main.calls[0].tools == ("search",)
    assert (sub.parent, sub.parent_call, sub.calls[0].gap_s) == (main.number, 1, 0.05)


def test_dynamo_rows_without_sessions_follow_what_they_wait_for(tmp_path: Path) -> None:
    """A row that waits for one request continues its session; a second one that waits for the same is a branch."""
    recording = _read(tmp_path, _dynamo("r0", []), _dynamo("r1", ["r0"]), _dynamo("r2", ["r0"]))
    assert [(session.name, len(session.calls)) for session in recording.sessions] == [("r0", 2), ("r2", 1)]
    assert recording.sessions[1].parent_call == 0


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([_dynamo("r0", []), _dynamo("r0", [])], ["trace.jsonl:2", "'request_id'", "'r0'", "second time"]),
        ([_dynamo("r0", ["r9"])], ["trace.jsonl:1", "'wait_for'", "'r9'", "earlier line"]),
    ],
)
def test_dynamo_rows_that_wait_for_nobody_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], words: list[str]
) -> None:
    """Dependencies must name requests of earlier lines, once each."""
    with pytest.raises(TraceError) as error:
        _read(tmp_path, *rows)
    for word in words:
        assert word in str(error.value)


def test_recovered_sessions_agree_with_the_published_recovery(shared_dir: Path, tmp_path: Path) -> None:
    """On the production chat trace, stripped to public fields, nearly all sessions come back as in the annotated copy.

    The annotation also links prompts without room for the earlier answer (8 % of its links); this reader does not.
    """
    annotated = read_recording(shared_dir / "traces" / "mooncake_conversation.jsonl.gz")
    rows = []
    with gzip.open(shared_dir / "traces" / "mooncake_conversation.jsonl.gz") as lines:
        for line in lines:
            row = json.loads(line)
            rows.append(_mooncake(row["arrival_s"] * 1_000, row["hash_ids"], row["input_tokens"]))
            rows[-1]["output_length"] = row["output_tokens"]
    recovered = _read(tmp_path, *rows)
    assert len(recovered.sessions) == pytest.approx(len(annotated.sessions), rel=0.07)
    assert sum(len(session.calls) for session in recovered.sessions) == len(rows)
