"""The models that are served: bundles read, proved and put behind a batcher each, and exchanged while they are asked.

A model's version is exchanged in two steps, so that several processes can take the second one together: `stage` does in
a thread all that takes time and may fail, `switch` is a moment on the event loop. Whoever holds a `Served` is answered
by it to the end, however many questions that takes; a former version ends once nobody holds it any more.
"""

import asyncio
import ctypes
import gc
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from app import bundle as bundles
from app.bundle import Bundle, Family, Manifest
from app.errors import BundleError, NotReady, UnknownModel, UnknownVersion
from app.runtime.families.captions import CaptionsPredictor, Description
from app.runtime.families.digits import Classification, DigitsPredictor
from app.runtime.families.language_model import LanguageModelPredictor, Suggestions
from app.runtime.metrics import Metrics
from app.runtime.onnx_session import Precision
from app.runtime.preprocessing import Preparing
from app.runtime.scheduler import FEW, Batcher, BundlePredictor, ObserveCache, Resources, ignore
from app.runtime.scores import TextScore
from app.runtime.usage import REQUEST_USAGE, RequestUsage

AnyPredictor: TypeAlias = LanguageModelPredictor | DigitsPredictor | CaptionsPredictor
PREDICTORS: dict[Family, type[AnyPredictor]] = {  # by family
    "language_model": LanguageModelPredictor,
    "digits": DigitsPredictor,
    "captions": CaptionsPredictor,
}

log = logging.getLogger(__name__)


class Payload(Protocol):
    """What a model can be asked."""

    @property
    def slow(self) -> bool:
        """Whether it is checked in a thread, so that the event loop goes on."""
        ...


@dataclass(frozen=True)
class Staged:
    """A version that is read, proved and warm, and not yet asked. If it won't be, it needs but be dropped."""

    bundle: Bundle
    predictor: BundlePredictor[Any, Any, Any]


@dataclass(frozen=True)
class Served:
    """A model that answers."""

    name: str
    version: str
    manifest: Manifest
    bundle: Bundle
    predictor: BundlePredictor[Any, Any, Any]
    batcher: Batcher
    preparing: Preparing

    @property
    def versions(self) -> list[str]:
        """Those on disk by now; none if the model's folder is gone."""
        home = self.bundle.folder.parent
        return bundles.versions(home.parent, home.name) if home.is_dir() else []

    @property
    def precision(self) -> Precision:
        """The arithmetic that answers: the published one, unless this machine can't be trusted with it."""
        return self.predictor.precision

    async def answer(self, payload: Payload, *, deadline: float | None = None) -> Any:
        """Check `payload` and wait for its answer; `deadline` is a time of time.monotonic."""
        if payload.slow:
            example = await self.prepared(lambda: payload, deadline=deadline)
        else:
            example = self.predictor.prepare(payload)
        return await self.submit(example, deadline=deadline)

    async def prepared(
        self, make: Callable[[], Payload], *, at_once: bool = False, deadline: float | None = None
    ) -> Any:
        """The example of a payload that is made and checked in a thread when its turn comes: few are there at once.

        One that is not slow may be made and checked `at_once`, here.
        """
        if account := REQUEST_USAGE.get():
            account.model = self.name
        if at_once:
            return self.predictor.prepare(make())
        return await self.preparing.run(self.name, lambda: self.predictor.prepare(make()), deadline)

    async def submit(self, example: Any, *, deadline: float | None = None) -> Any:
        """The answer to what was prepared."""
        account = REQUEST_USAGE.get()
        if account is None:
            return await self.batcher.submit(example, deadline)
        account.model = self.name
        answer = await self.batcher.submit(example, deadline)
        _count(account, answer)
        return answer


class Registry:
    """Served models by name, and why the others were refused."""

    def __init__(
        self,
        store: Path,
        *,
        threads: int,
        queue_size: int,
        batch_size: int,
        cache_bytes: int,
        light_size: int = FEW,
        metrics: Metrics,
    ) -> None:
        """Nothing is served yet; `load` serves what there is."""
        self.store = store
        self.metrics = metrics
        self.changes = asyncio.Lock()  # held by whoever changes what is served, from before `stage` until `switch`
        self._threads = threads
        self._queue_size = queue_size
        self._batch_size = batch_size
        self._cache_bytes = cache_bytes
        self._light_size = light_size
        self._preparing = Preparing(metrics, queue_size=queue_size)
        self._served: dict[str, Served] = {}  # in the order of the names; replaced, not changed: threads read it too
        self._refused: dict[str, str] = {}  # why, by name; replaced too
        self._former: dict[Batcher, weakref.finalize[..., Served]] = {}  # what still works, and begins its end
        self._ending: set[asyncio.Task[None]] = set()

    def load(self) -> "Registry":
        """Serve the current version of every model in the store, and be returned. Blocks.

        A bad bundle is refused by name; the others serve.
        """
        for name in bundles.models(self.store):
            version = ""  # unless CURRENT names one
            try:
                version = bundles.current(self.store, name)
                self.switch(self.stage(name, version))
            except BundleError as error:
                log.error("%s: refused: %s", name, error)
                self.refuse(name, version, str(error))
        return self

    def stage(self, name: str, version: str) -> Staged:
        """Read, prove and warm a version, in a thread, since that takes long. What is served stays as it is.

        Raise UnknownModel or UnknownVersion if it isn't in the store, BundleError if it can't be served.
        """
        serving = self._served.get(name)
        known = bundles.models(self.store)
        if serving is None and name not in known:
            raise UnknownModel(f"{name[:80]!r}: no such model; there are: {', '.join(known) or 'none'}")
        versions = bundles.versions(self.store, name) if name in known else []
        if version not in versions:
            raise UnknownVersion(f"{name}: no version {version[:80]!r}; there are: {', '.join(versions) or 'none'}")
        if self._former:
            gc.collect()  # an error and its traceback hold each other, and may be all that still holds a former version
        bundle = bundles.read(self.store / name / version)
        if serving and bundle.manifest.family != serving.manifest.family:
            expected, found = serving.manifest.family, bundle.manifest.family
            raise BundleError(f"{bundle.folder}: expected the family that serves, {expected}, found {found}")
        observe_cache = partial(self.metrics.observe_cache, name)
        return Staged(
            bundle,
            load_predictor(bundle, threads=self._threads, cache_bytes=self._cache_bytes, observe_cache=observe_cache),
        )

    def switch(self, staged: Staged) -> str | None:
        """From now on `staged` answers; the version that did before. For the event loop, unless nothing serves yet."""
        manifest = staged.bundle.manifest
        name, version = manifest.model, manifest.version
        former = self._served.get(name)
        batcher = Batcher(
            name,
            staged.predictor.predict,
            self.metrics,
            queue_size=self._queue_size,
            batch_size=self._batch_size,
            is_light=staged.predictor.is_light,
            light_size=self._light_size,
        )
        model = Served(name, version, manifest, staged.bundle, staged.predictor, batcher, self._preparing)
        self._served = dict(sorted({**self._served, name: model}.items()))
        self.forget(name)
        self.metrics.set_model(name, version, ready=True)
        self.metrics.describe_model(name, version, manifest.family, staged.predictor.precision)
        if former is None:
            return None
        self._retire(former)
        return former.version

    def serving(self, name: str) -> str | None:
        """The version of the model that answers, if one does."""
        model = self._served.get(name)
        return model.version if model else None

    @property
    def refused(self) -> dict[str, str]:
        """Why the others don't serve, by name."""
        return self._refused

    def refuse(self, name: str, version: str, reason: str) -> None:
        """Tell why a model that nothing serves can't be; `version` is empty if CURRENT names none."""
        self._refused = {**self._refused, name: reason}
        self.metrics.set_model(name, version, ready=False)

    def forget(self, name: str) -> None:
        """Tell no more that a model was refused."""
        self._refused = {other: reason for other, reason in self._refused.items() if other != name}
        self.metrics.forget_model(name)

    def served(self) -> list[Served]:
        """All models that answer, by name."""
        return list(self._served.values())

    def get(self, name: str | None, family: str) -> Served:
        """The named model, or the family's first. Raise UnknownModel, or NotReady if it was refused."""
        if name is None:
            for ready in self.served():
                if ready.manifest.family == family:
                    return ready
            raise NotReady(f"no {family} model is ready{self._reasons()}")
        if name in self.refused:
            raise NotReady(f"{name}: refused: {self.refused[name]}")
        model = self._served.get(name)
        if model is None or model.manifest.family != family:
            known = [model.name for model in self.served() if model.manifest.family == family]
            raise UnknownModel(f"{name[:80]!r}: no such {family} model; there are: {', '.join(known) or 'none'}")
        return model

    async def close(self) -> None:
        """Finish what was accepted, then stop."""
        await self._preparing.close()
        for end in self._former.values():
            end.detach()
        batchers = [*self._former, *(model.batcher for model in self._served.values())]
        await asyncio.gather(*(batcher.close() for batcher in batchers), *self._ending)

    def _retire(self, former: Served) -> None:
        """Let a model that is asked for no more by name end once the last that holds it has let it go.

        A request may ask it again: for the next of many texts, or once its picture is prepared.
        """
        loop = asyncio.get_running_loop()
        told = f"{former.name}: {former.version} has ended"
        end = weakref.finalize(former, loop.call_soon_threadsafe, self._begin_end, former.batcher, told)
        end.atexit = False
        self._former[former.batcher] = end

    def _begin_end(self, batcher: Batcher, told: str) -> None:
        ending = asyncio.ensure_future(self._end(batcher, told))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _end(self, batcher: Batcher, told: str) -> None:
        await batcher.close()
        del self._former[batcher], batcher  # and with it the predictor
        await asyncio.to_thread(_give_memory_back)
        log.info(told)

    def _reasons(self) -> str:
        return "".join(f"; {name}: {reason}" for name, reason in self.refused.items())


def settle() -> None:
    """Collect garbage, and let the collector pass over what is left: it takes 30 ms to look through all of that."""
    gc.collect()
    gc.freeze()


def _give_memory_back() -> None:
    """Let the system have what was freed: glibc keeps it, and after some changes as much as another version takes."""
    gc.unfreeze()
    settle()  # a vocabulary is in a cycle
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # not in other C libraries, which have no need of it
        libc.malloc_trim(0)


def _count(account: RequestUsage, answer: Any) -> None:
    """Note how much an answer is about."""
    match answer:
        case Suggestions():
            account.add(tokens=answer.context_tokens, cached=answer.cached_tokens)
        case TextScore():
            account.add(tokens=answer.tokens)
        case Classification() | Description():
            account.add(images=1)


def load_predictor(
    bundle: Bundle, *, threads: int = 1, cache_bytes: int = 0, observe_cache: ObserveCache = ignore
) -> AnyPredictor:
    """The predictor of the bundle's family, proved by its probe.

    Where the int8 graphs do not reproduce the recorded answers (processors without an exact 8-bit product saturate),
    the fp32 graphs serve. Raise BundleError if those fail too.
    """
    family = bundle.manifest.family
    open_graphs = partial(PREDICTORS[family].open, bundle, resources=Resources(threads, cache_bytes, observe_cache))
    try:
        predictor = open_graphs(bundle.manifest.served)
        difference = _difference(bundle, predictor)
        if difference and predictor.precision == "int8":
            log.warning("%s; int8 can't be trusted on this machine, fp32 serves", difference)
            predictor = open_graphs("fp32")
            difference = _difference(bundle, predictor)
    except BundleError:
        raise
    except Exception as error:  # checksums prove that it is as published, not that it makes sense to this version
        raise BundleError(f"{bundle.folder}: can't be used by this version: {error!r}") from error
    if difference:
        raise BundleError(difference)
    return predictor


def _difference(bundle: Bundle, predictor: BundlePredictor[Any, Any, Any]) -> str | None:
    """How the predictor's answer to the probe differs from the recorded one, if it does."""
    probe = bundle.json("probe.json")
    expected = probe["answers"][predictor.precision]
    found = predictor.probe(probe["payload"])
    alike = 0 < len(found) == len(expected) and all(
        text == expected_text and abs(value - expected_value) <= predictor.PROBE_TOLERANCE
        for (text, value), (expected_text, expected_value) in zip(found, expected, strict=True)
    )
    if alike:
        return None
    return f"{bundle.folder}: {predictor.precision}: the probe answers {found}, recorded was {expected}"
