"""Systems by name: presets, and the paper's with another constant."""

from __future__ import annotations

import pytest

from saga.bench.evaluation.systems import CONSTANTS, system, varied
from saga.errors import UnknownName, UsageError
from saga.presets import PRESETS, saga_paper


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_system(name: str) -> None:
    """Under its own name."""
    assert system(name) is PRESETS[name]


@pytest.mark.parametrize("constant", CONSTANTS)
def test_a_constant_changes_the_system_and_nothing_else(constant: str) -> None:
    """Another value is another composition; its name says nothing else about it."""
    found = system(varied(constant, 0.55))
    assert found == saga_paper(**{constant: 0.55})
    assert found != saga_paper()


@pytest.mark.parametrize("name", ["sagaa", "saga_paper~alfa=0.2", "saga~alpha=0.2", "saga_paper~alpha"])
def test_what_nobody_knows_is_refused(name: str) -> None:
    """A preset, a constant, a preset that has no such constant, no value."""
    with pytest.raises((UnknownName, UsageError)):
        system(name)
    with pytest.raises(UsageError, match="no number"):
        system("saga_paper~alpha=much")
