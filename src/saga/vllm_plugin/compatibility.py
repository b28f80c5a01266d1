"""Which internals of vLLM the plug-in relies on, and the refusal to start where one is missing.

vLLM's scheduler interface is not public. What is relied on is listed here once, by name and by the parameters that are
passed; how it behaves is tested in tests/vllm/test_contract.py. Written for vLLM >= 0.29, tested on 0.32.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from saga.errors import UsageError

_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
_QUEUE = "vllm.v1.core.kv_cache_utils:FreeKVCacheBlockQueue"
_POOL = "vllm.v1.core.block_pool:BlockPool"
_MANAGER = "vllm.v1.core.kv_cache_manager:KVCacheManager"
_REQUEST_QUEUE = "vllm.v1.core.sched.request_queue:RequestQueue"

NEEDED: dict[str, tuple[str, ...]] = {
    f"{_SCHEDULER}.schedule": (),
    f"{_SCHEDULER}.add_request": ("request",),
    f"{_SCHEDULER}.update_from_output": ("scheduler_output", "model_runner_output"),
    f"{_SCHEDULER}.reset_prefix_cache": (),
    f"{_SCHEDULER}.shutdown": (),
    f"{_SCHEDULER}._free_request_blocks": ("request",),
    f"{_SCHEDULER}._preempt_request": ("request", "timestamp", "drop_stale_output"),
    "vllm.v1.core.sched.async_scheduler:AsyncScheduler.schedule": (),
    f"{_MANAGER}.get_blocks": ("request_id",),
    f"{_POOL}.get_cached_block": ("block_hash", "kv_cache_group_ids"),
    f"{_POOL}.get_num_free_blocks": (),
    f"{_POOL}.touch": ("blocks",),
    f"{_POOL}.free_blocks": ("ordered_blocks",),
    f"{_QUEUE}.popleft": (),
    f"{_QUEUE}.popleft_n": ("n",),
    f"{_QUEUE}.remove": ("block",),
    f"{_QUEUE}.append": ("block",),
    f"{_QUEUE}.append_n": ("blocks",),
    f"{_QUEUE}.prepend_n": ("blocks",),
    f"{_QUEUE}.get_all_free_blocks": (),
    f"{_QUEUE}.iter_blocks_after": ("cursor",),
    "vllm.v1.core.kv_cache_utils:resolve_block_hashes": ("block_hashes", "hash_block_size", "block_size"),
    "vllm.v1.kv_cache_interface:FullAttentionSpec": (),
    "vllm.v1.core.sched.request_queue:create_request_queue": ("policy",),
    "vllm.v1.core.sched.request_queue:SchedulingPolicy.PRIORITY": (),
    f"{_REQUEST_QUEUE}.peek_request": (),
    f"{_REQUEST_QUEUE}.add_request": ("request",),
    f"{_REQUEST_QUEUE}.prepend_request": ("request",),
    f"{_REQUEST_QUEUE}.remove_request": ("request",),
    "vllm.v1.request:RequestStatus.WAITING": (),
    "vllm.v1.request:RequestStatus.PREEMPTED": (),
    "vllm.v1.request:Request.is_finished": (),
    "vllm.v1.request:Request.num_output_tokens": (),
}

_POLICY = "vllm.v1.kv_offload.cpu.policies.base:CachePolicy"
_WORKER = "vllm.v1.kv_offload.base:OffloadingWorker"
_CONTEXT = "vllm.v1.kv_offload.base:ReqContext"
_SPEC = "vllm.v1.kv_offload.tiering.spec:TieringOffloadingSpec"

NEEDED_BY_TIER: dict[str, tuple[str, ...]] = {
    f"{_SPEC}.get_manager": (),
    f"{_SPEC}.get_worker": ("kv_caches",),
    "vllm.v1.kv_offload.cpu.shared_offload_region:SharedOffloadRegion": (
        "engine_id",
        "num_chunks",
        "rank",
        "kv_bytes_per_chunk",
        "cpu_page_size",
    ),
    "vllm.v1.kv_offload.base:TransferResult": ("job_id", "success", "transfer_size", "transfer_time"),
    "vllm.v1.kv_offload.base:make_offload_key": ("block_hash", "group_idx"),
    f"{_CONTEXT}.set_state": ("val",),
    f"{_CONTEXT}.get_state": ("cls",),
    "vllm.v1.kv_offload.cpu.policies.base:order_request_keys": ("key_groups", "req_context"),
    f"{_POLICY}.on_store_miss": ("keys", "req_context"),
    f"{_POLICY}.on_request_finished": ("key_groups", "insertion_only_keys", "reused_keys", "req_context"),
    f"{_POLICY}.evict": ("n", "protected"),
    f"{_POLICY}.mark_evictable": ("key",),
    f"{_POLICY}.mark_non_evictable": ("key",),
    f"{_WORKER}.submit_store": ("job_id", "src_spec", "dst_spec"),
    f"{_WORKER}.submit_load": ("job_id", "src_spec", "dst_spec"),
    "vllm.v1.request:Request": (
        "request_id",
        "prompt_token_ids",
        "sampling_params",
        "pooling_params",
        "lora_request",
        "cache_salt",
        "priority",
        "block_hasher",
    ),
}

TIER_ATTRIBUTES = (
    "connector.connector_scheduler._req_status",
    "connector.connector_scheduler.config.blocks_per_chunk",
    "connector.connector_scheduler.config.kv_group_configs",
    "connector.connector_scheduler.manager",
    "max_model_len",
)

ATTRIBUTES = (
    "block_size",
    "cache_config",
    "defer_block_free",
    "hash_block_size",
    "kv_cache_config",
    "kv_cache_manager.block_pool.free_block_queue.num_free_blocks",
    "kv_cache_manager.block_pool.num_gpu_blocks",
    "max_num_running_reqs",
    "max_num_scheduled_tokens",
    "policy",
    "prev_step_scheduled_req_ids",
    "processed_step_seq",
    "requests",
    "requires_kv_delivery",
    "running",
    "vllm_config.additional_config",
    "waiting",
)


SPEC_ATTRIBUTES = (
    "_engine_id",
    "blocks_per_chunk",
    "cache_policy_module_path",
    "config.parallel.rank",
    "cpu_page_size_per_worker",
    "eviction_policy",
    "extra_config",
    "kv_bytes_per_chunk",
    "num_chunks",
    "offload_prompt_only",
)

QUEUES = ("waiting", "kv_holding_waiting", "skipped_waiting")
"""Where a scheduler keeps calls that wait: the first everywhere, the others by version."""


def check() -> None:
    """Raise UsageError where vLLM lacks something that is relied on, or its free queue does more than is known here."""
    for path, parameters in NEEDED.items():
        _check_one(path, parameters)
    known = {path.rpartition(".")[2] for path in NEEDED if path.startswith(_QUEUE)}
    methods = {name for name, _ in inspect.getmembers(_find(_QUEUE), callable) if not name.startswith("_")}
    if methods - known:
        raise _refusal(f"{_QUEUE} has methods that the plug-in does not know: {', '.join(sorted(methods - known))}")


def check_tier() -> None:
    """Raise UsageError where vLLM lacks something that the host tier relies on."""
    for path, parameters in NEEDED_BY_TIER.items():
        _check_one(path, parameters)


def check_scheduler(scheduler: object, attributes: tuple[str, ...] = ATTRIBUTES) -> None:
    """Raise UsageError where a scheduler, once made, lacks an attribute that is relied on."""
    _check_attributes(scheduler, attributes, _SCHEDULER)


def check_spec(spec: object) -> None:
    """Raise UsageError where an offloading spec, once made, lacks an attribute that is relied on."""
    _check_attributes(spec, SPEC_ATTRIBUTES, _SPEC)


def check_manager(manager: object, policy: object | None) -> None:
    """Raise UsageError where an offloading manager was to have SAGA's policy and it was not found in it."""
    if policy is None:
        raise _refusal(f"{type(manager).__name__} keeps its cache policy where the plug-in does not find it")


def _check_attributes(thing: object, attributes: tuple[str, ...], name: str) -> None:
    for path in attributes:
        at = thing
        for part in path.split("."):
            if not hasattr(at, part):
                raise _refusal(f"{name} has no attribute {path}")
            at = getattr(at, part)


def _find(path: str) -> Any:  # noqa: ANN401 - whatever is there
    module, _, names = path.partition(":")
    at: Any = import_module(module)
    for name in names.split("."):
        at = getattr(at, name)
    return at


def _check_one(path: str, parameters: tuple[str, ...]) -> None:
    try:
        found = _find(path)
    except (ImportError, AttributeError):
        raise _refusal(f"{path} is not there") from None
    if not parameters:
        return
    takes = inspect.signature(found).parameters
    missing = [name for name in parameters if name not in takes]
    if missing:
        raise _refusal(f"{path} does not take {', '.join(missing)}")


def engine_version() -> str:
    """The version of vLLM, "" where it has none."""
    return str(getattr(import_module("vllm"), "__version__", ""))


def _refusal(what: str) -> UsageError:
    return UsageError(
        f"vLLM {engine_version()}: {what}. SAGA's plug-in is written for vLLM >= 0.29; with this one start vLLM without"
        " --scheduler-cls, or use a release of SAGA that knows it"
    )
