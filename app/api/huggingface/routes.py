"""POST /models/{model}: image_to_text and image_classification of `huggingface_hub.InferenceClient`.

The client posts to the model's address itself: an image as it is, or in base64 in JSON as soon as there are parameters.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Final

from pydantic import Field, WithJsonSchema
from starlette.datastructures import QueryParams
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope
from typing_extensions import TypedDict

from app.api.http import bodies, costs, uploads
from app.api.http.bodies import Body
from app.api.http.context import RegistryOf
from app.api.http.dialect import BodyLimits, Dialect
from app.api.http.endpoints import STATUSES, Deadline, Endpoint
from app.api.http.fields import TolerantModel
from app.api.http.image_answers import image_answers
from app.api.http.problems import MAX_SHOWN, ErrorFormat
from app.api.http.uploads import BASE64, MAX_IMAGE_BYTES, PART
from app.errors import InvalidField, Malformed, UnsupportedType
from app.runtime.families.captions import Describe, Description
from app.runtime.families.digits import Classification, Classify
from app.runtime.families.numbers import ReadNumber
from app.runtime.fields import Count, Probability

TAGS: Final[list[str | Enum]] = ["Hugging Face inference"]
JSON: Final = "application/json"
PARAMETERS_BYTES: Final = 4096  # of JSON beside the image
RAW: Final = re.compile(r"image/[^/]+|application/octet-stream|")


class TaskParameters(TolerantModel):
    """Parameters of a task."""

    top_k: Count = Field(default=5, ge=1, description="Largest number of digits to return.")


class InferenceRequest(TolerantModel):
    """One image: the body itself, or base64 in JSON."""

    inputs: Annotated[str | bytes, WithJsonSchema({"type": "string", "contentEncoding": "base64"})]
    parameters: TaskParameters = TaskParameters()


class Failure(TypedDict):
    """An error."""

    error: str


class Label(TypedDict):
    """A digit and its probability."""

    label: str
    score: Probability


class Generated(TypedDict):
    """A caption."""

    generated_text: str


ERRORS: Final = ErrorFormat(lambda report: {"error": report.detail}, Failure)


@dataclass(frozen=True)
class InferenceBody(Body):
    """An image as the body, or JSON with an image; of at most `max_bytes` bytes."""

    max_bytes: int

    def openapi(self) -> dict[str, Any]:
        """Return the request body's media type beside JSON."""
        image = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
        return {"requestBody": {"required": True, "content": {"image/*": image}}}

    def require_type(self, content_type: bytes | None) -> None:
        """Raise UnsupportedType unless it is JSON, an image or absent."""
        found = media_type(content_type)
        if found != JSON and not RAW.fullmatch(found):
            raise UnsupportedType(f"Content-Type: expected {JSON}, image/* or none, found {found[:MAX_SHOWN]!r}")

    async def read(self, scope: Scope, receive: Receive) -> Any:
        """Return the JSON document, or one made of an image."""
        content = await bodies.content(scope, receive, bulk=False)
        if media_type(bodies.fields(scope).get(b"content-type")) == JSON:
            return await bodies.document(content, scope, receive, bulk=False)
        return {"inputs": content}

    def units(self, _content: Any, _scope: Scope) -> int:
        """Return the cost of one image."""
        return costs.of_images(1, QueryParams())


def media_type(content_type: bytes | None) -> str:
    """Return the media type of a header, empty if there is none."""
    return (content_type or b"").decode("latin-1").partition(";")[0].strip().lower()


def routes(limits: BodyLimits) -> list[BaseRoute]:
    """Return the endpoint of all models."""
    return [
        Endpoint(
            "/models/{model}",
            infer,
            scope="predict",
            body=InferenceBody(int(min(limits.uploads, MAX_IMAGE_BYTES) * BASE64) + PARAMETERS_BYTES),
            response_model=list[Label] | list[Generated],
            responses=ERRORS.documented(*STATUSES),
            tags=TAGS,
        )
    ]


async def infer(model: str, body: InferenceRequest, registry: RegistryOf, deadline: Deadline) -> Response:
    """Caption a photograph, classify the digit in an image, or read its number, whichever the model does."""
    served = registry.named(model)
    make = {"captions": Describe, "digits": Classify, "numbers": ReadNumber}.get(served.manifest.family)
    if make is None:
        raise InvalidField(
            "model",
            f"expected a model of images, found the {served.manifest.family} {served.name}: POST /v1/completions",
        )
    try:
        content = await uploads.from_base64(body.inputs) if isinstance(body.inputs, str) else body.inputs
    except ValueError as error:
        raise Malformed(f"inputs: expected an image in base64, found otherwise: {error}") from error
    image = uploads.of_bytes(PART, content)
    with served:
        (found,) = await image_answers(served, [image], make, deadline)
    if isinstance(found, Classification):
        return JSONResponse(_labels(found, body.parameters.top_k))
    text = found.text if isinstance(found, Description) else found.number or ""  # empty if there is no number
    return JSONResponse([{"generated_text": text}])


def _labels(found: Classification, top_k: int) -> Sequence[Label]:
    """Return the likeliest digits, highest probability first; none for a rejected image."""
    if found.rejected:
        return []
    labels: list[Label] = [{"label": str(digit), "score": score} for digit, score in enumerate(found.probabilities)]
    return sorted(labels, key=lambda label: -label["score"])[:top_k]


DIALECT: Final = Dialect(routes, re.compile(r"POST /models/[^/]+"), ERRORS)
