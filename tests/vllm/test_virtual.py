"""`benchmarks/virtual_vllm.py`: the simulator before vLLM's own scheduler, stock and with the plug-in."""

from __future__ import annotations

import warnings
from argparse import Namespace

from saga.vllm_plugin.contracts import Outcome


def test_where_nothing_is_scarce_plug_in_and_stock_take_equally_long_and_every_directive_is_obeyed():
    """A plug-in that costs no time in the model cannot be slower, and none of what it is told is news to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import virtual_vllm
    given = Namespace(hardware="llama3-70b-a100x4", workload="web_arena", tasks=6, seed=0)
    stock, plugin = (virtual_vllm.run(system, 0.05, given) for system in ("gateway", "plugin"))
    assert stock["tct_mean_s"] == plugin["tct_mean_s"] > 0.0
    assert stock["regenerated_share"] == plugin["regenerated_share"] == 0.0
    assert list(plugin["directives"]) == [Outcome.ACCEPTED]
