"""What wraps every request: its name, its measure and line in the log, HEAD, and an answer to what nobody foresaw."""

import asyncio
import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.http import logs, problems, security_headers
from app.errors import NotReady
from app.runtime.metrics import Metrics
from app.runtime.usage import REQUEST_USAGE, RequestUsage

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")

log = logging.getLogger(__name__)


class Edge:
    """What holds for every request and every response, at the edge of the service, with one look at each message.

    A request is named by the caller's X-Request-Id, if that is up to 128 visible ASCII characters, else anew; it is
    counted, timed and logged in one line, under its route's template; nothing of its text is. Its response carries the
    name, `security.HEADERS`, and what the functions in its state's `more_headers` then give. The state has the
    `status` as soon as the response has begun.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, now: Callable[[], float] = time.monotonic) -> None:
        self.app = app
        self.metrics = metrics
        self.now = now
        self._names = names(os.urandom(8))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        account = RequestUsage()
        state: dict[str, Any] = scope.setdefault("state", {})
        name = _sent(scope["headers"]) or next(self._names)
        state.update(request_id=name.decode(), started=self.now(), account=account, more_headers=[])

        async def send_told(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                more = [pair for give in state["more_headers"] for pair in give()]
                message["headers"] = [
                    *security_headers.secured(message.get("headers", ())),
                    *more,
                    (b"x-request-id", name),
                ]
            await send(message)

        token = REQUEST_USAGE.set(account)
        try:
            await self.app(scope, receive, send_told)
        finally:
            REQUEST_USAGE.reset(token)
            self._tell(scope, state)

    def _tell(self, scope: Scope, state: Mapping[str, Any]) -> None:
        """Count the request, and log its line."""
        route = getattr(scope.get("route"), "path", None) or state.get("template", "unknown")
        method = scope["method"] if scope["method"] in METHODS else "other"
        status = state.get("status", problems.CLIENT_CLOSED_REQUEST)
        seconds = self.now() - state["started"]
        self.metrics.observe_request(route, method, status, seconds)
        logs.inform(log, "request", _line(state, route, method, status, seconds))


class Head:
    """HEAD is answered as GET is, without the content (RFC 9110, 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
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
            scope.update(get, method="HEAD")  # the route that was found


class Unexpected:
    """An error that nobody foresaw is logged under the request's id and answered without a word about its cause."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer for what the application raises."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:  # the server's grace is over
            if "status" in scope["state"]:
                raise
            await problems.from_error(NotReady("the server is shutting down"))(scope, receive, send)
        except Exception:
            log.exception("request %s: unexpected error", scope["state"]["request_id"])
            if "status" in scope["state"]:  # can't be taken back: let the server break the connection off
                raise
            answer = problems.problem(problems.blank(500), "unexpected error; the log tells it under this X-Request-Id")
            await answer(scope, receive, send)


def names(prefix: bytes) -> Iterator[bytes]:
    """Names of requests, 32 hexadecimal digits each; no two are the same where no two prefixes of 8 bytes are."""
    return (b"%s%016x" % (prefix.hex().encode(), place) for place in itertools.count())


def _line(state: Mapping[str, Any], route: str, method: str, status: int, seconds: float) -> dict[str, Any]:
    """What the log tells of a request."""
    account: RequestUsage = state["account"]
    return {
        "id": state["request_id"],
        "trace": state.get("trace"),
        "method": method,
        "route": route,
        "status": status,
        "seconds": round(seconds, 6),
        "key": state.get("key"),
        "model": account.model,
        "tokens": account.tokens,
        "cached": account.cached,
        "images": account.images,
        "queue_s": None if account.queue_s is None else round(account.queue_s, 6),
        "engine_s": round(account.engine_s, 6) if account.finished else None,
    }


def _sent(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The name that the caller gave, if it is one."""
    sent = next((value for name, value in headers if name == b"x-request-id"), b"")
    return sent if REQUEST_ID.fullmatch(sent) else None
