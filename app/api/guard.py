"""What stands before a route that takes a body: its type, its size, its time to arrive, and a caller who may leave."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from email.message import Message as Headers
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends, Header, Request
from fastapi.routing import APIRoute
from pydantic import WithJsonSchema
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.api import problems, uploads
from app.errors import DeadlineExceeded, InvalidField, Malformed, SeqserveError, TooLarge, UnsupportedType

MAX_FIELDS: Final = 32  # more than any request has
DRAINED: Final = 16  # a body up to so many times too large is read to its end before it is refused,
DRAINING_S: Final = 1.0  # if the end comes soon
REFUSED: Final = 2**20  # bytes of a body that are dropped when its sender is refused before it was looked at
TIMEOUT: Final = "X-Request-Timeout"
CHARACTERS: Final = 100  # of a request's texts that cost one unit where rates are limited,
IMAGE: Final = 4  # and units that an image costs
PROBLEMS: Final = problems.documented(
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)  # of a route that asks a model

Result = TypeVar("Result")


def json_route(max_body_bytes: int) -> type[APIRoute]:
    """Routes that take a JSON body of at most so many bytes, and whose work stops when the caller leaves."""

    class JsonRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def guarded(request: Request) -> Response:
                _require_json(request.headers.get("content-type"))
                _set_deadline(request)
                counted = Request(request.scope, _counted(request, max_body_bytes))
                document = await _arrive(counted)
                await _charge(request, characters(document) // CHARACTERS)
                return await while_connected(request.receive, handle(counted))

            return guarded

    return JsonRoute


def image_route(max_upload_bytes: int, most: int) -> type[APIRoute]:
    """Routes that take one to `most` images in a body of at most so many bytes, otherwise as those of `json_route`."""

    class ImageRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def guarded(request: Request) -> Response:
                form = uploads.is_form(request.headers.get("content-type"))
                _set_deadline(request)
                counted = Request(request.scope, _counted(request, max_upload_bytes))
                with contextlib.ExitStack() as files:
                    async with _in_time(request):
                        images = await uploads.received(counted, most, files, form=form)
                    request.state.images = images
                    await _charge(request, len(images) * IMAGE)
                    return await while_connected(request.receive, handle(counted))

            return guarded

    return ImageRoute


async def _images(request: Request) -> list[uploads.Upload]:
    images: list[uploads.Upload] = request.state.images
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
    deadline: float = request.state.deadline
    return deadline


Deadline = Annotated[float, Depends(_deadline)]  # a time of time.monotonic
Images = Annotated[list[uploads.Upload], Depends(_images)]  # on an image_route alone


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the caller leaves; then raise ClientDisconnect.

    The body must have been received: what comes next on `receive` is the caller's leaving.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait((working, leaving))


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _require_json(content_type: str | None) -> None:
    headers = Headers()
    headers["content-type"] = content_type or ""
    main, sub = headers.get_content_maintype(), headers.get_content_subtype()
    charset = headers.get_content_charset("utf-8")
    is_json = main == "application" and (sub == "json" or sub.endswith("+json"))
    if not is_json or charset not in ("utf-8", "utf8", "us-ascii"):
        found = repr(content_type[:80]) if content_type else "none"
        raise UnsupportedType(f"Content-Type: expected application/json in UTF-8, found {found}")


def _counted(request: Request, limit: int) -> Receive:
    """`request.receive`, but TooLarge as soon as the body is known to be larger than `limit` bytes.

    What is about to come is read and dropped first: a client that sends before it listens would find the connection
    reset, and never see the answer.
    """
    told = int(request.headers.get("content-length", 0))
    received = 0

    async def receive() -> Message:
        nonlocal received
        if told > DRAINED * limit:
            raise TooLarge(f"body: expected at most {limit} bytes, found {told}")
        message = await request.receive()
        received += len(message.get("body", b""))
        if max(told, received) > limit:
            ended = await _drained(request.receive, message, DRAINED * limit)
            raise TooLarge(f"body: expected at most {limit} bytes, found {told or 'more'}", hopeless=not ended)
        return message

    return receive


async def _drained(receive: Receive, message: Message, most: int) -> bool:
    """Drop what follows `message`; whether the body came to its end within `most` bytes and DRAINING_S seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAINING_S):
            while message.get("more_body", False) and most > 0:
                message = await receive()
                most -= len(message.get("body", b""))
    return not message.get("more_body", False)


def _set_deadline(request: Request) -> None:
    """Note by when the request must be answered: its state's `timeout_s` after it came, a time of time.monotonic.

    A header that is no number of seconds is told by the route, once the body is here.
    """
    limit: float = request.state.request_timeout_s
    try:
        wanted = float(request.headers.get(TIMEOUT, limit))
    except ValueError:
        wanted = limit
    request.state.timeout_s = min(limit, wanted) if wanted > 0 else limit
    request.state.deadline = request.state.started + request.state.timeout_s


@contextlib.asynccontextmanager
async def _in_time(request: Request) -> AsyncIterator[None]:
    """Raise DeadlineExceeded where what arrives meanwhile takes longer."""
    try:
        async with asyncio.timeout(request.state.deadline - time.monotonic()):
            yield
    except TimeoutError as error:
        told = f"body: expected within {request.state.timeout_s:g} s, it is still arriving"
        raise DeadlineExceeded(told) from error


async def _arrive(request: Request) -> Any:
    """The body, once the whole of it is here and parsed; the request keeps it."""
    async with _in_time(request):
        body = await request.body()
    try:
        body.decode()
        if b"\0" in body:  # UTF-16 and UTF-32 of JSON are full of them, UTF-8 has none
            raise ValueError("a NUL byte")
        document = await request.json()
    except (ValueError, RecursionError) as error:
        raise Malformed(f"body: expected JSON in UTF-8, found otherwise: {error}") from error
    if isinstance(document, dict) and len(document) > MAX_FIELDS:  # else each would be told to be unknown, for seconds
        raise InvalidField("body", f"expected at most {MAX_FIELDS} fields, found {len(document)}")
    return document


def characters(document: Any) -> int:
    """Of all texts in a JSON document's fields, and in lists there."""
    values = document.values() if isinstance(document, dict) else ()
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    return sum(len(text) for text in texts if isinstance(text, str))


async def _charge(request: Request, cost: int) -> None:
    """What the body costs, where rates are limited. Raise RateLimited if that is too much."""
    bill = getattr(request.state, "bill", None)
    if bill and cost:
        await bill.charge(cost)


async def refuse(error: SeqserveError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer before the body is read; it is dropped if it ends soon, and else the connection is closed after it.

    A caller who waits to be told to send its body, as `Expect: 100-continue` says, is not told.
    """
    answer = problems.told(error)
    headers = {name for name, _ in scope["headers"]}
    if headers & {b"content-length", b"transfer-encoding"}:
        start: Message = {"type": "http.request", "more_body": True}
        if b"expect" in headers or not await _drained(receive, start, REFUSED):
            answer.headers["Connection"] = "close"
    await answer(scope, receive, send)
