"""The driver's laws: nothing is lost, nothing is counted twice, the same run is the same run."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from saga import events as ev
from saga.errors import InvariantViolated, UsageError
from saga.fairness.admission import SessionCap
from saga.presets import PRESETS, preset
from saga.sim import driver
from saga.sim.config import SimConfig
from saga.sim.driver import Simulation, simulate
from saga.workloads.catalogue import workload
from saga.workloads.limits import Limits
from saga.workloads.plan import Task

from .conftest import KV_TOKENS, Plan, agent, chain

Build = Callable[..., SimConfig]


def figures(config: SimConfig, plan: Plan) -> dict[str, object]:
    """The metrics of a run, all but the time that it took here."""
    metrics = dict(simulate(config, plan).metrics)
    del metrics["wall_s"]
    return metrics


def events(config: SimConfig, plan: Plan, folder: Path) -> list[dict]:
    """The facts that the driver reported in a run, in order."""
    path = folder / "run.jsonl"
    simulate(SimConfig(**(config.as_dict() | {"log_path": str(path)})), plan)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["event"] for line in lines if "event" in line]


def of(kind: type[ev.Event], facts: Iterable[dict]) -> list[dict]:
    """The facts of one kind."""
    return [fact for fact in facts if fact["type"] == kind.__name__]


def one_task(*sessions: object, gap_s: float = 0.0) -> Plan:
    """A workload of one task that is made of these sessions."""
    return Plan(lambda index, rng: Task("t0", "tenant", "coder", "made", sessions))  # type: ignore[arg-type]


# ------------------------------------------------------------------ conservation


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_finishes_with_all_laws_kept(name: str, tiny: Plan, config: Build) -> None:
    """The laws of scheduler and engines hold after each event of a crowded run on two workers, to its end."""
    run = simulate(config(name, workers=2, agents_per_worker=6.0, tasks=18, check_every=1), tiny)
    assert run.metrics["tasks_completed"] == 18 - 12


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_keeps_all_laws_with_sub_agents_that_rewrite_history(
    name: str, forks: Plan, config: Build
) -> None:
    """Parents wait for children that need their room, prefixes break off half-way, tenants share three workers."""
    run = simulate(config(name, workers=3, rate_per_s=0.3, tasks=14, check_every=1), forks)
    assert run.metrics["tasks_completed"] == 14
    assert run.metrics["calls"] == 14 * 4 * 3


@pytest.mark.parametrize("name", PRESETS)
def test_each_call_of_the_plan_arrives_once_and_finishes_once(
    name: str, tiny: Plan, config: Build, tmp_path: Path
) -> None:
    """An open loop leaves nothing behind: calls, answers and ends of sessions are those of the plan."""
    facts = events(config(name, rate_per_s=1.0, tasks=12), tiny, tmp_path)
    planned = list(tiny.tasks(12, 0))
    steps = {
        f"{session.session}/{index}": call
        for task in planned
        for session in task.sessions
        for index, call in enumerate(session.calls)
    }
    arrived, finished = of(ev.StepArrived, facts), of(ev.StepFinished, facts)
    assert Counter(fact["step"] for fact in arrived) == Counter(steps.keys())
    assert Counter(fact["step"] for fact in finished) == Counter(steps.keys())
    assert Counter(fact["session"] for fact in of(ev.SessionEnded, facts)) == Counter(
        session.session for task in planned for session in task.sessions
    )
    for fact in finished:
        assert (fact["prompt_tokens"], fact["output_tokens"]) == (
            steps[fact["step"]].prompt_tokens,
            steps[fact["step"]].output_tokens,
        )


@pytest.mark.parametrize("name", ["vllm_apc", "saga", "saga_paper"])
def test_a_task_that_began_is_done_or_still_at_work(name: str, tiny: Plan, config: Build) -> None:
    """When a closed loop ends, tasks begun = tasks done + tasks at work, and every agent has one at work."""
    run = Simulation(config(name), tiny)
    run.run()
    at_work = {thread.job.index for thread in run._threads.values()}
    assert run._num_started == len(run._completions) + len(at_work)
    begins_next = sum(1 for _, _, kind, _ in run._heap if kind == driver._START)
    assert len(at_work) + begins_next == 8


@pytest.mark.parametrize("name", PRESETS)
def test_tokens_and_calls_of_measured_tasks_are_counted_once(name: str, tiny: Plan, config: Build) -> None:
    """Sums over an open loop, which measures all, are those of the plan; each prompt token came from somewhere."""
    metrics = figures(config(name, rate_per_s=1.0, tasks=12), tiny)
    calls = [call for task in tiny.tasks(12, 0) for session in task.sessions for call in session.calls]
    assert metrics["calls"] == len(calls)
    assert metrics["input_tokens"] == sum(call.prompt_tokens for call in calls)
    assert metrics["output_tokens"] == sum(call.output_tokens for call in calls)
    served = metrics["prefix_hit_share"] + metrics["host_hit_share"]  # type: ignore[operator]
    assert metrics["prefilled_tokens"] + served * metrics["input_tokens"] >= metrics["input_tokens"] * (1 - 1e-9)
    assert 0 <= metrics["regenerated_tokens"] <= metrics["prefilled_tokens"]
    assert metrics["tasks_completed"] == sum(t["tasks_completed"] for t in metrics["tenants"].values()) == 12  # type: ignore[attr-defined]


def test_only_measured_tasks_are_in_the_figures(tiny: Plan, config: Build) -> None:
    """A closed loop leaves out the first wave and the fillers, in tasks and in calls alike."""
    run = Simulation(config("vllm_apc", tasks=20), tiny)
    metrics = run.run().metrics
    planned = {task.task: task for task in tiny.tasks(200, 0)}
    measured = [planned[result.task] for result in run._results]
    assert metrics["tasks_completed"] == len({task.task for task in measured}) == 20 - 8
    assert metrics["calls"] == sum(task.num_calls for task in measured)
    assert metrics["input_tokens"] == sum(c.prompt_tokens for t in measured for s in t.sessions for c in s.calls)
    assert len(run._completions) > len(measured)


@pytest.mark.parametrize(
    ("load", "tasks", "said"),
    [({}, 20, False), ({}, 9, False), ({}, 8, True), ({}, 3, True), ({"rate_per_s": 1.0}, 3, False)],
)
def test_a_run_says_whether_its_first_wave_was_measured(
    load: dict[str, float], tasks: int, said: bool, tiny: Plan, config: Build
) -> None:
    """Eight agents and no more tasks than that: the only tasks there are. An open loop has no waves."""
    metrics = Simulation(config("vllm_apc", tasks=tasks, **load), tiny).run().metrics
    assert metrics["first_wave_measured"] is said
    assert metrics["tasks_completed"] == (tasks if said or load else tasks - 8)


def test_memory_without_end_regenerates_nothing(tiny: Plan, config: Build) -> None:
    """The bound is a bound: what was once prefilled is never prefilled again, where a small memory is too small."""
    assert figures(config("infinite_kv"), tiny)["regenerated_tokens"] == 0
    assert figures(config("vllm_apc"), tiny)["regenerated_tokens"] > 0  # type: ignore[operator]


def test_regenerating_takes_no_more_than_the_device_had(tiny: Plan, config: Build) -> None:
    """The share of device time that went into prefilling again is one, and nothing where nothing was regenerated."""
    assert figures(config("infinite_kv"), tiny)["regenerated_time_share"] == 0.0
    assert 0.0 < figures(config("vllm_apc"), tiny)["regenerated_time_share"] < 1.0  # type: ignore[operator]


def test_what_left_the_device_is_of_what_could_have_been_hit(tiny: Plan, config: Build) -> None:
    """Nothing leaves a memory without end, everything an engine that keeps nothing."""
    assert figures(config("infinite_kv"), tiny)["evicted_share"] == 0.0
    assert figures(config("vllm"), tiny)["evicted_share"] == 1.0


def test_a_promise_that_is_kept_is_told_from_one_that_is_not(tiny: Plan, config: Build) -> None:
    """Sessions held for ever are always found held; without forecasts nothing is promised and nothing counted."""
    assert figures(config("session_cap"), tiny)["holds_kept_share"] == 1.0
    assert 0.0 < figures(config("saga"), tiny)["holds_kept_share"] < 1.0  # type: ignore[operator]
    assert "holds_kept_share" not in figures(config("vllm_apc"), tiny)


def test_memory_for_all_is_as_good_as_memory_without_end(tiny: Plan, config: Build) -> None:
    """Where everything fits, the baseline and its bound serve the same run."""
    roomy = figures(config("vllm_apc", kv_tokens=10**7), tiny)
    bound = figures(config("infinite_kv", kv_tokens=10**7), tiny)
    assert {key: value for key, value in roomy.items() if key != "preset"} == {
        key: value for key, value in bound.items() if key != "preset"
    }


def test_without_prefix_caching_every_prompt_is_prefilled(tiny: Plan, config: Build) -> None:
    """Nothing is cached where caching is off, and caching prefills less."""
    without, cached = (figures(config(name, rate_per_s=0.5, tasks=12), tiny) for name in ("vllm", "vllm_apc"))
    assert without["prefix_hit_share"] == without["host_hit_share"] == 0.0
    assert without["prefilled_tokens"] >= without["input_tokens"] > cached["prefilled_tokens"]  # type: ignore[operator]


@pytest.mark.parametrize("name", PRESETS)
def test_no_task_is_faster_than_alone(name: str, config: Build, tiny: Plan) -> None:
    """Company never helps by more than the shared system prompt that somebody else has prefilled."""
    run = Simulation(config(name, rate_per_s=0.5, tasks=12), tiny)
    run.run()
    shared_s = run.fleet.latency.isolated_s(0, 512, 1, 2_048)
    sessions = {task.task: len(task.sessions) for task in tiny.tasks(12, 0)}
    for result in run._results:
        assert result.tct_s >= result.isolated_s - shared_s * sessions[result.task] - 0.05


# ------------------------------------------------------------------ determinism


@pytest.mark.parametrize("name", ["vllm_apc", "vllm_apc_dram", "saga", "saga_paper"])
def test_the_same_run_gives_the_same_figures(name: str, tiny: Plan, config: Build) -> None:
    """Twice the same configuration, twice the same metrics, but for the time that it took here."""
    assert figures(config(name, workers=2), tiny) == figures(config(name, workers=2), tiny)


def test_another_seed_is_another_run(tiny: Plan, config: Build) -> None:
    """The seed reaches the tasks of a closed loop and the arrivals of an open one."""
    assert figures(config(seed=1), tiny)["tct_mean_s"] != figures(config(seed=2), tiny)["tct_mean_s"]
    fixed = Plan(lambda index, rng: agent(index, random.Random(index)))
    one, other = (figures(config(seed=seed, rate_per_s=1.0), fixed) for seed in (1, 2))
    assert one["input_tokens"] == other["input_tokens"]
    assert one["tct_mean_s"] != other["tct_mean_s"]


def test_watching_a_run_does_not_change_it(tiny: Plan, config: Build, tmp_path: Path) -> None:
    """Checks, a log and what the report draws leave every figure as it was."""
    plain = figures(config(), tiny)
    assert figures(config(check_every=7), tiny) == plain
    assert figures(config(detail=True), tiny) == plain
    assert figures(config(log_path=str(tmp_path / "run.jsonl")), tiny) == plain


def test_progress_counts_the_measured_tasks(tiny: Plan, config: Build) -> None:
    """One call per measured task, with its number."""
    seen: list[int] = []
    run = simulate(config(), tiny, seen.append)
    assert seen == list(range(1, int(str(run.metrics["tasks_completed"])) + 1))


# ------------------------------------------------------------------ agents


def test_a_gap_begins_when_the_call_before_it_has_ended(tiny: Plan, config: Build, tmp_path: Path) -> None:
    """Closed loop within a session: each call comes its gap after the end of the last, whoever served it."""
    facts = events(config("vllm_apc", rate_per_s=1.0, tasks=12), tiny, tmp_path)
    ended_s = {fact["step"]: fact["at_s"] for fact in of(ev.StepFinished, facts)}
    arrived_s = {fact["step"]: fact["at_s"] for fact in of(ev.StepArrived, facts)}
    for task in tiny.tasks(12, 0):
        for session in task.sessions:
            for index, call in enumerate(session.calls[1:], start=1):
                gap_s = arrived_s[f"{session.session}/{index}"] - ended_s[f"{session.session}/{index - 1}"]
                if len(task.sessions) == 1:
                    assert gap_s == pytest.approx(call.gap_s, abs=1e-6)
                else:
                    assert gap_s >= call.gap_s - 1e-6


@pytest.mark.parametrize("child_gap_s", [1.0, 100.0], ids=["child returns first", "gap ends first"])
def test_a_parent_waits_for_its_gap_and_for_its_child(child_gap_s: float, config: Build, tmp_path: Path) -> None:
    """The child starts when the spawning call ends; the next call comes when both the gap and the child are over."""
    parent = chain("root", 10, [(300, 10, 0.0), (200, 10, 30.0)], spawns={0: (1,)})
    child = chain("root.child", 11, [(300, 10, 0.5), (200, 10, child_gap_s)], parent=0)
    facts = events(config("saga", rate_per_s=1.0, tasks=1), one_task(parent, child), tmp_path)
    arrived = {fact["step"]: fact for fact in of(ev.StepArrived, facts)}
    ended_s = {fact["step"]: fact["at_s"] for fact in of(ev.StepFinished, facts)}
    assert arrived["root.child/0"]["parent"] == "root"
    assert arrived["root/0"].get("parent") is None
    assert arrived["root.child/0"]["at_s"] == pytest.approx(ended_s["root/0"] + 0.5)
    over_s = max(ended_s["root/0"] + 30.0, ended_s["root.child/1"])
    assert arrived["root/1"]["at_s"] == pytest.approx(over_s)


def test_children_of_one_call_run_side_by_side(config: Build, tmp_path: Path) -> None:
    """Two children, one with a child of its own, overlap; the parent goes on after the last of them."""
    turns = [(300, 10, 0.0), (200, 10, 20.0)]
    family = (
        chain("root", 10, [(300, 10, 0.0), (200, 10, 0.0)], spawns={0: (1, 2)}),
        chain("a", 11, turns, parent=0, spawns={0: (3,)}),
        chain("b", 12, turns, parent=0),
        chain("a.a", 13, [*turns, (200, 10, 50.0)], parent=1),
    )
    facts = events(config("vllm_apc", rate_per_s=1.0, tasks=1), one_task(*family), tmp_path)
    ended_s = {fact["session"]: fact["at_s"] for fact in of(ev.SessionEnded, facts)}
    arrived = {fact["step"]: fact for fact in of(ev.StepArrived, facts)}
    assert arrived["a/0"]["at_s"] == arrived["b/0"]["at_s"]
    assert arrived["a.a/0"]["parent"] == "a"
    assert arrived["a/1"]["at_s"] == pytest.approx(ended_s["a.a"])
    assert arrived["root/1"]["at_s"] == pytest.approx(max(ended_s["a"], ended_s["b"]))
    assert arrived["root/1"]["at_s"] > ended_s["b"]


def test_a_task_ends_with_its_last_session(config: Build) -> None:
    """A child that outlives its parent counts: the task is not done before it, and its isolated time says so too."""
    parent = chain("root", 10, [(300, 10, 0.0)], spawns={0: (1,)})
    child = chain("child", 11, [(300, 10, 0.0), (200, 10, 60.0)], parent=0)
    run = Simulation(config("saga", rate_per_s=1.0, tasks=1), one_task(parent, child))
    run.run()
    (result,) = run._results
    assert result.tct_s > 60.0
    assert result.isolated_s > 60.0


# ------------------------------------------------------------------ load


def test_recorded_arrivals_are_kept(config: Build, tmp_path: Path) -> None:
    """Each task begins when it was recorded to begin, whatever the state of the fleet."""
    recorded_s = [0.0, 0.5, 0.5, 3.25, 400.0]
    plan = Plan(lambda index, rng: agent(index, rng, arrival_s=recorded_s[index]))
    facts = events(config("vllm_apc", as_recorded=True, tasks=5), plan, tmp_path)
    first_s = {fact["step"]: fact["at_s"] for fact in of(ev.StepArrived, facts)}
    assert [first_s[f"s{index}/0"] for index in range(5)] == recorded_s


def test_a_recorded_pattern_is_scaled_to_the_rate(config: Build, tmp_path: Path) -> None:
    """The pattern stays, its mean becomes the rate asked for."""
    recorded_s = [0.0, 10.0, 12.0, 40.0]
    plan = Plan(lambda index, rng: agent(index, rng, arrival_s=recorded_s[index]))
    facts = events(config("vllm_apc", rate_per_s=2.0, tasks=4), plan, tmp_path)
    first_s = {fact["step"]: fact["at_s"] for fact in of(ev.StepArrived, facts)}
    scale = 4 / 40.0 / 2.0
    assert [first_s[f"s{index}/0"] for index in range(4)] == pytest.approx([at_s * scale for at_s in recorded_s])


def test_recorded_times_cannot_be_kept_where_there_are_none(tiny: Plan, config: Build) -> None:
    """The message names the field, the workload and what to use instead."""
    with pytest.raises(UsageError, match="as_recorded: workload 'tiny' has no arrival times; use a rate"):
        simulate(config(as_recorded=True), tiny)


def test_oversubscription_is_agents_times_context_over_memory(tiny: Plan, config: Build) -> None:
    """X agents' mean contexts for each worker's memory, rounded over the fleet, and at least one."""
    for workers, factor in ((1, 1.0), (2, 1.5), (1, 0.01)):
        run = Simulation(config(workers=workers, oversubscription=factor), tiny)
        expected = max(1, round(factor * workers * KV_TOKENS / tiny.mean_context_tokens))
        assert run._num_agents == expected


def test_a_closed_loop_keeps_its_agents_busy(tiny: Plan, config: Build, tmp_path: Path) -> None:
    """No more tasks are open at once than there are agents, and they are that many until the last is measured."""
    config = config("vllm_apc", log_path=None)
    facts = events(config, tiny, tmp_path)
    task_of = {session.session: task.task for task in tiny.tasks(200, 0) for session in task.sessions}
    open_sessions: Counter[str] = Counter()
    most = 0
    for fact in facts:
        if fact["type"] == "StepArrived":
            open_sessions[fact["session"]] = 1
        elif fact["type"] == "SessionEnded":
            del open_sessions[fact["session"]]
        most = max(most, len({task_of[name] for name in open_sessions}))
    assert most == 8
    assert len({task_of[name] for name in open_sessions}) >= 7


def test_a_built_in_workload_runs(config: Build) -> None:
    """The catalogue's tasks go through the same door as those made here."""
    built_in = workload("swe_bench", Limits(max_calls=20))
    run = simulate(config(kv_tokens=150_000, agents_per_worker=2.0, tasks=4, check_every=50), built_in)
    assert run.metrics["tasks_completed"] == 2
    assert run.metrics["calls"] > 0  # type: ignore[operator]


# ------------------------------------------------------------------ what goes wrong


def test_a_run_in_which_nothing_is_due_says_so(tiny: Plan, config: Build) -> None:
    """Calls that wait for ever are an error, not an endless run."""
    closed = replace(preset("session_cap"), admission=SessionCap(max_sessions=0))
    with pytest.raises(InvariantViolated, match="stalled: 3 steps are live"):
        simulate(config("session_cap", rate_per_s=1.0, tasks=3), tiny, composition=closed)


def test_a_workload_that_runs_out_says_so(config: Build) -> None:
    """A closed loop asks for more tasks than it measures; a source that has too few ends in an error, not in a loop."""
    short = Plan(agent)
    short.tasks = lambda num_tasks, seed: Plan(agent).tasks(9, seed)  # type: ignore[method-assign]
    with pytest.raises(InvariantViolated, match="stalled"):
        simulate(config(), short)


def test_detail_draws_what_happened(tiny: Plan, config: Build) -> None:
    """One time per measured task, shares between 0 and 1, and stretches of the first worker that do not run back."""
    run = simulate(config("saga", detail=True), tiny)
    assert run.detail is not None
    assert len(run.detail.tct_s) == run.metrics["tasks_completed"]
    assert all(0.0 <= used <= resident <= 1.0 for _, used, resident in run.detail.occupancy)
    assert {row[3] for row in run.detail.timeline} <= {"queued", "prefill", "decode", "gap", "paused"}
    assert all(start_s < end_s for *_, start_s, end_s in run.detail.timeline)
