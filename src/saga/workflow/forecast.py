"""What is expected of one session: will it go on, when, with how much text, for how long.

Only the shape of the answer; `saga.workflow.model` works it out. It refuses to know what anybody does with it.
`__init__` is written out, because one is made for every step: compiled, that takes a tenth of the time.
"""

from __future__ import annotations

from dataclasses import dataclass

from saga.workflow.gaps import GapModel


@dataclass(slots=True, init=False)
class Forecast:
    """The expectation for a session that has waited some time since its last step (or whose step still runs).

    continue_probability: another step follows (0..1). gap: distribution of the whole gap, seconds, not yet
    conditioned on the time waited. expected_gap_s: of the whole gap given the time waited, >= waited; robust: the
    median, or the rank at which this session's earlier gaps lay.
    new_tokens: growth of the next prompt beyond the present context. output_tokens: of the next call's answer.
    overlap: share (0..1) of the present context that the next call reuses. remaining_steps: steps still to
    come, counting that they may not. remaining_tokens: growth of the context over them, prompt and output.
    confidence: 0..1, how much evidence stands behind it; the paper compares it with theta_conf = 0.7.
    """

    continue_probability: float
    gap: GapModel
    expected_gap_s: float
    new_tokens: float
    output_tokens: float
    overlap: float
    remaining_steps: float
    remaining_tokens: float
    confidence: float

    def __init__(
        self,
        continue_probability: float,
        gap: GapModel,
        expected_gap_s: float,
        new_tokens: float,
        output_tokens: float,
        overlap: float,
        remaining_steps: float,
        remaining_tokens: float,
        confidence: float,
    ) -> None:
        self.continue_probability = continue_probability
        self.gap = gap
        self.expected_gap_s = expected_gap_s
        self.new_tokens = new_tokens
        self.output_tokens = output_tokens
        self.overlap = overlap
        self.remaining_steps = remaining_steps
        self.remaining_tokens = remaining_tokens
        self.confidence = confidence
