"""Whose call is it: what was read of a request meets what is remembered, before anything is scheduled.

    reading ─▶ limits of its tenant ─▶ conversation ─▶ Call with session, task, step, estimates, and where it must go

This is the half of identity that has a memory: there is one of it, however many processes read requests (`reading` is
the other half). It refuses to know bytes, workers, sockets and decisions.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import msgspec

from saga.gateway.answers import TokenEstimator
from saga.gateway.contracts import Answer, Call, Kind, Request
from saga.gateway.conversations import Conversations, Prompt
from saga.gateway.reading import Reader, Reading
from saga.gateway.saved import SavedIdentity
from saga.gateway.settings import IdentitySettings
from saga.gateway.tenants import Tenants
from saga.wire import Resolver

_FORMAT: Final = 1


@dataclass(slots=True, init=False)
class _Pending:
    """A call that was identified and not yet answered."""

    tenant: str
    num_bytes: int
    tokens: int

    def __init__(
        self,
        tenant: str,
        num_bytes: int,
        tokens: int,
    ) -> None:
        self.tenant = tenant
        self.num_bytes = num_bytes
        self.tokens = tokens


class GatewayIdentity:
    """Whose call is it? One per fleet; not thread-safe; never blocks.

    Every identified call must be handed to `answered` once, also where it failed, was refused or cancelled (with an
    answer that is not complete): limits and conversations count on it.
    """

    def __init__(
        self,
        tenants: Tenants | None = None,
        resolver: Resolver | None = None,
        conversations: Conversations | None = None,
        estimator: TokenEstimator | None = None,
        settings: IdentitySettings | None = None,
    ) -> None:
        self.reader = Reader(tenants, resolver, settings)
        self.settings = self.reader.settings
        self.tenants = self.reader.tenants
        self.conversations = conversations if conversations is not None else Conversations()
        self.estimator = estimator if estimator is not None else TokenEstimator()
        self._run = secrets.token_hex(4)
        self._num_steps = 0
        self._pending: OrderedDict[str, _Pending] = OrderedDict()
        self._responses: OrderedDict[str, tuple[str, str]] = OrderedDict()

    def identify(self, request: Request, at_s: float) -> Call:
        """The call; raises Refused (400, 401, 429). at_s: the event loop's clock. Cost: O(bytes of the body)."""
        return self.place(self.reader.read(request), at_s)

    def place(self, reading: Reading, at_s: float) -> Call:
        """The reading's call, completed; raises Refused (429). Cost: O(messages)."""
        call, tenant = reading.call, reading.tenant
        tokens = self.estimator.tokens(call.model, reading.size) if call.model else 0
        known = self._responses.get(f"{tenant.name}/{reading.previous}") if reading.previous else None
        self.tenants.begin(tenant, tokens, at_s)
        if known is not None:
            call.pinned = known[1]
        if reading.digest is None:
            step = self._step(tenant.name, tokens, 0)
            call.step = step
            call.session = call.task = f"{tenant.name}/~{step}"
            call.prompt_tokens = max(1, tokens)
            return call
        try:
            self._place_in_conversation(reading, reading.digest, tokens, known, at_s)
        except BaseException:
            self.tenants.end(tenant.name, -tokens)
            raise
        return call

    def answered(self, call: Call, answer: Answer, at_s: float, worker: str = "") -> None:
        """The call is over. worker: who answered it, for the ids that lead back there."""
        pending = self._pending.pop(call.step, None)
        if pending is None:
            return
        spent = answer.output_tokens or 0
        if answer.prompt_tokens is not None and answer.complete:
            spent += answer.prompt_tokens - pending.tokens
            if pending.num_bytes:
                self.estimator.learn(call.model, pending.num_bytes, answer.prompt_tokens)
        self.tenants.end(pending.tenant, spent)
        self.conversations.answered(call.session, call.step, answer, at_s)
        if answer.response_id is not None and call.kind is Kind.RESPONSES and answer.complete:
            self._responses[f"{call.tenant}/{answer.response_id}"] = (call.session, worker)
            if len(self._responses) > self.settings.max_response_ids:
                self._responses.popitem(last=False)

    def snapshots(self, at_s: float, most: int = 50_000) -> Iterator[dict[str, Any]]:
        """What is worth keeping over a restart, as plain data that grows by about a millisecond's work at a time.

        Learned bytes per token; the latest `most` stored responses and conversations. No prompt and no answer is in it.
        """
        data: dict[str, Any] = {
            "format": _FORMAT,
            "bytes_per_token": self.estimator.snapshot(),
            "responses": list(islice(reversed(self._responses.items()), most)),
            "conversations": [],
        }
        yield data
        for packed in self.conversations.snapshots(at_s, most):
            data["conversations"] = packed
            yield data

    def restore(self, data: Any, at_s: float, away_s: float) -> None:  # noqa: ANN401 - whatever was found
        """Take over what `snapshots` gave `away_s` ago, before the first call. Raises ValueError for what it is not."""
        saved = msgspec.convert(data, SavedIdentity)
        if saved.format != _FORMAT:
            raise ValueError(f"format {saved.format}; this version writes {_FORMAT}")
        self.conversations.restore(saved.conversations, at_s, max(0.0, away_s))
        self.estimator.restore(saved.bytes_per_token)
        self._responses.update(reversed(saved.responses))

    def _place_in_conversation(
        self, reading: Reading, digest: Prompt, tokens: int, known: tuple[str, str] | None, at_s: float
    ) -> None:
        call, named = reading.call, reading.session
        placement = self.conversations.place(
            digest,
            scope=reading.scope,
            named=named,
            parent=reading.parent,
            model=call.model,
            at_s=at_s,
            bytes_per_token=self.estimator.bytes_per_token(call.model),
            retrying=reading.retrying,
            after=known[0] if known is not None and named in (None, known[0]) else None,
        )
        step = call.step = self._step(call.tenant, tokens, 0 if known is not None else digest.size)
        self.conversations.began(placement, digest, step, call.model, at_s)
        conversation = placement.conversation
        if reading.task is not None:
            conversation.task = reading.task
        common = placement.common_tokens
        call.session = conversation.session
        call.task = conversation.task
        call.parent = conversation.parent
        call.prompt_tokens = placement.prompt_tokens
        call.common_tokens = min(common, placement.prompt_tokens) if common is not None else None
        call.retry_of = placement.retry_of
        call.deadline_s = at_s + reading.deadline_s if reading.deadline_s is not None else None
        if call.prefix:
            call.prefix_tokens = min(self.estimator.tokens(call.model, digest.prefix_size), call.prompt_tokens)

    def _step(self, tenant: str, tokens: int, num_bytes: int) -> str:
        self._num_steps += 1
        step = f"{self._run}-{self._num_steps}"
        self._pending[step] = _Pending(tenant, num_bytes, tokens)
        if len(self._pending) > self.settings.max_pending:
            _, lost = self._pending.popitem(last=False)
            self.tenants.end(lost.tenant, 0)
        return step
