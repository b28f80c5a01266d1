"""The list of presets is the table of presets."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from saga.presets import PRESETS

Saga = Callable[..., Any]


def test_list_names_every_preset(saga: Saga) -> None:
    """In words and as JSON, in the order of the table; without a sub-command too."""
    rows = json.loads(saga("presets", "list", "--json").out)
    assert [row["name"] for row in rows] == list(PRESETS)
    assert json.loads(saga("presets", "--json").out) == rows
    words = saga("presets").out
    assert all(name in words for name in PRESETS)
    assert words == saga("presets", "list").out


def test_the_list_says_what_each_models_and_what_it_leaves_out(saga: Saga) -> None:
    """Mechanism, source and omissions, as they stand in the table."""
    for row in json.loads(saga("presets", "--json").out):
        composition = PRESETS[row["name"]]
        assert (row["description"], row["source"]) == (composition.description, composition.source)
        assert row["left_out"] == composition.left_out
    assert saga("presets").out.count("Not modelled:") == sum(bool(each.left_out) for each in PRESETS.values())


def test_show_has_every_constant_of_every_policy(saga: Saga) -> None:
    """Each preset can be shown; JSON nests policies under their class name."""
    for name, composition in PRESETS.items():
        shown = json.loads(saga("presets", "show", name, "--json").out)
        assert shown["name"] == name
        assert shown["admission"]["policy"] == type(composition.admission).__name__
        assert type(composition.ordering).__name__ in saga("presets", "show", name).out


def test_unknown_preset_is_one_line(saga: Saga) -> None:
    """With the nearest name."""
    assert "did you mean 'saga'" in saga("presets", "show", "sagaa").complaint
