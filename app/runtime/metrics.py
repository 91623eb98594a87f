"""What the service counts and times, in Prometheus's terms."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

PREFIX: Final = "seqserve"
CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
# Seconds: a remembered keystroke takes well under a millisecond, a long document many seconds.
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128)  # examples
REFUSALS: Final = ("overloaded", "deadline", "cancelled")


class Metrics:
    """Every figure of one service, named `seqserve_…`; safe to call from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._requests = self._counter("requests", "Requests answered", "route", "method", "status")
        self._request_seconds = self._histogram(
            "request_seconds", "From request to last byte", SECONDS, "route", "status"
        )
        self._prepare_seconds = self._histogram(
            "prepare_seconds", "From arrival to prepared, where that takes a thread", SECONDS, "model"
        )
        self._batch_size = self._histogram("batch_size", "Examples that shared a turn", SIZES, "model")
        self._batch_seconds = self._histogram("batch_seconds", "One turn of the model", SECONDS, "model")
        self._wait_seconds = self._histogram("wait_seconds", "From acceptance to first turn", SECONDS, "model")
        self._queue = self._gauge("queue_depth", "Examples that wait for a turn", "model")
        self._cache = self._counter("cache_tokens", "Context tokens remembered (hit) or read", "model", "source")
        self._refusals = self._counter("refusals", "Examples that got no answer", "model", "reason")
        self._ready = self._gauge("model_ready", "1 if this version answers, 0 if it was refused", "model", "version")
        self._info = self._gauge("model_info", "1 for what answers", "model", "version", "family", "precision")
        self._rate_limited = self._counter("rate_limited", "Requests refused for their caller's rate")
        self._rate_storage_errors = self._counter("rate_storage_errors", "Times the storage of rates gave no answer")
        ProcessCollector(namespace=PREFIX, registry=registry)

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request; `route` is a route's template, so that there are few of them."""
        self._requests.labels(route, method, str(status)).inc()
        self._request_seconds.labels(route, str(status)).observe(seconds)

    def observe_prepare(self, model: str, seconds: float) -> None:
        """Time the preparing of an example in a thread, its wait for one included."""
        self._prepare_seconds.labels(model).observe(seconds)

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
        """Count an example that was not answered, for one of REFUSALS."""
        self._refusals.labels(model, reason).inc()

    def count_rate_limited(self) -> None:
        """Count a request whose caller had asked for too much."""
        self._rate_limited.inc()

    def count_rate_storage_error(self) -> None:
        """Count a time that the storage of rates gave no answer."""
        self._rate_storage_errors.inc()

    def set_model(self, model: str, version: str, ready: bool) -> None:
        """Note whether a version answers."""
        self._ready.labels(model, version).set(ready)

    def describe_model(self, model: str, version: str, family: str, precision: str) -> None:
        """Tell what answers, and begin its counts of refusals at 0: the first must be a rise."""
        self._info.labels(model, version, family, precision).set(1)
        for reason in REFUSALS:
            self._refusals.labels(model, reason)

    def render(self) -> bytes:
        """All figures in the text format that CONTENT_TYPE names."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=PREFIX, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, namespace=PREFIX, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, namespace=PREFIX, registry=self._registry, buckets=buckets)
