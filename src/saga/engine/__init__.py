"""The modelled engine: a stand-in for stock vLLM v1 in virtual time.

Read `batching.py` first; `kv_pool.py`, `host_tier.py` and `link.py` are what it holds, `latency.py` and
`hardware.py` what it costs. `server.py` puts it behind vLLM's endpoints in real time; only `realtime.py` and
`server.py` read a clock. Nothing here knows tenants, workflows or the scheduler.
"""

from saga.engine.batching import ModelledEngine
from saga.engine.calls import EngineRequest, EngineSettings, Outcome
from saga.engine.hardware import HARDWARE, Hardware, hardware, load_hardware
from saga.engine.latency import ConstantLatency, Latency, LatencyModel

__all__ = [
    "HARDWARE",
    "ConstantLatency",
    "EngineRequest",
    "EngineSettings",
    "Hardware",
    "Latency",
    "LatencyModel",
    "ModelledEngine",
    "Outcome",
    "hardware",
    "load_hardware",
]
