"""The composition root: settings in, a web application out."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware
from starlette.staticfiles import StaticFiles

from app import bundle
from app.api import language, operations, problems, vision
from app.api.middleware import Measure, RequestId, Unexpected
from app.api.state import Catalogue, State
from app.runtime.metrics import Metrics
from app.runtime.registry import Registry
from app.settings import Settings

log = logging.getLogger(__name__)


class Application(FastAPI):
    """FastAPI, with the problem documents among its OpenAPI schemas."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        document = super().openapi()
        document["components"]["schemas"].update(problems.schemas())
        return document


def create_app(settings: Settings, registry: Registry | None = None) -> FastAPI:
    """The service. Its models load from the store, in a thread, from the moment it starts, unless a registry is given.

    Raise BundleError if there is no such store.
    """
    metrics = Metrics(CollectorRegistry())
    names = bundle.models(settings.store) if registry is None else []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        loading: asyncio.Future[Registry] = asyncio.get_running_loop().create_future()
        if registry is None:
            loading = asyncio.ensure_future(_load(settings, metrics))
        else:
            loading.set_result(registry)
        catalogue = Catalogue(names, loading)
        yield {"catalogue": catalogue, "metrics": metrics, "request_timeout_s": settings.request_timeout_s}
        await catalogue.close()

    app = Application(
        title="seqserve",
        version="1",  # of the contract, not of the program
        description="Recurrent sequence models over HTTP. Errors are problem documents (RFC 9457).",
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,  # a route of ours, so that it's measured as any other
        middleware=[Middleware(RequestId), Middleware(Measure, metrics=metrics), Middleware(Unexpected)],
        exception_handlers=dict.fromkeys(problems.HANDLED, problems.answer_error),
    )
    app.include_router(language.routes(settings.max_body_bytes))
    app.include_router(vision.routes(settings.max_upload_bytes))
    app.include_router(operations.router)
    app.mount(operations.DOCS_FILES, StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-files")
    return app


async def _load(settings: Settings, metrics: Metrics) -> Registry:
    """The registry of the store, once it is there and announced."""
    try:
        registry = await asyncio.to_thread(
            Registry.load,
            settings.store,
            threads=settings.threads,
            queue_size=settings.queue_size,
            batch_size=settings.batch_size,
            cache_bytes=settings.cache_mb * 2**20,
            metrics=metrics,
        )
    except Exception:
        log.exception("the models of %s could not be loaded", settings.store)
        raise
    serving = [f"{served.name} {served.version}" for served in registry.served()]
    refused = f"; refused: {', '.join(registry.refused)}" if registry.refused else ""  # why has been logged
    log.info("%s serves %s%s", settings.url, ", ".join(serving) or "no model", refused)
    return registry
