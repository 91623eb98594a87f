"""Typed data of one request and of the service, shared by the middleware and the endpoints."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import Depends, Request
from starlette.types import Scope
from typing_extensions import TypedDict

from app.api.http.body_memory import MemoryBudget
from app.api.http.keys import KeyScope
from app.api.http.security_headers import Header
from app.runtime.metrics import Metrics, RequestUsage
from app.runtime.registry import Registry
from app.runtime.work_process import WorkProcess

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
    files: ExitStack | None = None  # open files of the content, and its memory


def request_context(scope: Scope) -> RequestContext:
    """Return the request's context."""
    context: RequestContext = scope["state"][KEY]
    return context


class State(TypedDict):
    """The lifespan's state, part of every request's `scope['state']`."""

    registry: Registry
    metrics: Metrics
    processes: dict[bool, WorkProcess]  # for large JSON bodies, by bulk
    body_memory: dict[bool, MemoryBudget]  # of large bodies, by bulk
    request_timeout_s: float


async def _registry(request: Request) -> Registry:
    registry: Registry = request.scope["state"]["registry"]
    return registry


async def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.scope["state"]["metrics"]
    return metrics


RegistryOf = Annotated[Registry, Depends(_registry)]
MetricsOf = Annotated[Metrics, Depends(_metrics)]
