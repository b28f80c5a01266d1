"""Tests of `saga serve` as a command: what it prints, what it refuses, how it leaves."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from saga.cli.main import main


def refused(monkeypatch, capsys, *arguments) -> tuple[int, str]:
    """(exit code, what it says) of a command that does not get to serving."""
    monkeypatch.setattr(sys, "argv", ["saga", "serve", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--host", "0.0.0.0"), "--tenants FILE"),  # noqa: S104 - refused
        (("--coordinator-host", "0.0.0.0", "--coordinator-port", "0"), "SAGA_COORDINATOR_KEY"),  # noqa: S104 - same
        (("--worker", "ftp://x"), "expected http://host:port"),
        (("--worker", "http://a:1", "--worker", "a:1"), "is there twice"),
        (("--worker", "http://a:1", "--speed", "2"), "--embedded N"),
        (("--preset", "sega"), "did you mean 'saga'"),
        (("--config", "nowhere.toml"), "nowhere.toml"),
        (("--log-level", "loud"), "log_level"),
        (("--port", "70000"), "65535"),
        (("--processes", "0"), "processes = 0: expected 1 to 64"),
        (("--processes", "65"), "processes = 65: expected 1 to 64"),
    ],
)
def test_bad_flags_are_one_line_and_exit_code_2(monkeypatch, capsys, arguments, said):
    """Before anything is started."""
    code, line = refused(monkeypatch, capsys, *arguments)
    assert (code, line.count("\n")) == (2, 1)
    assert said in line


def test_a_port_in_use_is_one_line_and_exit_code_1(monkeypatch, capsys):
    """With the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = refused(
            monkeypatch, capsys, "--worker", "http://127.0.0.1:9", "--port", str(port), "--admin-port", "0"
        )
    assert (code, line.count("\n")) == (1, 1)
    assert f"127.0.0.1:{port}: the port is in use" in line


@pytest.mark.slow
def test_one_command_is_a_working_endpoint_until_sigterm(tmp_path):
    """Embedded engines answer, `saga top` shows them, SIGTERM leaves with 0 and no child behind."""
    command = [sys.executable, "-m", "saga", "serve", "--port", "0", "--admin-port", "0"]
    flags = ["--embedded", "1", "--speed", "50", "--db", str(tmp_path / "saga.db"), "--check"]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)
    try:
        greeting = "".join(process.stdout.readline() for _ in range(4))
        url = re.search(r"at (http://\S+)/v1,", greeting).group(1)
        admin = re.search(r"Admin: (http://\S+)", greeting).group(1)
        assert f"curl {url}/v1/models" in greeting
        tried = re.search(r"completions -d '(.+)'", greeting).group(1)
        body = json.loads(tried) | {"max_tokens": 3}
        request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())  # noqa: S310 - loopback
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - loopback
            assert json.load(answer)["usage"]["completion_tokens"] == 3
        shown = subprocess.run(
            [sys.executable, "-m", "saga", "top", "--url", admin, "--json"], capture_output=True, check=True, timeout=20
        )
        (worker,) = json.loads(shown.stdout)["workers"]
        assert (worker["name"], worker["state"], worker["served"]) == ("engine-1", "up", 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) == 0
        assert (tmp_path / "saga.db").exists()
        for _ in range(50):
            try:
                socket.create_connection(("127.0.0.1", int(worker["url"].rpartition(":")[2])), timeout=1).close()
            except OSError:
                break
            time.sleep(0.1)
        else:
            pytest.fail("the embedded engine is still there")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
