"""The one object that the scheduler asks what a session will do next.

`WorkflowModel` keeps a graph per kind of workflow and one for the average of all kinds, which each kind teaches with
its first sessions, so that no busy kind drowns the others; a `Track` is a session's place in them. It learns from four
facts (a session opened, a step arrived, a step finished, a session ended) and answers `forecast`. It refuses to know
workers, caches, clocks (times come as gaps) and where facts come from.

How a forecast is made, after the session's n-th step, standing at a path of nodes:

1. P(end | path) by the variable-order graph; a cold kind (fewer than 30 finished sessions) is mixed with the
   average of all kinds in proportion to what it lacks.
2. The hazard of ending after exactly n steps, from the lengths of the kind's sessions. Both are joined as naive
   Bayes does: odds(path) * odds(n) / odds(any n).
3. Time already waited speaks for an end: P(continue | waited) = p S(waited) / (p S(waited) + 1 - p).
4. The expected gap is the quantile of the node's gaps at the rank where the session's earlier gaps lay among their
   like, as far as slow sessions of the kind are seen to stay slow. The distribution handed out is that of the node.
5. Remaining steps = P(continue) * mean residual life at n. Remaining tokens = those steps * growth per step, where
   the session's own growth counts from its first steps on.
6. Trusted hints replace what they speak of.

Source: paper (AEG, theta_conf 0.7, cold start 30 tasks).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import exp, log
from typing import Any

from saga.errors import UsageError
from saga.events import Hints
from saga.workflow import hints as said
from saga.workflow.forecast import Forecast
from saga.workflow.gaps import GapModel, bin_of
from saga.workflow.graph import CHILD, END, START, USER, Node, Path, WorkflowGraph, node_name
from saga.workflow.hints import TRUSTED_FROM, HintTrust, SessionTrust

_AVERAGE = "average of all kinds"
_AVERAGE_ORDER = 1
_EVIDENCE_WEIGHT = 4.0
_NODE_WEIGHT = 2.0
_SESSION_WEIGHT = 4.0
_PACE_KEEP, _PACE_WEIGHT, _EXTREME_RANK = 0.9, 2.0, 0.02
_OVERLAP_KEEP = 0.5
_OVERLAP_PRIOR = 0.5
_DEAF_BELOW = 0.6
_SMALLEST_CHANCE = 1e-4
_END_AFTER_USER, _END_AFTER_TOOL, _END_WEIGHT = 0.5, 0.03, 8.0
_MAX_NAMES = 8192
_FORMAT = 1


@dataclass(frozen=True)
class WorkflowSettings:
    """How the model learns. Counts are caps on its state: at a cap the least-seen quarter is forgotten.

    cold_start_tasks: finished sessions from which a kind stands on its own (paper: 30). confidence: theta_conf,
    from which a forecast should be acted on (paper: 0.7, 0.5-0.9). order: nodes of history that predict the
    next. gap_window: observations after which old gaps are halved. Raises UsageError where a value cannot be.
    """

    cold_start_tasks: int = 30
    confidence: float = 0.7
    order: int = 3
    max_kinds: int = 256
    max_nodes: int = 512
    max_contexts: int = 2048
    gap_window: float = 4096.0

    def __post_init__(self) -> None:
        """Check each value."""
        for name, low, high in (
            ("cold_start_tasks", 1, 1_000_000),
            ("confidence", 0.0, 1.0),
            ("order", 0, 8),
            ("max_kinds", 4, 100_000),
            ("max_nodes", 16, 100_000),
            ("max_contexts", 16, 10_000_000),
            ("gap_window", 16.0, 1e9),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                msg = f"workflow.{name} = {value!r} must lie between {low} and {high}"
                raise UsageError(msg)


class Track:
    """A session's place in the graph of its kind; made by `WorkflowModel.open`, about a KB with its history.

    steps: finished so far. context_tokens: prompt and output of the last one. waiting: in a gap, not running.
    """

    __slots__ = (
        "average_path",
        "context_tokens",
        "first_context_tokens",
        "graph",
        "hints",
        "hints_at_step",
        "history",
        "length_said",
        "node",
        "overlap",
        "overlap_before",
        "overlap_last",
        "overlap_weight",
        "pace",
        "pace_weight",
        "path",
        "steps",
        "teaches_all",
        "trust",
        "trust_here",
        "waiting",
    )

    def __init__(self, graph: WorkflowGraph, trust: HintTrust, node: Node, path: Path, average_path: Path) -> None:
        self.graph = graph
        self.node = node
        self.path = path
        self.average_path = average_path
        self.history: tuple[str, ...] = (node.name,)
        self.steps = 0
        self.context_tokens = 0
        self.first_context_tokens = 0
        self.waiting = False
        self.teaches_all = True
        self.overlap = 0.0
        self.overlap_last = 0.0
        self.overlap_before = 0.0
        self.overlap_weight = 0.0
        self.pace = 0.0
        self.pace_weight = 0.0
        self.trust = trust
        self.trust_here: SessionTrust | None = None
        self.hints: Hints | None = None
        self.hints_at_step = 0
        self.length_said: int | None = None

    @property
    def kind(self) -> str:
        """Name of the kind of workflow."""
        return self.graph.kind


class WorkflowModel:
    """Graphs, gap models and trust of all kinds of workflows.

    Deterministic: the same calls give the same answers. State is bounded by `settings`; a track costs about a KB.
    """

    def __init__(self, settings: WorkflowSettings | None = None) -> None:
        self.settings = settings if settings is not None else WorkflowSettings()
        self._reach = max(1, self.settings.order)
        self._average = self._new_graph(_AVERAGE, None)
        self._kinds: dict[str, WorkflowGraph] = {}
        self._trust: dict[str, HintTrust] = {}
        self._names: dict[tuple[str, ...], str] = {}
        self._hinted_gaps: dict[int, GapModel] = {}

    # kinds

    def _new_graph(self, kind: str, broader: WorkflowGraph | None) -> WorkflowGraph:
        settings = self.settings
        return WorkflowGraph(
            kind,
            broader,
            order=settings.order if broader is not None else _AVERAGE_ORDER,
            max_nodes=settings.max_nodes,
            max_contexts=settings.max_contexts,
            gap_window=settings.gap_window,
        )

    def graph(self, kind: str) -> WorkflowGraph:
        """The graph of `kind`, made where it is new; where there are too many the least-seen quarter goes."""
        found = self._kinds.get(kind)
        if found is None:
            if len(self._kinds) >= self.settings.max_kinds:
                self._forget_kinds()
            found = self._kinds[kind] = self._new_graph(kind, self._average)
            self._trust[kind] = HintTrust()
        return found

    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds known, sorted."""
        return tuple(sorted(self._kinds))

    def _forget_kinds(self) -> None:
        ranked = sorted(self._kinds, key=lambda kind: (self._kinds[kind].tasks, kind))
        for kind in ranked[: max(1, len(ranked) // 4)]:
            del self._kinds[kind]
            del self._trust[kind]

    def declare(self, kind: str, edges: Iterable[object]) -> None:
        """Take a graph that the client declares as prior pseudo-counts.

        edges: {"from": node, "to": node or "end", "weight": pseudo-count (default 5)} each; nodes are named as
        in `saga.workflow.graph`. Raises UsageError for an edge that is none. O(edges).
        """
        graph = self.graph(kind)
        for source, target, weight in said.declared_edges(kind, edges):
            for name in (source, target):
                if name != END:
                    self._average.node(name)
                    graph.node(name)
            graph.advance(graph.path((source,)), target, weight)

    # facts

    def open(self, workflow: str, hints: Hints | None = None, *, parent: Track | None = None) -> Track:
        """A new session of kind `workflow` ("" where unknown). O(order).

        A sub-agent (`parent` given) is a kind of its own, "<kind>/child", and the gap in which its parent waits
        becomes that of a "child".
        """
        kind = workflow
        if parent is not None:
            kind = workflow if workflow.endswith("/child") else f"{workflow}/child"
            if parent.waiting and parent.node.name in (USER, START):
                self._enter(parent, CHILD)
        self._average.node(START)
        graph = self.graph(kind)
        node = graph.node(START)
        node.visits += 1
        track = Track(graph, self._trust[kind], node, graph.path((START,)), self._average.path((START,)))
        track.teaches_all = graph.tasks < self.settings.cold_start_tasks
        if hints is not None:
            self._take_hints(track, hints)
        return track

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
        """The session's next call came `gap_s` after its last step ended (None: unknown, or its first).

        prompt_tokens: the whole prompt; common_tokens: leading tokens shared with the context, None if unknown.
        Learns gap, growth and overlap of the node that led here. O(1).
        """
        if track.steps:
            node, graph = track.node, track.graph
            if track.hints is not None:
                self._judge_arrival(track, gap_s)
            if gap_s is not None:
                self._learn_pace(track, gap_s)
                self._learn_gap(track, bin_of(gap_s), by_user=gap_kind.startswith("user"))
            context = track.context_tokens
            growth = prompt_tokens - context if prompt_tokens > context else 0
            node.growth.observe(growth)
            graph.growth.observe(growth)
            if track.teaches_all:
                self._average.growth.observe(growth)
            if common_tokens is not None and context > 0:
                self._learn_overlap(track, common_tokens / context if common_tokens < context else 1.0)
        track.waiting = False
        if hints is not None:
            self._take_hints(track, hints)

    def _learn_gap(self, track: Track, index: int, *, by_user: bool) -> None:
        """Teach the node, its tool and the kind (all kinds too); what a human took is no tool's time."""
        graph, node = track.graph, track.node
        node.gap.observe_bin(index)
        if ":" in node.name:
            tool = graph.tool_of(node.name)
            if tool is not None:
                tool.gap.observe_bin(index)
        if not by_user:
            graph.gap.observe_bin(index)
        if track.teaches_all:
            self._average.node(node.name).gap.observe_bin(index)
            if not by_user:
                self._average.gap.observe_bin(index)

    def _learn_pace(self, track: Track, gap_s: float) -> None:
        """Whether this session's gaps are long or short among their like, and whether that lasts in this kind."""
        longer = min(max(track.node.gap.survival(gap_s), _EXTREME_RANK), 1.0 - _EXTREME_RANK)
        score = log((1.0 - longer) / longer)
        weight = track.pace_weight
        if weight:
            track.graph.pace.observe(track.pace * weight / (weight + _PACE_WEIGHT), score)
        kept = weight * _PACE_KEEP
        track.pace_weight = kept + 1.0
        track.pace = (track.pace * kept + score) / (kept + 1.0)

    def _learn_overlap(self, track: Track, share: float) -> None:
        track.node.overlap.observe(share)
        track.graph.overlap.observe(share)
        if track.teaches_all:
            self._average.overlap.observe(share)
        kept = track.overlap_weight * _OVERLAP_KEEP
        track.overlap_before = track.overlap_last if kept else share
        track.overlap_last = share
        track.overlap_weight = kept + 1.0
        track.overlap = (track.overlap * kept + share) / (kept + 1.0)

    def step_finished(
        self, track: Track, *, tool_calls: tuple[str, ...], output_tokens: int, prompt_tokens: int
    ) -> None:
        """The call was answered: the session moves to the node that the answer opens. O(order).

        tool_calls: names that the answer calls, () for an answer to the user.
        """
        if track.hints is not None:
            self._judge_answer(track, tool_calls, output_tokens)
        track.node.output.observe(output_tokens)
        track.graph.output.observe(output_tokens)
        track.context_tokens = prompt_tokens + output_tokens
        if track.steps:
            track.graph.steps.went_on(track.steps)
            if track.teaches_all:
                self._average.steps.went_on(track.steps)
        else:
            track.first_context_tokens = track.context_tokens
        track.steps += 1
        track.waiting = True
        name = self._names.get(tool_calls)
        if name is None:
            name = self._name(tool_calls)
        track.graph.advance(track.path, name)
        if track.teaches_all:
            self._average.output.observe(output_tokens)
            self._average.advance(track.average_path, name)
        self._enter(track, name)

    def _enter(self, track: Track, name: str) -> None:
        if track.teaches_all:
            self._average.node(name)
            track.average_path = self._average.path((name,))
        graph = track.graph
        node = track.node = graph.node(name)
        node.visits += 1
        history = track.history = (*track.history, name)[-self._reach :]
        track.path = graph.path(history)

    def _name(self, tool_calls: tuple[str, ...]) -> str:
        """Name of the node that an answer with these calls opens."""
        if len(self._names) >= _MAX_NAMES:
            self._names = {}
        name = self._names[tool_calls] = node_name(tool_calls)
        return name

    def session_ended(self, track: Track) -> None:
        """No further step of the session will come; the track is done with. O(order).

        A session that ends while its step runs was given up: it says nothing about how such sessions end.
        """
        if not track.waiting:
            return
        track.waiting = False
        if track.hints is not None:
            self._judge_end(track)
        track.graph.advance(track.path, END)
        track.graph.steps.ended(track.steps)
        if track.teaches_all:
            self._average.advance(track.average_path, END)
            self._average.steps.ended(track.steps)

    # hints

    def _take_hints(self, track: Track, hints: Hints) -> None:
        if track.trust_here is None:
            track.trust_here = SessionTrust()
        track.hints = hints
        track.hints_at_step = track.steps
        if hints.remaining_steps is not None and track.length_said is None:
            track.length_said = track.steps + 1 + hints.remaining_steps

    def _judge(self, track: Track, name: str, *, right: bool) -> None:
        track.trust.judge(name, right=right)
        if track.trust_here is not None:
            track.trust_here.judge(right=right)

    def _judge_answer(self, track: Track, tool_calls: tuple[str, ...], output_tokens: int) -> None:
        hints = track.hints
        if hints is None or track.hints_at_step != track.steps:
            return
        if hints.next_tools is not None:
            self._judge(track, said.NEXT_TOOLS, right=sorted(hints.next_tools) == sorted(tool_calls))
        if hints.output_tokens is not None:
            self._judge(track, said.OUTPUT, right=said.near(hints.output_tokens, output_tokens))

    def _judge_arrival(self, track: Track, gap_s: float | None) -> None:
        hints = track.hints
        if hints is None or track.hints_at_step != track.steps - 1:
            return
        if hints.final is not None:
            self._judge(track, said.FINAL, right=not hints.final)
        if hints.gap_s is not None and gap_s is not None:
            self._judge(track, said.GAP, right=said.near_gap(hints.gap_s, gap_s))
        length = track.length_said
        if length is not None and length < track.steps + 1 and not said.near_steps(length, track.steps + 1):
            self._judge(track, said.REMAINING, right=False)
            track.length_said = None

    def _judge_end(self, track: Track) -> None:
        hints = track.hints
        if hints is not None and hints.final is not None and track.hints_at_step == track.steps - 1:
            self._judge(track, said.FINAL, right=hints.final)
        if track.length_said is not None:
            self._judge(track, said.REMAINING, right=said.near_steps(track.length_said, track.steps))

    def trust(self, kind: str, name: str) -> float:
        """How far hints of field `name` are believed for `kind`, 0..1 (followed from 0.5)."""
        found = self._trust.get(kind)
        return (found if found is not None else HintTrust()).trust(name)

    # answers

    def forecast(self, track: Track, waited_s: float = 0.0) -> Forecast:
        """What to expect of the session that has waited `waited_s` since its last step ended. O(order).

        While its step still runs, what comes after that step: the tools are not known yet, so the kind's
        averages stand in for the node's.
        """
        graph, average = track.graph, self._average
        num_done = track.steps if track.waiting else track.steps + 1
        about: Node | WorkflowGraph = track.node if track.waiting else graph
        warm = graph.steps.sessions / self.settings.cold_start_tasks
        warm = min(warm, 1.0)
        chance = 1.0 - self._end_chance(track, num_done, warm)
        gap = about.gap
        if waited_s > 0.0:
            alive = chance * gap.survival(waited_s)
            chance = alive / (alive + 1.0 - chance)
        life = graph.steps.mean_left(num_done)
        if warm < 1.0:
            life = warm * life + (1.0 - warm) * average.steps.mean_left(num_done)
        growth, output = graph.growth.mean, graph.output.mean
        if warm < 1.0:
            growth = graph.growth.leaning_on(average.growth.mean, 1.0)
            output = graph.output.leaning_on(average.output.mean, 1.0)
        seen = track.node.visits if track.waiting else graph.steps.sessions
        forecast = Forecast(
            chance,
            gap,
            gap.quantile(_usual_rank(track), waited_s),
            about.growth.leaning_on(growth, _NODE_WEIGHT),
            about.output.leaning_on(output, _NODE_WEIGHT),
            self._overlap(track),
            chance * life,
            chance * life * self._growth_per_step(track),
            warm * seen / (seen + _EVIDENCE_WEIGHT),
        )
        hints = track.hints
        if hints is None or track.hints_at_step != num_done - 1:
            return forecast
        return self._hinted(track, hints, forecast, waited_s)

    def _end_chance(self, track: Track, num_done: int, warm: float) -> float:
        """P(no step follows the `num_done`-th)."""
        hazard, base = track.graph.steps.hazards(num_done)
        if warm < 1.0:
            usual, usual_base = self._average.steps.hazards(num_done)
            hazard = warm * hazard + (1.0 - warm) * usual
            base = warm * base + (1.0 - warm) * usual_base
        if not track.waiting:
            return hazard
        chance = track.graph.probability(track.path, END)
        if warm < 1.0:
            chance = warm * chance + (1.0 - warm) * self._usual_end_chance(track)
        chance = min(max(chance, _SMALLEST_CHANCE), 1.0 - _SMALLEST_CHANCE)
        speaks = log(hazard * (1.0 - base) / ((1.0 - hazard) * base))
        odds = chance / (1.0 - chance)
        if not -_DEAF_BELOW <= speaks <= _DEAF_BELOW:
            odds *= exp(speaks - (_DEAF_BELOW if speaks > 0.0 else -_DEAF_BELOW))
        return odds / (1.0 + odds)

    def _usual_end_chance(self, track: Track) -> float:
        """P(end | node) over all kinds; with nothing seen a called tool returns, and a human may not."""
        path = track.average_path
        prior = _END_AFTER_USER if track.node.name == USER else _END_AFTER_TOOL
        seen = path[-1].total
        return (self._average.probability(path, END) * seen + prior * _END_WEIGHT) / (seen + _END_WEIGHT)

    def next_probability(self, track: Track, name: str) -> float:
        """P(the next symbol is `name` | all that is known): the node that the next answer opens, or "end".

        For a session in a gap; sums to one over the symbols of all kinds and one unseen symbol. O(order).
        """
        warm = min(1.0, track.graph.tasks / self.settings.cold_start_tasks)
        ends = self._end_chance(track, track.steps, warm)
        if name == END:
            return ends
        chance = self._symbol_chance(track, name, warm)
        return (1.0 - ends) * chance / (1.0 - self._symbol_chance(track, END, warm))

    def _symbol_chance(self, track: Track, name: str, warm: float) -> float:
        usual = self._average.probability(self._average.path((track.node.name,)), name)
        chance = track.graph.probability(track.path, name, usual)
        return warm * chance + (1.0 - warm) * usual

    def _overlap(self, track: Track) -> float:
        """Share of the context that the next call reuses.

        Half a fading mean, half the larger of the last two: who rewrites its history is found out in two calls, and
        one compaction in an append-only session is forgiven.
        """
        graph = track.graph
        prior = graph.overlap.leaning_on(self._average.overlap.leaning_on(1.0, 1.0), 1.0)
        if track.waiting:
            prior = track.node.overlap.leaning_on(prior, _NODE_WEIGHT)
        weight = track.overlap_weight
        if not weight:
            return prior
        faded = (track.overlap * weight + prior * _OVERLAP_PRIOR) / (weight + _OVERLAP_PRIOR)
        return 0.5 * (faded + max(track.overlap_last, track.overlap_before))

    def _growth_per_step(self, track: Track) -> float:
        """Tokens that one further step adds to the context, prompt and output."""
        graph = track.graph
        usual = graph.growth.mean + graph.output.mean
        own_steps = track.steps - 1
        if own_steps <= 0:
            return usual
        own = track.context_tokens - track.first_context_tokens
        return max(0.0, (own + usual * _SESSION_WEIGHT) / (own_steps + _SESSION_WEIGHT))

    def _hinted(self, track: Track, hints: Hints, forecast: Forecast, waited_s: float) -> Forecast:
        """The forecast with what trusted hints say put in its place."""
        here = track.trust_here.factor if track.trust_here is not None else 1.0
        believed = {name: track.trust.trust(name) * here for name in said.FIELDS}
        steps_left = forecast.remaining_steps
        chance = forecast.continue_probability
        if hints.remaining_steps is not None and believed[said.REMAINING] >= TRUSTED_FROM:
            steps_left = float(hints.remaining_steps)
            chance = _towards(chance, believed[said.REMAINING], yes=hints.remaining_steps > 0)
        if hints.final is not None and believed[said.FINAL] >= TRUSTED_FROM:
            chance = _towards(chance, believed[said.FINAL], yes=not hints.final)
            steps_left = steps_left * (1.0 - believed[said.FINAL]) if hints.final else max(1.0, steps_left)
        about = self._hinted_node(track, hints, believed[said.NEXT_TOOLS])
        gap, expected_s = forecast.gap, forecast.expected_gap_s
        if hints.gap_s is not None and believed[said.GAP] >= TRUSTED_FROM:
            gap = self._gap_around(hints.gap_s)
            expected_s = gap.quantile(0.5, waited_s)
        elif about is not None:
            gap, expected_s = about.gap, about.gap.quantile(_usual_rank(track), waited_s)
        new_tokens = forecast.new_tokens
        if about is not None:
            new_tokens = about.growth.leaning_on(new_tokens, _NODE_WEIGHT)
        return Forecast(
            chance,
            gap,
            expected_s,
            new_tokens,
            forecast.output_tokens,
            forecast.overlap,
            steps_left,
            steps_left * self._growth_per_step(track),
            max(forecast.confidence, min(believed.values())),
        )

    def _hinted_node(self, track: Track, hints: Hints, believed: float) -> Node | None:
        """The node that a running step is said to open, where that is believed and known."""
        if track.waiting or hints.next_tools is None or believed < TRUSTED_FROM:
            return None
        return track.graph.nodes.get(self._names.get(hints.next_tools) or self._name(hints.next_tools))

    def _gap_around(self, gap_s: float) -> GapModel:
        """A model centred on a hinted gap; one per bin of the histogram is kept."""
        index = bin_of(gap_s)
        found = self._hinted_gaps.get(index)
        if found is None:
            found = self._hinted_gaps[index] = GapModel.around(gap_s)
        return found

    # keeping

    def snapshot(self) -> dict[str, Any]:
        """Everything learned, as plain data that JSON can carry; bounded by the settings. Tracks are not in it."""
        data: dict[str, Any] = {}
        for part in self.snapshots():
            data = part
        return data

    def snapshots(self) -> Iterator[dict[str, Any]]:
        """What `snapshot` gives, growing by one kind at a time; the last is whole. Learning may go on in between."""
        data: dict[str, Any] = {"format": _FORMAT, "average": self._average.snapshot(), "kinds": {}, "trust": {}}
        yield data
        for kind, graph in list(self._kinds.items()):
            if kind in self._trust:
                data["kinds"][kind] = graph.snapshot()
                data["trust"][kind] = self._trust[kind].snapshot()
                yield data

    def restore(self, data: dict[str, Any]) -> None:
        """Take over what `snapshot` gave, in place of what was learned here. Raises UsageError for another format."""
        if data.get("format") != _FORMAT:
            msg = f"workflow snapshot: format = {data.get('format')!r} is not known; this version reads {_FORMAT}"
            raise UsageError(msg)
        self._average = self._new_graph(_AVERAGE, None)
        self._average.restore(data["average"])
        self._kinds, self._trust = {}, {}
        for kind, learned in data["kinds"].items():
            self.graph(kind).restore(learned)
            self._trust[kind].restore(data["trust"][kind])


def _usual_rank(track: Track) -> float:
    """The rank (0..1) among gaps of their like at which this session's next lies: one half for a new session."""
    weight = track.pace_weight
    return 1.0 / (1.0 + exp(-track.graph.pace.slope * track.pace * weight / (weight + _PACE_WEIGHT)))


def _towards(chance: float, trust: float, *, yes: bool) -> float:
    """A probability pulled to what a hint says, by the trust in it."""
    return trust * yes + (1.0 - trust) * chance
