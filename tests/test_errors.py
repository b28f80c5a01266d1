"""One tree of errors, with messages that say what would be right."""

from __future__ import annotations

import pytest

from saga import errors

ALL = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]


def test_all_errors_hang_in_one_tree() -> None:
    """Whoever catches the root catches everything that is raised on purpose."""
    assert all(issubclass(each, errors.SagaError) for each in ALL)


def test_the_three_faults_are_told_apart() -> None:
    """The caller's fault, the peer's and our own are never one another: they have different exit codes."""
    branches = (errors.UsageError, errors.PeerError, errors.InvariantViolated)
    assert all(
        sum(issubclass(each, branch) for branch in branches) == 1 for each in ALL if each is not errors.SagaError
    )


@pytest.mark.parametrize("each", ALL, ids=lambda each: each.__name__)
def test_the_tree_in_the_docstring_is_the_tree(each: type[Exception]) -> None:
    """The drawing that people read names every error."""
    assert errors.__doc__ is not None
    assert each.__name__ in errors.__doc__


@pytest.mark.parametrize(
    ("name", "hint"), [("sagaa", "did you mean 'saga'?"), ("zzz", "unknown preset 'zzz'")], ids=["near", "far"]
)
def test_an_unknown_name_comes_with_those_that_are_known(name: str, hint: str) -> None:
    """The message names the kind, the value, a near name if there is one, and all names in order."""
    said = str(errors.UnknownName("preset", name, ["vllm", "saga"]))
    assert hint in said
    assert ("did you mean" in said) == (name == "sagaa")
    assert said.endswith("Known: saga, vllm")


@pytest.mark.parametrize(("line", "where"), [(None, "runs.jsonl: "), (7, "runs.jsonl:7: "), (0, "runs.jsonl:0: ")])
def test_a_trace_error_points_at_its_line(line: int | None, where: str) -> None:
    """File and line lead, as compilers have it."""
    assert str(errors.TraceError("runs.jsonl", "no field 'task'", line=line)) == f"{where}no field 'task'"
