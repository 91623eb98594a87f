"""The composition root: settings in, a web application out."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from app import bundle
from app.api.http import authorization, bodies, problems, rate_limits, tracing
from app.api.http.authorization import Access
from app.api.http.keys import Keys
from app.api.http.middleware import Edge, Head, Unexpected
from app.api.http.rate_limits import Rated
from app.api.http.state import Catalogue, State
from app.api.http.tracing import Traced
from app.api.native import language, vision
from app.api.operations import routes as operations
from app.api.web import page
from app.runtime.metrics import Metrics
from app.runtime.registry import Registry, freeze_heap
from app.runtime.scheduler import MAX_INLINE_BATCH
from app.runtime.worker import Worker
from app.settings import Settings

log = logging.getLogger(__name__)


class Application(FastAPI):
    """FastAPI, with the problem documents and the keys in its OpenAPI document."""

    with_keys = False

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        document = super().openapi()
        document["components"]["schemas"].update(problems.schemas())
        authorization.document(document, with_keys=self.with_keys)
        return document

    def build_middleware_stack(self) -> ASGIApp:
        """The middleware that was added, around FastAPI's inner two: of its outer three, Unexpected has the office."""
        app: ASGIApp = bodies.Direct(AsyncExitStackMiddleware(self.router), self.routes)
        app = ExceptionMiddleware(app, self.exception_handlers)
        for wrap, arguments, options in reversed(self.user_middleware):
            app = wrap(app, *arguments, **options)
        return app


def create_app(settings: Settings, registry: Registry | None = None, worker: Worker | None = None) -> FastAPI:
    """The service. Its models load from the store, in a thread, from the moment it starts, unless a registry is given.

    As one of several workers it loads, tells and changes what they have in common.

    Raise BundleError if there is no such store, SettingsError for a setting that can't be kept to.
    """
    metrics = worker.registry.metrics if worker else Metrics(CollectorRegistry())
    keys = Keys(settings.api_keys_file) if settings.api_keys_file else None
    limits = (
        rate_limits.open_rates(settings.rate_limit, settings.rate_storage, metrics) if settings.rate_limit else None
    )
    tracer_provider = tracing.tracer_provider(settings.traces_endpoint) if settings.traces_endpoint else None
    names = bundle.models(settings.store) if registry is None else []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        loading: asyncio.Future[Registry] = asyncio.get_running_loop().create_future()
        if registry is None:
            load = worker.load if worker else Registry(settings.store, metrics=metrics, **sizes(settings)).load
            loading = asyncio.ensure_future(_load(settings, load))
        else:
            loading.set_result(registry)
        catalogue = Catalogue(names, loading, worker.activate, worker.reload) if worker else Catalogue(names, loading)
        _tell_who_may_ask(settings, keys)
        _reload_when_told(catalogue)
        async with _attending(worker, catalogue):
            yield {"catalogue": catalogue, "metrics": metrics, "request_timeout_s": settings.request_timeout_s}
            await catalogue.close()
        if limits:
            await limits.close()
        if tracer_provider:
            await asyncio.to_thread(tracer_provider.shutdown)  # what is left of the spans is sent

    app = Application(
        title="seqserve",
        version="1",  # of the contract, not of the program
        description="Recurrent sequence models over HTTP. Errors are problem documents (RFC 9457).",
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,  # a route of ours, so that it's measured as any other
        exception_handlers=dict.fromkeys(problems.HANDLED, problems.answer_error),
        telemetry={"tracing": False, "metrics": False, "logs": False},  # we have our own
    )
    for router in (
        language.routes(settings.max_body_bytes),
        vision.routes(settings.max_upload_bytes),
        operations.router,
        page.routes(),
    ):
        app.routes.extend(router.routes)  # an included router would match every path twice
    app.mount(operations.DOCS_FILES, StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-files")
    app.with_keys = keys is not None
    app.user_middleware += [
        Middleware(Edge, metrics=metrics),
        *([Middleware(Traced, provider=tracer_provider)] if tracer_provider else []),
        *([_cors(settings.origins)] if settings.origins else []),
        Middleware(Head),
        Middleware(Unexpected),
        Middleware(Access, keys=keys, paths=authorization.templates(app.routes)),
        *([Middleware(Rated, rates=limits)] if limits else []),
    ]  # outermost first
    return app


def _cors(origins: Sequence[str]) -> Middleware:
    """Leave for the pages of these origins to ask, with a key but without cookies, and to read all that is told."""
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("Authorization", "X-API-Key", "X-Request-Id", bodies.TIMEOUT),
        expose_headers=("X-Request-Id", "Retry-After", "RateLimit", "RateLimit-Policy"),
    )


def _tell_who_may_ask(settings: Settings, keys: Keys | None) -> None:
    if keys is not None:
        log.info("%s answers to the %d keys of %s", settings.url, len(keys), settings.api_keys_file)
    elif settings.is_local:
        log.info("no API keys: %s answers to this machine alone, and to all on it", settings.url)
    else:
        log.warning("no API keys: %s answers to all who reach it, but for /metrics, which is local", settings.url)


def _reload_when_told(catalogue: Catalogue) -> None:
    """SIGHUP begins a reload, as long as the event loop runs."""
    if threading.current_thread() is threading.main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, catalogue.reload)
    else:
        log.debug("SIGHUP is not heard: the event loop runs in another thread than the main one")


def sizes(settings: Settings) -> dict[str, int]:
    """What a registry may use of the machine.

    Where each processor has a worker, no inference thread has one to itself: the event loops give all light turns.
    """
    return {
        "max_inline_batch": MAX_INLINE_BATCH if settings.workers < _processors() else settings.batch_size,
        "threads": settings.threads,
        "queue_size": settings.queue_size,
        "batch_size": settings.batch_size,
        "cache_bytes": settings.cache_mb * 2**20,
    }


def _processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@asynccontextmanager
async def _attending(worker: Worker | None, catalogue: Catalogue) -> AsyncIterator[None]:
    """Meanwhile one of several workers does what its supervisor says; until its models answer, others are asked."""
    if worker is None:
        yield
        return
    await catalogue.loaded()
    attending = asyncio.ensure_future(worker.attend(catalogue.reload))
    yield
    attending.cancel()


async def _load(settings: Settings, load: Callable[[], Registry]) -> Registry:
    """The registry of the store, once it is there and announced."""
    try:
        registry = await asyncio.to_thread(load)
    except Exception:
        log.exception("the models of %s could not be loaded", settings.store)
        raise
    freeze_heap()
    serving = [f"{served.name} {served.version}" for served in registry.served()]
    refused = f"; rejected: {', '.join(registry.rejected)}" if registry.rejected else ""  # why has been logged
    log.info("%s serves %s%s", settings.url, ", ".join(serving) or "no model", refused)
    return registry
