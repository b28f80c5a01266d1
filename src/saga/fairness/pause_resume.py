"""Pause and resume of whole programs under memory pressure (ThunderAgent).

The same questions as `fairness.admission` asks of a gate, answered with two marks instead of one: pausing begins above
the upper one and goes on to the lower one, and nobody is let in between them, so that programs do not flap.
"""

from __future__ import annotations

from dataclasses import dataclass

from saga.views import SessionView, WorkerView


@dataclass(frozen=True)
class PauseResume:
    """Shares of the device that the contexts of active programs may fill (Dynamo 1.3's port: 0.95, 0.80, 0.10).

    pause_above: beyond it programs that are at a tool are paused, shortest context first, until `pause_to` is reached.
    headroom: below pause_above by so much, programs are let in or resumed.
    """

    pause_above: float = 0.95
    pause_to: float = 0.80
    headroom: float = 0.10
    gates: bool = True

    def growth(self, context_tokens: float, forecast_tokens: float) -> float:
        """Nothing: the headroom is for all."""
        return 0.0

    def fits(self, worker: WorkerView, extra_tokens: float, *, new: bool) -> bool:
        """Within the upper mark less the headroom; an empty worker takes anybody."""
        room = (self.pause_above - self.headroom) * worker.kv_tokens
        return worker.num_active == 0 or worker.active_tokens + extra_tokens <= room

    def excess(self, worker: WorkerView) -> float:
        """Above the upper mark, what lies above the lower one."""
        if worker.active_tokens <= self.pause_above * worker.kv_tokens:
            return 0.0
        return worker.active_tokens - self.pause_to * worker.kv_tokens

    def pause_rank(self, session: SessionView) -> float:
        """Shortest context first: recomputing grows with the square of it."""
        return -float(session.context_tokens)
