"""Version exchange in a running registry: activation of one version by name, and reload of every CURRENT."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from app import bundle as bundles
from app.errors import BundleError, SeqserveError
from app.runtime.registry import Registry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Activated:
    """The outcome of an activation."""

    model: str
    version: str
    previous: str | None  # the version served before; equal to `version` if nothing changed
    unsaved: str | None  # the reason why CURRENT could not be written; None if it was, or if that was not requested


Swap: TypeAlias = Callable[[Registry, str, str], Awaitable[Activated]]  # as _swap below


async def activate(registry: Registry, name: str, version: str) -> Activated:
    """Serve `version` from now on, and after a restart too if the store can be written.

    Raise UnknownModel, UnknownVersion, or BundleError for a version that can't be served; the old one then stays.
    """
    async with registry.changes:
        done = await counted(registry, _swap, name, version)
        unsaved = await asyncio.to_thread(save, registry.store, name, version)
    if unsaved:
        log.warning("%s: %s is served until the next restart: %s", name, version, unsaved)
    return replace(done, unsaved=unsaved)


async def counted(registry: Registry, swap: Swap, name: str, version: str) -> Activated:
    """Run a swap and count its outcome, as `refused` for an existing version that can't be served.

    Unknown names are not counted: clients choose them, and each would become a metric label.
    """
    try:
        done = await swap(registry, name, version)
    except BundleError:
        registry.metrics.count_swap(name, "refused")
        raise
    if done.previous != version:
        registry.metrics.count_swap(name, "switched")
    return done


async def reload(registry: Registry, swap: Swap | None = None) -> None:
    """Serve the version that every model's CURRENT names, new models included.

    `swap` serves a version; the default does so in this process alone. Every outcome is logged, and nothing is raised:
    a model whose version can't be served keeps the one it serves.
    """
    try:
        names = await asyncio.to_thread(bundles.models, registry.store)
    except BundleError as error:
        log.error("reload failed: %s", error)
        return
    for name in names:
        await _reload_model(registry, name, swap or _swap)
    for served in registry.served():
        if served.name not in names:
            log.warning("%s: missing from %s; %s is still served", served.name, registry.store, served.version)
    for name in registry.rejected.keys() - names:
        log.info("%s: rejected before, now missing from %s", name, registry.store)
        registry.forget(name)


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


async def _reload_model(registry: Registry, name: str, swap: Swap) -> None:
    version = ""  # unless CURRENT names one
    try:
        async with registry.changes:
            version = await asyncio.to_thread(bundles.current, registry.store, name)
            done = await counted(registry, swap, name, version)
            if done.previous == version:
                log.info("%s: %s is served as before", name, version)
    except SeqserveError as error:
        log.error("%s: rejected: %s; %s", name, error, _serving_status(registry, name))
        if name in registry.rejected:
            registry.reject(name, version, str(error))
    except Exception:
        log.exception("%s: could not be reloaded; %s", name, _serving_status(registry, name))


async def _swap(registry: Registry, name: str, version: str) -> Activated:
    """Serve `version` unless it is served already. The caller holds the lock `changes`."""
    if registry.serving(name) == version:
        return Activated(name, version, version, None)
    staged = await asyncio.to_thread(registry.stage, name, version)
    previous = registry.switch(staged)
    log.info("%s: serves %s, before %s", name, version, previous or "none")
    return Activated(name, version, previous, None)


def _current(store: Path, name: str) -> str | None:
    """Return the version that CURRENT names, None if it names none."""
    try:
        return bundles.current(store, name)
    except BundleError:
        return None


def _serving_status(registry: Registry, name: str) -> str:
    version = registry.serving(name)
    return f"{version} is still served" if version else "no version is served"
