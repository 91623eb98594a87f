"""POST /digits and POST /captions."""

import asyncio
import re
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final, TypeAlias

from fastapi import APIRouter, Depends, Query, Request
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app import images as pictures
from app.api.http import problems
from app.api.http.bodies import PROBLEMS, Deadline, Images, image_route
from app.api.http.fan_out import all_answers
from app.api.http.fields import ModelName
from app.api.http.state import CatalogueOf
from app.api.http.uploads import PART, Upload
from app.api.native.schemas import Caption, CaptionsAnswer, CaptionWord, Digit, DigitsAnswer
from app.errors import InvalidField, SeqserveError
from app.runtime.families.captions import Describe, Description
from app.runtime.families.digits import Classification, Classify
from app.runtime.registry import Payload, Served

MOST_DIGITS: Final = 32  # images of a request
MOST_CAPTIONS: Final = 8
PREPARED: Final = 4  # images of one request that wait to be prepared: others' need not wait for all of them
EVENTS: Final = "text/event-stream"
REFUSED: Final = re.compile(r"q=0(\.0{0,3})?")

Ask: TypeAlias = Callable[[bytes, str], Payload]  # of an image's content and name
AskAloud: TypeAlias = Callable[..., Payload]  # the same with `on_word`


async def _streamed(request: Request) -> bool:
    """Whether the answer is wanted as events; OpenAPI has it among the media types."""
    return _wants_events(", ".join(request.headers.getlist("accept")))


Streamed: TypeAlias = Annotated[bool, Depends(_streamed)]


def routes(max_upload_bytes: int) -> APIRouter:
    """The routes that take images, in bodies of at most so many bytes."""
    router = APIRouter(tags=["vision"], responses=PROBLEMS)
    router.add_api_route(
        "/digits",
        digits,
        methods=["POST"],
        response_model=DigitsAnswer,
        openapi_extra=_takes(MOST_DIGITS),
        route_class_override=image_route(max_upload_bytes, MOST_DIGITS),
    )
    router.add_api_route(
        "/captions",
        captions,
        methods=["POST"],
        response_model=CaptionsAnswer,
        responses={200: {"content": {EVENTS: {"schema": {"type": "string"}}}}},
        openapi_extra=_takes(MOST_CAPTIONS),
        route_class_override=image_route(max_upload_bytes, MOST_CAPTIONS),
    )
    return router


async def digits(
    images: Images,
    catalogue: CatalogueOf,
    deadline: Deadline,
    framed: Annotated[bool, Query(description="Is the picture that the model saw wanted as well?")] = False,
    model: ModelName = None,
) -> Response:
    """Read the digit in each image: ink or chalk, drawn, scanned or photographed. An image without one is rejected."""
    served = catalogue.get(model, "digits")
    found: list[Classification] = await _answers(served, images, Classify, deadline)
    answer: DigitsAnswer = {
        "model": served.name,
        "version": served.version,
        "results": [_digit(one, framed=framed) for one in found],
    }
    return Response(to_json(answer), media_type="application/json")


async def captions(
    images: Images,
    catalogue: CatalogueOf,
    deadline: Deadline,
    streamed: Streamed,
    beam: Annotated[int, Query(ge=1, le=10, description="Captions kept in view while one is made.")] = 3,
    alternatives: Annotated[int, Query(ge=0, le=9, description="Further captions wanted of each image at most.")] = 0,
    model: ModelName = None,
) -> Response:
    """Say what each photograph shows.

    With `Accept: text/event-stream` and one image, each word is told by an event `word` as soon as it is certain; then
    an event `caption` has the whole answer, or an event `error` a problem document.
    """
    served = catalogue.get(model, "captions")
    ask = partial(Describe, beam=beam, alternatives=alternatives)
    if not streamed:
        answer = _captions(served, await _answers(served, images, ask, deadline))
        return Response(to_json(answer), media_type="application/json")
    if len(images) > 1:
        raise InvalidField(PART, f"expected one image with Accept: {EVENTS}, found {len(images)}")
    events = _events(served, images[0], ask, deadline)
    return _Events(await anext(events), events)  # what goes wrong before the first event has a status of its own


async def _answers(served: Served, images: Sequence[Upload], ask: Ask, deadline: float) -> list[Any]:
    room = asyncio.Semaphore(PREPARED)
    asking = [_Asking(served, image, ask, deadline, room, alone=len(images) == 1) for image in images]
    return await all_answers([each.answer for each in asking], deadline)


@dataclass
class _Asking:
    """An image on its way to its answer: read and prepared once, however often a full queue sends it away."""

    served: Served
    image: Upload
    ask: Ask
    deadline: float
    room: asyncio.Semaphore
    alone: bool = True  # in its request
    example: Any = None

    async def answer(self) -> Any:
        if self.example is None:
            async with self.room:
                quick = self._is_quick()
                self.example = await self.served.prepared(self._payload, at_once=quick, deadline=self.deadline)
        return await self.served.submit(self.example, deadline=self.deadline)

    def _is_quick(self) -> bool:
        """Whether the event loop can spare the time to prepare it: no more than one such image of a request."""
        return self.alone and self.image.in_memory and not self._payload().slow

    def _payload(self) -> Payload:
        return self.ask(self.image.read(), self.image.name)


async def _events(served: Served, image: Upload, ask: AskAloud, deadline: float) -> AsyncGenerator[bytes, None]:
    """Events: each word as soon as it is certain, then the caption. To close it gives the caption up."""
    words = asyncio.Queue[str | None]()
    loop = asyncio.get_running_loop()

    def on_word(word: str) -> None:
        loop.call_soon_threadsafe(words.put_nowait, word)  # it is the inference thread that tells

    asking = _Asking(served, image, partial(ask, on_word=on_word), deadline, asyncio.Semaphore())
    answering = asyncio.ensure_future(asking.answer())
    answering.add_done_callback(lambda _: words.put_nowait(None))
    try:
        while (word := await words.get()) is not None:
            yield _event("word", {"word": word})
        yield _event("caption", _captions(served, [answering.result()]))
    finally:
        answering.cancel()
        await asyncio.wait((answering,))


class _Events(EventSourceResponse):
    """The `first` event, at hand already, and the others, which are closed with the response whoever ends it."""

    def __init__(self, first: bytes, others: AsyncGenerator[bytes, None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_told(first, others), headers=headers)
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._others):
            await super().__call__(scope, receive, send)


async def _told(first: bytes, others: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """All events; if one of our errors ends them, it is the last."""
    yield first
    try:
        async for event in others:
            yield event
    except SeqserveError as error:
        yield format_sse_event(event="error", data_str=bytes(problems.from_error(error).body).decode())


def _event(name: str, data: CaptionWord | CaptionsAnswer) -> bytes:
    return format_sse_event(event=name, data_str=to_json(data).decode())


def _wants_events(accept: str) -> bool:
    """Whether they are accepted by name, and not with a weight of 0: that means `not acceptable` (RFC 9110, 12.4.2)."""
    accepted = (media.lower().replace(" ", "").partition(";") for media in accept.split(","))
    return any(kind == EVENTS and not REFUSED.fullmatch(weight) for kind, _, weight in accepted)


def _digit(found: Classification, *, framed: bool) -> Digit:
    digit: Digit = {
        "digit": found.digit,
        "confidence": found.confidence,
        "probabilities": found.probabilities,
        "rejected": found.rejected,
        "reason": found.reason,
    }
    if framed:
        digit["framed"] = f"data:image/png;base64,{b64encode(pictures.png(found.framed)).decode()}"
    return digit


def _captions(served: Served, found: Sequence[Description]) -> CaptionsAnswer:
    return {"model": served.name, "version": served.version, "results": [_caption(one) for one in found]}


def _caption(found: Description) -> Caption:
    return {
        "caption": found.caption,
        "log_probability": found.log_probability,
        "alternatives": [
            {"caption": other.caption, "log_probability": other.log_probability} for other in found.alternatives
        ],
    }


def _takes(most: int) -> dict[str, Any]:
    """The OpenAPI operation's body: a form of images, or one image."""
    image = {"type": "string", "contentMediaType": "application/octet-stream"}
    form = {
        "type": "object",
        "properties": {PART: {"type": "array", "items": image, "minItems": 1, "maxItems": most}},
        "required": [PART],
        "additionalProperties": False,
    }
    content = {"multipart/form-data": {"schema": form}, "image/*": {"schema": image}}
    return {"requestBody": {"required": True, "content": content}}
