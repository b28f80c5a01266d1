"""One out of those scored, the same one whatever order they come in."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from saga.routing.pickers import Best
from saga.views import WorkerView


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=10).flatmap(lambda scores: st.permutations([*enumerate(scores)]))
)
def test_the_best_is_picked_and_of_equals_the_first_that_joined(placed: list[tuple[int, int]]) -> None:
    """Ties are ordered, never random, and the order of the candidates does not matter."""
    scored = [(float(score), WorkerView(f"w{index}", index, 100)) for index, score in placed]
    best_score = max(score for _, score in placed)
    first = min(index for index, score in placed if score == best_score)
    assert Best().pick(scored).index == first
