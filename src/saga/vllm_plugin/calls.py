"""The calls that are in the engine, and who goes before whom.

A call's place is one whole number, lower first, made of (service that its tenant had more than the least served one,
in quanta; the priority that came with it or that the coordinator gave it since; arrival of its task), in this order:
vLLM compares nothing else, and equal ones by arrival. Within a quantum tenants are equal, so that two of them do not
push each other out in turns. It refuses to know queues, blocks and sessions' standings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from saga.fairness.agent_fair_share import TenantShare
from saga.scheduler.accounts import Accounts
from saga.vllm_plugin.hints import Hints
from saga.vllm_plugin.sessions import Session

_PREFILL_TOKENS_PER_S = 5_000.0  # a nominal device: only the relation between tenants matters
_OUTPUT_COSTS_PREFILL_TOKENS = 8.0
_QUANTUM_S = 2.0
_BITS = 64
_LEAST = -(1 << (_BITS - 1))
_MAX_TENANTS = 10_000


class Call:
    """One request. session: None where it named none. priority: given, or ordered since. since_s: it waits since then.

    begun_s: when it was first scheduled, -1 before. cached_tokens, host_tokens: found then. gave_way: how often.
    """

    __slots__ = (
        "arrived_s",
        "begun_s",
        "cached_tokens",
        "gave_way",
        "hints",
        "host_tokens",
        "name",
        "priority",
        "session",
        "since_s",
        "waiting",
    )

    def __init__(self, name: str, hints: Hints, session: Session | None, priority: int, at_s: float) -> None:
        self.name = name
        self.hints = hints
        self.session = session
        self.priority = priority
        self.arrived_s = at_s
        self.since_s = at_s
        self.begun_s = -1.0
        self.waiting = True
        self.cached_tokens = 0
        self.host_tokens = 0
        self.gave_way = 0


class Calls:
    """Live calls by name, and the accounts of their tenants. weights: of tenants, 1 where unnamed."""

    def __init__(self, share: TenantShare, weights: Mapping[str, float]) -> None:
        self._share = share
        self._accounts = Accounts(dict(weights), _MAX_TENANTS)
        self._by_name: dict[str, Call] = {}
        self._by_step: dict[str, Call] = {}
        self._num_calls: dict[str, int] = {}
        self._quanta: dict[str, int] = {}
        self._ordered = False

    def __len__(self) -> int:
        """Calls in the engine."""
        return len(self._by_name)

    def __iter__(self) -> Iterator[Call]:
        """All of them, oldest first."""
        return iter(self._by_name.values())

    def get(self, name: str) -> Call | None:
        """The call of that request id, or None."""
        return self._by_name.get(name)

    def add(self, call: Call) -> None:
        """A call came. O(1), the first of an idle tenant O(tenants)."""
        self._by_name[call.name] = call
        if call.hints.step:
            self._by_step[call.hints.step] = call
        tenant = call.hints.tenant
        self._accounts.join(tenant)
        self._num_calls[tenant] = self._num_calls.get(tenant, 0) + 1

    def end(self, call: Call) -> None:
        """It is gone."""
        del self._by_name[call.name]
        if self._by_step.get(call.hints.step) is call:
            del self._by_step[call.hints.step]
        tenant = call.hints.tenant
        self._accounts.leave(tenant)
        self._num_calls[tenant] -= 1
        if not self._num_calls[tenant]:
            del self._num_calls[tenant]
            self._quanta.pop(tenant, None)

    def charge(self, call: Call, prefill_tokens: int, output_tokens: int) -> None:
        """Its tenant had this much of the engine; places show it after the next `settle`."""
        work = prefill_tokens + _OUTPUT_COSTS_PREFILL_TOKENS * output_tokens
        self._accounts.charge(call.hints.tenant, max(0.0, work) / _PREFILL_TOKENS_PER_S)

    def settle(self) -> bool:
        """Count again how far tenants are ahead of the one that had least; whether places changed. O(tenants here)."""
        ranks = {name: self._share.rank(self._accounts.tenants[name]) for name in self._num_calls}
        least = min(ranks.values(), default=0.0)
        quanta = {name: quanta for name, rank in ranks.items() if (quanta := int((rank - least) / _QUANTUM_S))}
        changed = self._ordered or quanta != self._quanta
        self._quanta, self._ordered = quanta, False
        return changed

    def order(self, priority_by_step: Mapping[str, int]) -> int:
        """New priorities; how many of the steps are here."""
        known = 0
        for step, priority in priority_by_step.items():
            call = self._by_step.get(step)
            if call is not None:
                call.priority = priority
                known += 1
        self._ordered |= known > 0
        return known

    def place(self, call: Call) -> int:
        """Its place now, lower first. O(1)."""
        quanta = self._quanta.get(call.hints.tenant, 0)
        arrived_s = call.arrived_s if call.session is None else call.session.arrived_s
        priority = min(max(call.priority, _LEAST), -_LEAST - 1) - _LEAST
        return ((quanta << _BITS | priority) << _BITS) + int(max(arrived_s, 0.0) * 1e6)
