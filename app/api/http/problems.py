"""Problem documents (RFC 9457), and the table from error to HTTP status."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, NotRequired

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from typing_extensions import TypedDict

from app.errors import (
    BundleError,
    CorpusError,
    DeadlineExceeded,
    Forbidden,
    InvalidField,
    Malformed,
    NotReady,
    Overloaded,
    RateLimited,
    SeqserveError,
    SettingsError,
    TooLarge,
    Unauthenticated,
    UnknownModel,
    UnknownVersion,
    Unservable,
    UnsupportedType,
)

MEDIA_TYPE: Final = "application/problem+json"
CLIENT_CLOSED_REQUEST: Final = 499  # the client disconnected before the response; seen in metrics and logs only
NOT_READY_RETRY_S: Final = 2  # loading takes about a second
MAX_FIELDS: Final = 20  # a body can have a million invalid fields; more are not reported
MAX_SHOWN: Final = 80  # characters of what was found


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem: its status, and the URI reference and title by which a program and a person know it."""

    status: HTTPStatus
    type: str
    title: str


KINDS: Final[dict[type[SeqserveError], Kind]] = {
    InvalidField: Kind(HTTPStatus.UNPROCESSABLE_ENTITY, "/problems/invalid-field", "A field is wrong"),
    Malformed: Kind(HTTPStatus.BAD_REQUEST, "/problems/malformed", "Can't be parsed"),
    UnsupportedType: Kind(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "/problems/unsupported-type", "Wrong content type"),
    TooLarge: Kind(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "/problems/too-large", "Too large"),
    Unauthenticated: Kind(HTTPStatus.UNAUTHORIZED, "/problems/unauthenticated", "A key is needed"),
    Forbidden: Kind(HTTPStatus.FORBIDDEN, "/problems/forbidden", "Not allowed"),
    RateLimited: Kind(HTTPStatus.TOO_MANY_REQUESTS, "/problems/rate-limited", "Too much asked for"),
    UnknownModel: Kind(HTTPStatus.NOT_FOUND, "/problems/unknown-model", "No such model"),
    UnknownVersion: Kind(HTTPStatus.NOT_FOUND, "/problems/unknown-version", "No such version"),
    Unservable: Kind(HTTPStatus.CONFLICT, "/problems/unservable", "Can't be served"),
    NotReady: Kind(HTTPStatus.SERVICE_UNAVAILABLE, "/problems/not-ready", "Not ready"),
    Overloaded: Kind(HTTPStatus.SERVICE_UNAVAILABLE, "/problems/overloaded", "Overloaded"),
    DeadlineExceeded: Kind(HTTPStatus.GATEWAY_TIMEOUT, "/problems/deadline-exceeded", "Deadline passed"),
    BundleError: Kind(HTTPStatus.INTERNAL_SERVER_ERROR, "/problems/bundle", "A bundle can't be trusted"),
    CorpusError: Kind(HTTPStatus.INTERNAL_SERVER_ERROR, "/problems/corpus", "A corpus can't be used"),
    SettingsError: Kind(HTTPStatus.INTERNAL_SERVER_ERROR, "/problems/settings", "A setting is wrong"),
}


class FieldError(TypedDict):
    """An error of one field, such as `texts.3`, or of the `body` as a whole."""

    field: str
    message: str


class Problem(TypedDict):
    """A problem document, RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    errors: NotRequired[list[FieldError]]


def problem(kind: Kind, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """Return a problem document as a response, in ASCII, since it may quote an unpaired surrogate.

    `more` are extension members.
    """
    document = {"type": kind.type, "title": kind.title, "status": kind.status, "detail": detail, **more}
    return Response(json.dumps(document), kind.status, headers, MEDIA_TYPE)


def from_error(error: SeqserveError) -> Response:
    """Return the problem document of an error of `app.errors`."""
    return problem(KINDS[type(error)], str(error), _headers(error))


def blank(status: int) -> Kind:
    """Return the kind of a problem without a type of its own."""
    return Kind(HTTPStatus(status), "about:blank", HTTPStatus(status).phrase)


async def answer_error(request: Request, error: Exception) -> Response:
    """Convert an error raised by a route to a problem document."""
    match error:
        case InvalidField():
            errors: list[FieldError] = [{"field": error.field, "message": error.message}]
            return problem(KINDS[InvalidField], str(error), errors=errors)
        case RequestValidationError():
            errors = [_field_error(fault) for fault in error.errors()[:MAX_FIELDS]]
            detail = "; ".join(f"{error['field']}: {error['message']}" for error in errors)
            return problem(KINDS[InvalidField], detail, errors=errors)
        case SeqserveError():
            return from_error(error)
        case HTTPException():
            detail = f"{request.method} {request.url.path[:MAX_SHOWN]}: {error.detail}"
            return problem(blank(error.status_code), detail, error.headers)
        case ClientDisconnect():
            return Response(status_code=CLIENT_CLOSED_REQUEST)
    raise error


HANDLED: Final[tuple[type[Exception], ...]] = (RequestValidationError, SeqserveError, HTTPException, ClientDisconnect)


def documented(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """Return the entries of a route's OpenAPI `responses` for these problem statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {int(status): {"description": status.phrase, "content": content} for status in statuses}


def schemas() -> dict[str, Any]:
    """Return the OpenAPI components that `documented` refers to."""
    schema = TypeAdapter(Problem).json_schema(ref_template="#/components/schemas/{model}")
    return {"Problem": schema, **schema.pop("$defs")}


def _headers(error: SeqserveError) -> dict[str, str]:
    match error:
        case Overloaded() | RateLimited():
            return {"Retry-After": str(error.retry_after)}
        case Unauthenticated():
            return {"WWW-Authenticate": 'Bearer error="invalid_token"' if error.refused else "Bearer"}  # RFC 6750, 3
        case NotReady(closing=closing):
            return {"Retry-After": str(NOT_READY_RETRY_S)} | ({"Connection": "close"} if closing else {})
        case TooLarge(hopeless=True) | DeadlineExceeded():
            return {"Connection": "close"}  # the rest of the body, if any, isn't read
    return {}


def _field_error(fault: Mapping[str, Any]) -> FieldError:
    location, *path = fault["loc"]
    name = ".".join(str(part) for part in path) or str(location)
    if fault["type"] in ("missing", "extra_forbidden"):
        return {"field": name[:MAX_SHOWN], "message": fault["msg"]}
    return {"field": name[:MAX_SHOWN], "message": f"{fault['msg']}, found {_shown(fault['input'])}"}


def _shown(value: Any) -> str:
    match value:
        case list():
            return "an array"
        case dict():
            return "an object"
        case str() if len(value) > MAX_SHOWN:
            return f"{json.dumps(value[:MAX_SHOWN])} and {len(value) - MAX_SHOWN} more characters"
    return json.dumps(value)[: 6 * MAX_SHOWN]  # an escaped character is up to six
