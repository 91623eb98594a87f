"""Typed data of one request, shared by the middleware and the endpoints."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from starlette.types import Scope

from app.api.http.keys import KeyScope
from app.api.http.security_headers import Header
from app.runtime.usage import RequestUsage

if TYPE_CHECKING:
    from app.api.http.problems import Formats
    from app.api.http.rate_limits import Charge

KEY: Final = "context"  # of the context in a request's `scope["state"]`


@dataclass(slots=True, eq=False)
class RequestContext:
    """Data of one request; each field is set by the layer that knows it. Times are those of time.monotonic."""

    request_id: str
    started: float
    error_formats: "Formats" = ()  # of the dialects
    usage: RequestUsage = field(default_factory=RequestUsage)
    response_headers: list[Callable[[], list[Header]]] = field(default_factory=list)  # called as the response starts
    status: int | None = None  # set when the response starts
    trace_id: str | None = None
    route: str | None = None  # path template
    required: KeyScope | None = None  # key scope that the route requires
    key: str | None = None  # name of the API key
    charge: "Charge | None" = None  # where rates are limited
    timeout_s: float = 0.0
    deadline: float = 0.0  # started + timeout_s
    content: Any = None  # of the body, decoded
    files: ExitStack | None = None  # open files of the content


def request_context(scope: Scope) -> RequestContext:
    """Return the request's context."""
    context: RequestContext = scope["state"][KEY]
    return context
