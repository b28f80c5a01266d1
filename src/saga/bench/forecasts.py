"""How good the forecasts are: the workflow model on the tasks of a workload, against naive guesses.

Tasks pass one after the other, predict first and learn after, as in service; the first half only teaches, the second
half is scored. Every naive guess learns along in the same way: a unigram for the next node, the base rate for
"goes on", the running median of the node for the gap, "all of it" for overlap, mean length less steps done for the
steps that remain. It refuses to know engines and schedulers: a forecast is judged by what the workload then did.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import log
from typing import NamedTuple

from saga.workflow.graph import END, node_name
from saga.workflow.model import Track, WorkflowModel, WorkflowSettings
from saga.workloads.plan import Call, SessionPlan, Task

_NUM_BINS = 10
_SMALLEST_GAP_S = 1e-3
_LOG_FLOOR = 1e-9


class Reliability(NamedTuple):
    """One bin of a reliability table: what was said (mean) and what came (share), over so many steps."""

    low: float
    high: float
    steps: int
    said: float
    came: float


class Comparison(NamedTuple):
    """One figure of the model beside that of the naive guess; smaller is better unless the name says otherwise."""

    figure: str
    model: float
    naive: float


@dataclass(frozen=True)
class ForecastScores:
    """The verdict over the scored half.

    figures: by name, each with its naive rival; those of gaps are missing where the workload has none.
    reliability: ten bins of the continue probability. below_p50 / below_p95: share of the gaps that stayed within the
    forecast's median and 95th percentile (0.5 and 0.95 would be right).
    """

    num_tasks_taught: int
    num_tasks_scored: int
    num_steps_scored: int
    figures: tuple[Comparison, ...]
    reliability: tuple[Reliability, ...]
    below_p50: float | None
    below_p95: float | None


@dataclass
class _Samples:
    """What was said and what came, step by step."""

    log_loss: list[tuple[float, float]] = field(default_factory=list)
    goes_on: list[tuple[float, float, bool]] = field(default_factory=list)
    gaps: list[tuple[float, float, float, float]] = field(default_factory=list)
    overlap: list[tuple[float, float]] = field(default_factory=list)
    growth: list[tuple[float, float, float]] = field(default_factory=list)
    remaining: list[tuple[float, float, int]] = field(default_factory=list)


class _Naive:
    """The rivals: each a few lines of counting, learning online like the model."""

    def __init__(self) -> None:
        self.symbols: dict[str, int] = {}
        self.steps = 0
        self.sessions = 0
        self.growth = 0.0
        self.gaps: dict[str, list[float]] = {}

    def log_loss(self, name: str) -> float:
        """Nats for `name` by a unigram with one unseen symbol."""
        total = sum(self.symbols.values())
        return -log((self.symbols.get(name, 0) + 0.5) / (total + 0.5 * (len(self.symbols) + 1)))

    def learn(self, name: str) -> None:
        """Count the next symbol."""
        self.symbols[name] = self.symbols.get(name, 0) + 1

    def goes_on(self) -> float:
        """The base rate."""
        return 1.0 - (self.sessions + 0.5) / (self.steps + 1.0)

    def gap_s(self, node: str) -> float | None:
        """Median of the gaps seen at the node, else of all, None before the first."""
        seen = self.gaps.get(node) or self.gaps.get("")
        return seen[len(seen) // 2] if seen else None

    def learn_gap(self, node: str, gap_s: float) -> None:
        """Take a gap into the medians."""
        insort(self.gaps.setdefault(node, []), gap_s)
        insort(self.gaps.setdefault("", []), gap_s)

    def remaining(self, num_done: int) -> float:
        """Mean length of the sessions less the steps done."""
        return max(0.0, self.steps / max(1, self.sessions) - num_done)


def evaluate(tasks: Iterable[Task], settings: WorkflowSettings | None = None) -> tuple[ForecastScores, WorkflowModel]:
    """Teach and score over `tasks`, half and half; also the model as it stands at the end. O(calls * order)."""
    listed = list(tasks)
    model, naive, samples = WorkflowModel(settings), _Naive(), _Samples()
    taught = len(listed) // 2
    for place, task in enumerate(listed):
        _play(task, _Contest(model, naive, samples if place >= taught else _Samples()))
    return _scores(taught, len(listed) - taught, samples), model


class _Contest(NamedTuple):
    """The model, its rivals and where their guesses are noted."""

    model: WorkflowModel
    naive: _Naive
    samples: _Samples


def _play(task: Task, contest: _Contest) -> None:
    """All sessions of a task, children after their parents."""
    tracks: list[Track] = []
    for session in task.sessions:
        parent = tracks[session.parent] if session.parent is not None else None
        track = contest.model.open(task.workflow, parent=parent)
        tracks.append(track)
        _play_session(session, track, contest)


def _play_session(session: SessionPlan, track: Track, contest: _Contest) -> None:
    model, naive, _ = contest
    previous: Call | None = None
    for place, call in enumerate(session.calls):
        if previous is not None:
            _judge_next(track, previous, call, len(session.calls) - place, contest)
        model.step_arrived(
            track,
            gap_s=_gap_of(call) if previous is not None else None,
            gap_kind=call.gap_kind,
            prompt_tokens=call.prompt_tokens,
            common_tokens=call.common_tokens if previous is not None else None,
            hints=None,
        )
        model.step_finished(
            track, tool_calls=call.tools, output_tokens=call.output_tokens, prompt_tokens=call.prompt_tokens
        )
        naive.steps += 1
        previous = call
    _judge_end(track, contest)
    model.session_ended(track)
    naive.sessions += 1


def _gap_of(call: Call) -> float | None:
    """The gap before the call, None where the source has none."""
    return call.gap_s if call.gap_s > 0.0 else None


def _judge_next(track: Track, previous: Call, call: Call, num_left: int, contest: _Contest) -> None:
    """Compare what was expected after `previous` with the call that came; then let the rivals learn."""
    model, naive, samples = contest
    forecast = model.forecast(track)
    symbol = node_name(call.tools)
    samples.log_loss.append((-log(max(_LOG_FLOOR, model.next_probability(track, symbol))), naive.log_loss(symbol)))
    samples.goes_on.append((forecast.continue_probability, naive.goes_on(), True))
    samples.remaining.append((forecast.remaining_steps, naive.remaining(track.steps), num_left))
    context = previous.prompt_tokens + previous.output_tokens
    samples.overlap.append((forecast.overlap, min(1.0, call.common_tokens / context)))
    growth = max(0, call.prompt_tokens - context)
    samples.growth.append((forecast.new_tokens, naive.growth, growth))
    naive.learn(symbol)
    naive.growth += (growth - naive.growth) / naive.steps
    gap_s = _gap_of(call)
    if gap_s is not None:
        guess_s = naive.gap_s(track.node.name)
        if guess_s is not None:
            p95_s = forecast.gap.quantile(0.95)
            samples.gaps.append((forecast.expected_gap_s, p95_s, guess_s, gap_s))
        naive.learn_gap(track.node.name, gap_s)


def _judge_end(track: Track, contest: _Contest) -> None:
    """Compare what was expected after the last call with the end."""
    model, naive, samples = contest
    forecast = model.forecast(track)
    samples.log_loss.append((-log(max(_LOG_FLOOR, model.next_probability(track, END))), naive.log_loss(END)))
    samples.goes_on.append((forecast.continue_probability, naive.goes_on(), False))
    samples.remaining.append((forecast.remaining_steps, naive.remaining(track.steps), 0))
    naive.learn(END)


def _scores(num_taught: int, num_scored: int, samples: _Samples) -> ForecastScores:
    """Figures from samples; what a workload does not have is left out."""
    figures = [
        Comparison("next node, nats per step", *_means([(a, b) for a, b in samples.log_loss])),
        Comparison("goes on, Brier", *_means([((a - c) ** 2, (b - c) ** 2) for a, b, c in samples.goes_on])),
        Comparison("remaining steps, mean error", *_means([(abs(a - c), abs(b - c)) for a, b, c in samples.remaining])),
        Comparison("remaining steps, bias", *_biases(samples.remaining)),
        Comparison("overlap, mean error", *_means([(abs(a - c), 1.0 - c) for a, c in samples.overlap])),
        Comparison("new tokens, mean error", *_means([(abs(a - c), abs(b - c)) for a, b, c in samples.growth])),
        Comparison("new tokens, bias", *_biases(samples.growth)),
        *_gap_figures(samples.gaps),
    ]
    gaps = samples.gaps
    return ForecastScores(
        num_tasks_taught=num_taught,
        num_tasks_scored=num_scored,
        num_steps_scored=len(samples.goes_on),
        figures=tuple(figures),
        reliability=_reliability(samples.goes_on),
        below_p50=sum(gap <= p50 for p50, _, _, gap in gaps) / len(gaps) if gaps else None,
        below_p95=sum(gap <= p95 for _, p95, _, gap in gaps) / len(gaps) if gaps else None,
    )


def _gap_figures(gaps: Sequence[tuple[float, float, float, float]]) -> list[Comparison]:
    """Middle and 95th percentile of the absolute error (s) and of |ln(said / came)|, and its mean."""
    if not gaps:
        return []
    errors = [(abs(said - came), abs(guess - came)) for said, _, guess, came in gaps]
    ratios = [(_log_ratio(said, came), _log_ratio(guess, came)) for said, _, guess, came in gaps]
    return [
        Comparison("gap error p50, s", *_quantiles(errors, 0.5)),
        Comparison("gap error p95, s", *_quantiles(errors, 0.95)),
        Comparison("gap log-ratio p50", *_quantiles(ratios, 0.5)),
        Comparison("gap log-ratio p95", *_quantiles(ratios, 0.95)),
        Comparison("gap log-ratio mean", *_means(ratios)),
    ]


def _log_ratio(said_s: float, came_s: float) -> float:
    return abs(log(max(said_s, _SMALLEST_GAP_S) / max(came_s, _SMALLEST_GAP_S)))


def _means(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean of each side; zeros where there is nothing."""
    count = max(1, len(pairs))
    return sum(a for a, _ in pairs) / count, sum(b for _, b in pairs) / count


def _biases(samples: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Size of the mean error with its sign: what is left when errors cancel."""
    model, naive = _means([(said - came, guess - came) for said, guess, came in samples])
    return abs(model), abs(naive)


def _quantiles(pairs: Sequence[tuple[float, float]], q: float) -> tuple[float, float]:
    place = min(len(pairs) - 1, int(q * len(pairs)))
    return sorted(a for a, _ in pairs)[place], sorted(b for _, b in pairs)[place]


def _reliability(goes_on: Sequence[tuple[float, float, bool]]) -> tuple[Reliability, ...]:
    """Ten bins of equal width; empty ones are left out."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(_NUM_BINS)]
    for said, _, came in goes_on:
        bins[min(_NUM_BINS - 1, int(said * _NUM_BINS))].append((said, came))
    return tuple(
        Reliability(
            low=place / _NUM_BINS,
            high=(place + 1) / _NUM_BINS,
            steps=len(members),
            said=sum(said for said, _ in members) / len(members),
            came=sum(came for _, came in members) / len(members),
        )
        for place, members in enumerate(bins)
        if members
    )
