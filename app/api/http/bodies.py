"""What stands before a route that takes a body: its type, its size, its time to arrive, and a caller who may leave."""

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from email.message import Message as Headers
from functools import lru_cache
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeAlias, TypeVar, cast

from fastapi import Depends, Header, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError, WithJsonSchema
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.http import costs, problems, uploads
from app.api.http.disconnects import is_complete, while_connected
from app.errors import DeadlineExceeded, InvalidField, Malformed, SeqserveError, TooLarge, UnsupportedType

MAX_FIELDS: Final = 32  # more than any request has
DRAINED: Final = 16  # a body up to so many times too large is read to its end before it is refused,
DRAINING_S: Final = 1.0  # if the end comes soon
REFUSED: Final = 2**20  # bytes of a body that are dropped when its sender is refused before it was looked at
TIMEOUT: Final = "X-Request-Timeout"
TIMEOUT_FIELD: Final = TIMEOUT.lower().encode()
ARRIVED: Final = "arrived"  # in a request's state: the images, or a request that has the body
UTF_8: Final = ("utf-8", "utf8", "us-ascii")  # and what is the same
PROBLEMS: Final = problems.documented(
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)  # of a route that asks a model

Arrived = TypeVar("Arrived")
Fields: TypeAlias = dict[bytes, bytes]


class BodyRoute(APIRoute, ABC):
    """A route that takes a body, and whose work stops when the caller leaves."""

    methods: set[str]

    @abstractmethod
    async def answer(self, scope: Scope, receive: Receive, send: Send, otherwise: ASGIApp) -> None:
        """Answer a request of one of its methods, or leave it to the application `otherwise`, which comes back here.

        Where nothing is wrong with a body, and there is nothing else to be checked, the endpoint is called as it is: it
        takes the body's model, the rest of what it depends on asks for the request alone, and it returns a Response.
        All else is FastAPI's, which takes several times as long and tells every fault.
        """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what the router found."""
        if ARRIVED in scope["state"] or scope["method"] not in self.methods:
            await super().handle(scope, receive, send)
        else:
            await self.answer(scope, receive, send, super().handle)


class Direct:
    """What a BodyRoute of a fixed path takes goes straight to it: the router takes a sixth of a keystroke's time."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self.app = app
        self._routes = {route.path: route for route in routes if isinstance(route, BodyRoute) and "{" not in route.path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        route = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if route and scope["method"] in route.methods:
            scope["route"] = route
            await route.answer(scope, receive, send, self.app)
        else:
            await self.app(scope, receive, send)


def json_route(max_body_bytes: int) -> type[BodyRoute]:
    """Routes that take a JSON body of at most so many bytes."""

    class JsonRoute(BodyRoute):
        async def answer(self, scope: Scope, receive: Receive, send: Send, otherwise: ASGIApp) -> None:
            fields = _fields(scope)
            _require_json(fields.get(b"content-type"))
            _set_deadline(scope, fields)
            content = await _in_time(scope, _body(_counted(scope, receive, max_body_bytes)))
            asked = self._read(content) if _is_plain(scope, fields) else None
            request = Request(scope, _again(content))
            document = await _parsed(request) if asked is None else asked
            await _charge(scope, lambda: costs.of_text(document))
            if asked is None:
                scope["state"][ARRIVED] = request
                await otherwise(scope, receive, send)
            else:
                (body,) = self.dependant.body_params
                response = await while_connected(scope, receive, _answer(self, request, **{body.name: asked}))
                await response(scope, receive, send)

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            """FastAPI's handler."""
            handle = super().get_route_handler()

            async def answer(request: Request) -> Response:
                return await while_connected(request.scope, request.receive, handle(request.scope["state"][ARRIVED]))

            return answer

        def _read(self, content: bytes) -> BaseModel | None:
            """What the body asks, if nothing is wrong with it."""
            (body,) = self.dependant.body_params
            model = cast("type[BaseModel]", body.field_info.annotation)
            try:
                return model.model_validate_json(content)
            except (ValidationError, InvalidField):
                return None

    return JsonRoute


def image_route(max_upload_bytes: int, most: int) -> type[BodyRoute]:
    """Routes that take one to `most` images in a body of at most so many bytes."""

    class ImageRoute(BodyRoute):
        async def answer(self, scope: Scope, receive: Receive, send: Send, otherwise: ASGIApp) -> None:
            fields = _fields(scope)
            form = uploads.is_form(_text(fields.get(b"content-type")))
            _set_deadline(scope, fields)
            request = Request(scope, _counted(scope, receive, max_upload_bytes))
            with contextlib.ExitStack() as files:
                arriving = uploads.received(request, most, files, form=form)
                scope["state"][ARRIVED] = await _in_time(scope, arriving)
                images, query = len(scope["state"][ARRIVED]), QueryParams(scope["query_string"])
                await _charge(scope, lambda: costs.of_images(images, query))
                if not _is_plain(scope, fields):
                    await otherwise(scope, receive, send)
                    return
                response = await while_connected(scope, receive, _answer(self, request))
            await response(scope, receive, send)

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            """FastAPI's handler."""
            handle = super().get_route_handler()

            async def answer(request: Request) -> Response:
                return await while_connected(request.scope, request.receive, handle(request))

            return answer

    return ImageRoute


def _is_plain(scope: Scope, fields: Fields) -> bool:
    """Whether there is nothing to be checked but the body."""
    return not (scope.get("path_params") or scope["query_string"] or TIMEOUT_FIELD in fields)


async def _answer(route: APIRoute, request: Request, **asked: BaseModel) -> Response:
    """The endpoint's response, without FastAPI's look at what it takes: its dependencies ask for the request alone."""
    given = {each.name: await each.call(request) for each in route.dependant.dependencies if each.name and each.call}
    response: Response = await route.endpoint(**asked, **given)
    return response


async def _images(request: Request) -> list[uploads.Upload]:
    images: list[uploads.Upload] = request.scope["state"][ARRIVED]
    return images


async def _deadline(
    request: Request,
    _timeout_s: Annotated[
        float | None,
        WithJsonSchema({"type": "number", "exclusiveMinimum": 0}),  # a header is absent, never null
        Header(
            alias=TIMEOUT,
            gt=0,
            allow_inf_nan=False,
            description="Seconds from the request's arrival after which the answer is of no more use. Can only lower "
            "the server's own limit.",
        ),
    ] = None,
) -> float:
    deadline: float = request.scope["state"]["deadline"]
    return deadline


Deadline = Annotated[float, Depends(_deadline)]  # a time of time.monotonic
Images = Annotated[list[uploads.Upload], Depends(_images)]  # on an image_route alone


def _require_json(content_type: bytes | None) -> None:
    if not _is_json(content_type):
        found = repr(_text(content_type[:80])) if content_type else "none"
        raise UnsupportedType(f"Content-Type: expected application/json in UTF-8, found {found}")


@lru_cache(64)  # callers say it in few ways
def _is_json(content_type: bytes | None) -> bool:
    headers = Headers()
    headers["content-type"] = _text(content_type) or ""
    main, sub = headers.get_content_maintype(), headers.get_content_subtype()
    charset = headers.get_content_charset("utf-8")
    return main == "application" and (sub == "json" or sub.endswith("+json")) and charset in UTF_8


def _fields(scope: Scope) -> Fields:
    """The header, its names in lower case; of several fields of a name the first."""
    return dict(reversed([*scope["headers"]]))


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


async def _body(receive: Receive) -> bytes:
    """The whole body. Raise ClientDisconnect if its sender leaves before."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


def _again(content: bytes) -> Receive:
    """A `receive` that gives a body which is here."""

    async def receive() -> Message:
        return {"type": "http.request", "body": content, "more_body": False}

    return receive


def _counted(scope: Scope, receive: Receive, limit: int) -> Receive:
    """`receive`, but TooLarge as soon as the body is known to be larger than `limit` bytes.

    What is about to come is read and dropped first: a client that sends before it listens would find the connection
    reset, and never see the answer.
    """
    told = int(_fields(scope).get(b"content-length") or 0)
    received = 0

    async def receive_counted() -> Message:
        nonlocal received
        if told > DRAINED * limit:
            raise TooLarge(f"body: expected at most {limit} bytes, found {told}")
        message = await receive()
        received += len(message.get("body", b""))
        if max(told, received) > limit:
            ended = await _drained(receive, message, DRAINED * limit)
            raise TooLarge(f"body: expected at most {limit} bytes, found {told or 'more'}", hopeless=not ended)
        return message

    return receive_counted


async def _drained(receive: Receive, message: Message, most: int) -> bool:
    """Drop what follows `message`; whether the body came to its end within `most` bytes and DRAINING_S seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAINING_S):
            while message.get("more_body", False) and most > 0:
                message = await receive()
                most -= len(message.get("body", b""))
    return not message.get("more_body", False)


def _set_deadline(scope: Scope, fields: Fields) -> None:
    """Note by when the request must be answered: its state's `timeout_s` after it came, a time of time.monotonic.

    A header that is no number of seconds is told by the route, once the body is here.
    """
    state = scope["state"]
    limit: float = state["request_timeout_s"]
    try:
        wanted = float(_text(fields.get(TIMEOUT_FIELD)) or limit)
    except ValueError:
        wanted = limit
    state["timeout_s"] = min(limit, wanted) if wanted > 0 else limit
    state["deadline"] = state["started"] + state["timeout_s"]


async def _in_time(scope: Scope, arriving: Awaitable[Arrived]) -> Arrived:
    """What is arriving, as the body does. Raise DeadlineExceeded where that takes too long."""
    if is_complete(scope):  # then it takes no time, and a timer is saved
        return await arriving
    try:
        async with asyncio.timeout(scope["state"]["deadline"] - time.monotonic()):
            return await arriving
    except TimeoutError as error:
        told = f"body: expected within {scope['state']['timeout_s']:g} s, it is still arriving"
        raise DeadlineExceeded(told) from error


async def _parsed(request: Request) -> Any:
    """The JSON of a body that is here, which the request keeps. Raise Malformed if it is none."""
    content = await request.body()
    try:
        content.decode()
        if b"\0" in content:  # UTF-16 and UTF-32 of JSON are full of them, UTF-8 has none
            raise ValueError("a NUL byte")
        document = await request.json()
    except (ValueError, RecursionError) as error:
        raise Malformed(f"body: expected JSON in UTF-8, found otherwise: {error}") from error
    if isinstance(document, dict) and len(document) > MAX_FIELDS:  # else each would be told to be unknown, for seconds
        raise InvalidField("body", f"expected at most {MAX_FIELDS} fields, found {len(document)}")
    return document


async def _charge(scope: Scope, cost: Callable[[], int]) -> None:
    """What the body costs, where rates are limited. Raise RateLimited if that is too much."""
    bill = scope["state"].get("bill")
    if bill and (units := cost()):
        await bill.charge(units)


async def refuse(error: SeqserveError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer before the body is read; it is dropped if it ends soon, and else the connection is closed after it.

    A caller who waits to be told to send its body, as `Expect: 100-continue` says, is not told.
    """
    answer = problems.from_error(error)
    headers = {name for name, _ in scope["headers"]}
    if headers & {b"content-length", b"transfer-encoding"}:
        start: Message = {"type": "http.request", "more_body": True}
        if b"expect" in headers or not await _drained(receive, start, REFUSED):
            answer.headers["Connection"] = "close"
    await answer(scope, receive, send)
