"""Authorization: API keys against the key scopes that the endpoints declare."""

import ipaddress
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.http import bodies, problems
from app.api.http.context import RequestContext, request_context
from app.api.http.endpoints import ANY, required_scopes
from app.api.http.keys import Key, Keys, KeyScope
from app.api.http.problems import Formats
from app.errors import Forbidden, Unauthenticated

Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}  # OpenAPI security schemes
SESSION: Final = "X-Session-Id"
SESSION_PARAMETER: Final = {
    "name": SESSION,
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "Names a writer. The server neither reads nor logs it; a proxy keeps the requests of one session "
    "with the server that has their text in its state cache.",
}
LIMITED: Final[dict[KeyScope, tuple[HTTPStatus, ...]]] = {"predict": (HTTPStatus.TOO_MANY_REQUESTS,), "admin": ()}
FORWARDED: Final = frozenset({b"forwarded", b"x-forwarded-for"})


def document(openapi: dict[str, Any], routes: Sequence[BaseRoute], formats: Formats, *, with_keys: bool) -> None:
    """Add to an OpenAPI document the security of each operation, its errors, and the header of sessions."""
    required = required_scopes(routes)
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            if scope := required[path][method.upper()]:
                errors = problems.selected(formats, method.upper(), path)
                rejections = errors.documented(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, *LIMITED[scope])
                operation["responses"].update({str(status): response for status, response in rejections.items()})
                if scope == "predict" and method == "post":
                    others = [one for one in operation.get("parameters", []) if one["name"] != SESSION]
                    operation["parameters"] = [*others, SESSION_PARAMETER]
                if with_keys:
                    operation["security"] = [{name: []} for name in SCHEMES]
    if with_keys:
        openapi["components"]["securitySchemes"] = SCHEMES


class AccessControl:
    """Middleware that rejects a request with 401 or 403, its body unread, unless its key covers the route's scope.

    Without keys, the scope `predict` is public, and `admin` is limited to this machine. Sets the context's `route`,
    `required` scope and `key`.
    """

    def __init__(self, app: ASGIApp, keys: Keys | None, routes: Sequence[BaseRoute]) -> None:
        self.app = app
        self._keys = keys
        required = required_scopes(routes)
        self._fixed = {
            (method, path): (path, scope)
            for path, scopes in required.items()
            if "{" not in path
            for method, scope in scopes.items()
        }
        self._patterns = [(compile_path(path)[0], path, scopes) for path, scopes in required.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or reject it."""
        if scope["type"] == "http":
            context = request_context(scope)
            method, path = scope["method"], scope["path"]
            others: set[str] = set()  # methods of a path that lacks this one
            context.route, context.required = self._fixed.get((method, path)) or self._route(method, path, others)
            try:
                self._require(context, scope)
            except (Unauthenticated, Forbidden) as error:
                await bodies.reject(error, scope, receive, send)
                return
            if others:
                raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": ", ".join(sorted(others))})
        await self.app(scope, receive, send)

    def _route(self, method: str, path: str, others: set[str]) -> tuple[str | None, KeyScope | None]:
        """Return the path template and key scope of the route that the router selects.

        For a method that the path lacks, they are those of another method, and `others` receives the path's methods.
        """
        matching = [(template, scopes) for pattern, template, scopes in self._patterns if pattern.match(path)]
        for template, scopes in matching:
            if method in scopes or ANY in scopes:
                return template, scopes.get(method, scopes.get(ANY))
        others.update(other for _, scopes in matching for other in scopes)
        return next(((template, next(iter(scopes.values()))) for template, scopes in matching), (None, None))

    def _require(self, context: RequestContext, scope: Scope) -> None:
        """Raise Unauthenticated or Forbidden unless the request may use the route."""
        required = context.required
        if required is None:
            return
        if self._keys is None:
            if required != "predict" and not is_local(scope):
                raise Forbidden("without API keys this is for the server's machine alone, as localhost or 127.0.0.1")
            return
        key = self._valid(self._keys, sent_key(scope["headers"]))
        context.key = key.name
        if not key.allows(required):
            raise Forbidden(f"expected a key of scope {required}, found {key.scope}")

    @staticmethod
    def _valid(keys: Keys, secret: str | None) -> Key:
        if secret is None:
            raise Unauthenticated("expected a key as Authorization: Bearer or X-API-Key, found none", invalid=False)
        key = keys.find(secret)
        if key is None:
            raise Unauthenticated("there is no such key", invalid=True)
        if keys.expired(key):
            raise Unauthenticated("the key has expired", invalid=True)
        return key


def sent_key(headers: Headers) -> str | None:
    """Return the key in the headers; a bearer token takes precedence over X-API-Key."""
    found: dict[bytes, str] = {}
    for name, value in headers:
        if name in (b"authorization", b"x-api-key"):
            found.setdefault(name, value.decode("latin-1"))
    scheme, _, bearer = found.get(b"authorization", "").partition(" ")
    return bearer.strip() if scheme.lower() == "bearer" else found.get(b"x-api-key")


def is_local(scope: Scope) -> bool:
    """Return whether the request comes from this machine, through no proxy, and names it by a loopback name.

    A foreign page in a local browser is not local: with DNS rebinding its own name resolves to 127.0.0.1 and is sent as
    Host, and a cross-origin request has its Origin.
    """
    client = scope.get("client")
    if client is None or any(name in FORWARDED for name, _ in scope["headers"]):
        return False
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    origins = [value.decode("latin-1").partition("://")[2] for name, value in scope["headers"] if name == b"origin"]
    return _is_loopback(client[0]) and len(hosts) == 1 and all(map(_is_loopback_name, (*hosts, *origins)))


def _is_loopback_name(host: str) -> bool:
    """Return whether a Host header is localhost or a loopback address, with any port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:  # brackets without an address
        return False
    return name == "localhost" or _is_loopback(name)


def _is_loopback(host: str) -> bool:
    try:
        return address(host).is_loopback
    except ValueError:
        return False


def address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Parse an IP address; an IPv4-mapped IPv6 address becomes IPv4. Raise ValueError if it is invalid."""
    found = ipaddress.ip_address(host)
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found
