"""Laws of the workflow graph: probabilities, lengths of sessions, bounds."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.workflow.graph import END, START, USER, RunningMean, Slope, StepCounts, WorkflowGraph, node_name

names = st.sampled_from(["Edit", "Read", "Bash:git", "Bash:ls", "Grep+Read", USER])
walks = st.lists(st.lists(names, min_size=1, max_size=8), max_size=12)


def walked(walks: list[list[str]], **settings: int) -> WorkflowGraph:
    """A graph that has seen these sessions."""
    graph = WorkflowGraph("kind", **settings)
    for walk in walks:
        history: tuple[str, ...] = (START,)
        for name in walk:
            graph.advance(graph.path(history), name)
            graph.node(name).visits += 1
            history = (*history, name)
        graph.advance(graph.path(history), END)
        lived([len(walk)], graph.steps)
    return graph


@given(walks, st.lists(names, max_size=4))
def test_next_symbols_sum_to_one(seen: list[list[str]], history: list[str]) -> None:
    """After any history the probabilities of all known symbols and one unseen make one."""
    graph = walked(seen)
    path = graph.path((START, *history))
    chances = [graph.probability(path, name) for name in (*graph.symbols(), "never seen")]
    assert sum(chances) == pytest.approx(1.0)
    assert all(0.0 < chance <= 1.0 for chance in chances)


def test_a_longer_history_decides() -> None:
    """What two steps back decided is learned: order two tells apart what order one cannot."""
    graph = walked([["Read", "Edit", "Bash"], ["Grep", "Edit", "Write"]] * 20)
    after_read = graph.path((START, "Read", "Edit"))
    assert graph.probability(after_read, "Bash") > 0.8
    assert graph.probability(graph.path((START, "Grep", "Edit")), "Bash") < 0.2


def test_an_unseen_history_backs_off() -> None:
    """A history never seen falls back to what is known of its last node."""
    graph = walked([["Edit", "Bash"]] * 20)
    assert graph.probability(graph.path(("Write", "Glob", "Edit")), "Bash") > 0.6


@given(walks)
def test_edges_are_the_pairs_counted(seen: list[list[str]]) -> None:
    """Counts of all edges add up to the transitions that were taught."""
    graph = walked(seen)
    edges = list(graph.edges())
    assert sum(count for _, _, count in edges) == sum(len(walk) + 1 for walk in seen)
    assert [edge[2] for edge in edges] == sorted((edge[2] for edge in edges), reverse=True)


@given(st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=400))
def test_nodes_and_contexts_stay_bounded(tools: list[str]) -> None:
    """Any number of different tools leaves a graph within its caps, and its probabilities still sum to one."""
    graph = walked([tools[k : k + 7] for k in range(0, len(tools), 7)], max_nodes=16, max_contexts=32)
    # a tool of a sub-kind is made with it, so the cap may be passed by one
    assert len(graph.nodes) <= 17
    assert _num_contexts(graph) <= 32 + 4
    path = graph.path((START, tools[-1]))
    chances = [graph.probability(path, name) for name in (*graph.symbols(), "never seen")]
    assert sum(chances) == pytest.approx(1.0)


def _num_contexts(graph: WorkflowGraph) -> int:
    waiting, count = [graph.root], 0
    while waiting:
        context = waiting.pop()
        count += 1
        waiting.extend(context.longer.values())
    return count


def test_the_least_seen_are_forgotten() -> None:
    """At the cap a frequent node survives the rare ones."""
    rare = [[f"tool{k}"] for k in range(40)]
    graph = walked([["Edit"]] * 30 + rare, max_nodes=16)
    assert "Edit" in graph.nodes
    assert "tool0" not in graph.nodes


def test_a_sub_kind_leans_on_its_tool() -> None:
    """A shell command never seen is expected to take as long as the shell does."""
    graph = WorkflowGraph("kind")
    for _ in range(50):
        graph.node("Bash").gap.observe(30.0)
        graph.gap.observe(0.1)
    assert graph.node("Bash:make").gap.quantile(0.5) == pytest.approx(graph.node("Bash").gap.quantile(0.5))


def test_names_of_nodes() -> None:
    """An answer to the user opens "user"; several tools open one node whatever their order."""
    assert node_name(()) == USER
    assert node_name(("Read", "Grep")) == node_name(("Grep", "Read", "Grep")) == "Grep+Read"


def lived(lengths: list[int], counts: StepCounts | None = None) -> StepCounts:
    """The record of sessions that ended after so many steps."""
    counts = counts if counts is not None else StepCounts()
    for length in lengths:
        for num_done in range(1, length):
            counts.went_on(num_done)
        counts.ended(length)
    return counts


def test_hazard_finds_a_limit_on_steps() -> None:
    """Sessions that are cut at twenty steps: the twentieth ends nearly all, the nineteenth nearly none."""
    counts = lived([20] * 50)
    assert counts.hazard(20) > 0.9
    assert counts.hazard(19) < 0.1
    assert counts.mean_left(5) == pytest.approx(15.0, rel=0.05)


def test_running_sessions_count() -> None:
    """Short sessions end first: while the long ones run, they already say that sessions are longer than that."""
    ended_only = lived([2] * 10)
    with_running = lived([2] * 10)
    for _ in range(90):
        for num_done in range(1, 30):
            with_running.went_on(num_done)
    assert ended_only.hazard(2) > 0.8
    assert with_running.hazard(2) < 0.15
    assert with_running.mean_left(1) > 5.0 * ended_only.mean_left(1)


@given(st.lists(st.integers(min_value=1, max_value=300), max_size=50), st.integers(min_value=0, max_value=10_000))
def test_hazard_and_life_stay_in_range(lengths: list[int], num_done: int) -> None:
    """A hazard is a probability, and whoever goes on has at least one step left."""
    counts = lived(lengths)
    assert 0.0 < counts.hazard(num_done) < 1.0
    assert counts.mean_left(num_done) >= 1.0


def test_length_counts_stay_bounded() -> None:
    """A session of a million steps costs no more memory than one of 4,096."""
    counts = StepCounts()
    counts.ended(1_000_000)
    counts.went_on(2_000_000)
    assert counts.snapshot() == {"4096": [1, 1]}
    assert 0.0 < counts.hazard(1_000_000) < 1.0


@given(st.lists(st.floats(min_value=-1e6, max_value=1e6), min_size=1, max_size=100))
def test_running_mean_is_the_mean(values: list[float]) -> None:
    """Within its window it is the arithmetic mean, and the spread is the standard deviation."""
    mean = RunningMean()
    for value in values:
        mean.observe(value)
    true = sum(values) / len(values)
    assert mean.mean == pytest.approx(true, rel=1e-6, abs=1e-3)
    spread = (sum((value - true) ** 2 for value in values) / len(values)) ** 0.5
    assert mean.spread == pytest.approx(spread, rel=1e-6, abs=1e-2)


def test_a_slope_tells_signal_from_noise() -> None:
    """What comes true is followed, what never does is not, and nothing seen is half believed."""
    true, noise = Slope(), Slope()
    assert true.slope == 0.5
    for k in range(400):
        sign = 1.0 if k % 2 else -1.0
        true.observe(sign, sign)
        noise.observe(sign, 1.0 if k % 4 < 2 else -1.0)
    assert true.slope > 0.95
    assert noise.slope < 0.05


@given(walks)
def test_a_snapshot_comes_back(seen: list[list[str]]) -> None:
    """A graph that went through JSON gives the same snapshot and the same probabilities."""
    graph, copy = walked(seen), WorkflowGraph("kind")
    data = graph.snapshot()
    copy.restore(json.loads(json.dumps(data)))
    assert copy.snapshot() == data
    path = (START, "Edit")
    assert copy.probability(copy.path(path), END) == graph.probability(graph.path(path), END)
