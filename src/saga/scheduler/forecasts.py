"""What the scheduler asks of a workflow model, and the twin that learns nothing, for systems without forecasts."""

from __future__ import annotations

from typing import TypeAlias

from saga.events import Hints
from saga.workflow.forecast import Forecast
from saga.workflow.gaps import GapModel
from saga.workflow.model import Track, WorkflowModel


def nothing_known() -> Forecast:
    """The forecast of a session of which nothing is known: it comes back, soon, and uses all that it left."""
    return Forecast(
        continue_probability=1.0,
        gap=GapModel(),
        expected_gap_s=0.0,
        new_tokens=0.0,
        output_tokens=0.0,
        overlap=1.0,
        remaining_steps=0.0,
        remaining_tokens=0.0,
        confidence=0.0,
    )


class NoForecasts:
    """Expects nothing in particular of anybody. All operations O(1)."""

    def __init__(self) -> None:
        self._forecast = nothing_known()
        self._track = WorkflowModel().open("")

    def open(self, workflow: str, hints: Hints | None = None, *, parent: Track | None = None) -> Track:
        """One track for all: nothing is written to it."""
        return self._track

    def step_arrived(
        self,
        track: Track,
        *,
        gap_s: float | None,
        gap_kind: str,
        prompt_tokens: int,
        common_tokens: int | None,
        hints: Hints | None,
    ) -> None:
        """Nothing is learned."""

    def step_finished(
        self, track: Track, *, tool_calls: tuple[str, ...], output_tokens: int, prompt_tokens: int
    ) -> None:
        """Nothing is learned."""

    def session_ended(self, track: Track) -> None:
        """Nothing is learned."""

    def forecast(self, track: Track, waited_s: float = 0.0) -> Forecast:
        """The same for everybody."""
        return self._forecast


Forecaster: TypeAlias = WorkflowModel | NoForecasts
"""What the scheduler asks: a union, not a protocol, so that compiled code calls either without looking names up."""
