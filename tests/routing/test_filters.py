"""Who may serve a step at all."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from saga.routing.filters import PromptFits, Serving
from saga.views import SessionView, WorkerView


def asking(prompt_tokens: int) -> SessionView:
    """A session whose step has such a prompt."""
    made = SessionView("s", "task", "tenant", 0.0)
    made.prompt_tokens = prompt_tokens
    return made


@given(st.booleans(), st.integers(1, 10**6))
def test_a_worker_that_drains_is_dropped(draining: bool, prompt_tokens: int) -> None:
    """Draining is all that this filter looks at."""
    worker = WorkerView("w", 0, 100)
    worker.draining = draining
    assert Serving().keep(asking(prompt_tokens), worker) is not draining


@given(st.integers(1, 1_000), st.integers(1, 1_000))
def test_a_prompt_needs_room_for_its_answer(prompt_tokens: int, kv_tokens: int) -> None:
    """A worker is kept exactly if the prompt and one token more fit into its memory."""
    fits = PromptFits().keep(asking(prompt_tokens), WorkerView("w", 0, kv_tokens))
    assert fits == (prompt_tokens + 1 <= kv_tokens)
