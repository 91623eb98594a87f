"""What wraps every request: its name, its measure and line in the log, HEAD, and an answer to what nobody foresaw."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import logs, problems
from app.errors import NotReady
from app.runtime.account import ACCOUNT, Account
from app.runtime.metrics import Metrics

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")

log = logging.getLogger(__name__)


class RequestId:
    """Every response carries X-Request-Id: the caller's if it is up to 128 visible ASCII characters, else a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name the request, in its state and on its response."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = _request_id(scope["headers"])
        scope.setdefault("state", {})["request_id"] = name.decode()

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name)]
            await send(message)

        await self.app(scope, receive, send_named)


class Measure:
    """Every request is counted, timed and logged in one line, under its route's template; nothing of its text is."""

    def __init__(self, app: ASGIApp, metrics: Metrics, now: Callable[[], float] = time.monotonic) -> None:
        self.app = app
        self.metrics = metrics
        self.now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Measure one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, account = self.now(), problems.LEFT, Account()
        scope["state"].update(started=started, account=account)
        token = ACCOUNT.set(account)

        async def send_seen(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, send_seen)
        finally:
            ACCOUNT.reset(token)
            route = getattr(scope.get("route"), "path", None) or scope["state"].get("template", "unknown")
            method = scope["method"] if scope["method"] in METHODS else "other"
            seconds = self.now() - started
            self.metrics.observe_request(route, method, status, seconds)
            log.info("request", extra=logs.fields(_line(scope["state"], account, route, method, status, seconds)))


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
        started = False

        async def send_seen(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, send_seen)
        except asyncio.CancelledError:  # the server's grace is over
            if started:
                raise
            await problems.told(NotReady("the server is shutting down"))(scope, receive, send)
        except Exception:
            log.exception("request %s: unexpected error", scope["state"]["request_id"])
            if started:  # can't be taken back: let the server break the connection off
                raise
            answer = problems.problem(problems.blank(500), "unexpected error; the log tells it under this X-Request-Id")
            await answer(scope, receive, send)


def _line(
    state: Mapping[str, Any], account: Account, route: str, method: str, status: int, seconds: float
) -> dict[str, Any]:
    """What the log tells of a request."""
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
        "engine_s": round(account.engine_s, 6) if account.ended else None,
    }


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    sent = next((value for name, value in headers if name == b"x-request-id"), b"")
    return sent if REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex.encode()
