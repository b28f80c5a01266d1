"""SAGA schedules AI-agent workflows on fleets of LLM inference engines."""

import os as _os
from pathlib import Path as _Path

from saga.core import choose as _choose

__version__ = "0.1.0"

_choose(_os.environ.get("SAGA_CORE", "python"), _Path(__file__).parent)
