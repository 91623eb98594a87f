"""Who may ask what: the one table from route to the scope of key that it needs, and what holds callers to it."""

import ipaddress
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute, Mount, compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.http import bodies, problems
from app.api.http.keys import Key, Keys, KeyScope
from app.errors import Forbidden, Unauthenticated

Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

# By a route's template; None: open to all. What is not declared here needs `admin`.
NEEDED: Final[dict[str, KeyScope | None]] = {
    "/": None,
    "/web/{name}": None,
    "/docs": None,
    "/docs/files/{path:path}": None,
    "/openapi.json": None,
    "/livez": None,
    "/readyz": None,
    "/next-word": "predict",
    "/perplexity": "predict",
    "/digits": "predict",
    "/captions": "predict",
    "/models": "predict",
    "/models/{model}": "predict",
    "/models/{model}/files/{name}": None,  # a browser's <img> can't send a key, and a card's pictures are no secret
    "/models/{model}/activate": "admin",
    "/metrics": "admin",
}
UNDECLARED: Final[KeyScope] = "admin"
SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}  # in OpenAPI's terms
LIMITED: Final[dict[KeyScope, tuple[HTTPStatus, ...]]] = {"predict": (HTTPStatus.TOO_MANY_REQUESTS,), "admin": ()}
FORWARDED: Final = frozenset({b"forwarded", b"x-forwarded-for"})


def templates(routes: Sequence[BaseRoute]) -> list[str]:
    """The templates of all routes; a mount's has all that is below it."""
    found = [(context.path, context.original_route) for context in iter_route_contexts(routes)]
    return [f"{path}/{{path:path}}" if isinstance(route, Mount) else path for path, route in found if path]


def document(openapi: dict[str, Any], *, with_keys: bool) -> None:
    """Add to an OpenAPI document what each operation needs, and what who hasn't got it is told."""
    for path, operations in openapi["paths"].items():
        if needed := NEEDED.get(path, UNDECLARED):
            refusals = problems.documented(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, *LIMITED[needed])
            for operation in operations.values():
                operation["responses"].update({str(status): told for status, told in refusals.items()})
                if with_keys:
                    operation["security"] = [{name: []} for name in SCHEMES]
    if with_keys:
        openapi["components"]["securitySchemes"] = SCHEMES


class Access:
    """A request goes on if its key covers what the route needs; else a 401 or 403 is all that there is, body unread.

    Without keys, predictions are open to all, and what needs `admin` is for this machine alone. The request's state
    gets the route's `template`, the scope that is `needed` and the name of the `key`.
    """

    def __init__(self, app: ASGIApp, keys: Keys | None, paths: Sequence[str]) -> None:
        self.app = app
        self._keys = keys
        self._fixed = {path for path in paths if "{" not in path}
        self._patterns = [(compile_path(path)[0], path) for path in paths]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request pass, or answer it."""
        if scope["type"] == "http" and (template := self._template(scope["path"])):
            needed = NEEDED.get(template, UNDECLARED)
            scope["state"].update(template=template, needed=needed)
            try:
                self._require(needed, scope)
            except (Unauthenticated, Forbidden) as error:
                await bodies.refuse(error, scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _template(self, path: str) -> str | None:
        """Of the first route that the router's own pattern finds; what no route has is not there, for anybody."""
        if path in self._fixed:
            return path
        return next((template for pattern, template in self._patterns if pattern.match(path)), None)

    def _require(self, needed: KeyScope | None, scope: Scope) -> None:
        if needed is None:
            return
        if self._keys is None:
            if needed != "predict" and not is_local(scope):
                raise Forbidden("without API keys this is for the server's machine alone, as localhost or 127.0.0.1")
            return
        key = self._valid(self._keys, sent(scope["headers"]))
        scope["state"]["key"] = key.name
        if not key.allows(needed):
            raise Forbidden(f"expected a key of scope {needed}, found {key.scope}")

    @staticmethod
    def _valid(keys: Keys, secret: str | None) -> Key:
        if secret is None:
            raise Unauthenticated("expected a key as Authorization: Bearer or X-API-Key, found none", refused=False)
        key = keys.find(secret)
        if key is None:
            raise Unauthenticated("there is no such key", refused=True)
        if keys.expired(key):
            raise Unauthenticated("the key has expired", refused=True)
        return key


def sent(headers: Headers) -> str | None:
    """The key in the headers: that of Authorization, if it is a bearer's, goes first."""
    found: dict[bytes, str] = {}
    for name, value in headers:
        if name in (b"authorization", b"x-api-key"):
            found.setdefault(name, value.decode("latin-1"))
    scheme, _, bearer = found.get(b"authorization", "").partition(" ")
    return bearer.strip() if scheme.lower() == "bearer" else found.get(b"x-api-key")


def is_local(scope: Scope) -> bool:
    """Whether it comes from this machine, from no proxy on it, and asks for it by a name that only the machine has.

    A page from elsewhere that a browser on this machine shows is not local: it can have its own name lead to 127.0.0.1
    (DNS rebinding), and Host is then that name; or ask across origins, which Origin tells.
    """
    client = scope.get("client")
    if client is None or any(name in FORWARDED for name, _ in scope["headers"]):
        return False
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    origins = [value.decode("latin-1").partition("://")[2] for name, value in scope["headers"] if name == b"origin"]
    return _is_loopback(client[0]) and len(hosts) == 1 and all(map(_is_own, (*hosts, *origins)))


def _is_own(host: str) -> bool:
    """Whether a Host header is localhost or a loopback address, at whatever port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:  # brackets that hold no address
        return False
    return name == "localhost" or _is_loopback(name)


def _is_loopback(host: str) -> bool:
    try:
        return address(host).is_loopback
    except ValueError:
        return False


def address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address that `host` writes; an IPv4 one in IPv6's clothes is what it is. Raise ValueError if it is none."""
    found = ipaddress.ip_address(host)
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found
