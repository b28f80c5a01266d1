"""What vLLM is told of the host tier."""

from __future__ import annotations

import pytest

from saga.errors import UsageError
from saga.vllm_plugin.transfer_config import transfer_config


def test_a_tier_alone():
    """The connector of vLLM with SAGA's spec and so many bytes; no tier behind it."""
    told = transfer_config(1 << 30)
    extra = told.pop("kv_connector_extra_config")
    assert told == {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}
    assert extra["cpu_bytes_to_use"] == 1 << 30
    assert "secondary_tiers" not in extra


def test_a_shared_folder_with_its_price():
    """The folder is a tier behind the first, its rates are SAGA's own fields and only there where given."""
    plain = transfer_config(1, shared_folder="/mnt/x")["kv_connector_extra_config"]
    priced = transfer_config(1, shared_folder="/mnt/x", carry_bytes_per_s=5.0)["kv_connector_extra_config"]
    assert plain["secondary_tiers"] == [{"type": "fs", "root_dir": "/mnt/x"}]
    assert "saga_carry_bytes_per_s" not in plain
    assert priced["saga_carry_bytes_per_s"] == 5.0


def test_no_bytes_are_no_tier():
    """A size of nothing is refused."""
    with pytest.raises(UsageError, match="host_bytes = 0"):
        transfer_config(0)
