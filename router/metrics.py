"""What a router tells Prometheus: histograms of ended requests, and the state as it is at a scrape.

Names follow vLLM's suffixes; times are seconds, sizes bytes. Of workers the router tells what they
last reported. docs/metrics.md lists all of them, and a test compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from eastwest.clock import seconds
from eastwest.errors import EastWestError
from eastwest.types import Liveness
from router.requests import Outcome, PhaseHits
from router.views import Loads

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
_TOKEN_SECONDS = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0,
)  # fmt: skip
_TOKENS = tuple(float(1 << n) for n in range(21))

disable_created_metrics()  # type: ignore[no-untyped-call]

Family = GaugeMetricFamily | CounterMetricFamily


class RouterMetrics:
    """Of one router. loads: its state. Told of each ending; `text` is what is scraped."""

    def __init__(self, loads: Callable[[], Loads]) -> None:
        self._registry = registry = CollectorRegistry()
        registry.register(_State(loads))

        def histogram(name: str, what: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"eastwest_{name}", what, buckets=buckets, registry=registry)

        def counter(name: str, what: str) -> Counter:
            return Counter(f"eastwest_{name}", what, registry=registry)

        self._ttft = histogram("time_to_first_token_seconds", "Accepted to first token known.")
        self._tpot = histogram(
            "request_time_per_output_token_seconds",
            "Mean time of a request's tokens after its first.",
            _TOKEN_SECONDS,
        )
        self._e2e = histogram("e2e_request_latency_seconds", "Accepted to last token.")
        self._queue = histogram("request_queue_time_seconds", "Waiting, in router and worker.")
        self._prefill = histogram("request_prefill_time_seconds", "First chunk to first token.")
        self._transfer = histogram("kv_transfer_seconds", "Moving KV, beside whatever hid it.")
        self._exposed = histogram("kv_transfer_exposed_seconds", "Of that, what nothing hid.")
        self._prompt = histogram("request_prompt_tokens", "Of each request.", _TOKENS)
        self._output = histogram("request_generation_tokens", "Of each request.", _TOKENS)
        self._cached = counter("prompt_tokens_cached", "Prompt tokens that were not computed.")
        self._loaded = counter("prompt_tokens_loaded", "Of those: read from store or workers.")
        self._computed = counter("prompt_tokens_computed", "Prompt tokens that were computed.")
        self._moved = counter("kv_transfer_bytes", "KV from prefill to decode workers.")
        self._refused = Counter(
            "eastwest_requests_refused", "Not taken, by the code of the error.",
            labelnames=["code"], registry=registry,
        )  # fmt: skip

    def refused(self, error: EastWestError) -> None:
        """A request was not let in."""
        self._refused.labels(error.code.value).inc()

    def ended(self, result: Outcome | EastWestError) -> None:
        """A request has its ending; errors count among the state."""
        if isinstance(result, EastWestError):
            return
        marks, usage = result.marks, result.usage
        timing = marks.timing(marks.first_token_ns)
        gaps = usage.completion_tokens - 1
        self._ttft.observe(seconds(timing.ttft.total_ns))
        if gaps > 0:
            self._tpot.observe(seconds(timing.e2e_ns - timing.ttft.total_ns) / gaps)
        self._e2e.observe(seconds(timing.e2e_ns))
        self._queue.observe(seconds(timing.ttft.queue_ns))
        self._prefill.observe(seconds(timing.ttft.prefill_ns))
        if result.transfer_bytes:
            self._transfer.observe(seconds(result.transfer_ns))
            self._moved.inc(result.transfer_bytes)
        if timing.second is not None:
            self._exposed.observe(seconds(timing.second.exposed_transfer_ns))
        self._prompt.observe(usage.prompt_tokens)
        self._output.observe(usage.completion_tokens)
        self._cached.inc(max(0, usage.prompt_tokens - usage.computed_tokens))
        self._loaded.inc(usage.loaded_tokens)
        self._computed.inc(usage.computed_tokens)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)


class _State(Collector):
    """What a router's `Loads` say when they are asked for."""

    def __init__(self, loads: Callable[[], Loads]) -> None:
        self._loads = loads

    def collect(self) -> Iterator[Family]:
        loads = self._loads()
        yield _gauge("requests_running", "On workers.", loads.active)
        yield _gauge("requests_waiting", "In the router's queue.", loads.waiting)
        ended = CounterMetricFamily(
            "eastwest_requests", "Ended, by outcome: completed, or the code of the error.",
            labels=["outcome"],
        )  # fmt: skip
        ended.add_metric(["completed"], loads.counters.completed)
        for code, count in loads.counters.failed.items():
            ended.add_metric([code], count)
        yield ended
        yield _counter("request_migrations", "Moves to other workers.", loads.counters.migrations)
        yield _gauge("router_kv_index_blocks", "Blocks that are known.", loads.kv.hashes)
        yield _counter("router_kv_resyncs", "Gaps in KV events.", loads.kv.resyncs)
        yield _counter("router_stale_events", "From former incarnations.", loads.stale_events)
        yield from _hits({"prefill": loads.kv.prefill, "decode": loads.kv.decode})
        yield from _workers(loads)


def _workers(loads: Loads) -> Iterator[Family]:
    up = _of_workers("worker_up", "1 where the worker serves.")
    draining = _of_workers("worker_draining", "1 where it leaves.")
    gauges = {
        field: _of_workers(name, what)
        for field, name, what in (
            ("num_blocks", "kv_blocks", "KV blocks in all."),
            ("free_blocks", "kv_blocks_free", "Without contents."),
            ("cached_blocks", "kv_blocks_cached", "Kept for reuse; given up where needed."),
            ("leaked_blocks", "kv_blocks_leaked", "Held by nobody who lives; never above 0."),
            ("running", "worker_requests_running", "Sequences that decode."),
            ("waiting", "worker_requests_waiting", "Prompts and reservations."),
            ("waiting_tokens", "worker_prompt_tokens_waiting", "Not computed yet."),
            ("sessions_inactive", "sessions_inactive", "At rest in the worker's memory."),
            ("store_available", "store_available", "1 where the worker's store answers."),
        )
    }
    counters = {
        field: CounterMetricFamily(f"eastwest_{name}", what, labels=["worker", "role"])
        for field, name, what in (
            ("sessions_spilled", "sessions_spilled", "Carried to the store."),
            ("spilled_blocks", "kv_blocks_spilled", "Carried to the store."),
        )
    }
    families: dict[str, Family] = {**gauges, **counters}
    for view in loads.workers:
        labels = [view.info.worker_id, view.info.role.value]
        up.add_metric(labels, view.liveness is Liveness.UP)
        if (load := view.load) is None:
            continue
        draining.add_metric(labels, load.draining_s is not None)
        for field, family in families.items():
            family.add_metric(labels, getattr(load, field))
    yield up
    yield draining
    yield from families.values()


def _hits(phases: dict[str, PhaseHits]) -> Iterator[Family]:
    """Prompt tokens by what the router thought that workers have of them, and what they had."""
    for field, name in (
        ("prompt_tokens", "asked"), ("predicted_tokens", "predicted"), ("found_tokens", "found"),
    ):  # fmt: skip
        family = CounterMetricFamily(
            f"eastwest_router_kv_tokens_{name}",
            f"Tokens of prompts: {name}, see `eastwest status`.",
            labels=["phase"],
        )
        for phase, hits in phases.items():
            family.add_metric([phase], getattr(hits, field))
        yield family


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"eastwest_{name}", what, value=value)


def _counter(name: str, what: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"eastwest_{name}", what, value=value)


def _of_workers(name: str, what: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"eastwest_{name}", what, labels=["worker", "role"])
