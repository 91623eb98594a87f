"""What the service counts and times, in Prometheus's terms."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import current_process
from pathlib import Path
from typing import Final, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, values
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

PREFIX: Final = "seqserve"
CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
# Seconds: a remembered keystroke takes well under a millisecond, a long document many seconds.
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128)  # examples
REFUSALS: Final = ("overloaded", "deadline", "cancelled")
SWAPS: Final = ("switched", "refused")


Figure = TypeVar("Figure", Counter, Gauge, Histogram)


class Family(Generic[Figure]):
    """A figure by its labels, each found again without prometheus_client's lock and checks; none is ever removed."""

    def __init__(self, whole: Figure) -> None:
        self._whole: Figure = whole
        self._figures: dict[tuple[str, ...], Figure] = {}

    def labels(self, *values: str) -> Figure:
        """The one figure, which is there from now on."""
        found = self._figures.get(values)
        if found is None:
            found = self._figures[values] = self._whole.labels(*values)
        return found


class Models(Collector):
    """Tells of each model the one version that answers, or was refused: what served before is told no more."""

    def __init__(self) -> None:
        self._ready: dict[str, tuple[str, float]] = {}  # version, ready; by model
        self._info: dict[str, tuple[str, str, str]] = {}  # version, family, precision; by model

    def set_ready(self, model: str, version: str, *, ready: bool) -> None:
        """Note whether the model's version answers."""
        self._ready = {**self._ready, model: (version, float(ready))}

    def set_info(self, model: str, version: str, family: str, precision: str) -> None:
        """Note what the version that answers is."""
        self._info = {**self._info, model: (version, family, precision)}

    def forget(self, model: str) -> None:
        """Tell of the model no more."""
        self._ready = {name: told for name, told in self._ready.items() if name != model}

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The figures, as they are now."""
        ready = GaugeMetricFamily(
            f"{PREFIX}_model_ready", "1 if this version answers, 0 if it was refused", labels=("model", "version")
        )
        for model, (version, value) in self._ready.items():
            ready.add_metric((model, version), value)
        info = GaugeMetricFamily(
            f"{PREFIX}_model_info", "1 for what answers", labels=("model", "version", "family", "precision")
        )
        for model, told in self._info.items():
            info.add_metric((model, *told), 1)
        return ready, info


class Processes(Collector):
    """What the system tells of each worker's process, by the worker's place."""

    def __init__(self, pids: Callable[[], Sequence[int]]) -> None:
        """`pids` are those of the workers, in the order of their places; 0 where none runs."""
        self._pids = pids

    def collect(self) -> Iterable[Metric]:
        """The figures, as they are now."""
        families: dict[str, Metric] = {}
        for place, pid in enumerate(self._pids()):
            for one in _process(pid):
                family = families.setdefault(one.name, Metric(one.name, one.documentation, one.type))
                for sample in one.samples:
                    family.add_sample(sample.name, {**sample.labels, "worker": str(place)}, sample.value)
        return families.values()


@dataclass(frozen=True)
class Shared:
    """Where several processes count together, each under its name in `multiprocessing`.

    A folder of small files that they map: a process that begins under the name of one that ended goes on with its
    counts, so these never fall. It must be there before a Metrics is made.
    """

    folder: Path
    pids: Callable[[], Sequence[int]]  # as Processes wants them

    def open(self) -> None:
        """Let all figures that are made in this process and its forks from now on be kept there."""
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self.folder)  # prometheus_client asks for it at each new file
        values.ValueClass = values.MultiProcessValue(lambda: current_process().name)  # type: ignore[no-untyped-call]

    def bury(self, name: str) -> None:
        """Forget what was true only while this process lived: how many wait for it."""
        mark_process_dead(name, self.folder)  # type: ignore[no-untyped-call]


class Metrics:
    """Every figure of one service, named `seqserve_…`; safe to call from any thread."""

    def __init__(self, registry: CollectorRegistry, shared: Shared | None = None) -> None:
        """What is told is this process's own, unless it is `shared`: then the sum of all, and each one's memory."""
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
        self._swaps = self._counter("swaps", "Changes of the version that answers, made or refused", "model", "outcome")
        self.models = Models()
        self._rate_limited = self._single("rate_limited", "Requests refused for their caller's rate")
        self._rate_storage_errors = self._single("rate_storage_errors", "Times the storage of rates gave no answer")
        self._told = _own(registry) if shared is None else _joint(shared)
        self._told.register(self.models)

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
        """Note whether a version answers; of its model no other one is told."""
        self.models.set_ready(model, version, ready=ready)

    def forget_model(self, model: str) -> None:
        """Tell no more of a model that was refused."""
        self.models.forget(model)

    def describe_model(self, model: str, version: str, family: str, precision: str) -> None:
        """Tell what answers, and begin its counts at 0: the first refusal must be a rise."""
        self.models.set_info(model, version, family, precision)
        for reason in REFUSALS:
            self._refusals.labels(model, reason)
        for outcome in SWAPS:
            self._swaps.labels(model, outcome)

    def count_swap(self, model: str, outcome: str) -> None:
        """Count a change of the version that answers, by one of SWAPS."""
        self._swaps.labels(model, outcome).inc()

    def render(self) -> bytes:
        """All figures in the text format that CONTENT_TYPE names."""
        return generate_latest(self._told)

    def _single(self, name: str, text: str) -> Counter:
        return Counter(name, text, namespace=PREFIX, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Family[Counter]:
        return Family(Counter(name, text, labels, namespace=PREFIX, registry=self._registry))

    def _gauge(self, name: str, text: str, *labels: str) -> Family[Gauge]:
        return Family(Gauge(name, text, labels, namespace=PREFIX, registry=self._registry, multiprocess_mode="livesum"))

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Family[Histogram]:
        return Family(Histogram(name, text, labels, namespace=PREFIX, registry=self._registry, buckets=buckets))


def _own(registry: CollectorRegistry) -> CollectorRegistry:
    """What one process tells."""
    ProcessCollector(namespace=PREFIX, registry=registry)
    return registry


def _process(pid: int) -> Iterable[Metric]:
    return ProcessCollector(namespace=PREFIX, pid=lambda: pid, registry=None).collect() if pid else ()


def _joint(shared: Shared) -> CollectorRegistry:
    """What any of several tells."""
    told = CollectorRegistry()
    MultiProcessCollector(told, shared.folder)  # type: ignore[no-untyped-call]
    told.register(Processes(shared.pids))
    return told
