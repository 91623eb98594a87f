"""Lifespan state shared by the endpoints: the models, and the metrics."""

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
Activate: TypeAlias = Callable[[Registry, str, str], Coroutine[Any, Any, Activated]]  # by model name and version
Reload: TypeAlias = Callable[[Registry], Coroutine[Any, Any, None]]

log = logging.getLogger(__name__)


class Catalogue:
    """The registry once it has loaded; until then, the models' names, not ready."""

    def __init__(
        self,
        names: Sequence[str],
        loading: asyncio.Future[Registry],
        activate: Activate = versions.activate,
        reload: Reload = versions.reload,
    ) -> None:
        """`activate` and `reload` change the versions served, in all workers where there are several."""
        self._names = names
        self._loading = loading
        self._activate = activate
        self._reload = reload
        self._changes: set[asyncio.Task[Any]] = set()
        self._shut = False

    @property
    def registry(self) -> Registry:
        """Return the registry. Raise NotReady while it loads, if loading failed, or once it is shut."""
        if self._shut:
            raise NotReady("shutting down", closing=True)
        if not self._loading.done():
            raise NotReady("loading")
        if error := self._loading.exception():
            raise NotReady("could not be loaded; the log says why") from error
        return self._loading.result()

    def get(self, name: str | None, family: str) -> Served:
        """Return the named model, or the family's first. Raise UnknownModel or NotReady."""
        return self.registry.get(name, family)

    def served(self) -> list[Served]:
        """Return the models served; none while loading."""
        try:
            return self.registry.served()
        except NotReady:
            return []

    def not_ready(self) -> dict[str, str]:
        """Return the reason of every model that is not served, by name."""
        try:
            return self.registry.rejected
        except NotReady as reason:
            return dict.fromkeys(self._names, str(reason))

    @property
    def ready(self) -> bool:
        """Return whether there are models and all of them are served."""
        return bool(self.served()) and not self.not_ready()

    async def loaded(self) -> None:
        """Wait until loading has succeeded or failed."""
        await asyncio.wait((self._loading,))

    async def activate(self, name: str, version: str) -> Activated:
        """Serve this version. Raise UnknownModel, UnknownVersion or BundleError, or NotReady while loading.

        A started change is completed even if the client disconnects.
        """
        return await asyncio.shield(self._start(self._activate(self.registry, name, version)))

    def reload(self) -> None:
        """Start to serve the version that each model's CURRENT names; the log reports the outcome."""
        self._start(self._reload_loaded())

    def shut(self) -> None:
        """Reject new requests with NotReady; those accepted are answered."""
        self._shut = True

    async def close(self) -> None:
        """Finish loading, started changes and accepted requests, then stop."""
        await self.loaded()
        await asyncio.gather(*self._changes, return_exceptions=True)  # raised in the requests that wait for them
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

    def _start(self, change: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return task


class State(TypedDict):
    """The lifespan's state, part of every request's `scope['state']`."""

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
