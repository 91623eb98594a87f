"""GET / and GET /web/{name}: the web page and its static files, all served from here."""

import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

from fastapi import HTTPException, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.api.http import static_files
from app.api.http.endpoints import Endpoint

FOLDER: Final = Path(__file__).with_name("static")
INDEX: Final = "index.html"
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",  # the digit reader's input; a photograph before its upload
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)  # Content Security Policy Level 3
HEADERS: Final = {"Content-Security-Policy": POLICY}


@dataclass(frozen=True)
class StaticFile:
    """One file of the page."""

    content: bytes
    media_type: str
    sha256: str


def routes(folder: Path = FOLDER) -> list[BaseRoute]:
    """Return the page's routes; its files, some 100 kB, are read once and kept in memory."""
    contents = {path: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in TYPES}
    files = {
        path.name: StaticFile(content, TYPES[path.suffix], hashlib.sha256(content).hexdigest())
        for path, content in contents.items()
    }

    async def page(request: Request) -> Response:
        """Serve the page."""
        return _answer(request, files[INDEX])

    async def file(name: str, request: Request) -> Response:
        """Serve one of the page's files."""
        if name not in files:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return _answer(request, files[name])

    return [
        Endpoint("/", page, scope=None, include_in_schema=False),
        Endpoint("/web/{name}", file, scope=None, include_in_schema=False),
    ]


def _answer(request: Request, file: StaticFile) -> Response:
    return static_files.answer(request, lambda: file.content, file.media_type, file.sha256, HEADERS)
