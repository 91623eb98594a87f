"""The models that are served: bundles read, proved and put behind a batcher each."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from app import bundle as bundles
from app.bundle import Bundle, Family, Manifest
from app.errors import BundleError, NotReady, UnknownModel
from app.runtime.account import ACCOUNT, Account
from app.runtime.batching import Batcher, BundlePredictor, ObserveCache, Resources, ignore
from app.runtime.captions import CaptionsPredictor, Description
from app.runtime.digits import Classification, DigitsPredictor
from app.runtime.engine import Precision
from app.runtime.language_model import LanguageModelPredictor, Suggestions
from app.runtime.metrics import Metrics
from app.runtime.preparing import Preparing
from app.runtime.scores import TextScore

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
class Served:
    """A model that answers."""

    name: str
    version: str
    manifest: Manifest
    versions: list[str]  # on disk
    bundle: Bundle
    predictor: BundlePredictor[Any, Any, Any]
    batcher: Batcher
    preparing: Preparing

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

    async def prepared(self, make: Callable[[], Payload], *, deadline: float | None = None) -> Any:
        """The example of a payload that is made and checked in a thread when its turn comes: few are there at once."""
        if account := ACCOUNT.get():
            account.model = self.name
        return await self.preparing.run(self.name, lambda: self.predictor.prepare(make()), deadline)

    async def submit(self, example: Any, *, deadline: float | None = None) -> Any:
        """The answer to what was prepared."""
        account = ACCOUNT.get()
        if account is None:
            return await self.batcher.submit(example, deadline)
        account.model = self.name
        answer = await self.batcher.submit(example, deadline)
        _count(account, answer)
        return answer


class Registry:
    """Served models by name, and why the others were refused."""

    def __init__(self, served: list[Served], refused: dict[str, str], preparing: Preparing) -> None:
        self._served = {model.name: model for model in served}
        self.refused = refused
        self._preparing = preparing

    @classmethod
    def load(
        cls,
        store: Path,
        *,
        threads: int,
        queue_size: int,
        batch_size: int,
        cache_bytes: int,
        metrics: Metrics,
    ) -> "Registry":
        """Serve the current version of every model in `store`. A bad bundle is refused by name; the others serve."""
        served, refused = [], {}
        preparing = Preparing(metrics, queue_size=queue_size)
        for name in bundles.models(store):
            version = ""  # unless CURRENT names one
            try:
                version = bundles.current(store, name)
                bundle = bundles.read(store / name / version)

                def observe(hit: int, read: int, model: str = name) -> None:
                    metrics.observe_cache(model, hit, read)

                predictor = load_predictor(bundle, threads=threads, cache_bytes=cache_bytes, observe_cache=observe)
                versions = bundles.versions(store, name)
            except BundleError as error:
                log.error("%s: refused: %s", name, error)
                refused[name] = str(error)
                metrics.set_model(name, version, ready=False)
                continue
            batcher = Batcher(name, predictor.predict, metrics, queue_size=queue_size, batch_size=batch_size)
            manifest = bundle.manifest
            model = Served(name, manifest.version, manifest, versions, bundle, predictor, batcher, preparing)
            served.append(model)
            metrics.set_model(name, version, ready=True)
            metrics.describe_model(name, version, manifest.family, predictor.precision)
        return cls(served, refused, preparing)

    def served(self) -> list[Served]:
        """All models that answer, by name."""
        return [self._served[name] for name in sorted(self._served)]

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
        await asyncio.gather(*(model.batcher.close() for model in self._served.values()))

    def _reasons(self) -> str:
        return "".join(f"; {name}: {reason}" for name, reason in self.refused.items())


def _count(account: Account, answer: Any) -> None:
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
