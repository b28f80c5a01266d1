"""What the scheduler asks of a host tier, and the answer where there is none.

The scheduler class holds one `Tier` (`SagaScheduler.saga.tier`); `saga.vllm_plugin.offload` brings the real one. Every
method is called on the engine's own thread between steps and returns at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from saga.vllm_plugin.contracts import Outcome
from saga.vllm_plugin.sessions import Session

MAX_ERRANDS = 8  # that a tier has under way at once


class Tier(Protocol):
    """A host tier as the scheduler sees it."""

    @property
    def num_blocks(self) -> int:
        """Its size, device blocks."""
        ...

    @property
    def used_blocks(self) -> int:
        """How much of it is taken. O(1)."""
        ...

    def held_tokens(self, session: Session) -> int:
        """Tokens from the front of the session's context that the tier holds. O(log tokens) at most."""
        ...

    def arriving(self, request: Any, session: Session | None) -> None:  # noqa: ANN401 - vLLM's `Request`
        """A call, of that session, is about to enter vLLM's queue."""
        ...

    def ended(self, request: Any) -> None:  # noqa: ANN401
        """A call ended."""
        ...

    def errand_of(self, request: Any) -> Session | None:  # noqa: ANN401
        """The session for which the tier itself sent this request, None where it did not."""
        ...

    def strip(self, outputs: Mapping[int, Any]) -> None:
        """Take what answers such requests out of what vLLM sends, per client."""
        ...

    def offload(self, session: Session) -> tuple[Outcome, str]:
        """Copy its prefix to the tier; why it was not done, or ""."""
        ...

    def prefetch(self, session: Session) -> tuple[Outcome, str]:
        """Bring its prefix back to the device; why it was not done, or ""."""
        ...

    def standing_changed(self, session: Session) -> None:
        """What is known of the session moved: it left, came back, was retained, released, or has ended."""
        ...


class NoTier:
    """What leaves the device is gone."""

    num_blocks = 0
    used_blocks = 0

    def held_tokens(self, session: Session) -> int:
        """0."""
        return 0

    def arriving(self, request: Any, session: Session | None) -> None:  # noqa: ANN401
        """Nothing."""

    def ended(self, request: Any) -> None:  # noqa: ANN401
        """Nothing."""

    def errand_of(self, request: Any) -> Session | None:  # noqa: ANN401
        """None."""
        return None

    def strip(self, outputs: Mapping[int, Any]) -> None:
        """Nothing."""

    def offload(self, session: Session) -> tuple[Outcome, str]:
        """Refused."""
        return Outcome.REFUSED, "this engine has no host tier"

    def prefetch(self, session: Session) -> tuple[Outcome, str]:
        """Refused."""
        return Outcome.REFUSED, "this engine has no host tier"

    def standing_changed(self, session: Session) -> None:
        """Nothing."""
