"""POST /digits and POST /captions."""

import re
from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import aclosing, nullcontext
from enum import Enum
from functools import partial
from typing import Annotated, Any, Final, TypeAlias

from fastapi import Depends, Query, Request
from fastapi.sse import format_sse_event
from pydantic import TypeAdapter
from pydantic_core import to_json
from starlette.responses import Response
from starlette.routing import BaseRoute

from app import images as image_files
from app.api.http import costs, problems
from app.api.http.bodies import ImageBody
from app.api.http.context import RegistryOf
from app.api.http.endpoints import PROBLEMS, Deadline, Endpoint, Images
from app.api.http.fields import ModelName
from app.api.http.image_answers import ImageExample, MakePayload, image_answers
from app.api.http.streaming import EVENTS, EventStream
from app.api.http.uploads import PART, Upload
from app.api.native.language import head
from app.api.native.schemas import CaptionsAnswer, CaptionWord, DigitsAnswer
from app.errors import InvalidField, SeqserveError
from app.runtime.families.captions import (
    Attention,
    Beam,
    Describe,
    Description,
    OtherCaptions,
    People,
    Tags,
    Threshold,
)
from app.runtime.families.digits import Classification, Classify
from app.runtime.families.numbers import Number, ReadNumber
from app.runtime.registry import Served

TAGS: Final[list[str | Enum]] = ["vision"]
MAX_DIGITS: Final = 32  # images per request
MAX_CAPTIONS: Final = 8
DIGIT: Final = TypeAdapter(Classification)
NUMBER: Final = TypeAdapter(Number)
CAPTIONS: Final = TypeAdapter(list[Description])
ZERO_WEIGHT: Final = re.compile(r"q=0(\.0{0,3})?")


async def _streamed(request: Request) -> bool:
    """Return whether the client accepts events by name, not with weight 0, `not acceptable` (RFC 9110, 12.4.2).

    OpenAPI documents them as a media type of the answer.
    """
    media = (each.lower().replace(" ", "") for line in request.headers.getlist("accept") for each in line.split(","))
    accepted = (each.partition(";") for each in media)
    return any(kind == EVENTS and not ZERO_WEIGHT.fullmatch(weight) for kind, _, weight in accepted)


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
    number: Annotated[bool, Query(description="Read a number of 1 to 12 digits in a row as well.")] = False,
    model: ModelName = None,
) -> Response:
    """Read the digit in each image: ink or chalk, drawn, scanned or photographed.

    An image without one, or with several, is rejected. With `number=true` a number is read as well, by the store's
    number reader, and its image is not rejected.
    """
    numbers: list[Number | None] = [None] * len(images)
    with registry.get(model, "digits") as served, registry.get(None, "numbers") if number else nullcontext() as reader:
        found: list[Classification] = await image_answers(served, images, Classify, deadline)
        if reader:
            numbers = await image_answers(reader, images, ReadNumber, deadline)
    results = [_digit(one, row, framed=framed) for one, row in zip(found, numbers, strict=True)]
    return _response(served, to_json(results))


async def captions(
    images: Images,
    registry: RegistryOf,
    deadline: Deadline,
    streamed: Streamed,
    beam: Beam = 3,
    alternatives: OtherCaptions = 0,
    tags: Tags = True,
    people: People = "any",
    attention: Attention = False,
    threshold: Threshold = None,
    model: ModelName = None,
) -> Response:
    """Caption each photograph.

    With `Accept: text/event-stream` and one image, each word is sent in an event `word` as soon as it is certain; then
    an event `caption` has the whole answer, or an event `error` a problem document.
    """
    make = partial(
        Describe,
        beam=beam,
        alternatives=alternatives,
        tags=tags,
        people=people,
        attention=attention,
        threshold=threshold,
    )
    with registry.get(model, "captions") as served:
        if not streamed:
            return _response(served, CAPTIONS.dump_json(await image_answers(served, images, make, deadline)))
        if len(images) > 1:
            raise InvalidField(PART, f"expected one image with Accept: {EVENTS}, found {len(images)}")
        return await EventStream.start(_events(served, images[0], make, deadline), _error_event)


async def _events(served: Served, image: Upload, make: MakePayload, deadline: float) -> AsyncGenerator[bytes, None]:
    """Yield an event for each word as soon as it is certain, then the caption. Closing cancels the caption."""
    example = await ImageExample(served, image, make, deadline).prepared()
    with served:  # until the last event
        async with aclosing(served.stream(example, deadline=deadline)) as partials:
            async for words, answer in partials:
                for word in words:
                    yield _event("word", to_json(CaptionWord(word=word)))
                if answer:
                    yield _event("caption", _answer(served, CAPTIONS.dump_json([answer])))


def _error_event(error: SeqserveError) -> bytes:
    document = bytes(problems.DOCUMENTS.respond(problems.of(error)).body)
    return format_sse_event(event="error", data_str=document.decode())


def _event(name: str, data: bytes) -> bytes:
    return format_sse_event(event=name, data_str=data.decode())


def _digit(found: Classification, number: Number | None, *, framed: bool) -> dict[str, Any]:
    """Return the fields of a `Digit`; an image with a number is not rejected."""
    fields: dict[str, Any] = DIGIT.dump_python(found)
    if framed:
        fields["framed"] = f"data:image/png;base64,{b64encode(image_files.png(found.framed)).decode()}"
    if number:
        fields |= NUMBER.dump_python(number, by_alias=True)
        if number.number is not None:
            fields |= {"rejected": False, "reason": None}
    return fields


def _answer(served: Served, results: bytes) -> bytes:
    return head(served.name, served.version) + b'"results":%b}' % results


def _response(served: Served, results: bytes) -> Response:
    return Response(_answer(served, results), media_type="application/json")
