"""Which kind of workflow a session belongs to where its client gives no name.

Two sessions are of one kind when they have the same system prompt and the same tools. System prompts that carry a
date or a folder differ each time: once a tool set has been seen with many prompts, the tools alone name the kind.
The module refuses to know texts: it gets a hash of the prompt and the names of the tools.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

_MANY_PROMPTS = 8
_NAME_BYTES = 5


class KindInference:
    """Names kinds by fingerprint. The same sessions in the same order get the same names.

    max_tool_sets: how many are remembered; the one not seen for longest is forgotten. State: nine hashes each.
    """

    __slots__ = ("_max_tool_sets", "_prompts")

    def __init__(self, max_tool_sets: int = 1024) -> None:
        self._max_tool_sets = max_tool_sets
        self._prompts: dict[str, dict[str, None]] = {}

    def kind(self, prompt_hash: str, tools: Iterable[str]) -> str:
        """Name of the kind, such as "agent-1f0c9a3b77": stable across processes. O(tools)."""
        tool_set = _digest(*sorted(set(tools)))
        prompts = self._prompts.pop(tool_set, {})
        self._prompts[tool_set] = prompts
        if len(self._prompts) > self._max_tool_sets:
            del self._prompts[next(iter(self._prompts))]
        if len(prompts) <= _MANY_PROMPTS:
            prompts[prompt_hash] = None
        if len(prompts) > _MANY_PROMPTS:
            return f"agent-{tool_set}"
        return f"agent-{_digest(tool_set, prompt_hash)}"


def _digest(*parts: str) -> str:
    return blake2b("\0".join(parts).encode(), digest_size=_NAME_BYTES).hexdigest()
