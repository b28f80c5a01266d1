"""Who may enter a working set: laws of each door."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from saga.fairness.admission import Admission, OpenDoor, SessionCap, WorkingSet
from saga.views import WorkerView

TOKENS = st.floats(0.0, 3e4)


def worker(reserved: float = 0.0, active: int = 1, live: int = 0, host: int = 0, active_tokens: int = 0) -> WorkerView:
    """A worker of 10,000 tokens with this on its ledger."""
    made = WorkerView("w", 0, 10_000)
    made.reserved_tokens, made.num_active, made.live_tokens = reserved, active, live
    made.host_kv_tokens, made.active_tokens = host, active_tokens
    return made


@given(TOKENS, TOKENS, st.integers(0, 10**6))
def test_an_open_door_is_open(reserved: float, extra: float, live: int) -> None:
    """However full the worker, everybody is let in and nobody is asked to leave."""
    full = worker(reserved, live=live, active_tokens=live)
    assert OpenDoor().fits(full, extra, new=True)
    assert OpenDoor().excess(full) == OpenDoor().growth(1e6, 1e6) == 0.0
    assert not OpenDoor().gates


@given(st.integers(1, 100), st.integers(0, 200), TOKENS)
def test_a_cap_counts_heads(cap: int, active: int, extra: float) -> None:
    """Below the cap every session fits, at the cap none, whatever its size."""
    assert SessionCap(cap).fits(worker(active=active), extra, new=True) == (active < cap)
    assert SessionCap(cap).excess(worker(active=active, active_tokens=10**6)) == 0.0


@pytest.mark.parametrize("host", [0, 5_000])
@given(reserved=TOKENS, one=TOKENS, other=TOKENS, live=st.integers(0, 20_000), new=st.booleans())
def test_who_is_smaller_fits_where_a_larger_one_did(
    host: int, reserved: float, one: float, other: float, live: int, *, new: bool
) -> None:
    """Room for more tokens is room for fewer."""
    small, large = sorted((one, other))
    at = worker(reserved, live=live, host=host)
    assert WorkingSet().fits(at, small, new=new) or not WorkingSet().fits(at, large, new=new)


@pytest.mark.parametrize(("host", "share"), [(0, 0.95), (5_000, 1.0)])
@given(reserved=TOKENS, extra=TOKENS)
def test_reservations_never_pass_their_share_of_the_device(
    host: int, share: float, reserved: float, extra: float
) -> None:
    """Up to alpha of the device without a host tier behind it, to alpha_host of it with one, and not a token more."""
    fits = WorkingSet().fits(worker(reserved, host=host), extra, new=False)
    assert fits == (reserved + extra <= share * 10_000)


@given(TOKENS, st.integers(0, 20_000), st.integers(1, 20_000))
def test_new_sessions_stay_out_where_both_tiers_would_overflow(extra: float, live: int, host: int) -> None:
    """What is live never outgrows device and host together by a newcomer; one that lives here is let back in."""
    at = worker(0.0, live=live, host=host)
    room = extra <= 10_000
    assert WorkingSet().fits(at, extra, new=True) == (room and live + extra <= 10_000 + host)
    assert WorkingSet().fits(at, extra, new=False) == room


@given(TOKENS, st.integers(0, 10**6), st.integers(0, 5_000), st.booleans())
def test_an_empty_worker_takes_anybody(extra: float, live: int, host: int, new: bool) -> None:
    """A session larger than alpha of the device still runs, alone: nobody waits for ever."""
    assert WorkingSet().fits(worker(0.0, active=0, live=live, host=host), extra, new=new)


@given(st.integers(0, 30_000))
def test_excess_is_what_the_device_cannot_hold(active_tokens: int) -> None:
    """A pause is asked for as soon as active contexts pass the capacity, and not before."""
    assert (WorkingSet().excess(worker(active_tokens=active_tokens)) > 0.0) == (active_tokens > 10_000)


@pytest.mark.parametrize("admission", [OpenDoor(), SessionCap(), WorkingSet()], ids=repr)
@given(one=TOKENS, other=TOKENS)
def test_a_longer_context_reserves_no_less_head_room(admission: Admission, one: float, other: float) -> None:
    """Growth is never negative and never falls with the context."""
    small, large = (admission.growth(tokens, 0.0) for tokens in sorted((one, other)))
    assert 0.0 <= small <= large
