"""The exceptions of the client.

SeqserveError
|- ConnectionFailed        no complete response: the connection failed or timed out
|- UnexpectedAnswer        a response of another server, such as a web page
`- Problem                 an error response; its document is RFC 9457's
   |- InvalidField         422: `errors` names the fields
   |- Malformed            400
   |- Unauthenticated      401
   |- Forbidden            403
   |- NotFound             404
   |  `- UnknownModel
   |- TooLarge             413
   |- UnsupportedType      415
   |- RateLimited          429, after the retries
   |- Unavailable          502 or 503, after the retries
   |  |- NotReady
   |  `- Overloaded
   `- DeadlineExceeded     504
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx


class SeqserveError(Exception):
    """Base class of the client's exceptions."""


class ConnectionFailed(SeqserveError):
    """No complete response arrived; `__cause__` is httpx's exception, if there is one."""


class UnexpectedAnswer(SeqserveError):
    """A successful response whose content is not the answer: the address is that of something else."""


@dataclass(frozen=True)
class FieldError:
    """A wrong field of the request, such as `texts.3`, and what is wrong with it."""

    field: str
    message: str


class Problem(SeqserveError):
    """An error response: the members of its problem document, and the id under which the server logged the request."""

    def __init__(self, status: int, document: Mapping[str, Any], request_id: str | None) -> None:
        self.status = status
        self.type: str = document.get("type", "about:blank")
        self.title: str = document.get("title", "")
        self.detail: str = document.get("detail", "")
        self.errors = [FieldError(error["field"], error["message"]) for error in document.get("errors", [])]
        self.request_id = request_id
        super().__init__(f"{status} {self.title}: {self.detail}")


class InvalidField(Problem):
    """A field of the request has a wrong type or value; `errors` lists them."""


class Malformed(Problem):
    """The body can't be parsed, or an image can't be decoded."""


class Unauthenticated(Problem):
    """No valid API key was sent."""


class Forbidden(Problem):
    """The scope of the API key is too small."""


class NotFound(Problem):
    """No such route or model."""


class UnknownModel(NotFound):
    """No model of this name."""


class TooLarge(Problem):
    """The body, an image or the number of images is over its limit."""


class UnsupportedType(Problem):
    """The content type is not supported."""


class RateLimited(Problem):
    """The client is over its rate limit."""


class Unavailable(Problem):
    """The server can't answer now."""


class NotReady(Unavailable):
    """The model is loading, was rejected, or the server is shutting down."""


class Overloaded(Unavailable):
    """The queue of the model is full."""


class DeadlineExceeded(Problem):
    """The server's deadline passed before the answer was ready."""


TYPES: Final[dict[str, type[Problem]]] = {
    "/problems/invalid-field": InvalidField,
    "/problems/malformed": Malformed,
    "/problems/unsupported-type": UnsupportedType,
    "/problems/too-large": TooLarge,
    "/problems/unauthenticated": Unauthenticated,
    "/problems/forbidden": Forbidden,
    "/problems/rate-limited": RateLimited,
    "/problems/unknown-model": UnknownModel,
    "/problems/not-ready": NotReady,
    "/problems/overloaded": Overloaded,
    "/problems/deadline-exceeded": DeadlineExceeded,
}
STATUSES: Final[dict[int, type[Problem]]] = {  # of types that this client does not know, and of proxies
    400: Malformed,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    413: TooLarge,
    415: UnsupportedType,
    422: InvalidField,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}


def connection_failed(failure: httpx.TransportError) -> ConnectionFailed:
    """Return the exception for a failure of httpx."""
    return ConnectionFailed(f"{failure.request.url}: {failure or type(failure).__name__}")


def from_response(response: httpx.Response) -> Problem:
    """Return the exception for an error response whose content has been read."""
    document: Mapping[str, Any] = {"title": response.reason_phrase, "detail": response.text[:200]}
    if response.headers.get("Content-Type", "").startswith("application/problem+json"):
        document = response.json()
    return from_document(response.status_code, document, response.headers.get("X-Request-Id"))


def from_document(status: int, document: Mapping[str, Any], request_id: str | None) -> Problem:
    """Return the exception for a problem document, by its type if known, else by status."""
    kind = TYPES.get(document.get("type", ""), STATUSES.get(status, Problem))
    return kind(status, document, request_id)
