"""The table from error to HTTP status, and the formats of errors.

Errors are problem documents (RFC 9457), unless a dialect declares another format.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, NotRequired, TypeAlias

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Scope
from typing_extensions import TypedDict

from app.api.http.context import request_context
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

CLIENT_CLOSED_REQUEST: Final = 499  # the client disconnected before the response; seen in metrics and logs only
NOT_READY_RETRY_S: Final = 2  # loading takes about a second
MAX_ERRORS: Final = 20  # a body can have a million invalid fields; more are not reported
MAX_SHOWN: Final = 80  # characters of what was found
EXPECTED: Final = {  # by pydantic's type of fault, with the members of its context
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "dataclass_type": "expected an object",
    "extra_forbidden": "expected no such field",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected {ge} or more",
    "int_parsing": "expected an integer",
    "int_type": "expected an integer",
    "less_than_equal": "expected {le} or less",
    "list_type": "expected an array",
    "literal_error": "expected {expected}",
    "missing": "expected a value, found none",
    "model_attributes_type": "expected an object",
    "string_too_long": "expected {max_length} or fewer characters",
    "string_type": "expected a string",
    "too_long": "expected {max_length} or fewer items",
    "too_short": "expected {min_length} or more items",
    "unexpected_keyword_argument": "expected no such field",
}


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


@dataclass(frozen=True, slots=True)
class Report:
    """An error of a request, without a format."""

    kind: Kind
    detail: str  # for the user
    headers: Mapping[str, str] = field(default_factory=dict)
    errors: Sequence[FieldError] = ()  # by field, where fields are wrong
    more: Mapping[str, Any] = field(default_factory=dict)  # extension members of a problem document


class Problem(TypedDict):
    """A problem document, RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    errors: NotRequired[list[FieldError]]


@dataclass(frozen=True)
class ErrorFormat:
    """The format of a dialect's errors: JSON of one schema and media type."""

    body: Callable[[Report], Any]
    schema: type  # of the body, a TypedDict
    media_type: str = "application/json"
    invalid_field: HTTPStatus = HTTPStatus.BAD_REQUEST

    def respond(self, report: Report) -> Response:
        """Return the error as a response, in ASCII, since it may quote an unpaired surrogate."""
        content = json.dumps(self.body(report))
        return Response(content, self._status(report.kind.status), report.headers, self.media_type)

    def documented(self, *statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
        """Return the entries of a route's OpenAPI `responses` for the errors of these statuses."""
        content = {self.media_type: {"schema": {"$ref": f"#/components/schemas/{self.schema.__name__}"}}}
        found = dict.fromkeys(map(self._status, statuses))
        return {int(status): {"description": status.phrase, "content": content} for status in found}

    def schemas(self) -> dict[str, Any]:
        """Return the OpenAPI components that `documented` refers to."""
        schema = TypeAdapter(self.schema).json_schema(ref_template="#/components/schemas/{model}")
        return {self.schema.__name__: schema, **schema.pop("$defs", {})}

    def _status(self, status: HTTPStatus) -> HTTPStatus:
        return self.invalid_field if status == KINDS[InvalidField].status else status


def _document(report: Report) -> dict[str, Any]:
    kind = report.kind
    errors = {"errors": report.errors} if report.errors else {}
    document = {"type": kind.type, "title": kind.title, "status": kind.status, "detail": report.detail}
    return document | errors | dict(report.more)


Formats: TypeAlias = Sequence[tuple[re.Pattern[str], ErrorFormat]]
DOCUMENTS: Final = ErrorFormat(_document, Problem, "application/problem+json", HTTPStatus.UNPROCESSABLE_ENTITY)


def selected(formats: Formats, method: str, path: str) -> ErrorFormat:
    """Return the first format whose pattern matches "METHOD /path", else problem documents."""
    request = f"{method} {path}"
    return next((errors for requests, errors in formats if requests.fullmatch(request)), DOCUMENTS)


def blank(status: int) -> Kind:
    """Return the kind of a problem without a type of its own."""
    return Kind(HTTPStatus(status), "about:blank", HTTPStatus(status).phrase)


def of(error: SeqserveError) -> Report:
    """Return the report of an error of `app.errors`."""
    errors: list[FieldError] = []
    if isinstance(error, InvalidField):
        errors = [{"field": error.field, "message": error.message}]
    return Report(KINDS[type(error)], str(error), _headers(error), errors)


def response(error: Exception, scope: Scope) -> Response:
    """Return an error of a request as a response in its dialect's format. Raise an error that is not among HANDLED."""
    match error:
        case SeqserveError():
            report = of(error)
        case RequestValidationError():
            errors = [_field_error(fault) for fault in error.errors()[:MAX_ERRORS]]
            detail = "; ".join(f"{error['field']}: {error['message']}" for error in errors)
            report = Report(KINDS[InvalidField], detail, errors=errors)
        case HTTPException():
            detail = f"{scope['method']} {Request(scope).url.path[:MAX_SHOWN]}: {error.detail}"
            report = Report(blank(error.status_code), detail, error.headers or {})
        case ClientDisconnect():
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        case _:
            raise error
    return respond(report, scope)


def respond(report: Report, scope: Scope) -> Response:
    """Return a report as a response in the format of the request's dialect."""
    return selected(request_context(scope).error_formats, scope["method"], scope["path"]).respond(report)


async def answer_error(request: Request, error: Exception) -> Response:
    """Convert an error raised by a route to a response."""
    return response(error, request.scope)


HANDLED: Final[tuple[type[Exception], ...]] = (RequestValidationError, SeqserveError, HTTPException, ClientDisconnect)


def _headers(error: SeqserveError) -> dict[str, str]:
    match error:
        case UnsupportedType(codings=str(codings)) if codings:
            return {"Accept-Encoding": codings}  # RFC 9110, 15.5.16
        case Overloaded() | RateLimited():
            return {"Retry-After": str(error.retry_after)}
        case Unauthenticated():
            return {"WWW-Authenticate": 'Bearer error="invalid_token"' if error.invalid else "Bearer"}  # RFC 6750, 3
        case NotReady(closing=closing):
            return {"Retry-After": str(NOT_READY_RETRY_S)} | ({"Connection": "close"} if closing else {})
        case DeadlineExceeded():
            return {"Connection": "close", "x-should-retry": "false"}  # OpenAI's client would repeat it twice
        case TooLarge(unread=True):
            return {"Connection": "close"}  # the rest of the body, if any, isn't read
    return {}


def _field_error(fault: Mapping[str, Any]) -> FieldError:
    location, *path = fault["loc"]
    name = ".".join(str(part) for part in path) or str(location)
    message = fault["msg"]
    if fault["type"] in EXPECTED and not message.startswith("expected "):  # as those of our own validators do
        message = EXPECTED[fault["type"]].format(**fault.get("ctx", {}))
    if fault["type"] not in ("missing", "extra_forbidden", "unexpected_keyword_argument"):
        message += f", found {_shown(fault['input'])}"
    return {"field": name[:MAX_SHOWN], "message": message}


def _shown(value: Any) -> str:
    match value:
        case list():
            return f"an array of {len(value)}"
        case dict():
            return "an object"
        case str() if len(value) > MAX_SHOWN:
            return f"{json.dumps(value[:MAX_SHOWN])} and {len(value) - MAX_SHOWN} more characters"
    return json.dumps(value)[: 6 * MAX_SHOWN]  # an escaped character is up to six
