"""Every block of the README runs, and what it shows is what the commands print, in shape if not in numbers.

Shell blocks run one after the other in one folder, with few tasks; a `text` block after a shell block is its output,
and a `json` block is the file `my_trace.jsonl` that later commands read.
`make` is not called here: the targets are checked to exist.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).resolve().parent.parent
_CHEAPER = (
    (r"--tasks \d+", "--tasks 12"),
    (r"--seeds \d+", "--seeds 1"),
    (r"--workers \d+", "--workers 1"),
    (r"^(saga sim (?!.*--tasks).*)$", r"\1 --tasks 12"),
    (r"^(saga sim (?!.*--seeds).*)$", r"\1 --seeds 1"),
    (r"^(saga demo.*)$", r"\1 --tasks 4"),
)


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


def run(command: str, folder: Path) -> str:
    """What a shell command prints; fails where it does."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=os.environ | {"PATH": path},
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
            wanted = [cheaper(command) for command in commands(block) if not command.startswith("make")]
            printed = "".join(run(command, tmp_path) for command in wanted)
        elif block.language == "json":
            (tmp_path / "my_trace.jsonl").write_text(block.text, encoding="utf-8")
        elif block.language == "text" and printed:
            missing = set(labels(block.text)) - set(labels(printed))
            assert not missing, f"README line {block.line} shows lines that are not printed: {missing}"


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
