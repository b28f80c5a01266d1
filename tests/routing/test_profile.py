"""Filter, score, pick: the profile adds nothing of its own."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from saga.routing.filters import PromptFits, Serving
from saga.routing.profile import Profile
from saga.routing.scorers import FewestLive, LeastLoaded, SessionAffinity
from saga.views import SessionView, WorkerView

FLEETS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 400), st.booleans()), max_size=8).map(
    lambda facts: [worker(index, *fact) for index, fact in enumerate(facts)]
)
WEIGHTED = Profile("both", ((LeastLoaded(), 2.0), (FewestLive(), 1.0)))


def worker(index: int, running: int, live: int, kv_tokens: int, draining: bool = False) -> WorkerView:
    """A worker with this load."""
    made = WorkerView(f"w{index}", index, kv_tokens)
    made.num_running, made.num_live, made.draining = running, live, draining
    return made


def asking(prompt_tokens: int = 200, home: str = "") -> SessionView:
    """A session whose step has such a prompt."""
    made = SessionView("s", "task", "tenant", 0.0)
    made.prompt_tokens, made.home = prompt_tokens, home
    return made


@given(FLEETS)
def test_a_filtered_worker_is_never_picked_and_another_always(fleet: list[WorkerView]) -> None:
    """Somebody serves the step if anybody may; None says that nobody may."""
    session = asking()
    allowed = [each for each in fleet if Serving().keep(session, each) and PromptFits().keep(session, each)]
    picked = WEIGHTED.pick(session, fleet)
    assert (picked in allowed) if allowed else (picked is None)


@given(FLEETS)
def test_nobody_allowed_has_a_higher_sum(fleet: list[WorkerView]) -> None:
    """The pick maximises the weighted sum of the scores."""

    def total(of: WorkerView) -> float:
        return 2.0 * LeastLoaded().score(session, of) + FewestLive().score(session, of)

    session = asking(1)
    picked = WEIGHTED.pick(session, fleet)
    assert picked is None or all(
        total(picked) >= total(each) for each in fleet if not each.draining and each.kv_tokens > 1
    )


@given(FLEETS, st.sampled_from([0.5, 2.0, 4.0]))
def test_only_the_ratio_of_weights_counts(fleet: list[WorkerView], times: float) -> None:
    """All weights times one number pick the same worker."""
    scaled = Profile("both", tuple((scorer, weight * times) for scorer, weight in WEIGHTED.scorers))
    assert WEIGHTED.pick(asking(), fleet) is scaled.pick(asking(), fleet)


@given(FLEETS, st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(fleet: list[WorkerView], shuffled: object) -> None:
    """The same fleet in another order gives the same worker."""
    other = list(fleet)
    shuffled.shuffle(other)  # type: ignore[attr-defined]
    assert WEIGHTED.pick(asking(), fleet) is WEIGHTED.pick(asking(), other)


def test_a_heavy_scorer_overrules_a_light_one() -> None:
    """Affinity of weight ten keeps a session at its busy home; of weight zero it does not."""
    fleet = [worker(0, 50, 50, 1_000), worker(1, 0, 0, 1_000)]
    sticky = Profile("sticky", ((SessionAffinity(), 10.0), (FewestLive(), 1.0)))
    loose = Profile("loose", ((SessionAffinity(), 0.0), (FewestLive(), 1.0)))
    assert sticky.pick(asking(home="w0"), fleet) is fleet[0]
    assert loose.pick(asking(home="w0"), fleet) is fleet[1]


def test_a_profile_without_scorers_takes_the_first_that_joined() -> None:
    """All sums are equal then, and ties are ordered."""
    fleet = [worker(index, 9 - index, 0, 1_000) for index in range(3)]
    assert Profile("any", ()).pick(asking(), reversed(fleet)) is fleet[0]
