"""The registry of served models: bundles loaded, verified by their probes and put behind a scheduler each.

`load_version` does everything slow or fallible, in a thread; `serve` is one assignment on the event loop. A request
holds a lease on the `Served` that it started with: a replaced version closes once its last lease has ended.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Set
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from app import bundle as bundles
from app.errors import BundleError, NotReady, UnknownModel
from app.runtime.families import FAMILIES, Family
from app.runtime.loading import Loaded, load_predictor, read_version
from app.runtime.memory import freeze_heap, release_memory
from app.runtime.metrics import REQUEST_USAGE, Metrics
from app.runtime.onnx_session import Precision
from app.runtime.predictor import Partial
from app.runtime.preprocessing import Payload, Preprocessor
from app.runtime.scheduler import MAX_INLINE_BATCH, Scheduler
from app.text import TOKENIZERS, Tokenizer
from app.text.blocked_words import BLOCKED_WORDS

LOADING: Final = "loading"

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Served:
    """A model version that serves requests.

    As a context manager it is a lease: a replaced version is closed at the end of its last `with` block. Leases are
    taken and ended on the event loop.
    """

    def __init__(self, loaded: Loaded, scheduler: Scheduler, preprocessor: Preprocessor, family: Family) -> None:
        self.bundle = loaded.bundle
        self.manifest = loaded.bundle.manifest
        self.name, self.version = self.manifest.model, self.manifest.version
        self.predictor = loaded.predictor
        self.scheduler = scheduler
        self.family = family
        self._preprocessor = preprocessor
        self._leases = 0
        self._close: Callable[[], object] | None = None  # set once another version has replaced it

    def __enter__(self) -> Self:
        self._leases += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._leases -= 1
        self._close_if_unused()

    def retire(self, close: Callable[[], object]) -> None:
        """Call `close` once there is no lease."""
        self._close = close
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._close and not self._leases:
            self._close()

    @property
    def versions(self) -> list[str]:
        """The versions on disk; none if the model's folder is gone."""
        home = self.bundle.folder.parent
        return bundles.versions(home.parent, home.name) if home.is_dir() else []

    @property
    def precision(self) -> Precision:
        """The arithmetic in use: the published one, or fp32 if int8 failed the probe on this machine."""
        return self.predictor.precision

    async def answer(self, payload: Payload, *, deadline: float | None = None, bulk: bool = False) -> Any:
        """Prepare `payload` and return its answer; `deadline` is a time of time.monotonic.

        `bulk`: one of several payloads of a request: no person waits for each of them.
        """
        bulk = bulk or payload.bulk
        example = await self.prepared(lambda: payload, at_once=not payload.slow, deadline=deadline, bulk=bulk)
        return await self.submit(example, deadline=deadline, bulk=bulk)

    async def prepared(
        self, make: Callable[[], Payload], *, at_once: bool = False, deadline: float | None = None, bulk: bool = False
    ) -> Any:
        """Make and prepare a payload in a thread when one is free, so that few payloads are in memory at once.

        A payload that is not slow may be prepared `at_once`, in the calling thread.
        """
        if usage := REQUEST_USAGE.get():
            usage.model = self.name
        if at_once:
            return self.predictor.prepare(make())
        return await self.in_thread(lambda: self.predictor.prepare(make()), deadline=deadline, bulk=bulk)

    async def in_thread(
        self, work: Callable[[], Result], *, deadline: float | None = None, bulk: bool = True
    ) -> Result:
        """Do slow work in a thread when one is free; errors as of `prepared`."""
        return await self._preprocessor.run(self.name, work, deadline, bulk=bulk)

    async def submit(self, example: Any, *, deadline: float | None = None, bulk: bool = False) -> Any:
        """Return the answer to a prepared example."""
        usage = REQUEST_USAGE.get()
        if usage is None:
            return await self.scheduler.submit(example, deadline, bulk=bulk)
        usage.model = self.name
        answer = await self.scheduler.submit(example, deadline, bulk=bulk)
        usage.add(**self.family.usage(answer))
        return answer

    async def stream(self, example: Any, *, deadline: float | None = None) -> AsyncGenerator[Partial[Any, Any], None]:
        """Yield the partial answers to a prepared example, the answer with the last. Closing it cancels the rest."""
        usage = REQUEST_USAGE.get()
        async with aclosing(self.scheduler.stream(example, deadline)) as partials:
            async for output in partials:
                if usage and output.answer is not None:
                    usage.model = self.name
                    usage.add(**self.family.usage(output.answer))
                yield output


class Registry:
    """Served models by name, and the reasons why others are not ready."""

    def __init__(
        self,
        store: Path,
        *,
        threads: int,
        queue_size: int,
        batch_size: int,
        cache_bytes: int,
        blocked: Set[str] = BLOCKED_WORDS,
        max_inline_batch: int = MAX_INLINE_BATCH,
        workers: int = 1,
        default_models: Mapping[str, str] | None = None,
        metrics: Metrics,
        families: Mapping[str, Family] = FAMILIES,
        tokenizers: Mapping[str, type[Tokenizer]] = TOKENIZERS,
    ) -> None:
        """Open `store`, a folder of models; nothing is served before `load`. Raise BundleError if it is missing.

        `families` and `tokenizers` may be named by bundles; `default_models` serve requests that name none, by family.
        """
        self.store = store
        self.metrics = metrics
        self.workers = workers
        self.changes = asyncio.Lock()  # held from before `load_version` until after `serve`
        self.current: dict[str, str] = {}  # version that each CURRENT named when it was last read
        self.max_inline_batch = max_inline_batch
        self._default_models = default_models or {}
        self._families = families
        self._shareable = threads == 1
        self._load_predictor = partial(
            load_predictor,
            threads=threads,
            cache_bytes=cache_bytes,
            families=families,
            tokenizers=tokenizers,
            blocked=blocked,
        )
        self._scheduler = partial(
            Scheduler, observer=metrics, queue_size=queue_size, batch_size=batch_size, max_inline_batch=max_inline_batch
        )
        self._preprocessor = Preprocessor(metrics, queue_size=queue_size)
        self._names = bundles.models(store)
        self._pending: str | None = LOADING  # the reason why nothing is served yet; None once loaded
        self._opened = asyncio.Event()
        self._shut = False
        self._preloaded: dict[str, Loaded] = {}  # by name
        self._served: dict[str, Served] = {}  # by name; replaced, never mutated: threads read it too
        self._rejected: dict[str, str] = {}  # reasons by name; never mutated either
        self._former: set[Served] = set()  # replaced, not yet closed
        self._tasks: set[asyncio.Task[Any]] = set()  # see `spawn`

    def preload(self) -> None:
        """Load the current versions before a fork, so that the workers share their memory.

        ONNX Runtime does not support forks in general, but a session of one thread has no lock that another thread
        could hold and no thread that a fork could lose. Models with several threads are loaded by each worker.
        """
        for name in self._names if self._shareable else ():
            try:
                self._preloaded[name] = self.load_version(name, bundles.current(self.store, name))
            except BundleError as error:
                log.debug("%s: not preloaded: %s", name, error)  # `load` reports it

    def load(self) -> Self:
        """Serve the current version of every model in the store and return self. Blocks.

        An invalid bundle is logged and rejected; the others serve.
        """
        for name in bundles.models(self.store):
            self.current[name] = ""  # unless CURRENT names a version
            try:
                self.current[name] = version = bundles.current(self.store, name)
                loaded = self._preloaded.get(name)
                if loaded is None or loaded.bundle.manifest.version != version:
                    loaded = self.load_version(name, version)
                self.serve(loaded)
            except BundleError as error:
                log.error("%s: rejected: %s", name, error)
                self.reject(name, self.current[name], str(error))
        self._preloaded.clear()
        self._pending = None
        return self

    async def open(self) -> None:
        """Load the store in a thread. An exception is logged, and no model is ready then."""
        try:
            await asyncio.to_thread(self.load)
            freeze_heap()
        except Exception:
            log.exception("the models of %s could not be loaded", self.store)
            self._pending = "could not be loaded; the log says why"
        self._opened.set()

    async def opened(self) -> None:
        """Wait until loading has succeeded or failed."""
        if self._pending == LOADING:
            await self._opened.wait()

    def load_version(self, name: str, version: str) -> Loaded:
        """Load, verify and warm a version; serve no requests with it yet. Takes seconds, so call it in a thread.

        Raise UnknownModel or UnknownVersion if the store lacks it, BundleError if it can't be served.
        """
        serving = self._served.get(name)
        bundle = read_version(self.store, name, version, serving.manifest.family if serving else None)
        return Loaded(bundle, self._load_predictor(bundle, observe_cache=partial(self.metrics.observe_cache, name)))

    def serve(self, loaded: Loaded) -> str | None:
        """Serve requests with `loaded`; return the version that it replaces, if any.

        Must run on the event loop, unless it is the model's first version.
        """
        manifest, predictor = loaded.bundle.manifest, loaded.predictor
        name, version = manifest.model, manifest.version
        former = self._served.get(name)
        scheduler = self._scheduler(name, predictor.step, fits_inline=predictor.fits_inline)
        served = Served(loaded, scheduler, self._preprocessor, self._families[manifest.family])
        self._served = dict(sorted({**self._served, name: served}.items()))
        self.forget(name)
        self.metrics.models.set_ready(name, version, ready=True)
        self.metrics.describe_model(name, version, manifest.family, predictor.precision)
        if former is None:
            return None
        self._former.add(former)
        former.retire(lambda: self.spawn(self._close_former(former)))
        return former.version

    def serving(self, name: str) -> str | None:
        """Return the served version of the model, None if there is none."""
        served = self._served.get(name)
        return served.version if served else None

    def reject(self, name: str, version: str, reason: str) -> None:
        """Record why a model without a served version is not ready; `version` is empty if CURRENT names none."""
        self._rejected = {**self._rejected, name: reason}
        self.metrics.models.set_ready(name, version, ready=False)

    def forget(self, name: str) -> None:
        """Remove the model from the rejected ones."""
        self._rejected = {other: reason for other, reason in self._rejected.items() if other != name}
        self.metrics.models.forget(name)

    @property
    def unready(self) -> NotReady | None:
        """The error of every request while the store loads, if that failed, and after `shut`."""
        if self._shut:
            return NotReady("shutting down", closing=True)
        return NotReady(self._pending) if self._pending else None

    @property
    def rejected(self) -> dict[str, str]:
        """The reason of every model that is not served, by name."""
        return dict.fromkeys(self._names, str(self.unready)) if self.unready else self._rejected

    @property
    def ready(self) -> bool:
        """True if there are models and all of them are served."""
        return bool(self.served()) and not self.rejected

    def served(self) -> list[Served]:
        """Return the served models, sorted by name; none while the store loads or after `shut`."""
        return [] if self.unready else list(self._served.values())

    def get(self, name: str | None, family: str) -> Served:
        """Return the named model, or the family's default. Raise UnknownModel, or NotReady for one that is not served.

        The default is that of the settings, else the first by name. A `with` block of it keeps this version open.
        """
        if self.unready:
            raise self.unready
        if name is None and (name := self._default_models.get(family)) is None:
            name = next((each.name for each in self._served.values() if each.manifest.family == family), None)
        if name is None:
            reasons = "".join(f"; {rejected}: {reason}" for rejected, reason in self._rejected.items())
            raise NotReady(f"no {family} model is ready{reasons}")
        if name in self._rejected:
            raise NotReady(f"{name}: rejected: {self._rejected[name]}")
        found = self._served.get(name)
        if found is None or found.manifest.family != family:
            known = ", ".join(each.name for each in self._served.values() if each.manifest.family == family) or "none"
            raise UnknownModel(f"{name[:80]!r}: no such {family} model; available: {known}")
        return found

    def named(self, name: str) -> Served:
        """Return the model of this name, of any family. Raise UnknownModel, or NotReady for one that is not served."""
        if self.unready:
            raise self.unready
        if name in self._served:
            return self._served[name]
        if name in self._rejected:
            raise NotReady(f"{name}: {self._rejected[name]}")
        known = ", ".join(sorted({*self._served, *self._rejected})) or "none"
        raise UnknownModel(f"{name[:80]}: no such model; available: {known}")

    def spawn(self, change: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Start a task that `close` waits for."""
        task = asyncio.ensure_future(change)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def shut(self) -> None:
        """Reject new requests with NotReady; those accepted are answered."""
        self._shut = True

    async def close(self) -> None:
        """Finish loading, started changes and accepted requests, then stop."""
        await asyncio.gather(*self._tasks, return_exceptions=True)  # raised in the requests that wait for them
        await self._preprocessor.close()
        await asyncio.gather(*(each.scheduler.close() for each in (*self._former, *self._served.values())))

    async def _close_former(self, former: Served) -> None:
        """Close a replaced version and free its memory."""
        await former.scheduler.close()
        name = f"{former.name}: {former.version}"
        self._former.discard(former)
        del former
        await asyncio.to_thread(release_memory)
        log.info("%s has ended", name)
