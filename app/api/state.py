"""What routes share while the service lives."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Request
from typing_extensions import TypedDict

from app.errors import NotReady
from app.runtime.metrics import Metrics
from app.runtime.registry import Registry, Served


class Catalogue:
    """The registry, and the time before it: while it loads, models are known by name and not ready."""

    def __init__(self, names: Sequence[str], loading: asyncio.Future[Registry]) -> None:
        self._names = names
        self._loading = loading

    @property
    def registry(self) -> Registry:
        """Raise NotReady while it loads, or if loading failed."""
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
            return self.registry.refused
        except NotReady as reason:
            return dict.fromkeys(self._names, str(reason))

    @property
    def ready(self) -> bool:
        """Whether there are models and all of them answer."""
        return bool(self.served()) and not self.not_ready()

    async def loaded(self) -> None:
        """Wait until loading has ended, well or not."""
        await asyncio.wait((self._loading,))

    async def close(self) -> None:
        """Finish what was accepted, then stop; loading, once begun, is waited for."""
        await self.loaded()
        if not self._loading.exception():
            await self._loading.result().close()


class State(TypedDict):
    """The lifespan's state, as each request sees it."""

    catalogue: Catalogue
    metrics: Metrics
    request_timeout_s: float


async def _catalogue(request: Request) -> Catalogue:
    catalogue: Catalogue = request.state.catalogue
    return catalogue


async def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.state.metrics
    return metrics


CatalogueOf = Annotated[Catalogue, Depends(_catalogue)]
MetricsOf = Annotated[Metrics, Depends(_metrics)]
