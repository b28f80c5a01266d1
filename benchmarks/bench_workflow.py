"""What a step costs in the workflow model, beside the simplest thing that could stand in its place.

    python benchmarks/bench_workflow.py [--steps 30000]

Prints microseconds per step (arrival, answer, one forecast, and the session's open and end spread over its steps) for
WorkflowModel, and for a baseline that keeps one fading mean gap per tool and a count of ends; and what the model holds.
"""

from __future__ import annotations

import argparse
import random
import time
import tracemalloc
from collections.abc import Callable

from saga.workflow.model import WorkflowModel

TOOLS = ("Bash:git", "Bash:pytest", "Read", "Edit", "Grep", "TodoWrite", "Write", "Bash:ls")
STEPS_PER_SESSION = 30
Script = list[list[tuple[float, int, tuple[str, ...]]]]


class FadingMeans:
    """The baseline: expected gap = fading mean per tool, continue probability = share of steps that had a next."""

    def __init__(self) -> None:
        self.gap_s: dict[str, float] = {}
        self.steps = self.ends = 1

    def play(self, script: Script) -> None:
        """Learn and forecast along the script."""
        for session in script:
            tool = "start"
            for gap_s, _, tools in session:
                mean = self.gap_s.get(tool, 1.0)
                self.gap_s[tool] = mean + 0.05 * (gap_s - mean)
                self.steps += 1
                tool = tools[0] if tools else "user"
                _forecast = (1.0 - self.ends / self.steps, self.gap_s.get(tool, 1.0))
            self.ends += 1


def play(model: WorkflowModel, script: Script) -> None:
    """The same with the model."""
    for number, session in enumerate(script):
        track = model.open(f"kind {number % 4}")
        for step, (gap_s, prompt, tools) in enumerate(session):
            model.step_arrived(
                track,
                gap_s=gap_s if step else None,
                gap_kind="tool",
                prompt_tokens=prompt,
                common_tokens=prompt - 300 if step else None,
                hints=None,
            )
            model.step_finished(track, tool_calls=tools, output_tokens=100, prompt_tokens=prompt)
            model.forecast(track)
        model.session_ended(track)


def script(num_steps: int, seed: int) -> Script:
    """Sessions of thirty steps with log-normal gaps and tools by chance."""
    dice = random.Random(seed)
    sessions = []
    for _ in range(num_steps // STEPS_PER_SESSION):
        steps = [
            (dice.lognormvariate(0.0, 2.0), 3000 + 400 * step, (dice.choice(TOOLS),))
            for step in range(STEPS_PER_SESSION)
        ]
        steps[-1] = (*steps[-1][:2], ())
        sessions.append(steps)
    return sessions


def microseconds(work: Callable[[Script], None], num_steps: int, rounds: int = 5) -> float:
    """Best of some rounds, per step, processor time: other processes on the machine do not count."""
    best = float("inf")
    for number in range(rounds):
        sessions = script(num_steps, seed=number)
        began = time.process_time()
        work(sessions)
        best = min(best, time.process_time() - began)
    return 1e6 * best / num_steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30_000)
    num_steps = parser.parse_args().steps
    baseline, model = FadingMeans(), WorkflowModel()
    play(model, script(num_steps // 10, seed=99))
    print(f"fading mean per tool   {microseconds(baseline.play, num_steps):6.2f} us per step")
    print(f"WorkflowModel          {microseconds(lambda sessions: play(model, sessions), num_steps):6.2f} us per step")
    tracemalloc.start()
    fresh = WorkflowModel()
    play(fresh, script(3_000, seed=1))
    size, _ = tracemalloc.get_traced_memory()
    nodes = sum(len(fresh.graph(kind).nodes) for kind in fresh.kinds())
    print(f"state                  {size / 1024:6.0f} KB for {len(fresh.kinds())} kinds, {nodes} nodes")


if __name__ == "__main__":
    main()
