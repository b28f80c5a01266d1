"""`saga engine`: announces itself, serves, ends with a signal or with its parent, and names bad flags in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def child(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`python -m saga engine ...` on a free port, and its URL; killed at the end."""
    command = [sys.executable, "-m", "saga", "engine", "--port", "0", "--announce", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready, url = process.stdout.readline().split()
            assert ready == "READY"
            yield process, url
        finally:
            process.kill()


def ask(url: str, body: dict[str, object]) -> dict[str, object]:
    """A completion."""
    data = json.dumps(body).encode()
    with urllib.request.urlopen(f"{url}/v1/completions", data=data, timeout=5) as response:  # noqa: S310 - loopback
        found: dict[str, object] = json.load(response)
        return found


def test_a_child_process_announces_itself_serves_and_ends_with_sigterm() -> None:
    """One line READY with the URL, answers under the name given, exit code 0."""
    with child("--speed", "100", "--model", "mine", "--kv-tokens", "5000") as (process, url):
        assert ask(url, {"model": "mine", "prompt": "Say something", "max_tokens": 4})["model"] == "mine"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


def test_a_child_dies_with_its_parent() -> None:
    """The process in between is killed; the engine goes too."""
    between = (
        "import subprocess, sys, time; "
        "flags = '-m saga engine --port 0 --announce --die-with-parent'.split(); "
        "p = subprocess.Popen([sys.executable, *flags],"
        " stdout=subprocess.PIPE, text=True); print(p.pid, p.stdout.readline(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", between], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid, _, _ = process.stdout.readline().split()
        process.kill()
        process.wait()
    for _ in range(1_000):
        if not alive(int(pid)):
            return
        time.sleep(0.01)
    os.kill(int(pid), signal.SIGKILL)
    pytest.fail("the engine outlived its parent")


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--hardware", "llama3-8b-h10"), "did you mean 'llama3-8b-h100'"),
        (("--tools", "sometimes"), "random:0.7"),
        (("--tools", "random:2"), "between 0 and 1"),
        (("--script", "nowhere.json"), "nowhere.json"),
        (("--script", "nowhere.json", "--tools", "random"), "give one of them"),
        (("--queue", "lifo"), "fcfs, priority"),
        (("--speed", "0"), "speed"),
        (("--kv-tokens", "3"), "kv_tokens"),
        (("--port", "70000"), "65535"),
    ],
)
def test_bad_flags_are_one_line(saga: Callable[..., object], flags: tuple[str, ...], says: str) -> None:
    """Exit code 2, and what would be right."""
    assert says in saga("engine", *flags).complaint  # type: ignore[attr-defined]
