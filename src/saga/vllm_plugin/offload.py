"""vLLM's host tier with SAGA's order of leaving: what `--kv-transfer-config` names.

    {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": {
        "spec_name": "SagaOffloadingSpec", "spec_module_path": "saga.vllm_plugin.offload", "cpu_bytes_to_use": BYTES}}

`transfer_config` writes it. vLLM decides what is stored and loaded; here is said what leaves a full tier
(`SagaTierPolicy`, its `CachePolicy`) and, on the CPU backend, for which vLLM has no copies, how bytes are copied
(`CopyWorker`). On CUDA everything else is vLLM's own. Generated tokens are stored too (`offload_prompt_only` is false
unless said). It refuses to know the scheduler: `host_tier` ties the policy to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from saga.vllm_plugin import compatibility

compatibility.check_tier()

import torch  # noqa: E402 - refused clearly above where vLLM lacks something
from vllm.platforms import current_platform  # noqa: E402
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult  # noqa: E402
from vllm.v1.kv_offload.cpu.policies.base import CachePolicy, order_request_keys  # noqa: E402
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion  # noqa: E402
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec  # noqa: E402

from saga.cache.eviction import EvictionPolicy  # noqa: E402
from saga.cache.prefix_lru import PrefixLru  # noqa: E402
from saga.cache.tiers import PausedLast  # noqa: E402
from saga.errors import UnknownName, UsageError  # noqa: E402
from saga.views import CacheOwner  # noqa: E402
from saga.vllm_plugin.tier_order import TierOrder  # noqa: E402

TIER_EVICTION: Mapping[str, EvictionPolicy] = MappingProxyType({"paused_last": PausedLast(), "lru": PrefixLru()})


class SagaOffloadingSpec(TieringOffloadingSpec):
    """vLLM's tiering spec. `saga_eviction` of its settings: a name of `TIER_EVICTION`, paused_last by default."""

    def __init__(self, config: Any) -> None:  # noqa: ANN401 - vLLM's `OffloadingConfig`
        """Raises UnknownName for an eviction that is not there, UsageError for a vLLM that cannot be served."""
        super().__init__(config)
        compatibility.check_spec(self)
        self.offload_prompt_only = bool(self.extra_config.get("offload_prompt_only", False))
        self._copies: CopyWorker | None = None
        self.saga_eviction = str(self.extra_config.get("saga_eviction", "paused_last"))
        if self.saga_eviction not in TIER_EVICTION:
            raise UnknownName("kv_connector_extra_config.saga_eviction", self.saga_eviction, TIER_EVICTION)
        if "eviction_policy" not in self.extra_config:
            self.eviction_policy, self.cache_policy_module_path = SagaTierPolicy.__name__, __name__

    def get_manager(self) -> Any:  # noqa: ANN401
        """The manager, its policy told what leaves first."""
        manager = super().get_manager()
        policy = tier_policy(manager)
        if self.eviction_policy == SagaTierPolicy.__name__:
            compatibility.check_manager(manager, policy)
        if policy is not None:
            policy.order.policy = TIER_EVICTION[self.saga_eviction]
        return manager

    def get_worker(self, kv_caches: Any) -> OffloadingWorker:  # noqa: ANN401
        """What vLLM has for this device, else copies of our own."""
        if current_platform.is_cuda_alike() or current_platform.is_xpu():
            return super().get_worker(kv_caches)
        if self._copies is None:
            if self.blocks_per_chunk != 1:
                raise UsageError(
                    "kv_connector_extra_config.block_size: leave it out on the CPU backend, a chunk is a block there"
                )
            region = SharedOffloadRegion(
                engine_id=self._engine_id,
                num_chunks=self.num_chunks,
                rank=self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._copies = CopyWorker(kv_caches, region)
        return self._copies


class CopyWorker(OffloadingWorker):
    """Copies between two places of the same memory, done when asked for. kv_caches: vLLM's `CanonicalKVCaches`."""

    def __init__(self, kv_caches: Any, region: Any) -> None:  # noqa: ANN401
        self._region = region
        self._done: list[TransferResult] = []
        words = torch.int64 if all(each.page_size_bytes % 8 == 0 for each in kv_caches.tensors) else torch.int8
        self._device = [
            each.tensor.view(torch.int8).view(-1, each.page_size_bytes).view(words) for each in kv_caches.tensors
        ]
        self._host = [region.create_next_worker_view(each.page_size_bytes).view(words) for each in kv_caches.tensors]

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:  # noqa: ANN401
        """Device to tier."""
        return self._copy(job_id, self._device, src_spec.block_ids, self._host, dst_spec.block_ids)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:  # noqa: ANN401
        """Tier to device."""
        return self._copy(job_id, self._host, src_spec.block_ids, self._device, dst_spec.block_ids)

    def get_finished(self) -> list[TransferResult]:
        """Everything that was asked for since the last call."""
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        """Nothing is ever under way."""

    def shutdown(self) -> None:
        """Give the memory back."""
        self._host.clear()
        self._region.cleanup()

    def _copy(self, job_id: int, sources: list[Any], read: Any, targets: list[Any], write: Any) -> bool:  # noqa: ANN401
        begin_s = time.monotonic()
        rows, places = (torch.as_tensor(ids, dtype=torch.long) for ids in (read, write))
        for source, target in zip(sources, targets, strict=True):
            target[places] = source[rows]
        num_bytes = len(rows) * sum(source.shape[1] * source.element_size() for source in sources)
        self._done.append(TransferResult(job_id, True, num_bytes, time.monotonic() - begin_s))  # noqa: FBT003
        return True


class _Caller(NamedTuple):
    """Whose a request is; kept in the request's context."""

    owner: CacheOwner


class SagaTierPolicy(CachePolicy):
    """vLLM's `CachePolicy`: chunks of the tier, and which of them leave. owner_of: the session of a request, or None.

    A request without a session is an owner of its own, of unknown standing.
    """

    def __init__(self, cache_capacity: int) -> None:
        super().__init__(cache_capacity)
        self.chunks: dict[bytes, Any] = {}
        self.order = TierOrder(PausedLast())
        self.owner_of: Callable[[str], CacheOwner | None] = lambda _request: None
        self.now_s: Callable[[], float] = time.monotonic
        self._storing: dict[bytes, CacheOwner] = {}

    def get(self, key: bytes) -> Any | None:  # noqa: ANN401 - vLLM's `ChunkStatus`
        """What is known of a chunk that is here."""
        return self.chunks.get(key)

    def on_store_miss(self, keys: Iterable[bytes], req_context: Any) -> None:  # noqa: ANN401
        """These are about to be stored."""
        owner = self._owner(req_context)
        self._storing.update(dict.fromkeys(keys, owner))

    def insert(self, key: bytes, chunk: Any) -> None:  # noqa: ANN401
        """A chunk that is being stored."""
        owner = self._storing.pop(key, None)
        self.chunks[key] = chunk
        self.order.insert(key, owner if owner is not None else self._nobody())
        if chunk.ref_cnt == 0:
            self.order.free(key)

    def remove(self, key: bytes) -> None:
        """Its store failed."""
        del self.chunks[key]
        self.order.remove(key)

    def touch(self, keys: Iterable[bytes], req_context: Any) -> None:  # noqa: ANN401
        """A request uses them."""
        self.order.use(list(keys), self._owner(req_context))

    def on_request_finished(
        self,
        key_groups: Sequence[Sequence[bytes]],
        insertion_only_keys: set[bytes],
        reused_keys: set[bytes],
        req_context: Any,  # noqa: ANN401
    ) -> None:
        """A request that used these has ended."""
        keys = order_request_keys(key_groups, req_context)
        self.order.use(keys, self._owner(req_context))
        for key in keys:
            self._storing.pop(key, None)

    def evict(self, n: int, protected: set[bytes]) -> list[tuple[bytes, Any]] | None:
        """Exactly n chunks that leave, or None."""
        keys = self.order.evict(n, protected)
        return None if keys is None else [(key, self.chunks.pop(key)) for key in keys]

    def mark_evictable(self, key: bytes) -> None:
        """No transfer uses it any more."""
        self.order.free(key)

    def mark_non_evictable(self, key: bytes) -> None:
        """A transfer uses it."""
        self.order.hold(key)

    def clear(self) -> None:
        """Everything is dropped."""
        self.chunks.clear()
        self.order.clear()
        self._storing.clear()

    def _owner(self, req_context: Any) -> CacheOwner:  # noqa: ANN401
        caller = req_context.get_state(_Caller)
        if caller is None:
            caller = _Caller(self.owner_of(req_context.req_id) or self._nobody())
            req_context.set_state(caller)
        owner: CacheOwner = caller.owner
        return owner

    def _nobody(self) -> CacheOwner:
        nobody = CacheOwner("")
        nobody.last_use_s = self.now_s()
        return nobody


def tier_policy(manager: Any) -> SagaTierPolicy | None:  # noqa: ANN401
    """The policy of vLLM's offloading manager, of one tier or the first of several; None where it is another's."""
    first = getattr(manager, "primary_tier", manager)
    policy = getattr(first, "_policy", None)
    return policy if isinstance(policy, SagaTierPolicy) else None
