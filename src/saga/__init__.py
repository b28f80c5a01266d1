"""SAGA schedules AI-agent workflows on fleets of LLM inference engines."""

__version__ = "0.1.0"
