"""What the service counts and times, in Prometheus's terms."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

PREFIX: Final = "seqserve"
CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
# Seconds: a remembered keystroke takes well under a millisecond, a long document many seconds.
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128)  # examples


class Metrics:
    """Every figure of one service, named `seqserve_…`; safe to call from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._requests = self._counter("requests", "Requests answered", "route", "method", "status")
        self._request_seconds = self._histogram("request_seconds", "From request to last byte", SECONDS, "route")
        self._batch_size = self._histogram("batch_size", "Examples that shared a turn", SIZES, "model")
        self._batch_seconds = self._histogram("batch_seconds", "One turn of the model", SECONDS, "model")
        self._wait_seconds = self._histogram("wait_seconds", "From acceptance to first turn", SECONDS, "model")
        self._queue = self._gauge("queue_depth", "Examples that wait for a turn", "model")
        self._cache = self._counter("cache_tokens", "Context tokens remembered (hit) or read", "model", "source")
        self._refusals = self._counter("refusals", "Examples that got no answer", "model", "reason")
        self._ready = self._gauge("model_ready", "1 if this version answers, 0 if it was refused", "model", "version")
        ProcessCollector(namespace=PREFIX, registry=registry)

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request; `route` is a route's template, so that there are few of them."""
        self._requests.labels(route, method, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def observe_batch(self, model: str, size: int, seconds: float) -> None:
        """Count one turn of a model, given to `size` examples."""
        self._batch_size.labels(model).observe(size)
        self._batch_seconds.labels(model).observe(seconds)

    def observe_wait(self, model: str, seconds: float) -> None:
        """Time what an example waited for its first turn."""
        self._wait_seconds.labels(model).observe(seconds)

    def set_queue(self, model: str, depth: int) -> None:
        """Note how many examples wait."""
        self._queue.labels(model).set(depth)

    def observe_cache(self, model: str, hit_tokens: int, read_tokens: int) -> None:
        """Count the tokens of one context: remembered ones, and those that had to be read."""
        self._cache.labels(model, "hit").inc(hit_tokens)
        self._cache.labels(model, "read").inc(read_tokens)

    def count_refusal(self, model: str, reason: str) -> None:
        """Count an example that was not answered: `overloaded`, `deadline` or `cancelled`."""
        self._refusals.labels(model, reason).inc()

    def set_model(self, model: str, version: str, ready: bool) -> None:
        """Note whether a version answers."""
        self._ready.labels(model, version).set(ready)

    def render(self) -> bytes:
        """All figures in the text format that CONTENT_TYPE names."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=PREFIX, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, namespace=PREFIX, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, namespace=PREFIX, registry=self._registry, buckets=buckets)
