"""The graph of one kind of workflow: what leads to what, how often, how long between, how much text.

This is the paper's Agent Execution Graph. A *node* is what led to a call: "start", the tools that the previous
answer called ("Edit", "Bash:git", "Grep+Read"), "user" for a turn of the human, "child" for a sub-agent's return;
"end" is the symbol after the last call. The gap and the growth of an edge X -> Y are those of Y whatever X was
(Y ran; X did not), so they are kept at the node; the edge keeps its count, in a trie of variable-order contexts
with absolute discounting. The module refuses to know sessions, clocks and hints.

Bounded: nodes and contexts have caps; at a cap the least-seen quarter is forgotten. Source: paper, AEG.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import sqrt
from typing import Any, TypeAlias

from saga.workflow.gaps import GapModel

START, USER, CHILD, END, OTHER = "start", "user", "child", "end", "other"
_KEPT_NODES = frozenset((START, USER, CHILD, END))

_DISCOUNT = 0.75
_ROOT_STRENGTH, _MORE_STRENGTH = 0.2, 2.0
_MEAN_WINDOW = 256.0
_SLOPE_PRIOR, _SLOPE_KEEP = 10.0, 0.999
_MAX_STEPS = 4096
_PRIOR_STEPS = 10.0
_HAZARD_WEIGHT, _LIFE_WEIGHT = 4.0, 0.5
_KEPT_SHARE = 0.75


def node_name(tool_calls: tuple[str, ...]) -> str:
    """Name of the node that an answer with these calls opens: "user" for none, "Grep+Read" for several."""
    return "+".join(sorted(set(tool_calls))) if tool_calls else USER


class RunningMean:
    """Mean and spread of a quantity, the last 256 observations weighing most. O(1) per observation."""

    __slots__ = ("count", "mean", "variance")

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = 0.0
        self.variance = 0.0

    def observe(self, value: float) -> None:
        """Learn one value."""
        count = self.count
        if count < _MEAN_WINDOW:
            count += 1.0
            self.count = count
        off = value - self.mean
        step = off / count
        self.variance += (off * (off - step) - self.variance) / count
        self.mean += step

    @property
    def spread(self) -> float:
        """Standard deviation."""
        return sqrt(max(0.0, self.variance))

    def leaning_on(self, prior: float, weight: float) -> float:
        """The mean blended with `prior`, which counts as `weight` observations."""
        return (self.mean * self.count + prior * weight) / (self.count + weight)

    def snapshot(self) -> list[float]:
        """Plain data."""
        return [self.count, self.mean, self.variance]

    def restore(self, data: list[float]) -> None:
        """Take over what `snapshot` gave."""
        self.count, self.mean, self.variance = (float(value) for value in data)


class Slope:
    """How far what was expected comes true: slope of a line through the origin, 0..1, one half before evidence."""

    __slots__ = ("_cross", "_square")

    def __init__(self) -> None:
        self._cross = 0.5 * _SLOPE_PRIOR
        self._square = _SLOPE_PRIOR

    def observe(self, expected: float, came: float) -> None:
        """Learn one pair; old ones fade. O(1)."""
        self._cross = _SLOPE_KEEP * self._cross + expected * came
        self._square = _SLOPE_KEEP * self._square + expected * expected

    @property
    def slope(self) -> float:
        """The factor by which to trust an expectation."""
        return min(1.0, max(0.0, self._cross / self._square)) if self._square > 0.0 else 0.5

    def snapshot(self) -> list[float]:
        """Plain data."""
        return [self._cross, self._square]

    def restore(self, data: list[float]) -> None:
        """Take over what `snapshot` gave."""
        self._cross, self._square = (float(value) for value in data)


class Node:
    """What led to a call.

    growth: prompt tokens beyond the context; output: tokens of the call's answer; overlap: share (0..1) of the
    context that the call reused.
    """

    __slots__ = ("gap", "growth", "name", "output", "overlap", "visits")

    def __init__(self, name: str, gap: GapModel) -> None:
        self.name = name
        self.visits = 0
        self.gap = gap
        self.growth = RunningMean()
        self.output = RunningMean()
        self.overlap = RunningMean()

    def snapshot(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "visits": self.visits,
            "gap": self.gap.snapshot(),
            "growth": self.growth.snapshot(),
            "output": self.output.snapshot(),
            "overlap": self.overlap.snapshot(),
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Take over what `snapshot` gave."""
        self.visits = int(data["visits"])
        self.gap.restore(data["gap"])
        self.growth.restore(data["growth"])
        self.output.restore(data["output"])
        self.overlap.restore(data["overlap"])


class Context:
    """Counts of what came after one history of nodes; `longer` leads one node further back."""

    __slots__ = ("counts", "longer", "total")

    def __init__(self) -> None:
        self.total = 0.0
        self.counts: dict[str, float] = {}
        self.longer: dict[str, Context] = {}

    def snapshot(self) -> list[Any]:
        """Plain data, nested."""
        return [self.counts.copy(), {name: child.snapshot() for name, child in self.longer.items()}]

    def restore(self, data: list[Any]) -> int:
        """Take over what `snapshot` gave; returns the number of contexts below and including this one."""
        self.counts = {str(name): float(count) for name, count in data[0].items()}
        self.total = sum(self.counts.values())
        self.longer = {}
        num_contexts = 1
        for name, below in data[1].items():
            child = self.longer[name] = Context()
            num_contexts += child.restore(below)
        return num_contexts


Path: TypeAlias = tuple[Context, ...]
"""Where a session stands: the contexts of its last 0, 1, 2, ... nodes."""


class StepCounts:
    """How many steps the sessions of a kind take: hazard of ending and mean residual life by steps done.

    A life table (Kaplan-Meier): running sessions count for every step after which they went on, so that the short
    sessions, which end first, do not pass for the usual ones. Exact up to 4,096 steps; later ones count there.
    Derived tables are refreshed when the evidence has grown by a sixteenth. O(1) per question and observation,
    O(longest) per refresh.
    """

    __slots__ = ("_due", "_ended", "_hazard", "_left", "_seen", "_went_on", "sessions")

    def __init__(self) -> None:
        self.sessions = 0
        self._seen = 0
        self._ended: list[int] = []
        self._went_on: list[int] = []
        self._due = 0.0
        self._hazard: list[float] = []
        self._left: list[float] = []

    def went_on(self, num_done: int) -> None:
        """Learn that a session made a further step after `num_done`."""
        index = min(_MAX_STEPS, num_done)
        if index >= len(self._went_on):
            self._grow(index + 1)
        self._went_on[index] += 1
        self._seen += 1

    def ended(self, num_done: int) -> None:
        """Learn that a session made no further step after `num_done`."""
        index = min(_MAX_STEPS, num_done)
        if index >= len(self._went_on):
            self._grow(index + 1)
        self._ended[index] += 1
        self._seen += 1
        self.sessions += 1

    def _grow(self, length: int) -> None:
        missing = [0] * (length - len(self._ended))
        self._ended += missing
        self._went_on += missing

    def hazards(self, num_done: int) -> tuple[float, float]:
        """(`hazard`, `base_hazard`) in one question."""
        if self._seen >= self._due:
            self._refresh()
        hazard = self._hazard
        base = hazard[-1]
        return hazard[num_done] if num_done < len(hazard) else base, base

    def hazard(self, num_done: int) -> float:
        """P(no further step | `num_done` steps done), leaning on `base_hazard` with four sessions."""
        return self.hazards(num_done)[0]

    def base_hazard(self) -> float:
        """Ends per step over all sessions; a tenth where no session has ended yet."""
        return self.hazards(0)[1]

    def mean_left(self, num_done: int) -> float:
        """E[further steps | at least one follows `num_done`]; the spread of lengths beyond what was seen."""
        if self._seen >= self._due:
            self._refresh()
        left = self._left
        return left[num_done] if num_done < len(left) else left[-1]

    def _refresh(self) -> None:
        self._due = self._seen * 1.0625 + 0.5
        base = (self.sessions + 1.0) / (self._seen + _PRIOR_STEPS)
        self._hazard = [*self._shares(_HAZARD_WEIGHT, base), base]
        hazard = self._shares(_LIFE_WEIGHT, base)
        tail = max(1.0, _spread(hazard)) if self.sessions > 1 else 1.0 / base
        left, following = [tail], tail
        for chance in reversed(hazard):
            # following: expected further steps after the next one, which is there
            left.append(following)
            following = 1.0 + (1.0 - chance) * following
        left.reverse()
        self._left = left

    def _shares(self, weight: float, base: float) -> list[float]:
        """Share of ends after 0, 1, 2, ... steps, leaning on `base` with a weight in sessions."""
        lean = weight * base
        return [
            (ended + lean) / (ended + went_on + weight)
            for ended, went_on in zip(self._ended, self._went_on, strict=True)
        ]

    def snapshot(self) -> dict[str, list[int]]:
        """Plain data: {steps: [sessions that ended, sessions that went on]}."""
        both = zip(self._ended, self._went_on, strict=True)
        return {str(steps): [ended, went_on] for steps, (ended, went_on) in enumerate(both) if ended or went_on}

    def restore(self, data: dict[str, list[int]]) -> None:
        """Take over what `snapshot` gave."""
        self._ended, self._went_on = [], []
        self._grow(1 + max((int(steps) for steps in data), default=0))
        for steps, (ended, went_on) in data.items():
            self._ended[int(steps)], self._went_on[int(steps)] = int(ended), int(went_on)
        self.sessions = sum(self._ended)
        self._seen = self.sessions + sum(self._went_on)
        self._due = 0.0


def _spread(hazard: list[float]) -> float:
    """Standard deviation of the length by a life table; what outlives the table ends there."""
    alive, mean, square = 1.0, 0.0, 0.0
    for length, chance in enumerate([*hazard, 1.0]):
        share = alive * chance
        mean += share * length
        square += share * length * length
        alive -= share
    return sqrt(max(0.0, square - mean * mean))


class WorkflowGraph:
    """What is known of one kind of workflow.

    broader: the average of all kinds, on which gaps lean while this kind is young; None for the average itself.
    order: nodes of history that predict the next one. All steps are O(order); a cap reached costs one O(size) sweep.
    """

    __slots__ = (
        "_broader",
        "_max_contexts",
        "_max_nodes",
        "_num_contexts",
        "_order",
        "_window",
        "gap",
        "growth",
        "kind",
        "nodes",
        "output",
        "overlap",
        "pace",
        "root",
        "steps",
    )

    def __init__(
        self,
        kind: str,
        broader: WorkflowGraph | None = None,
        *,
        order: int = 3,
        max_nodes: int = 512,
        max_contexts: int = 4096,
        gap_window: float = 4096.0,
    ) -> None:
        self.kind = kind
        self._broader = broader
        self._order = order
        self._max_nodes = max_nodes
        self._max_contexts = max_contexts
        self._window = gap_window
        self._num_contexts = 1
        self.gap: GapModel = GapModel(broader.gap if broader is not None else None, window=gap_window)
        self.growth = RunningMean()
        self.output = RunningMean()
        self.overlap = RunningMean()
        self.pace = Slope()
        self.steps = StepCounts()
        self.nodes: dict[str, Node] = {}
        self.root = Context()

    @property
    def tasks(self) -> int:
        """Finished sessions seen."""
        return self.steps.sessions

    # nodes

    def node(self, name: str) -> Node:
        """The node of that name, made where it is new. A sub-kind ("Bash:git") leans on its tool ("Bash")."""
        found = self.nodes.get(name)
        if found is None:
            if len(self.nodes) >= self._max_nodes:
                self._forget_nodes()
            parent = self._parent_gap(name)  # may make the tool's node, so look again
            found = self.nodes[name] = Node(name, GapModel(parent, window=self._window))
        return found

    def _parent_gap(self, name: str) -> GapModel:
        tool, colon, _ = name.partition(":")
        if colon and tool and "+" not in name:
            return self.node(tool).gap
        if self._broader is not None:
            elsewhere = self._broader.nodes.get(name)
            if elsewhere is not None and (self.gap.weight < elsewhere.gap.weight or name in _KEPT_NODES):
                return elsewhere.gap
        return self.gap

    def tool_of(self, name: str) -> Node | None:
        """The node "Bash" of a node "Bash:git", None where the name has no sub-kind."""
        tool, colon, _ = name.partition(":")
        return self.nodes.get(tool) if colon and "+" not in name else None

    # transitions

    def path(self, history: tuple[str, ...]) -> Path:
        """The contexts of the last 0..order nodes of `history` (oldest first), made where they are new."""
        context = self.root
        contexts = [context]
        for name in history[: -self._order - 1 : -1]:
            below = context.longer.get(name)
            if below is None:
                if self._num_contexts >= self._max_contexts:
                    self._forget_contexts()
                below = context.longer[name] = Context()
                self._num_contexts += 1
            context = below
            contexts.append(context)
        return tuple(contexts)

    def advance(self, path: Path, name: str, weight: float = 1.0) -> None:
        """Learn that `name` (a node or "end") came after `path`."""
        for context in path:
            counts = context.counts
            counts[name] = counts.get(name, 0.0) + weight
            context.total += weight

    def probability(self, path: Path, name: str, base: float | None = None) -> float:
        """P(next symbol is `name` | path), backing off from long to short contexts by absolute discounting.

        base: what the empty history leans on; None shares it evenly among `symbols()` and one unseen symbol, over
        which the answers then sum to one. O(order).
        """
        chance = base if base is not None else 1.0 / (len(self.root.counts) + 1)
        strength = _ROOT_STRENGTH
        for context in path:
            counts = context.counts
            count = counts.get(name, 0.0)
            seen = count - _DISCOUNT if count > 0.0 else 0.0
            chance = (seen + (strength + _DISCOUNT * len(counts)) * chance) / (context.total + strength)
            strength += _MORE_STRENGTH
        return chance

    def symbols(self) -> tuple[str, ...]:
        """Every symbol ever seen next, sorted."""
        return tuple(sorted(self.root.counts))

    def edges(self) -> Iterator[tuple[str, str, float]]:
        """(node, next symbol, count) over pairs, most frequent first."""
        found = [(name, to, n) for name, context in self.root.longer.items() for to, n in context.counts.items()]
        return iter(sorted(found, key=lambda edge: (-edge[2], edge[0], edge[1])))

    # bounds

    def _forget_nodes(self) -> None:
        """Drop the least-seen quarter of the nodes, among equals the oldest, and every count of them."""
        newest_first = list(reversed(self.nodes))
        ranked = sorted(newest_first, key=lambda name: (name not in _KEPT_NODES, -self.nodes[name].visits))
        gone = frozenset(ranked[int(len(ranked) * _KEPT_SHARE) :]) - _KEPT_NODES
        for name in gone:
            del self.nodes[name]
        self._num_contexts = _without(self.root, gone)

    def _forget_contexts(self) -> None:
        """Drop the least-seen quarter of the contexts; a context goes with those that lie further back."""
        totals = sorted(context.total for context in _walk(self.root))
        _prune(self.root, totals[int(len(totals) * (1.0 - _KEPT_SHARE))])
        self._num_contexts = sum(1 for _ in _walk(self.root))

    # keeping

    def snapshot(self) -> dict[str, Any]:
        """Everything learned, as plain data; at most max_nodes nodes and max_contexts contexts."""
        return {
            "gap": self.gap.snapshot(),
            "growth": self.growth.snapshot(),
            "output": self.output.snapshot(),
            "overlap": self.overlap.snapshot(),
            "pace": self.pace.snapshot(),
            "steps": self.steps.snapshot(),
            "nodes": {name: node.snapshot() for name, node in self.nodes.items()},
            "contexts": self.root.snapshot(),
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Take over what `snapshot` gave, in place of what was learned here."""
        self.gap.restore(data["gap"])
        self.growth.restore(data["growth"])
        self.output.restore(data["output"])
        self.overlap.restore(data["overlap"])
        self.pace.restore(data["pace"])
        self.steps.restore(data["steps"])
        self.nodes = {}
        for name, node in data["nodes"].items():
            self.node(name).restore(node)
        self.root = Context()
        self._num_contexts = self.root.restore(data["contexts"])


def _walk(context: Context) -> Iterator[Context]:
    yield context
    for below in context.longer.values():
        yield from _walk(below)


def _prune(context: Context, threshold: float) -> None:
    context.longer = {name: below for name, below in context.longer.items() if below.total > threshold}
    for below in context.longer.values():
        _prune(below, threshold)


def _without(context: Context, gone: frozenset[str]) -> int:
    """Remove the counts and contexts of `gone`; returns the number of contexts left."""
    _filter(context.longer, lambda name: name not in gone)
    _filter(context.counts, lambda name: name not in gone)
    context.total = sum(context.counts.values())
    return 1 + sum(_without(below, gone) for below in context.longer.values())


def _filter(table: dict[str, Any], keep: Callable[[str], bool]) -> None:
    for name in [name for name in table if not keep(name)]:
        del table[name]
