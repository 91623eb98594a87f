"""Version exchange in a running registry: activation by name, reload of every CURRENT, and a watch of these files.

Each of several workers watches CURRENT for itself, so all serve the same version within WATCH_S plus the time to load
it; until then every answer names its version.
"""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app import bundle as bundles
from app.errors import BundleError, SeqserveError
from app.runtime.loading import Loaded
from app.runtime.registry import Registry

WATCH_S: Final = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Activated:
    """The outcome of an activation."""

    model: str
    version: str
    previous: str | None  # the version served before; equal to `version` if nothing changed
    unsaved: str | None = None  # the reason why CURRENT could not be written; None if it was


async def activate(registry: Registry, name: str, version: str) -> Activated:
    """Serve `version` from now on, and after a restart too if the store can be written.

    Raise UnknownModel, UnknownVersion, or BundleError for a version that can't be served; the old one then stays. With
    several workers CURRENT must be writable, since the others read it. A started change is completed even if the
    client disconnects.
    """
    if registry.unready:
        raise registry.unready
    return await asyncio.shield(registry.spawn(_activate(registry, name, version)))


async def reload(registry: Registry) -> None:
    """Serve the version that every model's CURRENT names, new models included.

    Every outcome is logged, and nothing is raised: a model whose version can't be served keeps the one it serves.
    """
    await registry.opened()
    try:
        if registry.unready:
            raise registry.unready
        names = await asyncio.to_thread(bundles.models, registry.store)
    except SeqserveError as error:
        log.error("reload failed: %s", error)
        return
    for name in names:
        await _follow(registry, name)
    for served in registry.served():
        if served.name not in names:
            log.warning("%s: missing from %s; %s is still served", served.name, registry.store, served.version)
    for name in registry.rejected.keys() - names:
        log.info("%s: rejected before, now missing from %s", name, registry.store)
        registry.forget(name)


async def watch(registry: Registry, interval_s: float = WATCH_S) -> None:
    """Serve a model's version whenever its CURRENT names another one, until cancelled; look every `interval_s`."""
    await registry.opened()
    while True:
        await asyncio.sleep(interval_s)
        for name, version in (await asyncio.to_thread(_currents, registry.store)).items():
            if version != registry.current.get(name, ""):
                await asyncio.shield(registry.spawn(_follow(registry, name)))


def save(store: Path, name: str, version: str) -> str | None:
    """Write `version` into CURRENT unless it is there; return the reason if that fails. Blocks."""
    try:
        if _current(store, name) != version:
            bundles.activate(store, name, version)
    except OSError as error:
        return f"{store / name / bundles.CURRENT}: can't be written: {error.strerror}"
    except BundleError as error:
        return str(error)
    return None


async def _activate(registry: Registry, name: str, version: str) -> Activated:
    async with registry.changes:
        previous = registry.serving(name)
        loaded = await _load(registry, name, version)
        unsaved = await asyncio.to_thread(save, registry.store, name, version)
        if unsaved and registry.workers > 1:
            raise BundleError(f"{name}: {version} is not activated: the other workers could not follow: {unsaved}")
        if loaded:
            _serve(registry, loaded)
    if unsaved:
        log.warning("%s: %s is served until the next restart: %s", name, version, unsaved)
    else:
        registry.current[name] = version
    return Activated(name, version, previous, unsaved)


async def _follow(registry: Registry, name: str) -> None:
    """Serve the version that the model's CURRENT names. Log the outcome and raise nothing."""
    registry.current[name] = ""  # unless CURRENT names a version
    try:
        async with registry.changes:
            registry.current[name] = version = await asyncio.to_thread(bundles.current, registry.store, name)
            if loaded := await _load(registry, name, version):
                _serve(registry, loaded)
            else:
                log.info("%s: %s is served as before", name, version)
    except SeqserveError as error:
        log.error("%s: rejected: %s; %s", name, error, _serving_status(registry, name))
        if name in registry.rejected:
            registry.reject(name, registry.current[name], str(error))
    except Exception:
        log.exception("%s: could not be reloaded; %s", name, _serving_status(registry, name))


async def _load(registry: Registry, name: str, version: str) -> Loaded | None:
    """Load a version, None if it is served already. The caller holds the lock `changes`.

    A version that can't be served is counted, an unknown name is not: clients choose it, and it would become a metric
    label.
    """
    if registry.serving(name) == version:
        return None
    try:
        return await asyncio.to_thread(registry.load_version, name, version)
    except BundleError:
        registry.metrics.count_swap(name, "refused")
        raise


def _serve(registry: Registry, loaded: Loaded) -> None:
    previous = registry.serve(loaded)
    name, version = loaded.bundle.manifest.model, loaded.bundle.manifest.version
    registry.metrics.count_swap(name, "switched")
    log.info("%s: serves %s, before %s", name, version, previous or "none")


def _currents(store: Path) -> dict[str, str]:
    """Return the version that each CURRENT names, empty where it names none; nothing if the store can't be read."""
    try:
        return {name: _current(store, name) or "" for name in bundles.models(store)}
    except BundleError as error:
        log.debug("%s", error)
        return {}


def _current(store: Path, name: str) -> str | None:
    """Return the version that CURRENT names, None if it names none."""
    try:
        return bundles.current(store, name)
    except BundleError:
        return None


def _serving_status(registry: Registry, name: str) -> str:
    version = registry.serving(name)
    return f"{version} is still served" if version else "no version is served"
