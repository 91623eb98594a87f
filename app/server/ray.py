"""The service as replicas of a Ray Serve deployment: `serve run app.server.ray:application`.

Ray's HTTP proxies load `middleware` by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH.
"""

import asyncio
import hashlib
import logging
import sys
from collections.abc import Iterable
from typing import Any, Final

from prometheus_client import CollectorRegistry
from pydantic import BaseModel, Field
from ray import serve
from ray.serve import metrics as ray_metrics
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig
from ray.serve.schema import LoggingConfig
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dialects import DIALECTS
from app.api.http import logs, problems
from app.errors import NotReady, SettingsError
from app.main import create_app, open_registry
from app.runtime.families import FAMILIES
from app.runtime.metrics import Metrics
from app.settings import PREFIX, Settings
from app.text import TOKENIZERS

ROUTER: Final = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"  # hashes X-Session-Id
SESSION: Final = b"x-session-id"
REQUEST_ID: Final = b"x-request-id"
RETRY_AFTER: Final = b"retry-after"
METRICS: Final = "/metrics"  # not served, since any one replica would answer; see `_export`
EXPORT_S: Final = 5.0
HEALTH_S: Final = 5.0


class Scale(BaseModel, frozen=True, extra="forbid"):
    """The arguments of `serve run` and of `applications.args` in a Serve config file.

    A replica that leaves takes its state cache along, so the delay of scaling down is long.
    """

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=8, ge=1)
    cpus: float = Field(default=1.0, gt=0)  # of a replica
    target_ongoing_requests: float = Field(default=8.0, gt=0)  # of a replica; with more, another one is added
    upscale_delay_s: float = Field(default=10.0, ge=0)
    downscale_delay_s: float = Field(default=300.0, ge=0)


def application(scale: Scale) -> serve.Application:
    """Return the Serve application with the settings of this process's environment.

    Raise SettingsError without API keys, or for rate limits that each replica would count separately.
    """
    settings = Settings()
    if settings.api_keys_file is None:
        raise SettingsError(
            f"{PREFIX}API_KEYS_FILE: expected a file of API keys, found none: Ray's proxy makes every client local"
        )
    if settings.rate_limit and settings.rate_storage.startswith("memory"):
        raise SettingsError(
            f"{PREFIX}RATE_STORAGE: expected redis://host:6379 for rates of several replicas, "
            f"found {settings.rate_storage!r}, which each replica counts separately"
        )
    deployment = serve.deployment(
        Replica,
        name="seqserve",
        ray_actor_options={"num_cpus": scale.cpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=scale.min_replicas,
            initial_replicas=scale.min_replicas,
            max_replicas=scale.max_replicas,
            target_ongoing_requests=scale.target_ongoing_requests,
            upscale_delay_s=scale.upscale_delay_s,
            downscale_delay_s=scale.downscale_delay_s,
        ),
        max_ongoing_requests=settings.queue_size + settings.batch_size,
        max_queued_requests=settings.queue_size,  # of a proxy
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        health_check_period_s=HEALTH_S,
        graceful_shutdown_timeout_s=settings.grace_s,
        max_constructor_retry_count=3,
        logging_config=LoggingConfig(enable_access_log=False),  # the application logs each request itself
    )
    return deployment.bind(settings.model_copy(update={"workers": scale.max_replicas}))


@serve.ingress()
class Replica:
    """One replica: the application of `seqserve serve`, ready once its models have loaded."""

    def __init__(self, settings: Settings) -> None:
        """Take the settings; `workers` is the number of processes that may share the store."""
        self._settings = settings
        self._exported = CollectorRegistry()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application. Raise NotReady if a model can't be served, so that the replica does not start."""
        settings = self._settings
        logging.getLogger("app").addHandler(logs.handler(settings.log_format, sys.stderr))
        logging.getLogger("app").setLevel(settings.log_level.upper())
        self._registry = open_registry(settings, Metrics(self._exported), FAMILIES, TOKENIZERS)
        await self._registry.open()
        await self.check_health()
        app = create_app(settings, self._registry)
        app.router.routes = [route for route in app.routes if getattr(route, "path", None) != METRICS]
        self._exporting = asyncio.create_task(_export(self._exported))
        return LifespanState(app)

    async def check_health(self) -> None:
        """Raise NotReady unless all models are served; Ray replaces an unhealthy replica."""
        if not self._registry.ready:
            raise NotReady("; ".join(f"{name}: {reason}" for name, reason in self._registry.rejected.items()))


class LifespanState:
    """An application whose requests have the state of its lifespan, which Ray does not pass on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._state: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the lifespan or one request."""
        state = self._state if scope["type"] == "lifespan" else self._state.copy()
        await self._app({**scope, "state": state}, receive, send)


async def _export(exported: CollectorRegistry) -> None:
    """Copy all samples to Ray's metrics, which have the tag `replica`, until cancelled.

    Ray has no collectors; all samples become gauges, named as in /metrics. One that is gone, as of a replaced version,
    becomes 0, since a gauge of Ray's can't be removed.
    """
    gauges: dict[str, ray_metrics.Gauge] = {}
    before: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    while True:
        samples = [sample for metric in exported.collect() for sample in metric.samples]
        found = {(sample.name, (*sample.labels.items(),)): sample.value for sample in samples}
        for (name, labels), value in (dict.fromkeys(before, 0.0) | found).items():
            tags = dict(labels)
            if name not in gauges:
                gauges[name] = ray_metrics.Gauge(name, tag_keys=tuple(tags))
            gauges[name].set(value, tags=tags)
        before = found
        await asyncio.sleep(EXPORT_S)


def middleware() -> list[Middleware]:
    """Return the middleware of Ray's HTTP proxies."""
    return [Middleware(ProxyRequests)]


class ProxyRequests:
    """Middleware that gives every request a session to route by, and lets the client retry one whose replica was lost.

    The session is the client's own, else its key, else its address, as in deploy/nginx.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._formats = [(dialect.requests, dialect.errors) for dialect in DIALECTS.values() if dialect.requests]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_corrected(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": _corrected(message["headers"], message["status"])}
            await send(message)

        headers = [*scope["headers"], *_session(scope["headers"], scope["client"])]
        await self.app({**scope, "headers": headers}, receive, send_corrected)
        if not started:  # Ray has no response for a request whose replica was lost
            lost = problems.of(NotReady("the replica was lost"))
            errors = problems.selected(self._formats, scope["method"], scope["path"])
            await errors.respond(lost)(scope, receive, send)


def _corrected(headers: Iterable[tuple[bytes, bytes]], status: int) -> list[tuple[bytes, bytes]]:
    """Remove the request id that Ray adds to the application's own; add Retry-After to a 503 without it."""
    found = [*headers]
    ids = [header for header in found if header[0].lower() == REQUEST_ID]
    kept = [header for header in found if header[0].lower() != REQUEST_ID] + ids[:1]
    return [*kept, (RETRY_AFTER, b"1")] if status == 503 and RETRY_AFTER not in dict(kept) else kept


def _session(headers: Iterable[tuple[bytes, bytes]], client: tuple[str, int] | None) -> list[tuple[bytes, bytes]]:
    """Return the header by which to route a request that has none."""
    sent = dict(headers)
    if SESSION in sent:
        return []
    writer = sent.get(b"authorization") or sent.get(b"x-api-key") or (client[0] if client else "").encode()
    return [(SESSION, hashlib.sha256(writer).hexdigest().encode())]
