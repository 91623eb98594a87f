"""The path prefix under which a proxy serves the application."""

from http import HTTPStatus

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class RootPath:
    """The outermost middleware where there is a prefix: removes it from the paths of a proxy that passes it on.

    Paths without the prefix are served as well: most proxies remove it, and health probes come without one. The page's
    addresses are relative, so a request for the prefix is redirected to the folder.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            path = scope["path"].removeprefix(self._root_path)
            if not path:
                redirect = RedirectResponse(f"{self._root_path}/", HTTPStatus.PERMANENT_REDIRECT)
                await redirect(scope, receive, send)
                return
            if path.startswith("/"):  # else the prefix is that of a longer name
                scope["path"] = path
                scope["raw_path"] = scope.get("raw_path", b"").removeprefix(self._root_path.encode())
        await self.app(scope, receive, send)
