"""Measurements: the service's Prometheus metrics, and the usage of models by one request."""

import os
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from multiprocessing import current_process
from pathlib import Path
from typing import Final, Generic, Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, values
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

PREFIX: Final = "seqserve"
CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
# Seconds: a keystroke with a cached state takes well under a millisecond, a long document many seconds.
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128)  # examples
REFUSALS: Final = ("overloaded", "deadline", "cancelled")
SWAPS: Final = ("switched", "refused")


Instrument = TypeVar("Instrument", Counter, Gauge, Histogram)


class Labelled(Generic[Instrument]):
    """A metric with its children cached by label values, without prometheus_client's lock and checks."""

    def __init__(self, metric: Instrument) -> None:
        self._metric: Instrument = metric
        self._children: dict[tuple[str, ...], Instrument] = {}

    def labels(self, *values: str) -> Instrument:
        """Return the child of these label values; create it on first use."""
        found = self._children.get(values)
        if found is None:
            found = self._children[values] = self._metric.labels(*values)
        return found


class Models(Collector):
    """Per model the one version that is served or was rejected; replaced versions are not exported."""

    def __init__(self) -> None:
        self._ready: dict[str, tuple[str, float]] = {}  # version, ready; by model
        self._info: dict[str, tuple[str, str, str]] = {}  # version, family, precision; by model

    def set_ready(self, model: str, version: str, *, ready: bool) -> None:
        """Record the model's current version and its readiness."""
        self._ready = {**self._ready, model: (version, float(ready))}

    def set_info(self, model: str, version: str, family: str, precision: str) -> None:
        """Record the properties of the served version."""
        self._info = {**self._info, model: (version, family, precision)}

    def forget(self, model: str) -> None:
        """Stop exporting the model's readiness."""
        self._ready = {name: entry for name, entry in self._ready.items() if name != model}

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the current metrics."""
        ready = GaugeMetricFamily(
            f"{PREFIX}_model_ready", "1 if this version is served, 0 if it was rejected", labels=("model", "version")
        )
        for model, (version, value) in self._ready.items():
            ready.add_metric((model, version), value)
        info = GaugeMetricFamily(
            f"{PREFIX}_model_info", "1 for the served version", labels=("model", "version", "family", "precision")
        )
        for model, properties in self._info.items():
            info.add_metric((model, *properties), 1)
        return ready, info


class Processes(Collector):
    """Process metrics of each worker, labelled with the worker's index."""

    def __init__(self, pids: Callable[[], Sequence[int]]) -> None:
        """`pids` returns the workers' process ids by index, 0 where none runs."""
        self._pids = pids

    def collect(self) -> Iterable[Metric]:
        """Return the current metrics."""
        families: dict[str, Metric] = {}
        for index, pid in enumerate(self._pids()):
            if not pid:
                continue
            for one in ProcessCollector(namespace=PREFIX, pid=partial(int, pid), registry=None).collect():
                family = families.setdefault(one.name, Metric(one.name, one.documentation, one.type))
                for sample in one.samples:
                    family.add_sample(sample.name, {**sample.labels, "worker": str(index)}, sample.value)
        return families.values()


@dataclass(frozen=True)
class Shared:
    """A folder of memory-mapped files in which several processes count together, each under its process name.

    A process that takes over the name of one that exited continues its counts, so counters never decrease. The folder
    must exist before a Metrics is created.
    """

    folder: Path
    pids: Callable[[], Sequence[int]]  # see Processes

    def open(self) -> None:
        """Keep all metrics that this process and its forks create from now on in the folder."""
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self.folder)  # prometheus_client reads it for each new file
        values.ValueClass = values.MultiProcessValue(lambda: current_process().name)  # type: ignore[no-untyped-call]

    def remove_gauges(self, name: str) -> None:
        """Remove the live gauges of a process that exited: its queue depths."""
        mark_process_dead(name, self.folder)  # type: ignore[no-untyped-call]


class Metrics:
    """All metrics of one service, named `seqserve_…`. Thread-safe."""

    def __init__(self, registry: CollectorRegistry, shared: Shared | None = None) -> None:
        """Export this process's metrics, or with `shared` the sums over all processes and each one's memory."""
        self._registry = registry
        self._requests = self._counter("requests", "Requests answered", "route", "method", "status")
        self._request_seconds = self._histogram(
            "request_seconds", "From request to last byte of the response", SECONDS, "route", "status"
        )
        self._prepare_seconds = self._histogram(
            "prepare_seconds", "Preparation of an example in a thread, waiting included", SECONDS, "model"
        )
        self._batch_size = self._histogram("batch_size", "Examples per scheduling step", SIZES, "model")
        self._batch_seconds = self._histogram("batch_seconds", "Duration of a scheduling step", SECONDS, "model")
        self._wait_seconds = self._histogram("wait_seconds", "From acceptance to first step", SECONDS, "model")
        self._queue = self._gauge("queue_depth", "Examples waiting for a step", "model")
        self._cache = self._counter("cache_tokens", "Context tokens cached (hit) or read", "model", "source")
        self._refusals = self._counter("refusals", "Examples without an answer", "model", "reason")
        self._swaps = self._counter("swaps", "Changes of the served version, made or refused", "model", "outcome")
        self._stale_keys = self._level(
            "stale_keys",
            "1 if the file of API keys has invalid lines or can't be read, so that not all it says is in force",
            "livemax",
        )
        self._connections = self._level("connections", "Open connections of clients", "livesum")
        self._limited_connections = self._single(
            "limited_connections", "Connections over a limit, which may send probes alone"
        )
        self.models = Models()
        self._rate_limited = self._single("rate_limited", "Requests rejected by the rate limit")
        self._rate_storage_errors = self._single("rate_storage_errors", "Failed calls of the rate limit's storage")
        self._exported = registry if shared is None else CollectorRegistry()
        if shared is None:
            ProcessCollector(namespace=PREFIX, registry=registry)
        else:
            MultiProcessCollector(self._exported, shared.folder)  # type: ignore[no-untyped-call]
            self._exported.register(Processes(shared.pids))
        self._exported.register(self.models)

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request; `route` is the route's template, so that label values are few."""
        self._requests.labels(route, method, str(status)).inc()
        self._request_seconds.labels(route, str(status)).observe(seconds)

    def observe_prepare(self, model: str, seconds: float) -> None:
        """Record the time that one example took to prepare in a thread, waiting included."""
        self._prepare_seconds.labels(model).observe(seconds)

    def observe_batch(self, model: str, size: int, seconds: float) -> None:
        """Record one step over `size` examples."""
        self._batch_size.labels(model).observe(size)
        self._batch_seconds.labels(model).observe(seconds)

    def observe_wait(self, model: str, seconds: float) -> None:
        """Record the time from an example's acceptance to its first step."""
        self._wait_seconds.labels(model).observe(seconds)

    def set_queue(self, model: str, depth: int) -> None:
        """Record the queue depth."""
        self._queue.labels(model).set(depth)

    def observe_cache(self, model: str, hit_tokens: int, read_tokens: int) -> None:
        """Count context tokens found in the state cache, and those that had to be read."""
        self._cache.labels(model, "hit").inc(hit_tokens)
        self._cache.labels(model, "read").inc(read_tokens)

    def count_refusal(self, model: str, reason: str) -> None:
        """Count an example without an answer, for one of the reasons REFUSALS."""
        self._refusals.labels(model, reason).inc()

    def count_rate_limited(self) -> None:
        """Count a request rejected by the rate limit."""
        self._rate_limited.inc()

    def count_rate_storage_error(self) -> None:
        """Count a failed call of the rate limit's storage."""
        self._rate_storage_errors.inc()

    def set_stale_keys(self, stale: bool) -> None:
        """Record whether the keys in force differ from those that their file names."""
        self._stale_keys.set(stale)

    def set_connections(self, count: int) -> None:
        """Record the number of open connections."""
        self._connections.set(count)

    def count_limited_connection(self) -> None:
        """Count a connection over a limit."""
        self._limited_connections.inc()

    def describe_model(self, model: str, version: str, family: str, precision: str) -> None:
        """Record the served version, and create its counters at 0, so that the first refusal is an increase."""
        self.models.set_info(model, version, family, precision)
        for reason in REFUSALS:
            self._refusals.labels(model, reason)
        for outcome in SWAPS:
            self._swaps.labels(model, outcome)

    def count_swap(self, model: str, outcome: str) -> None:
        """Count a change of the served version, by one of the outcomes SWAPS."""
        self._swaps.labels(model, outcome).inc()

    def totals(self, model: str) -> dict[str, float]:
        """Return the values of a model's counters and histograms, by name without prefix, summed over other labels."""
        found: dict[str, float] = {}
        for metric in self._exported.collect():
            for sample in metric.samples:
                if sample.labels.get("model") == model:
                    name = sample.name.removeprefix(f"{PREFIX}_")
                    found[name] = found.get(name, 0.0) + sample.value
        return found

    def render(self) -> bytes:
        """Return all metrics in the text format of CONTENT_TYPE."""
        return generate_latest(self._exported)

    def _level(self, name: str, text: str, mode: Literal["livemax", "livesum"]) -> Gauge:
        return Gauge(name, text, namespace=PREFIX, registry=self._registry, multiprocess_mode=mode)

    def _single(self, name: str, text: str) -> Counter:
        return Counter(name, text, namespace=PREFIX, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Labelled[Counter]:
        return Labelled(Counter(name, text, labels, namespace=PREFIX, registry=self._registry))

    def _gauge(self, name: str, text: str, *labels: str) -> Labelled[Gauge]:
        return Labelled(
            Gauge(name, text, labels, namespace=PREFIX, registry=self._registry, multiprocess_mode="livesum")
        )

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Labelled[Histogram]:
        return Labelled(Histogram(name, text, labels, namespace=PREFIX, registry=self._registry, buckets=buckets))


@dataclass(slots=True, eq=False)
class RequestUsage:
    """Tokens, images and engine time of one request, summed over its examples.

    Times are those of the scheduler's clock. The scheduler writes before it delivers an answer; readers wait for the
    answer, so no lock is needed.
    """

    model: str | None = None
    tokens: int | None = None
    cached: int | None = None  # tokens whose state was cached
    images: int | None = None
    accepted: float | None = None  # the first example entered the queue
    started: float | None = None  # start of the first step with one of the examples
    finished: float | None = None  # end of the last such step
    engine_s: float = 0.0  # total duration of these steps, each counted once

    @property
    def queue_s(self) -> float | None:
        """Return the seconds from acceptance to the first step, or None if there was none."""
        return self.started - self.accepted if self.started is not None and self.accepted is not None else None

    def accept(self, now: float) -> None:
        """Record that an example entered the queue."""
        if self.accepted is None:
            self.accepted = now

    def record_step(self, started: float, finished: float) -> None:
        """Record one scheduling step, once for all of the request's examples in its batch."""
        if self.started is None:
            self.started = started
        self.finished = finished
        self.engine_s += finished - started

    def add(self, *, tokens: int | None = None, cached: int | None = None, images: int | None = None) -> None:
        """Add the counts of one answer."""
        if tokens is not None:
            self.tokens = (self.tokens or 0) + tokens
        if cached is not None:
            self.cached = (self.cached or 0) + cached
        if images is not None:
            self.images = (self.images or 0) + images


# Usage of the current request; inherited by the tasks that it creates.
REQUEST_USAGE: Final[ContextVar[RequestUsage | None]] = ContextVar("request_usage", default=None)
