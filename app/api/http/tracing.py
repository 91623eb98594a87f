"""OpenTelemetry traces (OTLP over HTTP): a span a request, with child spans for the queue and the engine.

W3C Trace Context: the request's `traceparent` is the parent, and the response has the span's own. The packages of the
extra `traces` are imported only if an endpoint is set.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.http.context import request_context
from app.errors import SettingsError
from app.runtime.metrics import RequestUsage

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

TRACED: Final = frozenset({b"traceparent", b"tracestate"})
SERVICE: Final = "seqserve"


def tracer_provider(endpoint: str) -> "TracerProvider":
    """Return a provider that exports spans to `endpoint`. Raise SettingsError without the extra `traces`."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            f"SEQSERVE_TRACES_ENDPOINT: needs the extra: pip install seqserve-server[traces]: {error}"
        ) from error
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: SERVICE}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


class Traced:
    """Middleware that records a span for every request, named by its method and its route's template."""

    def __init__(
        self,
        app: ASGIApp,
        provider: "TracerProvider",
        now: Callable[[], float] = time.monotonic,
        epoch_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.app = app
        self._tracer = provider.get_tracer(SERVICE)
        self._propagator = TraceContextTextMapPropagator()
        self._now = now
        self._epoch_ns = epoch_ns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Trace one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, format_trace_id

        sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"] if name in TRACED}
        parent = self._propagator.extract(sent)
        span = self._tracer.start_span(scope["method"], parent, SpanKind.SERVER, start_time=self._epoch_ns())
        context = request_context(scope)
        context.trace_id = format_trace_id(span.get_span_context().trace_id)
        context.response_headers.append(lambda: self._response_headers(span))
        try:
            await self.app(scope, receive, send)
        finally:
            self._end(span, scope)

    def _response_headers(self, span: "Span") -> list[tuple[bytes, bytes]]:
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return [(name.encode(), value.encode()) for name, value in carrier.items()]

    def _end(self, span: "Span", scope: Scope) -> None:
        from opentelemetry.trace import set_span_in_context

        context = request_context(scope)
        if route := getattr(scope.get("route"), "path", None):
            span.update_name(f"{scope['method']} {route}")
            span.set_attribute("http.route", route)
        span.set_attributes({"http.request.method": scope["method"], "seqserve.request_id": context.request_id})
        if context.status:
            span.set_attribute("http.response.status_code", context.status)
        usage = context.usage
        offset_ns = self._epoch_ns() - int(self._now() * 1e9)  # between the two clocks
        for name, begin, end in (
            ("queue", usage.accepted, usage.started),
            ("engine", usage.started, usage.finished),
        ):
            if begin is not None and end is not None:
                part = self._tracer.start_span(
                    name, set_span_in_context(span), start_time=offset_ns + int(begin * 1e9), attributes=_share(usage)
                )
                part.end(offset_ns + int(end * 1e9))
        span.end(self._epoch_ns())


def _share(usage: RequestUsage) -> dict[str, str | int | float]:
    """Return the usage of the models as span attributes."""
    shares = {"model": usage.model, "tokens": usage.tokens, "cached": usage.cached, "images": usage.images}
    attributes = {f"seqserve.{name}": value for name, value in shares.items() if value is not None}
    return {**attributes, "seqserve.engine_s": usage.engine_s}
