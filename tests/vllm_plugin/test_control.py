"""What is decided between steps, without vLLM; with it in tests/vllm/test_scheduler.py."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from saga.commands import Standing
from saga.vllm_plugin.config import PluginConfig
from saga.vllm_plugin.contracts import Offload, Outcome, Prefetch, Prioritize, Release, Retain
from saga.vllm_plugin.control import Control

from .test_pins import Pool


@dataclass
class Params:
    """vLLM's sampling parameters."""

    extra_args: dict | None = None


@dataclass
class Request:
    """vLLM's request."""

    request_id: str
    session_id: str | None = None
    cache_salt: str | None = None
    priority: int = 0
    sampling_params: Params | None = None
    lora_request: object = None
    block_hashes: list = field(default_factory=lambda: [b"a", b"b"])
    all_token_ids: list = field(default_factory=lambda: list(range(33)))
    num_prompt_tokens: int = 30
    num_output_tokens: int = 3
    num_preemptions: int = 0


class Cache:
    """Holds the first `held` blocks of whatever is asked."""

    held = 2

    def num_blocks(self, session):
        return len(session.block_hashes)

    def block_at(self, _session, index):
        return index if index < self.held else None


def made(**settings) -> Control:
    """A control at a clock that stands at 0, for a pool of ten blocks of 16 tokens."""
    return Control(
        PluginConfig(**settings),
        queue=None,
        pool=Pool(),
        cache=Cache(),
        num_blocks=10,
        block_tokens=16,
        by_priority=True,
        now_s=lambda: 0.0,
    )


def serve(control, name, **more) -> None:
    """A call from its arrival to its end."""
    request = Request(name, **more)
    control.arrived(request)
    control.started(name, 30, 0, 0)
    control.leaving(request, finished=True)


def test_a_call_is_counted_on_its_way():
    """Waiting, running, preempted, running, gone; its session with it."""
    control, request = made(), Request("r", "s")
    control.arrived(request)
    session = control.sessions.named("s")[0]
    seen = [(session.num_waiting, session.num_running)]
    control.started("r", 30, 0, 0)
    seen.append((session.num_waiting, session.num_running))
    assert control.leaving(request, finished=False) is session
    seen.append((session.num_waiting, session.num_running))
    control.started("r", 30, 0, 0)
    control.leaving(request, finished=True)
    seen.append((session.num_waiting, session.num_running))
    assert seen == [(1, 0), (0, 1), (1, 0), (0, 0)]
    assert (session.num_steps, session.context_tokens, len(control.calls)) == (1, 33, 0)


def test_a_call_that_nobody_announced_is_left_alone():
    """Requests that never came through the queue have no session here."""
    assert made().leaving(Request("ghost"), finished=True) is None


def test_a_request_without_sampling_parameters_is_served():
    """An embedding has none."""
    control = made()
    serve(control, "r", sampling_params=None)
    assert control.ignored.counts == {}


@pytest.mark.parametrize("order", [Retain("x"), Release("x", Standing.ENDED), Offload("x"), Prefetch("x")])
def test_orders_for_unknown_sessions_are_missing_and_counted(order):
    """Whatever the order."""
    control = made()
    assert control.obey(order)[0] is Outcome.MISSING
    assert list(control.ignored.counts) == ["a directive for an unknown session"]


def test_orders_that_need_a_tier_are_refused_without_one():
    """The coordinator learns that there is none."""
    control = made()
    serve(control, "r", session_id="s")
    assert (
        control.obey(Offload("s")) == control.obey(Prefetch("s")) == (Outcome.REFUSED, "this engine has no host tier")
    )


def test_a_prefix_that_is_gone_or_half_gone_is_told():
    """Retain answers with what there is to retain."""
    control = made()
    serve(control, "r", session_id="s")
    assert control.obey(Retain("s", for_s=5.0)) == (Outcome.ACCEPTED, "")
    control._cache.held = 1
    assert control.obey(Retain("s", for_s=5.0)) == (Outcome.CLIPPED, "16 of 32 tokens are left")
    control._cache.held = 0
    assert control.obey(Retain("s", for_s=5.0)) == (Outcome.MISSING, "its prefix is gone")


def test_pins_follow_the_retention():
    """Held while retained; given back by a release."""
    control = made(pin_share=0.5)
    serve(control, "r", session_id="s")
    control.obey(Retain("s", for_s=5.0))
    assert control.pins.num_blocks == 2
    control.obey(Release("s", Standing.PAUSED))
    assert control.pins.num_blocks == 0


def test_priorities_for_steps_that_are_here_and_not():
    """All, some, none."""
    control = made()
    control.arrived(Request("r", sampling_params=Params({"saga_step": "x"})))
    outcomes = [control.obey(Prioritize(dict.fromkeys(steps, 1)))[0] for steps in ("x", "xy", "y")]
    assert outcomes == [Outcome.ACCEPTED, Outcome.CLIPPED, Outcome.MISSING]
