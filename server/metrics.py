"""Metrics in Prometheus' format: `saccade_*`, and on request under the names that vLLM gives them.

What the HTTP side sees is counted as it happens; what the engine counts is read from its last
snapshot when somebody asks. The engine's counters begin anew when its process does.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from .call import Call
    from .service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0, 300.0)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 10.0)
_REQUEST = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_COUNT = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))


class Metrics:
    """All metrics of one server."""

    def __init__(self, service: Service) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"saccade_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"saccade_{name}", text, buckets=buckets, registry=registry)

        self.http = counter("http_requests", "HTTP replies", "method", "status")
        self.refused = counter("requests_refused", "Requests refused for load", "code")
        self.finished = counter("requests_finished", "Completions by reason", "finished_reason")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of requests taken")
        self.cached_tokens = counter("cached_prompt_tokens", "Prompt tokens found in the cache")
        self.generated = counter("generation_tokens", "Generated tokens")
        self.ttft = histogram("time_to_first_token_seconds", "Arrival to first token", _TTFT)
        self.gap = Gaps()
        self.total = histogram("request_seconds", "Arrival to end", _REQUEST)
        self.times = {
            "queued_s": histogram("request_queue_seconds", "Arrival to first step", _REQUEST),
            "prefill_s": histogram("request_prefill_seconds", "First step to token", _REQUEST),
            "decode_s": histogram("request_decode_seconds", "First to last token", _REQUEST),
        }
        self.sizes = {
            "prompt": histogram("request_prompt_tokens", "Prompt tokens of a request", _COUNT),
            "output": histogram("request_generation_tokens", "Its generated tokens", _COUNT),
        }
        registry.register(self.gap)
        registry.register(EngineCollector(service))
        if "vllm" in service.config.metrics_compat:
            registry.register(VllmNames(service, list(registry._collector_to_names)))

    def text(self) -> bytes:
        """Everything, for a scraper."""
        return generate_latest(self._registry)

    def note_call(self, call: Call) -> None:
        """A call has ended."""
        for reason in call.finishes:
            self.finished.labels(reason).inc()
        if not call.submitted:
            return
        self.prompt_tokens.inc(call.unread_tokens)  # the others were counted when they were read
        self.total.observe(time.monotonic() - call.arrival)
        self.sizes["prompt"].observe(call.prompt_tokens)
        self.sizes["output"].observe(call.completion_tokens)
        for end in call.ends:
            for name, metric in self.times.items():
                if (seconds := end.timings.get(name)) is not None:
                    metric.observe(seconds)


class Gaps(Collector):
    """Times between a completion's tokens: a histogram that every token adds to, at little cost."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_TOKEN) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Adds one."""
        self._counts[bisect_left(_TOKEN, seconds)] += 1
        self._sum += seconds

    def describe(self) -> list[Metric]:
        """Nothing beforehand, as below."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The histogram of this moment."""
        bounds = [*map(floatToGoString, _TOKEN), "+Inf"]
        yield HistogramMetricFamily(
            "saccade_inter_token_latency_seconds",
            "Between a completion's tokens",
            buckets=list(zip(bounds, accumulate(self._counts), strict=True)),
            sum_value=self._sum,
        )


class EngineCollector(Collector):
    """What the engine's last snapshot says, and the HTTP side's own gauges."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        """Nothing beforehand: names would need a first collection."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The families of this moment."""
        service, stats = self._service, self._service.client.stats
        admission = service.admission
        gauges = {
            "requests_running": ("Sequences in the running batch", stats.running),
            "requests_waiting": ("Sequences that wait to be run", stats.waiting),
            "queued_prompt_tokens": ("Of prompts without a first token", admission.waiting_tokens),
            "sequences_in_flight": ("Sequences taken and not ended", admission.sequences),
            "kv_cache_usage_ratio": (
                "Share of pages held by requests",
                usage(stats.pages_in_use, stats.total_pages),
            ),
            "engine_up": (
                "1 while the engine is ready",
                float(service.client.state.value == "ready"),
            ),
            "engine_step_seconds": ("Mean time of the latest steps", stats.step_s),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"saccade_{name}", text, value)
        counters = {
            "engine_restarts": (
                "Starts of the engine process after the first",
                service.client.restarts,
            ),
            "engine_steps": ("Steps of the engine", stats.steps),
            "engine_busy_seconds": ("Time of all steps", stats.busy_s),
            "preemptions": ("Sequences put back to waiting", stats.preemptions),
            "prefix_cache_queries": ("Tokens looked up in the prefix cache", stats.lookup_tokens),
            "prefix_cache_hits": ("Tokens found there", stats.hit_tokens),
            "prefix_cache_evictions": ("Cached pages given to others", stats.evictions),
        }
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"saccade_{name}", text, value)
        yield from self._pages()
        yield from self._attention()

    def _pages(self) -> Iterator[Metric]:
        stats = self._service.client.stats
        pages = GaugeMetricFamily("saccade_kv_pages", "Pages by use", labels=["group", "state"])
        states = {"used": stats.pages_in_use, "cached": stats.idle_pages, "free": stats.free_pages}
        for state, counts in states.items():
            for group, count in enumerate(counts):
                pages.add_metric([str(group), state], count)
        yield pages

    def _attention(self) -> Iterator[Metric]:
        names = {
            "keys_read": "Keys that attention read, mean over heads",
            "keys_visible": "Keys that dense attention would have read",
            "blocks_selected": "Blocks chosen by sparse attention",
            "dense_fallbacks": "How often a layer read more than its method's bound",
        }
        for name, text in names.items():
            family = CounterMetricFamily(f"saccade_attention_{name}", text, labels=["phase"])
            for phase, counts in self._service.client.stats.attention.items():
                family.add_metric([phase], counts.get(name) or 0)
            yield family


# The names that vLLM, and what scrapes it, gives to our metrics.
VLLM_NAMES = {
    "saccade_requests_running": ("num_requests_running",),
    "saccade_requests_waiting": ("num_requests_waiting",),
    "saccade_kv_cache_usage_ratio": ("kv_cache_usage_perc", "gpu_cache_usage_perc"),
    "saccade_preemptions": ("num_preemptions",),
    "saccade_prefix_cache_queries": ("prefix_cache_queries",),
    "saccade_prefix_cache_hits": ("prefix_cache_hits",),
    "saccade_prompt_tokens": ("prompt_tokens",),
    "saccade_generation_tokens": ("generation_tokens",),
    "saccade_requests_finished": ("request_success",),
    "saccade_time_to_first_token_seconds": ("time_to_first_token_seconds",),
    "saccade_inter_token_latency_seconds": (
        "inter_token_latency_seconds",
        "time_per_output_token_seconds",
    ),
    "saccade_request_seconds": ("e2e_request_latency_seconds",),
    "saccade_request_queue_seconds": ("request_queue_time_seconds",),
    "saccade_request_prefill_seconds": ("request_prefill_time_seconds",),
    "saccade_request_decode_seconds": ("request_decode_time_seconds",),
    "saccade_request_prompt_tokens": ("request_prompt_tokens",),
    "saccade_request_generation_tokens": ("request_generation_tokens",),
}


class VllmNames(Collector):
    """The same samples once more: `vllm:` names, and the labels that dashboards filter by."""

    def __init__(self, service: Service, sources: list[Collector]) -> None:
        self._service = service
        self._sources = sources

    def describe(self) -> list[Metric]:
        """Nothing beforehand."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Copies under the other names, then what only vLLM has."""
        labels = {"model_name": self._service.names[0], "engine": "0"}
        for source in self._sources:
            for metric in source.collect():
                for name in VLLM_NAMES.get(metric.name, ()):
                    copy = Metric(f"vllm:{name}", metric.documentation, metric.type)
                    for sample in metric.samples:
                        renamed = f"vllm:{name}{sample.name.removeprefix(metric.name)}"
                        copy.add_sample(renamed, labels | sample.labels, sample.value)
                    yield copy
        info = self._service.client.info
        config = GaugeMetricFamily(
            "vllm:cache_config_info",
            "Settings of the KV cache",
            labels=[*labels, "block_size", "num_gpu_blocks", "enable_prefix_caching"],
        )
        if info is not None:
            caching = str(self._service.config.engine.get("enable_prefix_caching", True))
            values = [*labels.values(), str(info.page_size), str(min(info.pages)), caching]
            config.add_metric(values, 1)
        yield config


def usage(used: list[int], total: list[int]) -> float:
    """The fullest layer group's share of pages in use."""
    return max((mine / all_ for mine, all_ in zip(used, total, strict=True) if all_), default=0.0)
