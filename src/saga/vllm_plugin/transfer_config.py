"""The `--kv-transfer-config` of an engine with SAGA's host tier, for `saga worker` and for people.

It refuses to know vLLM: it writes what vLLM reads.
"""

from __future__ import annotations

from typing import Any

from saga.errors import UsageError


def transfer_config(
    host_bytes: int,
    *,
    shared_folder: str = "",
    eviction: str = "paused_last",
    carry_bytes_per_s: float | None = None,
    prefill_tokens_per_s: float = 0.0,
) -> dict[str, Any]:
    """A tier of host_bytes, and behind it one in files that other workers of the host read too.

    shared_folder: where they lie, in shared memory (/dev/shm/...) to be of use; "" for none. Nothing ever leaves it by
    itself. eviction: a name of `offload.TIER_EVICTION`. carry_bytes_per_s: at which rate this engine loads from the
    folder, and prefill_tokens_per_s, decide whether it does (`moving.pays`); always where the first is None. Raises
    UsageError.
    """
    if host_bytes <= 0:
        raise UsageError(f"host_bytes = {host_bytes}: should be above 0")
    extra: dict[str, Any] = {
        "spec_name": "SagaOffloadingSpec",
        "spec_module_path": "saga.vllm_plugin.offload",
        "cpu_bytes_to_use": host_bytes,
        "saga_eviction": eviction,
    }
    if shared_folder:
        extra["secondary_tiers"] = [{"type": "fs", "root_dir": shared_folder}]
        if carry_bytes_per_s is not None:
            extra["saga_carry_bytes_per_s"] = carry_bytes_per_s
            extra["saga_prefill_tokens_per_s"] = prefill_tokens_per_s
    return {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}
