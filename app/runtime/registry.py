"""The registry of served models: bundles loaded, verified by their probes and put behind a scheduler each.

Version exchange has two phases, so that several processes can run the second one together. `stage` does everything slow
or fallible in a thread; `switch` is one assignment on the event loop. A request keeps the `Served` that it started
with, and a replaced version closes once nothing refers to it.
"""

import asyncio
import ctypes
import gc
import logging
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypedDict

from app import bundle as bundles
from app.bundle import Bundle, Manifest
from app.errors import BundleError, NotReady, UnknownModel, UnknownVersion
from app.runtime.families import FAMILIES, Family
from app.runtime.metrics import Metrics
from app.runtime.onnx_session import Precision
from app.runtime.preprocessing import Preprocessor
from app.runtime.scheduler import MAX_INLINE_BATCH, BundlePredictor, ObserveCache, Resources, Scheduler, ignore
from app.runtime.usage import REQUEST_USAGE
from app.text import TOKENIZERS, TokenizerFactory

log = logging.getLogger(__name__)


class Payload(Protocol):
    """The input of one request to a model."""

    @property
    def slow(self) -> bool:
        """True if `prepare` takes so long that it must run in a thread."""
        ...


@dataclass(frozen=True)
class Staged:
    """A version that is loaded, verified and warm, but serves no requests yet. Needs no closing."""

    bundle: Bundle
    predictor: BundlePredictor[Any, Any, Any]


@dataclass(frozen=True)
class Served:
    """A model version that serves requests."""

    name: str
    version: str
    manifest: Manifest
    bundle: Bundle
    predictor: BundlePredictor[Any, Any, Any]
    scheduler: Scheduler
    preprocessor: Preprocessor
    family: Family

    @property
    def versions(self) -> list[str]:
        """The versions on disk; none if the model's folder is gone."""
        home = self.bundle.folder.parent
        return bundles.versions(home.parent, home.name) if home.is_dir() else []

    @property
    def precision(self) -> Precision:
        """The arithmetic in use: the published one, or fp32 if int8 failed the probe on this machine."""
        return self.predictor.precision

    async def answer(self, payload: Payload, *, deadline: float | None = None) -> Any:
        """Prepare `payload` and return its answer; `deadline` is a time of time.monotonic."""
        if payload.slow:
            example = await self.prepared(lambda: payload, deadline=deadline)
        else:
            example = self.predictor.prepare(payload)
        return await self.submit(example, deadline=deadline)

    async def prepared(
        self, make: Callable[[], Payload], *, at_once: bool = False, deadline: float | None = None
    ) -> Any:
        """Make and prepare a payload in a thread when one is free, so that few payloads are in memory at once.

        A payload that is not slow may be prepared `at_once`, in the calling thread.
        """
        if account := REQUEST_USAGE.get():
            account.model = self.name
        if at_once:
            return self.predictor.prepare(make())
        return await self.preprocessor.run(self.name, lambda: self.predictor.prepare(make()), deadline)

    async def submit(self, example: Any, *, deadline: float | None = None) -> Any:
        """Return the answer to a prepared example."""
        account = REQUEST_USAGE.get()
        if account is None:
            return await self.scheduler.submit(example, deadline)
        account.model = self.name
        answer = await self.scheduler.submit(example, deadline)
        account.add(**self.family.usage(answer))
        return answer


class Sizes(TypedDict):
    """The resource limits of a registry."""

    threads: int
    queue_size: int
    batch_size: int
    cache_bytes: int
    max_inline_batch: int


class Registry:
    """Served models by name, and the reasons why others were rejected."""

    def __init__(
        self,
        store: Path,
        *,
        threads: int,
        queue_size: int,
        batch_size: int,
        cache_bytes: int,
        max_inline_batch: int = MAX_INLINE_BATCH,
        metrics: Metrics,
        families: Mapping[str, Family] = FAMILIES,
        tokenizers: Mapping[str, TokenizerFactory] = TOKENIZERS,
    ) -> None:
        """Open `store`, a folder of models; nothing is served before `load`.

        `families` and `tokenizers` are those that bundles may name.
        """
        self.store = store
        self.metrics = metrics
        self.changes = asyncio.Lock()  # held from before `stage` until after `switch`
        self._families = families
        self._tokenizers = tokenizers
        self._threads = threads
        self._queue_size = queue_size
        self._batch_size = batch_size
        self._cache_bytes = cache_bytes
        self._max_inline_batch = max_inline_batch
        self._preprocessor = Preprocessor(metrics, queue_size=queue_size)
        self._served: dict[str, Served] = {}  # by name; replaced, never mutated: threads read it too
        self._rejected: dict[str, str] = {}  # reasons by name; never mutated either
        self._former: dict[Scheduler, weakref.finalize[..., Served]] = {}  # replaced, not yet closed
        self._closing: set[asyncio.Task[None]] = set()

    def load(self) -> "Registry":
        """Serve the current version of every model in the store and return self. Blocks.

        An invalid bundle is logged and rejected; the others serve.
        """
        for name in bundles.models(self.store):
            version = ""  # unless CURRENT names one
            try:
                version = bundles.current(self.store, name)
                self.switch(self.stage(name, version))
            except BundleError as error:
                log.error("%s: rejected: %s", name, error)
                self.reject(name, version, str(error))
        return self

    def stage(self, name: str, version: str) -> Staged:
        """Load, verify and warm a version; serve no requests with it yet. Takes seconds, so call it in a thread.

        Raise UnknownModel or UnknownVersion if the store lacks it, BundleError if it can't be served.
        """
        serving = self._served.get(name)
        known = bundles.models(self.store)
        if serving is None and name not in known:
            raise UnknownModel(f"{name[:80]!r}: no such model; available: {', '.join(known) or 'none'}")
        versions = bundles.versions(self.store, name) if name in known else []
        if version not in versions:
            raise UnknownVersion(f"{name}: no version {version[:80]!r}; available: {', '.join(versions) or 'none'}")
        if self._former:
            gc.collect()  # an error and its traceback refer to each other, and may keep a replaced version alive
        bundle = bundles.read(self.store / name / version)
        if serving and bundle.manifest.family != serving.manifest.family:
            expected, found = serving.manifest.family, bundle.manifest.family
            raise BundleError(f"{bundle.folder}: family: expected {expected}, as served, found {found}")
        predictor = load_predictor(
            bundle,
            threads=self._threads,
            cache_bytes=self._cache_bytes,
            observe_cache=partial(self.metrics.observe_cache, name),
            families=self._families,
            tokenizers=self._tokenizers,
        )
        return Staged(bundle, predictor)

    def switch(self, staged: Staged) -> str | None:
        """Serve requests with `staged`; return the version that it replaces, if any.

        Must run on the event loop, unless it is the model's first version.
        """
        manifest = staged.bundle.manifest
        name, version = manifest.model, manifest.version
        former = self._served.get(name)
        scheduler = Scheduler(
            name,
            staged.predictor.predict,
            self.metrics,
            queue_size=self._queue_size,
            batch_size=self._batch_size,
            fits_inline=staged.predictor.fits_inline,
            max_inline_batch=self._max_inline_batch,
        )
        model = Served(
            name,
            version,
            manifest,
            staged.bundle,
            staged.predictor,
            scheduler,
            self._preprocessor,
            self._families[manifest.family],
        )
        self._served = dict(sorted({**self._served, name: model}.items()))
        self.forget(name)
        self.metrics.set_model(name, version, ready=True)
        self.metrics.describe_model(name, version, manifest.family, staged.predictor.precision)
        if former is None:
            return None
        self._retire(former)
        return former.version

    def serving(self, name: str) -> str | None:
        """Return the served version of the model, None if there is none."""
        model = self._served.get(name)
        return model.version if model else None

    @property
    def rejected(self) -> dict[str, str]:
        """The reasons why the other models are not served, by name."""
        return self._rejected

    def reject(self, name: str, version: str, reason: str) -> None:
        """Record why a model without a served version is not ready; `version` is empty if CURRENT names none."""
        self._rejected = {**self._rejected, name: reason}
        self.metrics.set_model(name, version, ready=False)

    def forget(self, name: str) -> None:
        """Remove the model from the rejected ones."""
        self._rejected = {other: reason for other, reason in self._rejected.items() if other != name}
        self.metrics.forget_model(name)

    def served(self) -> list[Served]:
        """Return the served models, sorted by name."""
        return list(self._served.values())

    def get(self, name: str | None, family: str) -> Served:
        """Return the named model, or the family's first. Raise UnknownModel, or NotReady for a rejected model."""
        if name is None:
            for ready in self.served():
                if ready.manifest.family == family:
                    return ready
            reasons = "".join(f"; {rejected}: {reason}" for rejected, reason in self.rejected.items())
            raise NotReady(f"no {family} model is ready{reasons}")
        if name in self.rejected:
            raise NotReady(f"{name}: rejected: {self.rejected[name]}")
        model = self._served.get(name)
        if model is None or model.manifest.family != family:
            known = [model.name for model in self.served() if model.manifest.family == family]
            raise UnknownModel(f"{name[:80]!r}: no such {family} model; available: {', '.join(known) or 'none'}")
        return model

    async def close(self) -> None:
        """Finish the accepted requests, then stop."""
        await self._preprocessor.close()
        for finalizer in self._former.values():
            finalizer.detach()
        schedulers = [*self._former, *(model.scheduler for model in self._served.values())]
        await asyncio.gather(*(scheduler.close() for scheduler in schedulers), *self._closing)

    def _retire(self, former: Served) -> None:
        """Close a replaced version once nothing refers to it.

        A running request may submit to it again: for the next of many texts, or once its image is prepared.
        """
        loop = asyncio.get_running_loop()
        name = f"{former.name}: {former.version}"
        finalizer = weakref.finalize(former, loop.call_soon_threadsafe, self._start_close, former.scheduler, name)
        finalizer.atexit = False
        self._former[former.scheduler] = finalizer

    def _start_close(self, scheduler: Scheduler, name: str) -> None:
        closing = asyncio.ensure_future(self._close_former(scheduler, name))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _close_former(self, scheduler: Scheduler, name: str) -> None:
        await scheduler.close()
        del self._former[scheduler], scheduler  # and with it the predictor
        await asyncio.to_thread(_release_memory)
        log.info("%s has ended", name)


def freeze_heap() -> None:
    """Collect garbage, then exempt the rest from collection: the loaded models take 30 ms to traverse."""
    gc.collect()
    gc.freeze()


def _release_memory() -> None:
    """Return freed memory to the system: after a few exchanges glibc would keep as much as another version takes."""
    gc.unfreeze()
    freeze_heap()  # a vocabulary is in a reference cycle
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc alone has it, and needs it
        libc.malloc_trim(0)


def load_predictor(
    bundle: Bundle,
    *,
    threads: int = 1,
    cache_bytes: int = 0,
    observe_cache: ObserveCache = ignore,
    families: Mapping[str, Family] = FAMILIES,
    tokenizers: Mapping[str, TokenizerFactory] = TOKENIZERS,
) -> Any:
    """Open the predictor of the bundle's family and verify it by the probe.

    If the int8 graphs do not reproduce the recorded answers (processors without an exact 8-bit product saturate), the
    fp32 graphs serve. Raise BundleError if those fail too.
    """
    family = families.get(bundle.manifest.family)
    if family is None:
        expected, found = ", ".join(families), bundle.manifest.family
        raise BundleError(f"{bundle.folder}: family: expected one of {expected}, found {found!r}")
    resources = Resources(threads, cache_bytes, tokenizers, observe_cache)
    open_graphs = partial(family.predictor.open, bundle, resources=resources)
    try:
        predictor = open_graphs(bundle.manifest.served)
        difference = _difference(bundle, predictor)
        if difference and predictor.precision == "int8":
            log.warning("%s; falling back to fp32 on this machine", difference)
            predictor = open_graphs("fp32")
            difference = _difference(bundle, predictor)
    except BundleError:
        raise
    except Exception as error:  # checksums verify the content, not that this version of the code can use it
        raise BundleError(f"{bundle.folder}: can't be used by this version: {error!r}") from error
    if difference:
        raise BundleError(difference)
    return predictor


def _difference(bundle: Bundle, predictor: BundlePredictor[Any, Any, Any]) -> str | None:
    """Return a description of the difference between the probe's answer and the recorded one, None if they agree."""
    probe = bundle.json("probe.json")
    expected = probe["answers"][predictor.precision]
    found = predictor.probe(probe["payload"])
    equal = 0 < len(found) == len(expected) and all(
        text == expected_text and abs(value - expected_value) <= predictor.PROBE_TOLERANCE
        for (text, value), (expected_text, expected_value) in zip(found, expected, strict=True)
    )
    if equal:
        return None
    return f"{bundle.folder}: {predictor.precision}: probe: expected {expected}, found {found}"
