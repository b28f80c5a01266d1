"""The modelled engine's figures under vLLM's metric names (0.32), for Prometheus to scrape.

Seconds are real ones. It refuses to know who asks and what a call said.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from saga.engine.batching import ModelledEngine
from saga.engine.calls import EngineRequest

_LABELS = ("model_name", "engine")
_REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_FIRST_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_COUNTERS = {
    "vllm:prompt_tokens": "Number of prefill tokens processed.",
    "vllm:generation_tokens": "Number of generation tokens processed.",
    "vllm:prefix_cache_queries": "Prefix cache queries, in terms of number of queried tokens.",
    "vllm:prefix_cache_hits": "Prefix cache hits, in terms of number of cached tokens.",
    "vllm:num_preemptions": "Cumulative number of preemptions.",
}
_HISTOGRAMS = {
    "vllm:request_queue_time_seconds": ("Time spent in WAITING phase.", _REQUEST_S),
    "vllm:request_prefill_time_seconds": ("Time spent in PREFILL phase.", _REQUEST_S),
    "vllm:request_decode_time_seconds": ("Time spent in DECODE phase.", _REQUEST_S),
    "vllm:request_inference_time_seconds": ("Time spent in RUNNING phase.", _REQUEST_S),
    "vllm:e2e_request_latency_seconds": ("End to end request latency.", _REQUEST_S),
    "vllm:time_to_first_token_seconds": ("Time to first token.", _FIRST_S),
    "vllm:request_time_per_output_token_seconds": ("Time per output token of a request.", _TOKEN_S),
}


class Exposition:
    """Counts what happens to calls; gauges are read from the engine when somebody asks."""

    def __init__(self, engine: ModelledEngine, model: str, speed: float) -> None:
        self.registry = CollectorRegistry()
        self._speed = speed
        values = (model, "0")
        self._counters = {
            name: Counter(name, text, _LABELS, registry=self.registry).labels(*values)
            for name, text in _COUNTERS.items()
        }
        self._histograms = {
            name: Histogram(name, text, _LABELS, buckets=buckets, registry=self.registry).labels(*values)
            for name, (text, buckets) in _HISTOGRAMS.items()
        }
        self._ended = Counter(
            "vllm:request_success",
            "Successfully processed requests.",
            (*_LABELS, "finished_reason"),
            registry=self.registry,
        )
        self._sources = Counter(
            "vllm:prompt_tokens_cached_by_source", "Cached prompt tokens.", (*_LABELS, "source"), registry=self.registry
        )
        self._values = values
        gauges = {
            "vllm:num_requests_running": ("Requests in model execution batches.", lambda: engine.report()[0]),
            "vllm:num_requests_waiting": ("Requests waiting to be processed.", lambda: engine.report()[1]),
            "vllm:kv_cache_usage_perc": ("KV-cache usage. 1 means 100 percent usage.", lambda: self._usage(engine)),
        }
        for name, (text, ask) in gauges.items():
            Gauge(name, text, _LABELS, registry=self.registry).labels(*values).set_function(ask)
        settings = engine.settings
        info = Gauge(
            "vllm:cache_config_info",
            "Information of the LLMEngine CacheConfig",
            ("block_size", "num_gpu_blocks", "enable_prefix_caching", "engine"),
            registry=self.registry,
        )
        caching = str(settings.prefix_caching)
        info.labels(str(settings.block_tokens), str(engine.pool.num_blocks), caching, "0").set(1)

    def _usage(self, engine: ModelledEngine) -> float:
        return engine.report()[2] / (engine.pool.num_blocks * engine.settings.block_tokens)

    def count(self, request: EngineRequest, finish_reason: str) -> None:
        """A call has left the engine; finish_reason: "stop", "length" or "abort"."""
        started = request.started_s == request.started_s  # not nan
        if started:
            add = self._counters
            cached = request.cached_tokens + request.host_tokens + request.moved_tokens
            add["vllm:prefix_cache_queries"].inc(request.prompt_tokens)
            add["vllm:prefix_cache_hits"].inc(request.cached_tokens + request.moved_tokens)
            add["vllm:num_preemptions"].inc(request.num_preemptions)
            by_source = {"device": request.cached_tokens, "host": request.host_tokens, "p2p": request.moved_tokens}
            for source, tokens in by_source.items() if cached else ():
                if tokens:
                    self._sources.labels(*self._values, source).inc(tokens)
        self._ended.labels(*self._values, finish_reason).inc()
        if finish_reason != "abort":
            self._counters["vllm:prompt_tokens"].inc(request.prompt_tokens)
            self._counters["vllm:generation_tokens"].inc(request.output_tokens)
            self._observe(request)

    def _observe(self, request: EngineRequest) -> None:
        arrival_s, started_s, first_s = request.arrival_s, request.started_s, request.first_token_s
        spans = {
            "vllm:request_queue_time_seconds": started_s - arrival_s,
            "vllm:request_prefill_time_seconds": first_s - started_s,
            "vllm:request_decode_time_seconds": request.finished_s - first_s,
            "vllm:request_inference_time_seconds": request.finished_s - started_s,
            "vllm:e2e_request_latency_seconds": request.finished_s - arrival_s,
            "vllm:time_to_first_token_seconds": first_s - arrival_s,
        }
        if request.output_tokens > 1:
            per_token_s = (request.finished_s - first_s) / (request.output_tokens - 1)
            spans["vllm:request_time_per_output_token_seconds"] = per_token_s
        for name, seconds in spans.items():
            self._histograms[name].observe(max(0.0, seconds) / self._speed)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
