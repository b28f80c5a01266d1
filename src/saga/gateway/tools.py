"""What a tool call is called: the tool's name and, for a shell, the first word of the command.

`git status` and `make test` are one tool to the client and two kinds of gap to the scheduler. It refuses to run,
to validate, or to keep arguments.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

MAX_NAME_CHARS: Final = 96
MAX_ARGUMENT_CHARS: Final = 4_096
_SHELLS: Final = frozenset(
    {
        "bash",
        "container.exec",
        "exec",
        "exec_command",
        "execute_bash",
        "execute_command",
        "local_shell",
        "run_bash",
        "run_command",
        "run_in_terminal",
        "run_shell_command",
        "run_terminal_cmd",
        "run_terminal_command",
        "sh",
        "shell",
        "shell_command",
        "terminal",
    }
)
_PASSING: Final = frozenset({"sudo", "env", "time", "nohup", "command", "exec", "timeout", "nice", "then", "do", "!"})
_MOVING: Final = frozenset({"cd", "export", "set", "source", ".", "pushd", "unset", "true", ":"})
_SKIPPED: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*|-\S*|\d+[smh]?|[({]+")
_WORD: Final = re.compile(r"[A-Za-z0-9_.+-]{1,32}")
_PARTS: Final = re.compile(r"&&|\|\||[;|\n]")
_COMMAND: Final = re.compile(r'"(?:command|cmd|script|commands)"\s*:\s*(?:\[\s*)?"((?:[^"\\]|\\.)*)("?)')


def is_shell(name: str) -> bool:
    """Whether a tool of that name runs shell commands."""
    lowered = name.lower()
    return lowered in _SHELLS or lowered.rpartition("__")[2] in _SHELLS


def label(name: str, arguments: str = "") -> str:
    """The name of a call for the scheduler: "Bash:git" for a shell, else the tool's own name.

    arguments: JSON, whole or only its beginning. Never raises. Cost: O(first 4,096 characters).
    """
    name = "".join(char if char.isprintable() else "?" for char in name[:MAX_NAME_CHARS]) or "?"
    if not is_shell(name):
        return name
    word = first_word(_command(arguments[:MAX_ARGUMENT_CHARS]))
    return f"{name}:{word}" if word else name


def _command(arguments: str) -> str:
    """The command in a shell tool's arguments."""
    try:
        said = msgspec.json.decode(arguments)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return _cut_command(arguments)
    if isinstance(said, dict):
        action = said.get("action")
        said = action if isinstance(action, dict) else said
        said = next((said[key] for key in ("command", "cmd", "script", "commands") if key in said), "")
    if isinstance(said, list):
        words = [word for word in said if isinstance(word, str)]
        wrapped = len(words) > 2 and words[0].rpartition("/")[2] in ("bash", "sh", "zsh") and words[1].startswith("-")
        return words[2] if wrapped else " ".join(words)
    return said if isinstance(said, str) else ""


def _cut_command(arguments: str) -> str:
    """The command in arguments that are cut off."""
    found = _COMMAND.search(arguments)
    if found is None:
        return ""
    raw = found[1]
    try:
        return msgspec.json.decode(f'"{raw}"', type=str)
    except (msgspec.MsgspecError, UnicodeError):
        return raw.replace("\\n", "\n")


def first_word(command: str) -> str:
    """The first word that does something: past assignments, `sudo`, `timeout 5`, `cd somewhere &&`; "" if none."""
    for part in _PARTS.split(command, maxsplit=16):
        words = part.split(maxsplit=16)
        while words and (words[0] in _PASSING or _SKIPPED.fullmatch(words[0])):
            words.pop(0)
        if not words or words[0] in _MOVING or words[0].startswith("#"):
            continue
        found = _WORD.match(words[0].lstrip("({").rpartition("/")[2])
        if found is not None:
            return found[0]
    return ""
