"""What routes share while the service lives."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, TypeAlias, TypeVar

from fastapi import Depends, Request
from typing_extensions import TypedDict

from app.errors import NotReady
from app.runtime import versions
from app.runtime.metrics import Metrics
from app.runtime.registry import Registry, Served
from app.runtime.versions import Activated

Result = TypeVar("Result")
Activate: TypeAlias = Callable[[Registry, str, str], Coroutine[Any, Any, Activated]]  # a model's name and a version
Reload: TypeAlias = Callable[[Registry], Coroutine[Any, Any, None]]

log = logging.getLogger(__name__)


class Catalogue:
    """The registry, and the time before it: while it loads, models are known by name and not ready."""

    def __init__(
        self,
        names: Sequence[str],
        loading: asyncio.Future[Registry],
        activate: Activate = versions.activate,
        reload: Reload = versions.reload,
    ) -> None:
        """`activate` and `reload` change what is served; more than this process may be concerned."""
        self._names = names
        self._loading = loading
        self._activate = activate
        self._reload = reload
        self._changes: set[asyncio.Task[Any]] = set()
        self._shut = False

    @property
    def registry(self) -> Registry:
        """Raise NotReady while it loads, if loading failed, or once it is shut."""
        if self._shut:
            raise NotReady("shutting down", closing=True)
        if not self._loading.done():
            raise NotReady("loading")
        if error := self._loading.exception():
            raise NotReady("could not be loaded; the log says why") from error
        return self._loading.result()

    def get(self, name: str | None, family: str) -> Served:
        """The named model, or the family's first. Raise UnknownModel or NotReady."""
        return self.registry.get(name, family)

    def served(self) -> list[Served]:
        """The models that answer; none while loading."""
        try:
            return self.registry.served()
        except NotReady:
            return []

    def not_ready(self) -> dict[str, str]:
        """Why the others don't, by name."""
        try:
            return self.registry.rejected
        except NotReady as reason:
            return dict.fromkeys(self._names, str(reason))

    @property
    def ready(self) -> bool:
        """Whether there are models and all of them answer."""
        return bool(self.served()) and not self.not_ready()

    async def loaded(self) -> None:
        """Wait until loading has ended, well or not."""
        await asyncio.wait((self._loading,))

    async def activate(self, name: str, version: str) -> Activated:
        """Let this version answer. Raise UnknownModel, UnknownVersion or BundleError, or NotReady while loading.

        It goes on to its end whoever leaves: half of a change is none.
        """
        return await asyncio.shield(self._begin(self._activate(self.registry, name, version)))

    def reload(self) -> None:
        """Begin to serve what every model's CURRENT names by then; the log tells what comes of it."""
        self._begin(self._reload_loaded())

    def shut(self) -> None:
        """From now on no model is ready to be asked; whoever has asked is answered."""
        self._shut = True

    async def close(self) -> None:
        """Finish what was accepted, then stop; loading and changes, once begun, are waited for."""
        await self.loaded()
        await asyncio.gather(*self._changes, return_exceptions=True)  # who asked for them is told
        if not self._loading.exception():
            await self._loading.result().close()

    async def _reload_loaded(self) -> None:
        await self.loaded()
        try:
            registry = self.registry
        except NotReady as reason:
            log.error("nothing is reloaded: %s", reason)
            return
        await self._reload(registry)

    def _begin(self, change: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return task


class State(TypedDict):
    """The lifespan's state, as each request sees it."""

    catalogue: Catalogue
    metrics: Metrics
    request_timeout_s: float


async def _catalogue(request: Request) -> Catalogue:
    catalogue: Catalogue = request.scope["state"]["catalogue"]
    return catalogue


async def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.state.metrics
    return metrics


CatalogueOf = Annotated[Catalogue, Depends(_catalogue)]
MetricsOf = Annotated[Metrics, Depends(_metrics)]
