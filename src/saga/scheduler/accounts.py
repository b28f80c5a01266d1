"""Accounts of tenants: who has had how much of the fleet, in device seconds. Who is next is `fairness`' question.

Start-time fair: a virtual time (device seconds per weight) follows the least served tenant that waits, or that is
served while nobody waits, and never runs back; when nobody is at work it stands at the most that anybody has had. Who
joins, begins to wait or is given a step is set to it at least: a tenant that asks for little banks nothing, and nobody
is held back for having used a fleet that was empty. What follows from that is proved in docs/fairness.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from saga.events import StepFinished
from saga.views import TenantView, WorkerView

_OUTPUT_COSTS_PREFILL_TOKENS = 8.0


class Accounts:
    """One account per tenant, at most `max_tenants`; weights by name, 1 where unnamed. num_busy: with a session."""

    def __init__(self, weights: dict[str, float], max_tenants: int) -> None:
        self.tenants: dict[str, TenantView] = {}
        self._weights = weights
        self._max_tenants = max_tenants
        self.num_busy = 0
        self._virtual_s = 0.0

    def join(self, name: str) -> None:
        """A session of the tenant opens. O(1); O(tenants) for the first session of an idle tenant."""
        tenant = self.tenants.get(name) or self._open(name)
        if tenant.num_sessions == 0:
            self._catch_up(tenant)
            self.num_busy += 1
        tenant.num_sessions += 1

    def leave(self, name: str) -> None:
        """A session of the tenant closes. O(1); O(tenants) for the last session of the last tenant at work."""
        tenant = self.tenants[name]
        tenant.num_sessions -= 1
        if tenant.num_sessions == 0:
            self.num_busy -= 1
            if self.num_busy == 0:
                self._virtual_s = max(
                    self._virtual_s, *(each.attained_s / each.weight for each in self.tenants.values())
                )

    def level(self, name: str) -> None:
        """Whatever the tenant did not ask for is lost to it. O(1)."""
        tenant = self.tenants[name]
        tenant.attained_s = max(tenant.attained_s, self._virtual_s * tenant.weight)

    def serve(self, name: str, waiting: Iterable[TenantView]) -> None:
        """The tenant is given a step while these wait for any worker: time goes on to the least served. O(waiting)."""
        self.level(name)
        tenant = self.tenants[name]
        least = tenant.attained_s / tenant.weight
        for other in waiting:
            least = min(least, other.attained_s / other.weight)
        self._virtual_s = max(self._virtual_s, least)

    def charge(self, name: str, service_s: float) -> None:
        """The tenant has received this many device seconds."""
        self.tenants[name].attained_s += service_s

    def advance(self, name: str, service_s: float) -> None:
        """A place was taken: so much is charged before it is known; negative when it is used, or given back."""
        self.tenants[name].advanced_s += service_s

    def reweigh(self, weights: Mapping[str, float]) -> None:
        """Weights from now on; what was served so far counts as if they had always been so. O(tenants)."""
        self._weights.update(weights)
        for tenant in self.tenants.values():
            weight = weights.get(tenant.tenant, tenant.weight)
            tenant.attained_s *= weight / tenant.weight
            tenant.weight = weight

    def _open(self, name: str) -> TenantView:
        """At the cap idle accounts are closed: those that would rejoin level, or all where there are none such.

        The latter forgives who had more than others: by then `max_tenants` are at work or ahead. O(tenants) at the cap.
        """
        if len(self.tenants) >= self._max_tenants:
            idle = [tenant for tenant in self.tenants.values() if not tenant.num_sessions]
            level = [tenant for tenant in idle if tenant.attained_s <= self._virtual_s * tenant.weight]
            for tenant in level or idle:
                del self.tenants[tenant.tenant]
        tenant = self.tenants[name] = TenantView(name, self._weights.get(name, 1.0))
        return tenant

    def _catch_up(self, tenant: TenantView) -> None:
        busy = [other.attained_s / other.weight for other in self.tenants.values() if other.num_sessions]
        if busy:
            self._virtual_s = max(self._virtual_s, min(busy))
        tenant.attained_s = max(tenant.attained_s, self._virtual_s * tenant.weight)


def service_s(event: StepFinished, worker: WorkerView) -> float:
    """Device seconds of a finished step, estimated from its tokens where nobody measured them."""
    if event.service_s is not None:
        return event.service_s
    new_tokens = event.prompt_tokens - event.cached_tokens - event.host_tokens
    return (new_tokens + _OUTPUT_COSTS_PREFILL_TOKENS * event.output_tokens) / worker.prefill_tokens_per_s
