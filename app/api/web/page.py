"""GET / and GET /web/{name}: the page, and the files that it is made of. Nothing of it comes from another host."""

import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

from fastapi import APIRouter, HTTPException, Request
from starlette.responses import Response

from app.api.http import static_files

FOLDER: Final = Path(__file__).with_name("static")
INDEX: Final = "index.html"
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",  # what the digit reader saw; a photograph, before it is sent
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)  # Content Security Policy Level 3
HEADERS: Final = {"Content-Security-Policy": POLICY}


@dataclass(frozen=True)
class Part:
    """One file of the page."""

    content: bytes
    media_type: str
    sha256: str


def routes(folder: Path = FOLDER) -> APIRouter:
    """The page's routes; its files, some 100 kB, are read now and kept."""
    parts = {path.name: _part(path) for path in sorted(folder.iterdir()) if path.suffix in TYPES}
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page(request: Request) -> Response:
        """The page: all three models, to be played with."""
        return _answer(request, parts[INDEX])

    @router.get("/web/{name}")
    async def part(name: str, request: Request) -> Response:
        """One of its files."""
        if name not in parts:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return _answer(request, parts[name])

    return router


def _part(path: Path) -> Part:
    content = path.read_bytes()
    return Part(content, TYPES[path.suffix], hashlib.sha256(content).hexdigest())


def _answer(request: Request, part: Part) -> Response:
    return static_files.answer(request, lambda: part.content, part.media_type, part.sha256, HEADERS)
