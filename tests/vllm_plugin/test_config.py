"""The plug-in's settings: read whole, refused by name."""

from __future__ import annotations

import pytest

from saga.errors import UnknownName, UsageError
from saga.views import CacheOwner
from saga.vllm_plugin.config import EVICTION, TENANTS, PluginConfig


def test_nothing_said_means_the_defaults():
    """No object, an empty one, and none at all are the same; the default order is that of the preset `saga`."""
    from saga.presets import preset

    assert PluginConfig.read(None) == PluginConfig.read({}) == PluginConfig()
    assert EVICTION[PluginConfig().eviction] == preset("saga").engine.eviction
    assert TENANTS[PluginConfig().tenants] == preset("saga").tenants


def test_a_retained_session_outlives_one_that_is_not_whatever_the_order():
    """By the paper's order too, as in its presets: a pin leaves only when nothing else is left."""
    kept, newer = CacheOwner("kept"), CacheOwner("newer")
    kept.standing, newer.last_use_s = "active", 100.0
    for name in ("next_use", "workflow_lru"):
        assert EVICTION[name].key(kept) > EVICTION[name].key(newer)


def test_what_is_said_is_read():
    """As JSON brings it: whole numbers where numbers are wanted too."""
    config = PluginConfig.read({"eviction": "lru", "epoch_s": 1, "weights": {"a": 2}, "max_sessions": 5})
    assert (config.eviction, config.epoch_s, config.weights, config.max_sessions) == ("lru", 1, {"a": 2}, 5)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (["a"], "should be an object"),
        ({"eviction": 7}, r"saga\.eviction = 7: should be text"),
        ({"epoch_s": 0}, r"saga\.epoch_s = 0: should be a number above 0"),
        ({"epoch_s": "fast"}, r"saga\.epoch_s = 'fast': should be a number"),
        ({"epoch_s": float("nan")}, "should be a number"),
        ({"epoch_s": True}, "should be a number"),
        ({"preempt_after_s": -1}, r"preempt_after_s = -1: should be a number of at least 0"),
        ({"move_tokens_per_s": -1.0}, r"move_tokens_per_s = -1.0: should be a number of at least 0"),
        ({"prefill_tokens_per_s": float("inf")}, r"prefill_tokens_per_s = inf: should be a number"),
        ({"max_sessions": 1.5}, r"max_sessions = 1.5: should be a whole number"),
        ({"pin_share": 1}, r"pin_share = 1: should be a share from 0 to 0.9"),
        ({"weights": {"a": 0}}, r"weights.a = 0: should be a number above 0"),
        ({"weights": {"a": "b"}}, r"weights.a = 'b'"),
        ({"weights": 3}, "should be an object of numbers by tenant"),
    ],
)
def test_wrong_values_are_refused_by_field_and_value(said, what):
    """One message: the field, the value, what would be right."""
    with pytest.raises(UsageError, match=what):
        PluginConfig.read(said)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"evicton": "lru"}, r"unknown field of additional_config.saga 'evicton'; did you mean 'eviction'"),
        ({"eviction": "next_us"}, r"unknown saga.eviction 'next_us'; did you mean 'next_use'"),
        ({"tenants": "fair"}, r"unknown saga.tenants 'fair'"),
    ],
)
def test_unknown_names_come_with_the_known_ones(said, what):
    """A misspelt field is no setting that silently does nothing."""
    with pytest.raises(UnknownName, match=what):
        PluginConfig.read(said)


def test_the_key_comes_from_the_environment_and_is_never_shown(monkeypatch):
    """A key on the command line is seen by everybody on the machine."""
    monkeypatch.setenv("SAGA_COORDINATOR_KEY", "from outside")
    assert PluginConfig(coordinator="h:1").link().key == "from outside"
    assert PluginConfig(coordinator="h:1", key="said").link().key == "said"
    assert "said" not in repr(PluginConfig(key="said"))
