"""Changes of what a registry serves, while it is asked: by name, and by what the store says now."""

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
    """What answers from now on."""

    model: str
    version: str
    previous: str | None  # the version that answered before; the same if nothing had to be done
    unsaved: str | None  # why a restart would serve another one; None if it wouldn't, or if that was not asked for


Change: TypeAlias = Callable[[Registry, str, str], Awaitable[Activated]]  # as _change below


async def activate(registry: Registry, name: str, version: str) -> Activated:
    """Let `version` answer, and after a restart too if the store can be written.

    Raise UnknownModel, UnknownVersion, or BundleError for a version that can't be served; then nothing has changed.
    """
    async with registry.changes:
        done = await counted(registry, _change, name, version)
        unsaved = await asyncio.to_thread(save, registry.store, name, version)
    if unsaved:
        log.warning("%s: %s serves until a restart: %s", name, version, unsaved)
    return replace(done, unsaved=unsaved)


async def counted(registry: Registry, change: Change, name: str, version: str) -> Activated:
    """Make a change and count it: as refused where a version that is there can't be served.

    What isn't in the store is not counted: callers name it, and each name would be a figure of its own.
    """
    try:
        done = await change(registry, name, version)
    except BundleError:
        registry.metrics.count_swap(name, "refused")
        raise
    if done.previous != version:
        registry.metrics.count_swap(name, "switched")
    return done


async def reload(registry: Registry, change: Change | None = None) -> None:
    """Serve what every model's CURRENT names by now, models that are new to the store included.

    `change` lets a version answer; by default in this process alone.
    What can't be served is logged, as is all that happens, and what served before goes on. Nothing is raised.
    """
    try:
        names = await asyncio.to_thread(bundles.models, registry.store)
    except BundleError as error:
        log.error("nothing is reloaded: %s", error)
        return
    for name in names:
        await _take_up(registry, name, change or _change)
    for served in registry.served():
        if served.name not in names:
            log.warning("%s: is gone from %s; %s goes on serving", served.name, registry.store, served.version)
    for name in registry.refused.keys() - names:
        log.info("%s: was refused, and is gone from %s", name, registry.store)
        registry.forget(name)


def save(store: Path, name: str, version: str) -> str | None:
    """Write `version` into CURRENT unless it is there; why that can't be, if so. Blocks."""
    try:
        if _current(store, name) != version:
            bundles.activate(store, name, version)
    except OSError as error:
        return f"{store / name / bundles.CURRENT}: can't be written: {error.strerror}"
    except BundleError as error:
        return str(error)
    return None


async def _take_up(registry: Registry, name: str, change: Change) -> None:
    version = ""  # unless CURRENT names one
    try:
        async with registry.changes:
            version = await asyncio.to_thread(bundles.current, registry.store, name)
            done = await counted(registry, change, name, version)
            if done.previous == version:
                log.info("%s: %s serves as before", name, version)
    except SeqserveError as error:
        log.error("%s: refused: %s; %s", name, error, _still(registry, name))
        if name in registry.refused:
            registry.refuse(name, version, str(error))
    except Exception:
        log.exception("%s: could not be reloaded; %s", name, _still(registry, name))


async def _change(registry: Registry, name: str, version: str) -> Activated:
    """Let `version` answer unless it does. Whoever calls holds `changes`."""
    if registry.serving(name) == version:
        return Activated(name, version, version, None)
    staged = await asyncio.to_thread(registry.stage, name, version)
    previous = registry.switch(staged)
    log.info("%s: %s serves, before it %s", name, version, previous or "none")
    return Activated(name, version, previous, None)


def _current(store: Path, name: str) -> str | None:
    """What CURRENT names, if that is a version."""
    try:
        return bundles.current(store, name)
    except BundleError:
        return None


def _still(registry: Registry, name: str) -> str:
    version = registry.serving(name)
    return f"{version} goes on serving" if version else "nothing serves it"
