"""`saga workload`: describes what it is given, as a table or as JSON, and says what it cannot read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saga.cli.workload import workload_app
from saga.errors import TraceError, UnknownName
from saga.workloads.catalogue import BUILT_IN

RUN = CliRunner()


def test_every_built_in_workload_is_listed() -> None:
    """Without a command, and with `list`, the names are shown."""
    for arguments in ([], ["list"]):
        shown = RUN.invoke(workload_app, arguments).stdout
        assert all(name in shown for name in BUILT_IN)


def test_json_is_the_description() -> None:
    """The JSON has the figures of the tasks asked for."""
    result = RUN.invoke(workload_app, ["describe", "web_arena", "--tasks", "20", "--json"])
    found = json.loads(result.stdout)
    assert (found["name"], found["num_tasks"], found["num_sessions"]) == ("web_arena", 20, 20)
    assert found["reuse"]["all"] > 0.5


def test_the_table_says_what_was_left_out(tmp_path: Path) -> None:
    """Filters work on traces, and every session left out is reported with its reason."""
    path = tmp_path / "mine.jsonl"
    rows = [{"session_id": f"s{k}", "step": 0, "input_tokens": 10 + 90 * k, "output_tokens": 1} for k in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = RUN.invoke(workload_app, ["describe", str(path), "--max-context", "150", "--tasks", "5"]).stdout
    assert "mine" in shown
    assert "Left out: 1 sessions, context over 150 tokens" in shown


def test_what_cannot_be_read_is_an_error_of_the_tree(tmp_path: Path) -> None:
    """Unknown names and broken traces raise errors that the command line turns into one line."""
    path = tmp_path / "bad.jsonl"
    path.write_text("{}\n")
    for argument, error in (("swe_bensh", UnknownName), (str(path), TraceError)):
        result = RUN.invoke(workload_app, ["describe", argument])
        assert isinstance(result.exception, error)
        with pytest.raises(error):
            raise result.exception
