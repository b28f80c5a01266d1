"""What a tool call is called."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.tools import first_word, label


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("Bash", {"command": "git status", "description": "look"}, "Bash:git"),
        ("bash", {"command": "cd /repo && python -m pytest -q"}, "bash:python"),
        ("shell", {"command": ["bash", "-lc", "rg -n foo"]}, "shell:rg"),
        ("shell", {"command": ["ls", "-la"]}, "shell:ls"),
        ("exec_command", {"cmd": "make test"}, "exec_command:make"),
        ("execute_command", {"command": "npm install"}, "execute_command:npm"),
        ("run_terminal_cmd", {"command": "FOO=1 sudo timeout 30 cargo build"}, "run_terminal_cmd:cargo"),
        ("local_shell", {"action": {"type": "exec", "command": ["sed", "-n", "1p", "f"]}}, "local_shell:sed"),
        ("mcp__desktop__bash", {"command": "/usr/bin/env node x.js"}, "mcp__desktop__bash:env"),
        ("Bash", {"command": "# comment\nls"}, "Bash:ls"),
        ("Bash", {"command": ""}, "Bash"),
        ("Bash", {"nothing": 1}, "Bash"),
        ("Read", {"command": "git status"}, "Read"),
        ("get_weather", {"city": "Paris"}, "get_weather"),
    ],
)
def test_a_shells_first_word_is_part_of_its_name(name, arguments, expected):
    """Shells of the common agents are told apart by what they run; other tools have their name."""
    assert label(name, json.dumps(arguments)) == expected


def test_arguments_that_are_cut_off_still_tell():
    """The beginning of a long command is enough."""
    whole = json.dumps({"command": "python - <<'EOF'\n" + "x = 1\n" * 2_000 + "EOF"})
    assert label("Bash", whole) == label("Bash", whole[:100]) == "Bash:python"


@pytest.mark.parametrize("command", ["", "   ", "&&", "| |", "FOO=1", "cd /x", "((", "$(x)", "'quoted'"])
def test_commands_without_a_word_have_none(command):
    """Where nothing plain is run the shell has only its own name."""
    assert first_word(command) == ""


@given(st.text(max_size=200), st.text(max_size=500))
def test_no_name_and_no_arguments_raise(name, arguments):
    """Whatever a model writes, a short printable label comes out."""
    made = label(name, arguments)
    assert made.isprintable()
    assert 0 < len(made) <= 96 + 1 + 32
