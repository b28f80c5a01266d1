"""What a cache is told about sessions in a replay, as a scheduler would tell it: in order, and without a look ahead.

The workflow model learns from the same facts as in production, and a retention rule says how long a session counts as
one that will be back. Refuses to know eviction policies and what they make of it.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from typing import Protocol

from saga.cache.ttl import GapFacts, Retention
from saga.commands import Standing
from saga.engine.kv_pool import KvPool
from saga.engine.latency import Latency
from saga.sim.cache_timeline import Visit
from saga.workflow.model import Track, WorkflowModel

_CHUNK_TOKENS = 2048
_OVERDUE_RANK = 0.75
_LEAST_WAIT_S = 0.1


class Facts(Protocol):
    """Hears what happens to calls, and tells a pool what follows for their sessions. Times in seconds."""

    def __init__(self, pool: KvPool, retention: Retention, latency: Latency, *, tells_ends: bool) -> None: ...

    def until(self, at_s: float) -> None:
        """Time has come this far."""
        ...

    def arrived(self, visit: Visit, at_s: float) -> None:
        """A call came, and may have to wait for room."""
        ...

    def runs(self, visit: Visit, at_s: float) -> None:
        """It started, and may lose its blocks while it runs (free replay)."""
        ...

    def finished(self, visit: Visit, at_s: float) -> None:
        """It was answered: the gap begins."""
        ...

    def over(self, visit: Visit) -> None:
        """No further call of its session will come."""
        ...


class Silence:
    """What stock engines are told about sessions."""

    def __init__(self, pool: KvPool, retention: Retention, latency: Latency, *, tells_ends: bool) -> None:
        pass

    def until(self, at_s: float) -> None:
        """Nothing."""

    def arrived(self, visit: Visit, at_s: float) -> None:
        """Nothing."""

    def runs(self, visit: Visit, at_s: float) -> None:
        """Nothing."""

    def finished(self, visit: Visit, at_s: float) -> None:
        """Nothing."""

    def over(self, visit: Visit) -> None:
        """Nothing."""


class Teller:
    """Forecasts of return when a gap begins, holds that expire, ends; as the scheduler does with each once.

    A session that waits for room is expected at the time of its arrival: first come is first served, so who came
    first is needed first.
    """

    def __init__(self, pool: KvPool, retention: Retention, latency: Latency, *, tells_ends: bool) -> None:
        self.model = WorkflowModel()
        self._pool = pool
        self._retention = retention
        self._latency = latency
        self._tells_ends = tells_ends
        self._capacity_tokens = pool.num_blocks * pool.block_tokens
        self._tracks: dict[str, Track] = {}
        self._ended_s: dict[str, float] = {}
        self._due: list[tuple[float, str, int]] = []

    def until(self, at_s: float) -> None:
        """Deadlines of sessions that are still in the gap for which they were set."""
        due = self._due
        while due and due[0][0] <= at_s:
            due_s, session, steps = heappop(due)
            track = self._tracks.get(session)
            if track is not None and track.waiting and track.steps == steps:
                self._still_away(session, track, due_s)

    def arrived(self, visit: Visit, at_s: float) -> None:
        """Its session is certain to be needed, in turn of arrival."""
        call, session = visit.call, visit.session
        track = self._tracks.get(session)
        if track is None:
            parent = None if visit.parent is None else self._tracks.get(visit.parent)
            track = self._tracks[session] = self.model.open(visit.workflow, parent=parent)
        ended_s = self._ended_s.get(session)
        self.model.step_arrived(
            track,
            gap_s=None if ended_s is None else at_s - ended_s,
            gap_kind=call.gap_kind,
            prompt_tokens=call.prompt_tokens,
            common_tokens=call.common_tokens if visit.number else None,
            hints=None,
        )
        if visit.number:
            self._pool.set_standing(session, Standing.ACTIVE, at_s, 1.0)

    def runs(self, visit: Visit, at_s: float) -> None:
        """Expected after its answer, as long as such answers are, and the gap."""
        forecast = self.model.forecast(self._tracks[visit.session])
        call = visit.call
        output_tokens = max(1, round(forecast.output_tokens))
        run_s = self._latency.isolated_s(call.common_tokens, call.prompt_tokens, output_tokens, _CHUNK_TOKENS)
        reuse = forecast.continue_probability * forecast.overlap
        self._pool.set_standing(visit.session, Standing.ACTIVE, at_s + run_s + forecast.expected_gap_s, reuse)

    def finished(self, visit: Visit, at_s: float) -> None:
        """Forecast the return, and how long to wait for it."""
        call, session = visit.call, visit.session
        track = self._tracks[session]
        self.model.step_finished(
            track, tool_calls=call.tools, output_tokens=call.output_tokens, prompt_tokens=call.prompt_tokens
        )
        self._ended_s[session] = at_s
        self._gap_begins(visit, track, at_s)

    def over(self, visit: Visit) -> None:
        """Where ends are told, model and cache learn it; else the session is just away, for ever."""
        if self._tells_ends:
            self.model.session_ended(self._tracks.pop(visit.session))
            self._ended_s.pop(visit.session, None)
            self._pool.set_standing(visit.session, Standing.ENDED, inf, 0.0)

    def _gap_begins(self, visit: Visit, track: Track, at_s: float) -> None:
        forecast = self.model.forecast(track)
        facts = GapFacts(
            gap=forecast.gap,
            continue_probability=forecast.continue_probability,
            overlap=forecast.overlap,
            capacity_tokens=self._capacity_tokens,
            return_tokens_per_s=self._latency.prefill_tokens_per_s,
            pressure=1.0,
            context_tokens=visit.context_tokens,
        )
        hold_s = self._retention.hold_s(facts)
        reuse = forecast.continue_probability * forecast.overlap
        standing = Standing.ACTIVE if hold_s > 0.0 else Standing.PAUSED
        self._pool.set_standing(visit.session, standing, at_s + forecast.expected_gap_s, reuse)
        if 0.0 < hold_s < inf:
            heappush(self._due, (at_s + hold_s, visit.session, track.steps))

    def _still_away(self, session: str, track: Track, at_s: float) -> None:
        """It was not worth waiting for any longer."""
        self._pool.set_standing(session, Standing.PAUSED, inf, 0.0)


class Reminder(Teller):
    """Forecasts again while a session is overdue, instead of letting go of it after a hold.

    First when three quarters of such gaps would be over, then each time that it has waited twice as long: a session
    that was expected at once and did not come is a session that will be long.
    """

    def _gap_begins(self, visit: Visit, track: Track, at_s: float) -> None:
        forecast = self.model.forecast(track)
        reuse = forecast.continue_probability * forecast.overlap
        self._pool.set_standing(visit.session, Standing.ACTIVE, at_s + forecast.expected_gap_s, reuse)
        wait_s = max(forecast.gap.quantile(_OVERDUE_RANK), _LEAST_WAIT_S)
        heappush(self._due, (at_s + wait_s, visit.session, track.steps))

    def _still_away(self, session: str, track: Track, at_s: float) -> None:
        """What is to be expected of it now."""
        ended_s = self._ended_s[session]
        forecast = self.model.forecast(track, at_s - ended_s)
        reuse = forecast.continue_probability * forecast.overlap
        self._pool.set_standing(session, Standing.ACTIVE, max(at_s, ended_s + forecast.expected_gap_s), reuse)
        heappush(self._due, (at_s + (at_s - ended_s), session, track.steps))
