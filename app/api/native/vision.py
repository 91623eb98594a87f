"""POST /digits and POST /captions."""

import asyncio
import re
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Annotated, Any, Final, TypeAlias

from fastapi import Depends, Query, Request
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic_core import to_json
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from app import images as image_files
from app.api.http import costs, problems
from app.api.http.bodies import ImageBody
from app.api.http.endpoints import PROBLEMS, Deadline, Endpoint, Images
from app.api.http.fan_out import all_answers
from app.api.http.fields import ModelName
from app.api.http.state import RegistryOf
from app.api.http.uploads import PART, Upload
from app.api.native.schemas import Caption, CaptionsAnswer, CaptionWord, Digit, DigitsAnswer
from app.errors import InvalidField, SeqserveError
from app.runtime.families.captions import Describe, Description
from app.runtime.families.digits import Classification, Classify
from app.runtime.registry import Payload, Served

TAGS: Final[list[str | Enum]] = ["vision"]
MAX_DIGITS: Final = 32  # images per request
MAX_CAPTIONS: Final = 8
MAX_PREPROCESSING: Final = 4  # images of one request in preprocessing, so that other requests get their share
EVENTS: Final = "text/event-stream"
ZERO_WEIGHT: Final = re.compile(r"q=0(\.0{0,3})?")

MakePayload: TypeAlias = Callable[[bytes, str], Payload]  # from an image's content and name


async def _streamed(request: Request) -> bool:
    """Return whether the client accepts events; OpenAPI documents them as a media type of the answer."""
    return _accepts_events(", ".join(request.headers.getlist("accept")))


Streamed: TypeAlias = Annotated[bool, Depends(_streamed)]


def routes(max_upload_bytes: int) -> list[BaseRoute]:
    """Return the endpoints that take images, in bodies of at most `max_upload_bytes` bytes."""
    return [
        Endpoint(
            "/digits",
            digits,
            scope="predict",
            body=ImageBody(max_upload_bytes, MAX_DIGITS, cost=costs.of_images),
            response_model=DigitsAnswer,
            responses=PROBLEMS,
            tags=TAGS,
        ),
        Endpoint(
            "/captions",
            captions,
            scope="predict",
            body=ImageBody(max_upload_bytes, MAX_CAPTIONS, cost=costs.of_images),
            response_model=CaptionsAnswer,
            responses=PROBLEMS | {200: {"content": {EVENTS: {"schema": {"type": "string"}}}}},
            tags=TAGS,
        ),
    ]


async def digits(
    images: Images,
    registry: RegistryOf,
    deadline: Deadline,
    framed: Annotated[bool, Query(description="Return the model's input image as well.")] = False,
    model: ModelName = None,
) -> Response:
    """Read the digit in each image: ink or chalk, drawn, scanned or photographed. An image without one is rejected."""
    with registry.get(model, "digits") as served:
        found: list[Classification] = await _answers(served, images, Classify, deadline)
    answer: DigitsAnswer = {
        "model": served.name,
        "version": served.version,
        "results": [_digit(one, framed=framed) for one in found],
    }
    return Response(to_json(answer), media_type="application/json")


async def captions(
    images: Images,
    registry: RegistryOf,
    deadline: Deadline,
    streamed: Streamed,
    beam: Annotated[int, Query(ge=1, le=10, description="Beam width: captions kept at each step of the search.")] = 3,
    alternatives: Annotated[int, Query(ge=0, le=9, description="Largest number of further captions per image.")] = 0,
    model: ModelName = None,
) -> Response:
    """Caption each photograph.

    With `Accept: text/event-stream` and one image, each word is sent in an event `word` as soon as it is certain; then
    an event `caption` has the whole answer, or an event `error` a problem document.
    """
    make = partial(Describe, beam=beam, alternatives=alternatives)
    with registry.get(model, "captions") as served:
        if not streamed:
            answer = _captions(served, await _answers(served, images, make, deadline))
            return Response(to_json(answer), media_type="application/json")
        if len(images) > 1:
            raise InvalidField(PART, f"expected one image with Accept: {EVENTS}, found {len(images)}")
        events = _events(served, images[0], make, deadline)
        return _Events(await anext(events), events)  # an error before the first event has its own status


async def _answers(served: Served, images: Sequence[Upload], make: MakePayload, deadline: float) -> list[Any]:
    slots = asyncio.Semaphore(MAX_PREPROCESSING)
    examples = [_Example(served, image, make, deadline, slots, alone=len(images) == 1) for image in images]
    return await all_answers([each.answer for each in examples], deadline)


@dataclass
class _Example:
    """One image of a request, read and preprocessed once even if a full queue rejects it."""

    served: Served
    image: Upload
    make: MakePayload
    deadline: float
    slots: asyncio.Semaphore
    alone: bool = True  # the request's only image
    preprocessed: Any = None

    async def answer(self) -> Any:
        return await self.served.submit(await self.prepared(), deadline=self.deadline, bulk=not self.alone)

    async def prepared(self) -> Any:
        if self.preprocessed is None:
            async with self.slots:
                inline = self._fits_inline()
                self.preprocessed = await self.served.prepared(self._payload, at_once=inline, deadline=self.deadline)
        return self.preprocessed

    def _fits_inline(self) -> bool:
        """Return whether preprocessing is cheap enough to run inline on the event loop: at most one image a request."""
        return self.alone and self.image.in_memory and not self._payload().slow

    def _payload(self) -> Payload:
        return self.make(self.image.read(), self.image.name)


async def _events(served: Served, image: Upload, make: MakePayload, deadline: float) -> AsyncGenerator[bytes, None]:
    """Yield an event for each word as soon as it is certain, then the caption. Closing cancels the caption."""
    example = await _Example(served, image, make, deadline, asyncio.Semaphore()).prepared()
    with served:  # until the last event
        async with aclosing(served.stream(example, deadline=deadline)) as partials:
            async for words, answer in partials:
                for word in words:
                    yield _event("word", {"word": word})
                if answer:
                    yield _event("caption", _captions(served, [answer]))


class _Events(EventSourceResponse):
    """A response of the `first` event and the others, which are closed with the response however it ends."""

    def __init__(self, first: bytes, others: AsyncGenerator[bytes, None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_all_events(first, others), headers=headers)
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._others):
            await super().__call__(scope, receive, send)


async def _all_events(first: bytes, others: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield all events; an error is the last one, as a problem document."""
    yield first
    try:
        async for event in others:
            yield event
    except SeqserveError as error:
        yield format_sse_event(
            event="error", data_str=bytes(problems.DOCUMENTS.respond(problems.of(error)).body).decode()
        )


def _event(name: str, data: CaptionWord | CaptionsAnswer) -> bytes:
    return format_sse_event(event=name, data_str=to_json(data).decode())


def _accepts_events(accept: str) -> bool:
    """Return whether events are accepted by name, and not with weight 0, `not acceptable` (RFC 9110, 12.4.2)."""
    accepted = (media.lower().replace(" ", "").partition(";") for media in accept.split(","))
    return any(kind == EVENTS and not ZERO_WEIGHT.fullmatch(weight) for kind, _, weight in accepted)


def _digit(found: Classification, *, framed: bool) -> Digit:
    digit: Digit = {
        "digit": found.digit,
        "confidence": found.confidence,
        "probabilities": found.probabilities,
        "rejected": found.rejected,
        "reason": found.reason,
    }
    if framed:
        digit["framed"] = f"data:image/png;base64,{b64encode(image_files.png(found.framed)).decode()}"
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
