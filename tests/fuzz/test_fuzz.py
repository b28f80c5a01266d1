"""The coverage-guided fuzzers, for a few seconds each, where atheris is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("script", ["fuzz_http1.py", "fuzz_identity.py"])
def test_ten_seconds_of_fuzzing_find_nothing(script: str, tmp_path: Path) -> None:
    """The laws of the script hold for whatever libFuzzer thinks of in ten seconds."""
    pytest.importorskip("atheris", reason="atheris is not installed (it is no dependency of the project)")
    path = Path(__file__).with_name(script)
    command = [sys.executable, str(path), "-max_total_time=10", "-max_len=400", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
