"""The composition root: settings in, a web application out."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from app.api.dialects import DIALECTS
from app.api.http import authorization, problems, rate_limits, tracing
from app.api.http.authorization import SESSION, AccessControl
from app.api.http.body_memory import DOCUMENTS_BYTES, IMAGES_BYTES, MemoryBudget
from app.api.http.context import State
from app.api.http.dialect import BodyLimits, Dialect
from app.api.http.endpoints import TIMEOUT, Dispatch
from app.api.http.keys import Keys
from app.api.http.middleware import ErrorBoundary, HeadRequests, RequestLogging
from app.api.http.problems import Formats
from app.api.http.rate_limits import RateLimiting
from app.api.http.root_path import RootPath
from app.api.http.tracing import Traced
from app.runtime import versions
from app.runtime.families import FAMILIES, Family
from app.runtime.metrics import Metrics
from app.runtime.registry import Registry
from app.runtime.scheduler import MAX_INLINE_BATCH
from app.runtime.work_process import WorkProcess
from app.settings import Settings
from app.text import TOKENIZERS, Tokenizer
from app.text.blocked_words import BLOCKED_WORDS, blocked_words

log = logging.getLogger(__name__)


class Application(FastAPI):
    """FastAPI with errors and API keys in its OpenAPI document."""

    error_formats: Formats = ()
    with_keys = False

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        document = super().openapi()
        for operations in document["paths"].values():
            for operation in operations.values():  # FastAPI documents its own 422, which no endpoint has
                if "HTTPValidationError" in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
        for errors in (problems.DOCUMENTS, *(errors for _, errors in self.error_formats)):
            document["components"]["schemas"].update(errors.schemas())
        authorization.document(document, self.routes, self.error_formats, with_keys=self.with_keys)
        return document


def create_app(
    settings: Settings,
    registry: Registry | None = None,
    *,
    families: Mapping[str, Family] = FAMILIES,
    tokenizers: Mapping[str, type[Tokenizer]] = TOKENIZERS,
    dialects: Mapping[str, Dialect] = DIALECTS,
) -> FastAPI:
    """Return the service. Its models load from the store, in a thread, when it starts, unless a registry is given.

    Raise BundleError if the store is missing, SettingsError for an invalid setting.
    """
    if registry is None:
        registry = open_registry(settings, Metrics(CollectorRegistry()), families, tokenizers)
    metrics = registry.metrics
    keys = Keys(settings.api_keys_file, report_stale=metrics.set_stale_keys) if settings.api_keys_file else None
    limiter = (
        rate_limits.open_limiter(settings.rate_limit, settings.rate_storage, metrics) if settings.rate_limit else None
    )
    tracer_provider = tracing.tracer_provider(settings.traces_endpoint) if settings.traces_endpoint else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        registry.spawn(_open(settings, registry))
        watching = asyncio.ensure_future(versions.watch(registry))
        _log_access(settings, keys)
        _reload_on_sighup(registry)
        processes = {bulk: WorkProcess() for bulk in (True, False)}
        yield {
            "registry": registry,
            "metrics": metrics,
            "processes": processes,
            "body_memory": {True: MemoryBudget(DOCUMENTS_BYTES), False: MemoryBudget(IMAGES_BYTES)},
            "request_timeout_s": settings.request_timeout_s,
        }
        watching.cancel()
        for each in processes.values():
            await each.close()
        await registry.close()
        if limiter:
            await limiter.close()
        if tracer_provider:
            await asyncio.to_thread(tracer_provider.shutdown)  # sends the remaining spans

    app = Application(
        title="seqserve",
        version="1",  # of the API, not of the program
        description="Recurrent sequence models over HTTP. Errors are problem documents (RFC 9457).",
        lifespan=lifespan,
        redirect_slashes=False,
        servers=[{"url": settings.root_path}] if settings.root_path else None,
        openapi_url=None,  # an endpoint of its own, in the metrics like any other
        exception_handlers=dict.fromkeys(problems.HANDLED, problems.answer_error),
        telemetry={"tracing": False, "metrics": False, "logs": False},  # the middleware below does these
    )
    limits = BodyLimits(texts=settings.max_body_bytes, uploads=settings.max_upload_bytes)
    app.routes.extend(route for dialect in dialects.values() for route in dialect.routes(limits))
    app.error_formats = [(dialect.requests, dialect.errors) for dialect in dialects.values() if dialect.requests]
    app.with_keys = keys is not None
    app.user_middleware += [
        *([Middleware(RootPath, root_path=settings.root_path)] if settings.root_path else []),
        Middleware(RequestLogging, metrics=metrics, error_formats=app.error_formats),
        *([Middleware(Traced, provider=tracer_provider)] if tracer_provider else []),
        *([_cors(settings.origins)] if settings.origins else []),
        Middleware(HeadRequests),
        Middleware(ErrorBoundary),
        Middleware(AccessControl, keys=keys, routes=app.routes),
        *([Middleware(RateLimiting, limiter=limiter)] if limiter else []),
        Middleware(Dispatch, routes=app.routes),
    ]  # outermost first
    return app


def _cors(origins: Sequence[str]) -> Middleware:
    """Allow pages of these origins to send requests, with a key but without cookies, and to read the answers."""
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("Authorization", "X-API-Key", "X-Request-Id", SESSION, TIMEOUT),
        expose_headers=("X-Request-Id", "Retry-After", "RateLimit", "RateLimit-Policy"),
    )


def _log_access(settings: Settings, keys: Keys | None) -> None:
    if keys is not None:
        log.info("%s answers to the %d keys of %s", settings.url, len(keys), settings.api_keys_file)
    elif settings.is_local:
        log.info("no API keys: %s answers to this machine alone, and to all on it", settings.url)
    else:
        log.warning("no API keys: %s answers to all who reach it, but for /metrics, which is local", settings.url)


def _reload_on_sighup(registry: Registry) -> None:
    """Start a reload on SIGHUP, while the event loop runs."""
    if threading.current_thread() is threading.main_thread():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: registry.spawn(versions.reload(registry)))
    else:
        log.debug("SIGHUP is ignored: the event loop does not run in the main thread")


def open_registry(
    settings: Settings, metrics: Metrics, families: Mapping[str, Family], tokenizers: Mapping[str, type[Tokenizer]]
) -> Registry:
    """Return the registry of the store, which loads nothing yet.

    With a worker for each processor, no inference thread has a processor to itself, so the event loops run all cheap
    steps inline.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Registry(
        settings.store,
        workers=settings.workers,
        default_models=settings.models_by_family,
        threads=settings.threads,
        queue_size=settings.queue_size,
        batch_size=settings.batch_size,
        max_inline_batch=MAX_INLINE_BATCH if settings.workers < processors else settings.batch_size,
        cache_bytes=settings.cache_mb * 2**20,
        blocked=BLOCKED_WORDS | blocked_words(*filter(None, [settings.blocked_words_file])),
        metrics=metrics,
        families=families,
        tokenizers=tokenizers,
    )


async def _open(settings: Settings, registry: Registry) -> None:
    if registry.unready:
        await registry.open()
        log_models(settings, registry)


def log_models(settings: Settings, registry: Registry) -> None:
    """Log which models are served, and which are rejected; the reasons have been logged."""
    serving = ", ".join(f"{served.name} {served.version}" for served in registry.served())
    rejected = f"; rejected: {', '.join(registry.rejected)}" if registry.rejected else ""
    log.info("%s serves %s%s", settings.url, serving or "no model", rejected)
