"""Every block of the README runs, and what it shows is what the commands print, in shape if not in numbers.

Shell blocks run one after the other in one folder, with few tasks; a `text` block after a shell block is its output,
and a `json` block is the file `my_trace.jsonl` that later commands read. `make demo` is played by the command in its
recipe, `make test` is only read (it would call this test), `saga serve` gets modelled engines instead of gpu1 and gpu2,
`saga worker` prints what it would start, or says that vLLM is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PROJECT = Path(__file__).resolve().parent.parent
_CHEAPER = (
    (r"--tasks \d+", "--tasks 12"),
    (r"--seeds \d+", "--seeds 1"),
    (r"--workers \d+", "--workers 1"),
    (r"^(saga sim (?!.*--tasks).*)$", r"\1 --tasks 12"),
    (r"^(saga sim (?!.*--seeds).*)$", r"\1 --seeds 1"),
    (r"^(saga demo.*)$", r"\1 --tasks 2"),
    (r"^(saga paper .*)$", r"\1 --only overheads --seeds 1"),
    (r"^(saga study .*)$", r"\1 --only tenants --loads 1 --preset vllm_apc,saga --seeds 1"),
)
_LANGUAGES = {"shell", "text", "json", "python"}
_PATIENCE_S = 60.0


class Block(NamedTuple):
    """One fenced block. line: of the README, 1-based."""

    language: str
    text: str
    line: int


def blocks() -> list[Block]:
    """All fenced blocks of the README."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    return [
        Block(match[1], match[2], text.count("\n", 0, match.start()) + 1)
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    ]


def commands(block: Block) -> list[str]:
    """The commands of a shell block, continuation lines joined."""
    joined = block.text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def cheaper(command: str) -> str:
    """The same command with fewer tasks."""
    for pattern, instead in _CHEAPER:
        command = re.sub(pattern, instead, command)
    return command


def environment() -> dict[str, str]:
    """This one's, with the environment's commands found first, and without recordings of somebody's own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {name: value for name, value in os.environ.items() if name != "SAGA_SHARED"} | {"PATH": path}


def recipe(target: str) -> list[str]:
    """The commands that make would run, without running them."""
    make = ["make", "--dry-run", "--always-make", "--no-print-directory", target, "SHARED="]
    printed = subprocess.run(make, cwd=PROJECT, env=environment(), check=True, capture_output=True, text=True)
    return printed.stdout.replace(".venv/bin/", "").splitlines()


def play(command: str, folder: Path) -> str:
    """What a command of the README prints."""
    command = command.removeprefix(".venv/bin/")
    if command == "make test":
        wanted = ("ruff check", "mypy --strict", "lint-imports", "python -m pytest")
        assert all(any(line.startswith(start) for line in recipe("test")) for start in wanted)
        return ""
    if command == "make demo":
        (command,) = (line for line in recipe("demo") if line.startswith("saga demo"))
    if command.startswith("saga serve"):
        return serve(command, folder)
    if command.startswith("saga worker"):
        return worker(command, folder)
    return run(cheaper(command), folder)


@contextlib.contextmanager
def started(command: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that goes on, ended by SIGTERM with a decent code; killed where that takes too long."""
    words = shlex.split(command)
    process = subprocess.Popen(words, cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True)
    killing = threading.Timer(_PATIENCE_S, process.kill)
    killing.start()
    try:
        yield process
        process.terminate()
        assert process.wait() == 0, command
    finally:
        killing.cancel()
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def first_line(process: subprocess.Popen[str]) -> str:
    """What it prints first."""
    assert process.stdout is not None
    return process.stdout.readline()


def ask(url: str, body: dict[str, object] | None = None) -> dict[str, Any]:
    """A JSON answer."""
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())  # noqa: S310  loopback
    with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:  # noqa: S310
        return json.loads(answer.read())


def serve(command: str, folder: Path) -> str:
    """Start a gateway before modelled engines, call it, stop it; the line that it greets with."""
    with contextlib.ExitStack() as stack:
        for url in dict.fromkeys(re.findall(r"http://gpu\d:8000", command)):
            engine = stack.enter_context(started("saga engine --port 0 --announce --speed 50", folder))
            command = command.replace(url, first_line(engine).split()[1])
        gateway = stack.enter_context(started(f"{command} --port 0 --admin-port 0", folder))
        greeting = first_line(gateway)
        assert "2 of 2 workers up" in greeting
        url = re.search(r"http://\S+/v1", greeting)[0]
        model = ask(f"{url}/models")["data"][0]["id"]
        body = {"model": model, "max_tokens": 3, "messages": [{"role": "user", "content": "Hello"}]}
        assert ask(f"{url}/chat/completions", body)["usage"]["completion_tokens"] == 3
        return greeting


def worker(command: str, folder: Path) -> str:
    """The command line of vLLM that it would become; where there is no vLLM, a word about that."""
    if find_spec("vllm") is None:
        words = shlex.split(command)
        done = subprocess.run(words, cwd=folder, env=environment(), check=False, capture_output=True, text=True)
        assert done.returncode == 2
        assert "vllm" in done.stderr.lower()
        return ""
    printed = run(f"{command} --print", folder)
    assert "--scheduler-cls saga.vllm_plugin.scheduler.SagaScheduler" in printed
    return printed


def run(command: str, folder: Path) -> str:
    """What a shell command prints; fails where it does."""
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=environment(),
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def labels(text: str) -> list[str]:
    """The words with which each line begins, up to the first figure."""
    starts = (re.split(r"[\d(-]", line)[0] for line in text.splitlines())
    return [" ".join(start.split()) for start in starts if start.strip()]


@pytest.mark.parametrize(
    "block", [block for block in blocks() if block.language == "python"], ids=lambda block: f"line-{block.line}"
)
def test_python_blocks_run(block: Block, tmp_path: Path) -> None:
    """Each stands alone."""
    done = subprocess.run(
        [sys.executable, "-c", block.text], cwd=tmp_path, check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_shell_blocks_run_in_order_and_print_what_is_shown(tmp_path: Path) -> None:
    """A reader who follows from top to bottom meets no error, and output of the shape that is printed."""
    printed = ""
    for block in blocks():
        if block.language == "shell":
            printed = "".join(play(command, tmp_path) for command in commands(block))
        elif block.language == "json":
            (tmp_path / "my_trace.jsonl").write_text(block.text, encoding="utf-8")
        elif block.language == "text":
            assert printed, f"README line {block.line} shows what no command before it prints"
            missing = set(labels(block.text)) - set(labels(printed))
            assert not missing, f"README line {block.line} shows lines that are not printed: {missing}"
    assert (tmp_path / "out" / "demo.html").stat().st_size
    assert (tmp_path / "report.html").stat().st_size


def test_every_block_says_what_it_is() -> None:
    """A block without a known language would be neither run nor compared."""
    assert {block.language for block in blocks()} == _LANGUAGES


def test_every_make_target_that_is_named_exists() -> None:
    """`make x` in the README or in CONTRIBUTING is a target of the Makefile."""
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    named = set()
    for page in ("README.md", "CONTRIBUTING.md"):
        named |= set(re.findall(r"^make ([a-z]+)|`make ([a-z]+)`", (PROJECT / page).read_text(), flags=re.MULTILINE))
    assert {name for pair in named for name in pair if name} <= targets


def test_every_linked_file_exists() -> None:
    """Relative links of the README lead somewhere."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (PROJECT / "README.md").read_text(encoding="utf-8")):
        assert (PROJECT / target).exists(), target
