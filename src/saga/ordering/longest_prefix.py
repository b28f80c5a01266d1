"""Longest cached prefix first: work that is nearly done already goes before work that is not (SGLang)."""

from __future__ import annotations

from dataclasses import dataclass

from saga.views import SessionView


@dataclass(frozen=True)
class LongestPrefix:
    """By tokens of the prompt that are cached on the device, most first (SGLang: schedule policy `lpm`)."""

    static: bool = False

    def rank(self, session: SessionView, at_s: float) -> float:
        """Minus the cached tokens."""
        return -float(min(session.home_tokens, session.prompt_tokens))
