"""The format of OpenAI's errors."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from typing_extensions import TypedDict

from app.api.http.problems import KINDS, ErrorFormat, Report
from app.errors import DeadlineExceeded, NotReady, Overloaded, RateLimited, SeqserveError, Unauthenticated, UnknownModel

TYPES: Final[Mapping[HTTPStatus, str]] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}  # other client errors are INVALID, errors of the server SERVER
INVALID: Final = "invalid_request_error"
SERVER: Final = "server_error"
CODES: Final[Mapping[type[SeqserveError], str]] = {
    Unauthenticated: "invalid_api_key",
    UnknownModel: "model_not_found",
    RateLimited: "rate_limit_exceeded",
    Overloaded: "overloaded",
    NotReady: "not_ready",
    DeadlineExceeded: "deadline_exceeded",
}


class OpenAIErrorDetail(TypedDict):
    """An error: what is wrong, its type, the field and a code for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(TypedDict):
    """The body of an error."""

    error: OpenAIErrorDetail


def body(report: Report) -> dict[str, Any]:
    """Return the body of an error; `param` is the first wrong field."""
    status = report.kind.status
    codes = {KINDS[error]: code for error, code in CODES.items()}
    error: OpenAIErrorDetail = {
        "message": report.detail,
        "type": TYPES.get(status, SERVER if status >= HTTPStatus.INTERNAL_SERVER_ERROR else INVALID),
        "param": report.errors[0]["field"].partition(".")[0] if report.errors else None,
        "code": codes.get(report.kind),
    }
    return {"error": error}


ERRORS: Final = ErrorFormat(body, OpenAIError)
