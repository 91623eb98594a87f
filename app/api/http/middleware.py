"""Middleware around every request: request id, metrics and log line, HEAD, and errors as problem documents."""

import asyncio
import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.http import logs, problems
from app.api.http.context import KEY, RequestContext, request_context
from app.api.http.problems import Formats
from app.api.http.security_headers import HEADERS, NAMES
from app.errors import NotReady
from app.runtime.metrics import REQUEST_USAGE, Metrics

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")

log = logging.getLogger(__name__)


class RequestLogging:
    """The outermost middleware: creates the request's context, counts, times and logs it in one line.

    A client's X-Request-Id of up to 128 visible ASCII characters is kept, any other is replaced. The log line has the
    route's template and never the request's text. Each response gets the request id, the security headers and those of
    the context's `response_headers`.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        error_formats: Formats = (),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app = app
        self._error_formats = error_formats
        self.metrics = metrics
        self.now = now
        self._ids = request_ids(os.urandom(8))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _valid_id(scope["headers"]) or next(self._ids)
        context = RequestContext(request_id.decode(), self.now(), self._error_formats)
        scope.setdefault("state", {})[KEY] = context

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", request_id)]
                present = NAMES.intersection([name for name, _ in headers])
                headers += [pair for pair in HEADERS if pair[0] not in present] if present else HEADERS
                for more in context.response_headers:
                    headers += more()
                message["headers"] = headers
            await send(message)

        token = REQUEST_USAGE.set(context.usage)
        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            REQUEST_USAGE.reset(token)
            self._record(scope["method"], context)

    def _record(self, method: str, context: RequestContext) -> None:
        """Update the metrics, and log the request's line."""
        route = context.route or "unknown"
        method = method if method in METHODS else "other"
        status = context.status or problems.CLIENT_CLOSED_REQUEST
        seconds = self.now() - context.started
        self.metrics.observe_request(route, method, status, seconds)
        logs.inform(log, "request", _line(context, route, method, status, seconds))


class HeadRequests:
    """Middleware that answers HEAD as GET without the content (RFC 9110, 9.3.2), content length included."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        get = {**scope, "method": "GET"}
        try:
            await self.app(get, receive, send_head)
        finally:
            scope.update(get, method="HEAD")  # the selected route, for the tracing around


class ErrorBoundary:
    """Middleware that converts exceptions to responses; an unhandled one is logged under the request id."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:  # the server's grace period is over
            if request_context(scope).status is not None:
                raise
            await problems.response(NotReady("the server is shutting down"), scope)(scope, receive, send)
        except Exception as error:
            context = request_context(scope)
            if isinstance(error, problems.HANDLED) and context.status is None:
                answer = problems.response(error, scope)
            else:
                log.exception("request %s: unexpected error", context.request_id)
                if context.status is not None:  # the response has started: the server closes the connection
                    raise
                detail = "unexpected error; the log has it under this X-Request-Id"
                answer = problems.respond(problems.Report(problems.blank(500), detail), scope)
            await answer(scope, receive, send)


def request_ids(prefix: bytes) -> Iterator[bytes]:
    """Yield request ids of 32 hexadecimal digits, distinct for distinct prefixes of 8 bytes."""
    return (b"%s%016x" % (prefix.hex().encode(), number) for number in itertools.count())


def _line(context: RequestContext, route: str, method: str, status: int, seconds: float) -> dict[str, Any]:
    """Return the fields of the log line."""
    usage = context.usage
    return {
        "id": context.request_id,
        "trace": context.trace_id,
        "method": method,
        "route": route,
        "status": status,
        "seconds": round(seconds, 6),
        "key": context.key,
        "model": usage.model,
        "tokens": usage.tokens,
        "cached": usage.cached,
        "images": usage.images,
        "queue_s": None if usage.queue_s is None else round(usage.queue_s, 6),
        "engine_s": round(usage.engine_s, 6) if usage.finished else None,
    }


def _valid_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the client's request id, or None if it is missing or invalid."""
    sent = next((value for name, value in headers if name == b"x-request-id"), b"")
    return sent if REQUEST_ID.fullmatch(sent) else None
