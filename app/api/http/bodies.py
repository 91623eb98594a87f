"""Request bodies: content type, size limit, arrival within the deadline, and decoding."""

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message as Headers
from functools import lru_cache
from typing import Any, Final, TypeAlias

from fastapi import Request
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from app.api.http import problems, uploads
from app.api.http.body_memory import MemoryBudget
from app.api.http.context import RequestContext, request_context
from app.api.http.disconnects import is_complete, while_connected
from app.api.http.json_documents import MAX_VALUES, decoded
from app.errors import DeadlineExceeded, InvalidField, Overloaded, SeqserveError, TooLarge, UnsupportedType
from app.runtime.work_process import WorkProcess

MAX_FIELDS: Final = 32  # more than any payload has
INLINE_BYTES: Final = 64 * 1024  # of JSON, decoded on the event loop in about a millisecond at most
DRAIN_FACTOR: Final = 16  # a body up to so many times the limit is drained before it is rejected,
DRAIN_S: Final = 1.0  # if it ends soon
DRAIN_BYTES: Final = 2**20  # drained of a body whose request is rejected before it was read
MAX_TYPE_BYTES: Final = 1024  # of Content-Type: reading its parameters takes time quadratic in their length
UTF_8: Final = ("utf-8", "utf8", "us-ascii")

Fields: TypeAlias = dict[bytes, bytes]
TextCost: TypeAlias = Callable[[Any], int]  # from the decoded document to units
ImageCost: TypeAlias = Callable[[int, QueryParams], int]  # from the number of images and the query to units


class Body(ABC):
    """The declaration of an endpoint's body: its type, size limit and cost."""

    max_bytes: int

    def openapi(self) -> dict[str, Any] | None:
        """Return the OpenAPI operation's extra keys."""
        return None

    @abstractmethod
    def require_type(self, content_type: bytes | None) -> None:
        """Raise UnsupportedType for another content type."""

    @abstractmethod
    async def read(self, scope: Scope, receive: Receive) -> Any:
        """Return the decoded body; `receive` raises TooLarge. Raise Malformed, InvalidField or TooLarge."""

    @abstractmethod
    def units(self, content: Any, scope: Scope) -> int:
        """Return the cost of what `read` returned."""


@dataclass(frozen=True)
class JsonBody(Body):
    """A JSON object of at most `max_bytes` bytes, validated against the endpoint's payload type."""

    max_bytes: int
    cost: TextCost | None = None
    max_values: int = MAX_VALUES  # of a large document
    bulk: bool = True  # of a large body: a document, no image

    def require_type(self, content_type: bytes | None) -> None:
        """Raise UnsupportedType unless it is JSON in UTF-8."""
        if not _is_json(content_type):
            found = repr(content_type[:80].decode("latin-1")) if content_type else "none"
            raise UnsupportedType(f"Content-Type: expected application/json in UTF-8, found {found}")

    async def read(self, scope: Scope, receive: Receive) -> Any:
        """Return the JSON document. Raise Malformed for another format, InvalidField for too many fields."""
        body = await content(scope, receive, bulk=self.bulk)
        return await document(body, scope, receive, bulk=self.bulk, max_values=self.max_values)

    def units(self, content: Any, _scope: Scope) -> int:
        """Return the document's cost."""
        return self.cost(content) if self.cost else 0


@dataclass(frozen=True)
class ImageBody(Body):
    """One to `max_images` images, as a form or one raw body, of at most `max_bytes` bytes together."""

    max_bytes: int
    max_images: int
    cost: ImageCost | None = None

    def openapi(self) -> dict[str, Any]:
        """Return the request body: a form of images, or one image."""
        image = {"type": "string", "contentMediaType": "application/octet-stream"}
        form = {
            "type": "object",
            "properties": {uploads.PART: {"type": "array", "items": image, "minItems": 1, "maxItems": self.max_images}},
            "required": [uploads.PART],
            "additionalProperties": False,
        }
        content = {"multipart/form-data": {"schema": form}, "image/*": {"schema": image}}
        return {"requestBody": {"required": True, "content": content}}

    def require_type(self, content_type: bytes | None) -> None:
        """Raise UnsupportedType unless it is a form or an image."""
        uploads.is_form(_text(content_type))

    async def read(self, scope: Scope, receive: Receive) -> Any:
        """Return the images, whose files the context keeps open."""
        request, context = Request(scope, receive), request_context(scope)
        form = uploads.is_form(request.headers.get("content-type"))
        with contextlib.ExitStack() as files:
            images = await uploads.received(request, self.max_images, files, form=form)
            context.files = files.pop_all()
        return images

    def units(self, content: Any, scope: Scope) -> int:
        """Return the images' cost."""
        return self.cost(len(content), QueryParams(scope["query_string"])) if self.cost else 0


async def read(body: Body, scope: Scope, receive: Receive, context: RequestContext, length: int) -> Any:
    """Return the decoded body, of `length` bytes if not 0.

    Raise DeadlineExceeded if it doesn't arrive in time, Overloaded if it can't be stored.
    """
    arriving = body.read(scope, _limited(receive, body.max_bytes, length))
    try:
        if is_complete(scope):  # no waiting, so no timer
            return await arriving
        async with asyncio.timeout(context.deadline - time.monotonic()):
            return await arriving
    except TimeoutError as error:
        message = f"body: expected within {context.timeout_s:g} s, it is still arriving"
        raise DeadlineExceeded(message) from error
    except OSError as error:
        raise Overloaded(f"body: can't be stored: {error.strerror}; retry later") from error


async def content(scope: Scope, receive: Receive, *, bulk: bool) -> bytes:
    """Return the whole body. A large one is on disk until it has arrived, then in the bounded memory of its kind.

    Raise Overloaded if that is full.
    """
    received, more = bytearray(), True
    while more and len(received) <= INLINE_BYTES:
        chunk, more = await _chunk(receive)
        received += chunk
    if not more:
        return bytes(received)
    files = request_context(scope).files = contextlib.ExitStack()
    stored = uploads.spooled(files)
    await stored.write(bytes(received))
    while more:
        chunk, more = await _chunk(receive)
        await stored.write(chunk)
    budget: MemoryBudget = scope["state"]["body_memory"][bulk]
    size = stored.size or 0
    budget.reserve(size)
    files.callback(budget.release, size)
    await stored.seek(0)
    return await stored.read()


async def _chunk(receive: Receive) -> tuple[bytes, bool]:
    """Return the next part of a body, and whether there is more. Raise ClientDisconnect without one."""
    message = await receive()
    if message["type"] != "http.request":
        raise ClientDisconnect
    return bytes(message.get("body", b"")), message.get("more_body", False)


async def document(content: bytes, scope: Scope, receive: Receive, *, bulk: bool, max_values: int = MAX_VALUES) -> Any:
    """Return the JSON document in a whole body; a large one is decoded in another process while the client waits.

    Raise Malformed if it is invalid, InvalidField if it has more than MAX_FIELDS fields, TooLarge for a large one of
    more than `max_values` values.
    """
    if len(content) <= INLINE_BYTES:
        found = decoded(content)
    else:
        processes: WorkProcess = scope["state"]["processes"][bulk]
        found = await while_connected(scope, receive, processes.run("body", decoded, content, max_values))
    if isinstance(found, dict) and len(found) > MAX_FIELDS:  # reporting each would take seconds
        raise InvalidField("body", f"expected at most {MAX_FIELDS} fields, found {len(found)}")
    return found


async def reject(error: SeqserveError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer before the body is read; drain it if it ends soon, else close the connection after the answer.

    A client that sent `Expect: 100-continue` gets no 100 and need not send the body.
    """
    answer = problems.response(error, scope)
    headers = {name for name, _ in scope["headers"]}
    if headers & {b"content-length", b"transfer-encoding"}:
        start: Message = {"type": "http.request", "more_body": True}
        if b"expect" in headers or not await _drain(receive, start, DRAIN_BYTES):
            answer.headers["Connection"] = "close"
    await answer(scope, receive, send)


def content_type(fields: Fields) -> bytes | None:
    """Return the Content-Type. Raise UnsupportedType for one of more than MAX_TYPE_BYTES bytes."""
    found = fields.get(b"content-type")
    if found and len(found) > MAX_TYPE_BYTES:
        raise UnsupportedType(f"Content-Type: expected at most {MAX_TYPE_BYTES} bytes, found {len(found)}")
    return found


def fields(scope: Scope) -> Fields:
    """Return the headers by lower-case name; of repeated ones the first."""
    return dict(reversed([*scope["headers"]]))


@lru_cache(64)
def _is_json(content_type: bytes | None) -> bool:
    headers = Headers()
    headers["content-type"] = _text(content_type) or ""
    main, sub = headers.get_content_maintype(), headers.get_content_subtype()
    charset = headers.get_content_charset("utf-8")
    return main == "application" and (sub == "json" or sub.endswith("+json")) and charset in UTF_8


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _limited(receive: Receive, limit: int, length: int) -> Receive:
    """Wrap `receive`: raise TooLarge as soon as the body is known to exceed `limit` bytes.

    The rest is drained first: a client that sends everything before it reads would see the connection reset instead of
    the answer.
    """
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        if length > DRAIN_FACTOR * limit:
            raise TooLarge(f"body: expected at most {limit} bytes, found {length}")
        message = await receive()
        received += len(message.get("body", b""))
        if max(length, received) > limit:
            ended = await _drain(receive, message, DRAIN_FACTOR * limit)
            raise TooLarge(f"body: expected at most {limit} bytes, found {length or 'more'}", unread=not ended)
        return message

    return receive_limited


async def _drain(receive: Receive, message: Message, max_bytes: int) -> bool:
    """Drop what follows `message`; return whether the body ended within `max_bytes` and DRAIN_S seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while message.get("more_body", False) and max_bytes > 0:
                message = await receive()
                max_bytes -= len(message.get("body", b""))
    return not message.get("more_body", False)
