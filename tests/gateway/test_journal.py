"""Tests of what is remembered and logged of decisions."""

from __future__ import annotations

import io
import json
import logging

import pytest

from saga.gateway import journal
from saga.gateway.journal import Journal, JsonLines, log_to_stderr, say


def test_a_session_s_last_decisions_are_remembered_and_no_more():
    """Both bounds hold: decisions of a session, and sessions."""
    book = Journal(lambda: 7.0, per_session=2, max_sessions=3)
    for i in range(5):
        book.add("s0", f"step {i}", "dispatch", "w", "why")
    assert [entry["step"] for entry in book.of("s0")] == ["step 3", "step 4"]
    assert book.of("s0")[0] == {"at": 7.0, "step": "step 3", "what": "dispatch", "worker": "w", "reason": "why"}
    for i in range(1, 4):
        book.add(f"s{i}", "step", "hold", "", "why")
    assert book.of("s0") == []
    assert book.of("s3")


def test_a_record_is_one_line_of_json_whatever_is_in_it():
    """Line breaks and quotes of clients do not break the log."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("saga.gateway")
    logger.addHandler(handler)
    try:
        say(logging.WARNING, "event", session='a"\nb', number=3)
    finally:
        logger.removeHandler(handler)
    (line,) = stream.getvalue().splitlines()
    said = json.loads(line)
    assert (said["event"], said["session"], said["number"], said["level"]) == ("event", 'a"\nb', 3, "warning")


def test_levels_are_obeyed(capsys, monkeypatch):
    """Decisions are `info`: at `warning` they are not written."""
    monkeypatch.setattr(journal.log, "handlers", [])
    monkeypatch.setattr(journal.log, "propagate", True)
    level = journal.log.level
    try:
        for name, num_lines in (("warning", 0), ("info", 1)):
            log_to_stderr(name)
            Journal(lambda: 0.0).add("s", "step", "dispatch", "w", "why")
            assert len(capsys.readouterr().err.splitlines()) == num_lines
    finally:
        journal.log.setLevel(level)


@pytest.mark.parametrize("secret", ["prompt text"])
def test_fields_are_only_what_was_given(secret):
    """A formatter adds time, level and event, nothing of the process."""
    record = logging.LogRecord("saga.gateway", logging.INFO, "file", 1, "event", None, None)
    assert set(json.loads(JsonLines().format(record))) == {"at", "level", "event"}
    assert secret not in JsonLines().format(record)
