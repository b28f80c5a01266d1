"""Agents fitted to recorded traces: quantile tables in `data/`, and how sessions are drawn from them.

A profile carries numbers only, each with its provenance; `benchmarks/fit_profiles.py` regenerates them. It keeps the
distributions of calls per session, first prompt, answers, and gaps by tool; the order of tools (first-order
transitions); how a prompt follows from the context before (extend, trim, rewrite); how alike the growth of one
session's steps is, and how it goes with the number of calls. It drops every other correlation, and sub-agents.

Measured against their sources (1,000 tasks): mean context within 11 %, input p50 within 15 % and p95 within 28 %, reuse
within two points. Known differences: prompts shrink more often (browser at 0.36 of the steps for 0.18, claude_code 0.02
for 0.01), and chat finds 0.03 of its prompts with other sessions where the trace finds 0.06.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from importlib.resources import files
from itertools import accumulate
from math import sqrt

import msgspec
import numpy as np

from saga.workloads.conversation import Conversation
from saga.workloads.plan import Call
from saga.workloads.quantiles import KNOTS, Floats, Quantiles, chance
from saga.workloads.synthetic import Source
from saga.workloads.tool_latency import USER_GAP_S, tool_latency

PROFILES = ("claude_code", "swe_agent", "tool_service", "browser", "chat")
START = "start"
USER = "user"


class Provenance(msgspec.Struct, frozen=True):
    """Where the numbers of a profile come from."""

    trace: str
    origin: str
    commit: str
    licence: str
    note: str = ""

    def __str__(self) -> str:
        """One line for people."""
        said = f"fitted to {self.trace} ({self.origin}, commit {self.commit[:8]}, {self.licence})"
        return f"{said}; {self.note}" if self.note else said


class Mode(msgspec.Struct, frozen=True):
    """One way in which a prompt follows from the context before it; tables at KNOTS.

    share: of the steps. new_tokens: behind what is kept. kept: share of the context that the prompt begins with, or
    dropped: tokens at its end that the prompt leaves out, the more the longer the new; both () where all is kept.
    """

    share: float
    new_tokens: tuple[float, ...]
    kept: tuple[float, ...] = ()
    dropped: tuple[float, ...] = ()


class Profile(msgspec.Struct, frozen=True):
    """A fitted agent; tables at KNOTS.

    system_tokens: leading tokens that all sessions share. growth_alike: intra-class correlation of the growth of a
    session's steps; growth_and_calls: its correlation with the number of calls. transitions: from a tool (`start` for
    the first call, `user` for an answer to a person) to the next, with probability. gaps_s: seconds by tool or `user`;
    a tool without a table takes as long as the paper's table says for its class.
    """

    name: str
    provenance: Provenance
    num_calls: tuple[float, ...]
    first_tokens: tuple[float, ...]
    output_tokens: tuple[float, ...]
    system_tokens: int
    modes: dict[str, Mode]
    growth_alike: float
    growth_and_calls: float
    gaps_s: dict[str, tuple[float, ...]]
    transitions: dict[str, dict[str, float]]


def profile(name: str) -> Profile:
    """The profile of that name, from `data/`."""
    return msgspec.json.decode((files("saga.workloads") / "data" / f"{name}.json").read_bytes(), type=Profile)


def profile_source(name: str) -> Source:
    """What the synthetic workload of that profile is made of."""
    fitted = profile(name)
    return Source(name, str(fitted.provenance), {"default": ProfileShape(fitted)}, name)


class ProfileShape:
    """Draws sessions of a profile. Satisfies `synthetic.Shape`; about 4 us per call."""

    __slots__ = ("_first", "_gaps", "_modes", "_next", "_num_calls", "_output", "_profile", "_shares")

    def __init__(self, fitted: Profile) -> None:
        self._profile = fitted
        self._num_calls = Quantiles(KNOTS, fitted.num_calls)
        self._first = Quantiles(KNOTS, fitted.first_tokens)
        self._output = Quantiles(KNOTS, fitted.output_tokens)
        self._shares = list(accumulate(mode.share for mode in fitted.modes.values()))
        self._modes = [
            (Quantiles(KNOTS, mode.new_tokens), _table(mode.kept), _table(mode.dropped))
            for mode in fitted.modes.values()
        ]
        tools = {tool for row in fitted.transitions.values() for tool in row}
        self._gaps = {tool: _gap_table(fitted, tool) for tool in tools | {USER}}
        self._next = {
            tool: (list(row), list(accumulate(row.values()))) for tool, row in fitted.transitions.items() if row
        }

    def draw(self, rng: np.random.Generator, streams: Iterator[int]) -> list[Call]:
        """The calls of one session. O(calls)."""
        system = self._profile.system_tokens
        calls_normal = rng.standard_normal()
        num_calls = max(round(float(self._num_calls.at(chance(np.array([calls_normal])))[0])), 1)
        outputs = np.maximum(self._output.draw(rng, num_calls), 1).astype(int).tolist()
        growth = self._growth(rng, num_calls, float(calls_normal))
        uniform = rng.random((num_calls, 3)).tolist()
        conversation = Conversation(streams, ((0, system),) if system else ())
        prompt, kept = max(int(self._first.one(float(rng.random()))), system + 1), None
        calls: list[Call] = []
        tool, gap_s, kind = START, 0.0, "tool"
        for k in range(num_calls):
            to_tool, to_mode, to_gap = uniform[k]
            tool = self._tool_after(tool, to_tool) if k + 1 < num_calls else USER
            path, common = conversation.ask(prompt, outputs[k], kept)
            tools = () if tool == USER else (tool,)
            calls.append(Call(path, prompt, outputs[k], gap_s, tools, kind, system, common if k else 0))
            gap_s, kind = self._gaps[tool].one(to_gap), "user" if tool == USER else "tool"
            prompt, kept = self._next_prompt(prompt + outputs[k], to_mode, growth[k])
        return calls

    def _growth(self, rng: np.random.Generator, num_calls: int, calls_normal: float) -> list[float]:
        """Probabilities of the growth of each step, correlated within the session and with its number of calls."""
        alike, along = self._profile.growth_alike, self._profile.growth_and_calls
        session = along * calls_normal + sqrt(1 - along**2) * rng.standard_normal()
        normals: Floats = sqrt(alike) * session + sqrt(1 - alike) * rng.standard_normal(num_calls)
        grown: list[float] = chance(normals).tolist()
        return grown

    def _next_prompt(self, context: int, to_mode: float, to_growth: float) -> tuple[int, int | None]:
        """Tokens of the next prompt, and how many it keeps of the context (None: all)."""
        which = min(bisect_right(self._shares, to_mode), len(self._modes) - 1)
        new_tokens, kept_share, dropped = self._modes[which]
        new = int(new_tokens.one(to_growth))
        if kept_share is not None:
            begun = self._shares[which - 1] if which else 0.0
            kept = int(context * kept_share.one((to_mode - begun) / (self._shares[which] - begun) * 0.999_999))
        elif dropped is not None:
            kept = context - int(dropped.one(to_growth))
        else:
            return context + new, None
        kept = min(max(kept, self._profile.system_tokens), context)
        return kept + max(new, 1), kept

    def _tool_after(self, tool: str, probability: float) -> str:
        names, sums = self._next.get(tool, self._next[START])
        return names[min(bisect_right(sums, probability * sums[-1]), len(names) - 1)]


def _table(values: tuple[float, ...]) -> Quantiles | None:
    return Quantiles(KNOTS, values) if values else None


def _gap_table(fitted: Profile, tool: str) -> Quantiles:
    """Seconds after a call of `tool`: fitted, else the paper's; of a person: fitted, else as in the chat trace."""
    values = fitted.gaps_s.get(tool)
    if values is not None:
        return Quantiles(KNOTS, values)
    return USER_GAP_S if tool == USER else tool_latency(tool)
