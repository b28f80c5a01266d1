"""Tests of `saga top`."""

from __future__ import annotations

import io
import socket
import sys

import pytest
from rich.console import Console

from saga.cli.main import main
from saga.cli.top import draw

SAID = {
    "version": "1",
    "preset": "saga",
    "uptime_s": 3_725.0,
    "calls": {"waiting": 2, "running": 5},
    "sessions": 7,
    "workers": [
        {
            "name": "gpu1",
            "state": "up",
            "why": "",
            "calls": 5,
            "running": None,
            "waiting": None,
            "sessions": 7,
            "reserved_tokens": 500,
            "kv_tokens": 1_000,
            "kv_usage": None,
            "served": 1_234,
            "failed": 1,
        },
        {
            "name": "[red]gpu2",
            "state": "down",
            "why": "connection refused",
            "calls": 0,
            "running": 1,
            "waiting": 2,
            "sessions": 0,
            "reserved_tokens": 0,
            "kv_tokens": 1_000,
            "kv_usage": 0.25,
            "served": 0,
            "failed": 9,
        },
    ],
    "tenants": [{"name": "t", "weight": 2.0, "sessions": 7, "calls_in_flight": 5, "attained_s": 1.5}],
}


def test_the_screen_shows_workers_calls_and_tenants():
    """Every figure that was said, names as they are."""
    out = io.StringIO()
    Console(file=out, width=160).print(draw(SAID))
    shown = out.getvalue()
    for part in (
        "1 of 2 workers up",
        "5 calls running, 2 waiting, 7 sessions",
        "1h02m",
        "50% of 1,000",
        "25%",
        "1,234",
    ):
        assert part in shown
    assert "[red]gpu2" in shown
    assert "down: connection refused" in shown


def test_no_gateway_is_one_line_and_exit_code_1(monkeypatch, capsys):
    """It says what to start."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setattr(sys, "argv", ["saga", "top", "--once", "--url", f"http://127.0.0.1:{port}"])
    with pytest.raises(SystemExit) as left:
        main()
    line = capsys.readouterr().err
    assert (left.value.code, line.count("\n")) == (1, 1)
    assert "saga serve" in line


def test_an_url_that_is_none_is_refused(monkeypatch, capsys):
    """Exit code 2."""
    monkeypatch.setattr(sys, "argv", ["saga", "top", "--url", "8001"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
