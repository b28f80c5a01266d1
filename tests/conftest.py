"""What all tests share: where the recorded traces are, and how hard Hypothesis tries.

Refuses to know any module under test.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

PROJECT = Path(__file__).resolve().parent.parent

settings.register_profile(
    "default",
    deadline=None,  # a shared machine is slow now and then; tests here are never timed
    max_examples=50,
    derandomize=True,  # the same examples every time: a red run can be repeated
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=1_000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Over the compiled core, tests that replace parts of it are left out."""
    if os.environ.get("SAGA_CORE") == "native":
        for item in items:
            if item.get_closest_marker("python_core"):
                item.add_marker(pytest.mark.skip(reason="the compiled core does not let parts of it be replaced"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder that holds `traces/` and `costs/`: $SAGA_SHARED, else `../shared` beside the project."""
    named = os.environ.get("SAGA_SHARED")
    folder = Path(named) if named else PROJECT.parent / "shared"
    if not (folder / "traces").is_dir():
        pytest.skip(
            f"no recorded traces: {folder}/traces is not there (set SAGA_SHARED to the folder that holds traces/)"
        )
    return folder
