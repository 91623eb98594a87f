"""Endpoint declarations: the path, handler, key scope, body, size limit and cost of a route, in one place.

Authorization, rate limits and the OpenAPI document are derived from them; a route that declares no scope needs the
admin scope.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeAlias, cast

from fastapi import Depends, Header, Request
from fastapi.dependencies.utils import request_params_to_args
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import WithJsonSchema
from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.http import bodies, content_coding, problems
from app.api.http.bodies import Body
from app.api.http.context import RequestContext, request_context
from app.api.http.disconnects import while_connected
from app.api.http.keys import KeyScope
from app.api.http.uploads import Upload
from app.errors import DeadlineExceeded

UNDECLARED: Final[KeyScope] = "admin"
ANY: Final = "*"
TIMEOUT: Final = "X-Request-Timeout"
TIMEOUT_FIELD: Final = TIMEOUT.lower().encode()
STATUSES: Final = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)  # of the errors of an endpoint that runs a model
PROBLEMS: Final = problems.DOCUMENTS.documented(*STATUSES)

Provider: TypeAlias = Callable[[Request], Awaitable[Any]]  # a dependency of a handler


class Endpoint(APIRoute):
    """A route that declares its key scope (None: public) and, if it takes one, its body.

    An endpoint with a body reads, charges and validates it here, and cancels its handler when the client disconnects.
    Its handler returns a Response, and its dependencies are coroutine functions of the request alone; FastAPI documents
    it, and serves the other endpoints.
    """

    methods: set[str]

    def __init__(
        self,
        path: str,
        handler: Callable[..., Any],
        *,
        scope: KeyScope | None = UNDECLARED,
        body: Body | None = None,
        **documentation: Any,
    ) -> None:
        """Declare an endpoint: POST with a body, GET without; `documentation` is that of a FastAPI route."""
        if body:
            documentation["openapi_extra"] = documentation.get("openapi_extra", {}) | (body.openapi() or {})
        super().__init__(path, handler, methods=["POST" if body else "GET"], **documentation)
        self.key_scope = scope
        self.body = body
        self._payload = self.dependant.body_params[0] if body and self.dependant.body_params else None
        self._providers = [
            (each.name, cast(Provider, each.call)) for each in self.dependant.dependencies if each.name and each.call
        ]
        self._headers = [field for each in self.dependant.dependencies for field in each.header_params]
        self._defaults, _ = self._parameters({}, {}, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self.body is None or scope["method"] not in self.methods:
            await super().handle(scope, receive, send)
            return
        context = request_context(scope)
        try:
            response = await self._respond(self.body, scope, receive, context)
        finally:
            if context.files:
                context.files.close()
        await response(scope, receive, send)

    async def _respond(self, body: Body, scope: Scope, receive: Receive, context: RequestContext) -> Response:
        """Return the handler's response. Raise RequestValidationError with the faults of head and body together."""
        fields = bodies.fields(scope)
        body.require_type(bodies.content_type(fields))
        values, errors = self._head(scope, fields)
        limit_s: float = scope["state"]["request_timeout_s"]
        context.timeout_s = min(limit_s, values.pop("timeout_s", None) or limit_s)
        context.deadline = context.started + context.timeout_s
        coding = fields.get(b"content-encoding")
        receive_body = content_coding.decoded(receive, coding, body.max_bytes) if coding else receive
        context.content = content = await bodies.read(
            body, scope, receive_body, context, int(fields.get(b"content-length") or 0)
        )
        if context.charge and (units := body.units(content, scope)):
            await context.charge.add(units)
        if self._payload:
            values[self._payload.name], faults = self._payload.validate(content, {}, loc=("body",))
            errors += faults
        if errors:
            raise RequestValidationError(errors)
        if time.monotonic() >= context.deadline:
            raise DeadlineExceeded(f"the body took longer than the {context.timeout_s:g} s of the request")
        return await while_connected(scope, receive, self._call(Request(scope), values))

    def _head(self, scope: Scope, fields: Mapping[bytes, bytes]) -> tuple[dict[str, Any], list[Any]]:
        """Return the handler's arguments from the request's head, and the faults in it."""
        path = scope.get("path_params") or {}
        if path or scope["query_string"] or TIMEOUT_FIELD in fields:
            return self._parameters(Headers(scope=scope), path, QueryParams(scope["query_string"]))
        return self._defaults.copy(), []

    def _parameters(
        self, headers: Mapping[str, str], path: Mapping[str, Any], query: Mapping[str, str]
    ) -> tuple[dict[str, Any], list[Any]]:
        values: dict[str, Any] = {}
        errors: list[Any] = []
        dependant = self.dependant
        for declared, sent in (
            (self._headers, headers),
            (dependant.path_params, path),
            (dependant.query_params, query),
        ):
            found, faults = request_params_to_args(declared, sent)
            values |= found
            errors += faults
        return values, errors

    async def _call(self, request: Request, values: dict[str, Any]) -> Response:
        for name, provide in self._providers:
            values[name] = await provide(request)
        response: Response = await self.endpoint(**values)
        return response


class PublicMount(Mount):
    """A mounted application that needs no key."""

    key_scope: KeyScope | None = None


class Dispatch:
    """Middleware that calls endpoints with a body and a fixed path; the router takes a sixth of a keystroke's time."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self.app = app
        self._endpoints = {
            route.path: route
            for route in routes
            if isinstance(route, Endpoint) and route.body and "{" not in route.path
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        endpoint = self._endpoints.get(scope["path"]) if scope["type"] == "http" else None
        if endpoint and scope["method"] in endpoint.methods:
            scope["route"] = endpoint
            await endpoint.handle(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def required_scopes(routes: Sequence[BaseRoute]) -> dict[str, dict[str, KeyScope | None]]:
    """Return the key scopes of each path template by method, None for public ones.

    A mount's covers all paths below it. It and a route without methods have one scope, by the method ANY.
    """
    required: dict[str, dict[str, KeyScope | None]] = {}
    for context in iter_route_contexts(routes):
        path, route = context.path, context.original_route
        if path:
            template = f"{path}/{{path:path}}" if isinstance(route, Mount) else path
            methods = getattr(route, "methods", None) or (ANY,)
            required.setdefault(template, {}).update(dict.fromkeys(methods, getattr(route, "key_scope", UNDECLARED)))
    return required


async def _context(request: Request) -> RequestContext:
    return request_context(request.scope)


async def _content(request: Request) -> Any:
    return request_context(request.scope).content


async def _deadline(
    request: Request,
    timeout_s: Annotated[  # noqa: ARG001  # documents the header, which Endpoint has read
        float | None,
        WithJsonSchema({"type": "number", "exclusiveMinimum": 0}),  # a header is absent, never null
        Header(
            alias=TIMEOUT,
            gt=0,
            allow_inf_nan=False,
            description="Seconds from the request's arrival after which the answer is of no more use. Can only lower "
            "the server's own limit.",
        ),
    ] = None,
) -> float:
    return request_context(request.scope).deadline


Deadline = Annotated[float, Depends(_deadline)]  # a time of time.monotonic
Context = Annotated[RequestContext, Depends(_context)]
Images = Annotated[Sequence[Upload], Depends(_content)]  # of an endpoint with an ImageBody
