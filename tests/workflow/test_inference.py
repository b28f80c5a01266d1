"""Kinds inferred from system prompt and tools."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from saga.workflow.inference import KindInference


def test_the_same_agent_has_one_kind() -> None:
    """Order and repetition of tools do not matter, prompt and tools do."""
    infer = KindInference()
    kind = infer.kind("prompt", ["Read", "Edit"])
    assert infer.kind("prompt", ["Edit", "Read", "Edit"]) == kind
    assert infer.kind("other", ["Read", "Edit"]) != kind
    assert infer.kind("prompt", ["Read"]) != kind


def test_a_prompt_that_always_differs_is_not_counted() -> None:
    """A date in the system prompt does not make a kind per day: after some prompts the tools alone decide."""
    infer = KindInference()
    kinds = {infer.kind(f"today is {day}", ["Read", "Edit"]) for day in range(200)}
    assert len(kinds) <= 9
    assert infer.kind("tomorrow", ["Read", "Edit"]) == infer.kind("yesterday", ["Read", "Edit"])


@given(st.lists(st.tuples(st.text(max_size=3), st.lists(st.text(max_size=2), max_size=3)), max_size=80))
def test_names_depend_on_the_order_of_sessions_only(seen: list[tuple[str, list[str]]]) -> None:
    """The same sessions in the same order give the same names, with a small memory too."""
    one, two = KindInference(4), KindInference(4)
    assert [one.kind(*item) for item in seen] == [two.kind(*item) for item in seen]


def test_memory_is_bounded() -> None:
    """The tool set not seen for longest is forgotten first."""
    infer = KindInference(max_tool_sets=2)
    for day in range(20):
        infer.kind(str(day), ["Read"])
    by_tools = infer.kind("x", ["Read"])
    infer.kind("x", ["Edit"])
    assert infer.kind("y", ["Read"]) == by_tools
    infer.kind("x", ["Bash"])
    infer.kind("x", ["Write"])
    assert infer.kind("y", ["Read"]) != by_tools
