"""Answers: the same prompt gets the same one, bounds hold, tools are called as scripted or by chance."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.engine.answers import (
    NEVER,
    Chance,
    Script,
    Tool,
    Turn,
    Wanted,
    compose,
    load_script,
    random_arguments,
    render_answer,
)
from saga.engine.filler import filler
from saga.errors import UsageError

BASH = Tool("bash", {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]})


@given(st.integers(0, 2**63), st.integers(0, 50), st.integers(0, 50))
def test_filler_has_four_bytes_a_token_and_longer_text_begins_the_same(seed: int, few: int, more: int) -> None:
    """One word is one token, and a seed has one text."""
    text = filler(seed, few + more)
    assert len(text) == 4 * (few + more)
    assert text.isascii()
    assert text.startswith(filler(seed, few))


@given(
    st.integers(0, 2**63),
    st.one_of(st.none(), st.integers(1, 400)),
    st.booleans(),
    st.sampled_from(["auto", "none", "required", "bash", "unknown"]),
    st.integers(1, 300),
)
def test_bounds_hold_and_pieces_make_up_the_whole(
    seed: int, max_tokens: int | None, ignore_eos: bool, choice: str, room: int
) -> None:
    """At most max_tokens, exactly as many where the end is ignored, and the pieces of any cut make the answer."""
    wanted = Wanted(max_tokens=max_tokens, ignore_eos=ignore_eos, tools=(BASH,), tool_choice=choice)
    answer = compose(wanted, seed, Chance(0.5), room)
    assert compose(wanted, seed, Chance(0.5), room) == answer
    limit = min(room, max_tokens or room)
    assert 1 <= answer.output_tokens <= limit
    if ignore_eos and max_tokens:
        assert answer.output_tokens == limit
    rendered = render_answer(answer.text, answer.calls)
    assert 0 <= 4 * answer.output_tokens - len(rendered) < 4
    cuts = sorted({*range(0, len(rendered) + 8, 4 + seed % 40), 0})
    pieces = [
        piece for start, end in zip(cuts, [*cuts[1:], 1 << 60], strict=True) for piece in answer.pieces(start, end)
    ]
    assert "".join(piece.text for piece in pieces if piece.kind == "text") == answer.text
    assert [piece.call for piece in pieces if piece.kind == "call"] == list(range(len(answer.calls)))
    assert "".join(p.text for p in pieces if p.kind == "arguments") == "".join(c.arguments for c in answer.calls)
    assert (answer.finish_reason == "tool_calls") == bool(answer.calls)
    if choice in ("none", "unknown"):
        assert not answer.calls


def test_a_required_call_is_made_unless_it_does_not_fit() -> None:
    """A named or required tool is called even by a server that never calls on its own; too few tokens, and it talks."""
    for choice in ("required", "bash"):
        wanted = Wanted(tools=(BASH,), tool_choice=choice, max_tokens=100)
        assert [call.name for call in compose(wanted, 1, NEVER, 1_000).calls] == ["bash"]
    tight = Wanted(tools=(BASH,), tool_choice="required", max_tokens=3)
    assert compose(tight, 1, NEVER, 1_000).finish_reason == "length"


def test_a_script_decides_turn_by_turn() -> None:
    """Turn k goes as written, then words; a tool that is not offered is not called."""
    script = Script((Turn(tool="bash", arguments={"command": "ls"}), Turn(answer="All done."), Turn(tool="other")))
    offered = [Wanted(tools=(BASH,), num_turns=turn) for turn in range(4)]
    answers = [compose(wanted, 7, script, 1_000) for wanted in offered]
    assert answers[0].calls[0].arguments == '{"command":"ls"}'
    assert (answers[1].text, answers[1].finish_reason) == ("All done.", "stop")
    assert not answers[2].calls
    assert not answers[3].calls
    assert not compose(Wanted(num_turns=0), 7, script, 1_000).calls


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.json", '{"turns": [{"tool": "bash", "arguments": {"command": "ls"}}, {"answer": "ok"}]}'),
        ("s.json", '[{"tool": "bash", "arguments": {"command": "ls"}}, {"answer": "ok"}]'),
        ("s.toml", '[[turns]]\ntool = "bash"\narguments = {command = "ls"}\n[[turns]]\nanswer = "ok"\n'),
    ],
)
def test_scripts_are_read_from_json_and_toml(tmp_path: Path, name: str, text: str) -> None:
    """Both spellings mean the same."""
    path = tmp_path / name
    path.write_text(text)
    turns = load_script(path).turns
    assert [(turn.tool, turn.arguments, turn.answer) for turn in turns] == [
        ("bash", {"command": "ls"}, ""),
        ("", {}, "ok"),
    ]


@pytest.mark.parametrize(
    ("name", "text"), [("s.json", "{"), ("s.toml", "= 1"), ("s.json", '[{"toll": "x"}]'), ("no.json", None)]
)
def test_a_bad_script_is_one_clear_error(tmp_path: Path, name: str, text: str | None) -> None:
    """It names the file."""
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=name):
        load_script(path)


def test_random_arguments_fit_the_schema() -> None:
    """Required properties only, of their type, from the enumeration where there is one."""
    schema = {
        "properties": {
            "command": {"type": "string"},
            "lines": {"type": "integer"},
            "all": {"type": "boolean"},
            "mode": {"enum": ["r", "w"]},
            "tags": {"type": "array"},
            "more": {"type": "object"},
            "optional": {"type": "string"},
        },
        "required": ["command", "lines", "all", "mode", "tags", "more"],
    }
    found = json.loads(random_arguments(schema, Random(3)))
    assert list(found) == schema["required"]
    assert [type(value) for value in found.values()] == [str, int, bool, str, list, dict]
    assert found["mode"] in ("r", "w")
    assert random_arguments({}, Random(3)) == "{}"
